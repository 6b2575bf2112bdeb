"""How often a training step waits for its device: no GPU is needed to count what would make it."""

import contextlib
import copy
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sae_lens import (
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lens_gba import BiasAdaptationHook, GBATrainingSAE, sparse_autoencoder_ops
from sae_lens_gba.host_copy import HostCopy
from tests.toolbox import make_trainer, mixture, take_steps, tiny_config

# operations whose result, its size, or their launch needs a value that is on the device
READS = {
    "_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave.Tensor", "equal", "_sparse_sum.dim", "_coalesce",
    "coalesce", "histc", "argwhere", "index[mask]", "sum[sparse]",
    "_to_copy[device]",
}  # fmt: skip
# what never becomes an operation where the device is a CPU
CALLS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.tensor, torch.as_tensor}


class HostReads(contextlib.ExitStack):
    """Collects, for everything that waits for the device, what it is and which line asked for it.

    Adam's own count of steps is on the host, unless it is fused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __enter__(self) -> "HostReads":
        super().__enter__()
        self.enter_context(_Operations(self))
        self.enter_context(_Calls(self))
        return self

    def note(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if f.filename != __file__]
        asked = [f for f in frames if "sae_lens" in f.filename or "torch/optim/" in f.filename]
        line = f"{asked[-1].filename}:{asked[-1].lineno} {asked[-1].line}" if asked else "backward"
        self.found.append(f"{what} at {line}")


class _Operations(TorchDispatchMode):
    def __init__(self, reads: HostReads):
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        # x[mask] = scalar becomes a masked_fill
        is_fill = name.startswith("index_put") and args[2].numel() == 1
        if name.startswith("index") and not is_fill and name != "index_select":
            indices = args[1] if isinstance(args[1], list | tuple) else []
            if any(i is not None and i.dtype == torch.bool for i in indices):
                name = "index[mask]"
        elif name == "sum" and args[0].is_sparse:  # coalesces: how many entries are left?
            name = "sum[sparse]"
        elif name == "_to_copy" and kwargs.get("device") is not None:
            name = "_to_copy[device]"
        if not READS.isdisjoint({name, f"{name}.{func._overloadname}"}):
            self._reads.note(name)
        return func(*args, **kwargs)


class _Calls(TorchFunctionMode):
    def __init__(self, reads: HostReads):
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CALLS:
            self._reads.note(func.__name__)
        return func(*args, **(kwargs or {}))


def reads_of_step(sae: TrainingSAE[Any], at: int) -> list[str]:
    trainer = make_trainer(sae, 20)
    take_steps(trainer, at)
    with HostReads() as reads:
        take_steps(trainer, 1)
    return reads.found


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, 4),  # is the batch usable, how many are active; two sums of SAELens' statistics
        ({"n_nested_reconstructions": 1}, 4),
        ({"tied": True, "activation": "relu"}, 4),
        ({"normalize_activations": "layer_norm"}, 4),
        ({"sparse_below_density": 0.0}, 1),
    ],
    ids=str,
)
def test_a_step_waits_for_the_device_a_few_times_only(
    settings: dict[str, Any], allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_autoencoder_ops, "_NUMPY_DTYPES", ())  # as on a device
    reads = reads_of_step(GBATrainingSAE(tiny_config(**settings)), at=7)
    assert len(reads) <= allowed, "\n".join(reads)


def test_an_adapting_step_waits_at_most_two_more_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_autoencoder_ops, "_NUMPY_DTYPES", ())  # as on a device
    sae = GBATrainingSAE(tiny_config(adapt_every_n_steps=5))
    before = sae.bias.clone()
    reads = reads_of_step(sae, at=9)
    assert not torch.equal(sae.bias, before)
    assert len(reads) <= 6, "\n".join(reads)


@pytest.mark.parametrize(
    "cfg",
    [
        StandardTrainingSAEConfig(16, 64, l1_coefficient=0.0),
        JumpReLUTrainingSAEConfig(16, 64, l0_coefficient=0.0),
    ],
    ids=lambda cfg: cfg.architecture(),
)
def test_the_hook_waits_once_a_step(cfg: TrainingSAEConfig) -> None:
    """For whether the batch is usable."""
    sae = TrainingSAE.from_dict(cfg.to_dict())
    BiasAdaptationHook.attach(sae, target_l0=4.0, n_groups=4, adapt_every_n_steps=5)
    reads = [read for read in reads_of_step(sae, at=7) if "sae_lens_gba/" in read]
    assert len(reads) == 1, "\n".join(reads)


def test_the_culprit_is_named() -> None:
    with HostReads() as reads:
        GBATrainingSAE(tiny_config())._has_started()  # reads the scale of the inputs
    assert any("_local_scalar_dense" in read and "input_norm" in read for read in reads.found)


def test_the_steps_known_on_the_host_are_those_of_the_state() -> None:
    sae = GBATrainingSAE(tiny_config())
    trainer = make_trainer(sae, 20)
    take_steps(trainer, 7)
    stored = copy.deepcopy(sae.state_dict())
    assert sae.adapter.steps_taken == 7
    twin = copy.deepcopy(sae)
    take_steps(trainer, 2)
    assert (sae.adapter.steps_taken, twin.adapter.steps_taken) == (9, 7)
    sae.load_state_dict(stored)
    assert sae.adapter.steps_taken == 7
    sae.adapter.n_steps.fill_(3)
    assert sae.adapter.steps_taken == 3
    sae.adapter.n_steps = torch.tensor(5)
    assert sae.adapter.steps_taken == 5
    sae.to(torch.float64)
    assert sae.adapter.steps_taken == 5


def test_a_host_copy_reads_once_until_the_tensor_is_written() -> None:
    reads = []
    value = HostCopy(lambda t: reads.append(t) or int(t))  # type: ignore[func-returns-value]
    tensor = torch.tensor(1)
    assert [value(tensor), value(tensor), len(reads)] == [1, 1, 1]
    tensor += 1
    value.set(tensor, 2)
    assert [value(tensor), len(reads)] == [2, 1]
    tensor += 1
    assert [value(tensor), len(reads)] == [3, 2]


@pytest.mark.parametrize("density", [0.0, 1.0], ids=["dense", "sparse"])
def test_a_loaded_state_brings_its_own_bands_and_steps(density: float) -> None:
    """An SAE whose latents are in another order, loaded into one that has trained."""

    settings: dict[str, Any] = {"n_nested_reconstructions": 4, "sparse_below_density": density}
    sae, other = (GBATrainingSAE(tiny_config(**settings)) for _ in range(2))
    take_steps(make_trainer(sae, 10), 3)
    other.adapter.group = other.adapter.group.flip(0)
    other.adapter.target_frequency = other.adapter.target_frequency.flip(0)
    take_steps(make_trainer(other, 10), 2)
    sae.load_state_dict(other.state_dict())
    results = [trained(each) for each in (sae, other)]
    assert torch.equal(*results)


def trained(sae: GBATrainingSAE) -> torch.Tensor:
    data: Iterator[torch.Tensor] = mixture(5)
    take_steps(make_trainer(sae, 10, data), 4)
    return sae.W_dec.detach()
