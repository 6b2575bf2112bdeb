"""What an SAE does, on another device than the CPU; `tests/test_another_device.py` runs it."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sae_lens.saes.sae
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file

from sae_lens_gba import (
    BiasAdaptationHook,
    GBATrainingSAE,
    neuron_groups,
    precision,
    training_hook,
)
from sae_lens_gba import sparse_autoencoder_ops as ops
from sae_lens_gba.saved.other_l0 import at_l0, calibrate
from tests.another_device.device import NAME, Elsewhere, without_float64
from tests.toolbox import make_trainer, mixture, pairs, take_steps, tiny_config, tiny_sae

STEPS = 7
new_tensor = torch.tensor


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # as if there were kernels for it; PyTorch has no autocast there
    monkeypatch.setitem(ops._SPARSE_DTYPES, NAME, (torch.float32, torch.float64))
    monkeypatch.setattr(ops, "_autocast_dtype", lambda device: None)
    monkeypatch.setattr(torch, "tensor", tensor_there)
    # safetensors reads memory by its address, which is of no use here
    for module in (sae_lens.saes.sae, neuron_groups, training_hook):
        monkeypatch.setattr(module, "save_file", save_from_there)
    with Elsewhere():
        yield


def tensor_there(data: Any, *, device: Any = None, dtype: Any = None) -> torch.Tensor:
    """torch.tensor, which knows nothing of devices in Python."""
    return new_tensor(data, dtype=dtype).to("cpu" if device is None else device)


def save_from_there(tensors: dict[str, torch.Tensor], path: Path, **settings: Any) -> None:
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, path, **settings)


def trained(sae: Any, device: str, batches: Any = None) -> SAETrainer[Any, Any]:
    sae = sae.to(device)
    sae.cfg.device = device
    if batches is None:
        batches = itertools.cycle(list(itertools.islice(mixture(1, device=device), 4)))
    trainer = make_trainer(sae, STEPS, batches, device=device)
    # the same steps on both: for this device, torch has no fused ones
    trainer.optimizer.param_groups[0]["foreach"] = False
    take_steps(trainer, STEPS)
    return trainer


def new_gba(**settings: Any) -> GBATrainingSAE:
    torch.manual_seed(0)
    return GBATrainingSAE(tiny_config(dtype="float64", **settings))


def assert_same(state: dict[str, torch.Tensor], on_cpu: dict[str, torch.Tensor]) -> None:
    assert state.keys() == on_cpu.keys()
    for name, value in state.items():
        assert value.device.type == NAME, name
        torch.testing.assert_close(value.cpu(), on_cpu[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"sparse_below_density": 1.0},
        {"sparse_below_density": 0.0},
        {"n_nested_reconstructions": 1, "sparse_below_density": 1.0},
        {"tied": True, "activation": "relu", "sparse_below_density": 1.0},
        {"bias_update": "paper", "bias_init": "zero"},
        {"normalize_activations": "layer_norm", "sparse_below_density": 1.0},
    ],
    ids=str,
)
def test_training_calibration_and_saving(tmp_path: Path, settings: dict[str, Any]) -> None:
    here, there = (trained(new_gba(**settings), device) for device in ("cpu", NAME))
    assert_same(there.sae.state_dict(), here.sae.state_dict())
    for trainer in (here, there):
        trainer.sae.eval()
    assert_same(there.sae.state_dict(), here.sae.state_dict())
    x = next(mixture(3)).double()
    torch.testing.assert_close(there.sae(x.to(NAME)).cpu(), here.sae(x))
    there.sae.save_inference_model(tmp_path / "stock")
    assert there.sae.to("cpu").groups().summary() == here.sae.groups().summary()
    stock = SAE.load_from_disk(tmp_path / "stock", device="cpu")
    torch.testing.assert_close(stock(x), here.sae(x))


@pytest.mark.parametrize("architecture", ["gba", "gba_skip_transcoder"])
def test_a_device_without_float64(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_WITHOUT_FLOAT64", (NAME,))
    results = []
    for device in ("cpu", NAME):
        torch.manual_seed(0)
        sae = tiny_sae(architecture=architecture, calibration_samples=8192)
        data = (mixture if architecture == "gba" else pairs)(1)
        with without_float64():
            batches = itertools.cycle([batch.to(device) for batch in itertools.islice(data, 4)])
            sae = trained(sae, device, batches).sae.eval()
            sae.save_inference_model(tmp_path / device)
            sparser, anew = at_l0(sae, 2.0), calibrate(sae, next(mixture(3)), target_l0=3.0)
        results.append([s.get_parameter("threshold").cpu() for s in (sae, sparser.sae, anew.sae)])
    for there, here in zip(*results, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)


def test_what_was_trained_there_is_calibrated_here() -> None:
    there, here = (trained(new_gba(), device).sae for device in (NAME, "cpu"))
    there.eval()
    there.to("cpu").train()
    assert there.adapter.frequency.device.type == "cpu"
    for sae in (there, here):
        sae.eval()
    for name, value in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[name], value, rtol=1e-9, atol=1e-9)


def test_another_l0_of_an_sae_that_lies_there() -> None:
    sparser = {}
    for device in ("cpu", NAME):
        sae = new_gba(calibration_samples=8192)
        trained(sae, device)
        sae.settle()
        sparser[device] = at_l0(sae, 2.0).sae.get_parameter("threshold").detach().cpu()
    torch.testing.assert_close(sparser[NAME], sparser["cpu"], rtol=1e-9, atol=1e-12)


def test_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    trainer = trained(new_gba(), NAME)
    (tmp_path / "stopped").mkdir()
    trainer.sae.save_model(tmp_path / "stopped")
    sae = new_gba().to(NAME)
    sae.load_weights_from_checkpoint(tmp_path / "stopped")
    assert_same(sae.state_dict(), {n: t.cpu() for n, t in trainer.sae.state_dict().items()})
    assert int(trained(sae, NAME).sae.adapter.n_steps) == 2 * STEPS


def test_training_goes_on_after_a_fold() -> None:
    results = []
    for device in ("cpu", NAME):
        sae = trained(new_gba(), device).sae
        sae.fold_activation_norm_scaling_factor(0.5)
        sae.fold_and_get_W_dec_norm()
        results.append(trained(sae, device).sae.state_dict())
    assert_same(results[1], results[0])


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
@pytest.mark.parametrize("attached_first", [False, True])
def test_other_architectures_with_the_hook(
    architecture: str, attached_first: bool, tmp_path: Path
) -> None:
    # values can't be compared: new data of a parameter (`.data =`) do not arrive in this device's
    sae = TrainingSAE.from_dict({"architecture": architecture, "d_in": 16, "d_sae": 64})
    if not attached_first:
        sae = sae.to(NAME)
    hook = BiasAdaptationHook.attach(sae, target_l0=4.0, adapt_every_n_steps=5)
    trained(sae, NAME).sae.save_model(tmp_path)
    assert int(hook.adapter.n_steps) == STEPS
    assert {t.device.type for t in hook.adapter.state_dict().values()} == {NAME}
    hook.remove()


def test_a_stray_tensor_on_the_cpu_fails() -> None:
    sae = new_gba().to(NAME)
    sae.adapter.band = torch.zeros(64, dtype=torch.float64)
    trainer = make_trainer(sae, 1, mixture(1, device=NAME), device=NAME)
    with pytest.raises(RuntimeError, match="on the CPU"):
        take_steps(trainer, 1)
