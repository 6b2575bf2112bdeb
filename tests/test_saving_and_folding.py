import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_gba import GBATrainingSAE, NeuronGroups
from sae_lens_gba.errors import StorageError
from tests.toolbox import (
    make_trainer,
    mixture,
    pairs,
    randomise,
    take_steps,
    tiny_config,
    tiny_sae,
)

VARIANTS: list[dict[str, Any]] = [
    {"activation": a, "tied": t, "learn_output_scale": s, "dtype": d}
    for a in ("jumprelu", "relu")
    for t in (False, True)
    for s in (False, True)
    for d in ("float32", "float64")
] + [{"activation": "jumprelu", "tied": False, "dtype": "bfloat16"}]
TRANSCODERS = [
    {"architecture": f"gba_{kind}", "activation": a, "dtype": d}
    for kind in ("transcoder", "skip_transcoder")
    for a in ("jumprelu", "relu")
    for d in ("float32", "float64", "bfloat16")
]
STOCK = {
    ("gba", "jumprelu"): "jumprelu",
    ("gba", "relu"): "standard",
    ("gba_transcoder", "jumprelu"): "jumprelu_transcoder",
    ("gba_transcoder", "relu"): "transcoder",
    ("gba_skip_transcoder", "jumprelu"): "jumprelu_skip_transcoder",
    ("gba_skip_transcoder", "relu"): "skip_transcoder",
}

PLAIN_SAELENS = """
import sys, torch
sys.modules["sae_lens_gba"] = None  # importing it would fail
from sae_lens import SAE
results = []
x = torch.load(sys.argv[1], weights_only=True)
for folder in sys.argv[3:]:
    sae = SAE.load_from_disk(folder)
    acts = sae.encode(x)
    # its skip transcoders multiply inputs as they are
    outputs = [t.detach() for t in (acts, sae.decode(acts), sae(x.to(sae.dtype)))]
    results.append((sae.cfg.architecture(), *outputs))
torch.save(results, sys.argv[2])
"""


@pytest.mark.parametrize("how", ["save_model", "save_inference_model"])
def test_a_save_that_fails_leaves_the_sae_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    getattr(randomise(GBATrainingSAE(tiny_config())), how)(tmp_path)
    before = files()
    monkeypatch.setattr("sae_lens_gba.calibrated_biases.write_checksums", full)
    with pytest.raises(StorageError, match="free some space"):
        getattr(randomise(GBATrainingSAE(tiny_config())), how)(tmp_path)
    assert files() == before


def test_a_fresh_process_without_this_package_computes_the_same_bits(tmp_path: Path) -> None:
    x = next(mixture(0))
    torch.save(x, tmp_path / "x.pt")
    saes, folders = [], []
    for i, variant in enumerate(VARIANTS + TRANSCODERS):
        sae = randomise(tiny_sae(**variant)).eval()
        sae.save_inference_model(tmp_path / str(i))
        saes.append(sae)
        folders.append(str(tmp_path / str(i)))
    arguments = [str(tmp_path / "x.pt"), str(tmp_path / "out.pt"), *folders]
    subprocess.run([sys.executable, "-c", PLAIN_SAELENS, *arguments], check=True)
    results = torch.load(tmp_path / "out.pt", weights_only=True)
    for sae, (architecture, acts, decoded, out) in zip(saes, results, strict=True):
        assert architecture == STOCK[sae.cfg.architecture(), sae.cfg.activation]
        assert torch.equal(sae.encode(x), acts)
        assert (acts > 0).any()
        assert torch.equal(sae.decode(acts), decoded)
        assert torch.equal(sae(x.to(sae.dtype)), out)


@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
def test_a_saved_sae_has_exactly_the_stock_parameters(tmp_path: Path, activation: str) -> None:
    from safetensors import safe_open

    sae = GBATrainingSAE(tiny_config(activation=activation, tied=True))
    weights, cfg = sae.save_inference_model(tmp_path)
    stock = {"W_enc", "b_enc", "W_dec", "b_dec"} | (
        {"threshold"} if activation == "jumprelu" else set()
    )
    with safe_open(weights, framework="pt") as file:
        assert set(file.keys()) == stock
    assert json.loads(cfg.read_text())["metadata"]["training_architecture"] == "gba"


def test_groups_targets_and_measured_frequencies_travel_along(tmp_path: Path) -> None:
    sae = GBATrainingSAE(tiny_config(calibrate_for="groups"))
    take_steps(make_trainer(sae, 10), 10)
    sae.save_inference_model(tmp_path)
    groups = NeuronGroups.load(tmp_path)
    assert torch.equal(groups.group, sae.adapter.group)
    assert torch.equal(groups.target_frequency, sae.adapter.target_frequency)
    assert torch.equal(groups.measured_frequency, sae.eval().adapter.frequency)
    assert float(groups.measured_frequency.sum()) > 0
    summary = json.loads((tmp_path / "cfg.json").read_text())["metadata"]["gba"]["groups"]
    assert summary == groups.summary()
    assert [row["size"] for row in summary] == list(sae.cfg.spectrum().sizes)


def test_reading_groups_from_elsewhere_fails_clearly(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not the output folder of a GBA SAE"):
        NeuronGroups.load(tmp_path)
    path = GBATrainingSAE(tiny_config()).groups().save(tmp_path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged"):
        NeuronGroups.load(tmp_path)


@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("mode", ["expected_average_only_in", "covariance_whitening"])
def test_a_folded_sae_computes_the_same_from_raw_inputs(
    activation: str, tied: bool, apply_b_dec_to_input: bool, mode: str, tmp_path: Path
) -> None:
    cfg = tiny_config(
        activation=activation,
        tied=tied,
        apply_b_dec_to_input=apply_b_dec_to_input,
        normalize_activations=mode,
        dtype="float64",
    )
    sae = randomise(GBATrainingSAE(cfg))
    raw = next(mixture(0)).double() * 7 + 3
    scaler = ActivationScaler()
    data = (next(mixture(i)).double() * 7 + 3 for i in range(100))
    if mode == "expected_average_only_in":
        scaler.estimate_scaling_factor(16, data, 3)
    else:
        scaler.estimate_whitening(16, data, 3)
    acts = sae.encode(scaler.scale(raw))
    out = scaler.unscale(sae.decode(acts))
    assert (acts > 0).any()
    if mode == "expected_average_only_in":
        assert scaler.scaling_factor is not None
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    else:
        w = scaler.whitening
        assert w is not None
        sae.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix)
    torch.testing.assert_close(sae.encode(raw), acts, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae.decode(acts), out, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64, dtype=torch.float64))
    sae.save_inference_model(tmp_path)
    assert torch.equal(SAE.load_from_disk(tmp_path).encode(raw), sae.encode(raw))


@pytest.mark.parametrize("architecture", ["gba_transcoder", "gba_skip_transcoder"])
@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
def test_a_folded_transcoder_computes_the_same_from_raw_inputs(
    architecture: str, activation: str, tmp_path: Path
) -> None:
    sae = randomise(tiny_sae(architecture=architecture, activation=activation, dtype="float64"))
    scaler = ActivationScaler()
    scaler.estimate_scaling_factor(16, (7 * batch for batch in pairs(0)), 3)
    assert scaler.scaling_factor is not None
    raw = 7 * next(pairs(5)).double()[:, :16]
    acts, out = sae.encode(scaler.scale(raw)), scaler.unscale(sae(scaler.scale(raw)))
    assert (acts > 0).any()
    sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    torch.testing.assert_close(sae.encode(raw), acts, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae(raw), out, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64, dtype=torch.float64))
    sae.save_inference_model(tmp_path)
    assert torch.equal(SAE.load_from_disk(tmp_path)(raw), sae(raw))
    with pytest.raises(ValueError, match="whitening can't be folded into a transcoder"):
        sae.fold_activation_whitening(torch.zeros(16), torch.eye(16), torch.eye(16))


@pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale"])
def test_run_time_normalisation_is_the_stock_saes(mode: str, tmp_path: Path) -> None:
    sae = GBATrainingSAE(tiny_config(normalize_activations=mode, calibration_samples=0))
    take_steps(make_trainer(sae, 30), 30)
    sae.eval().save_inference_model(tmp_path)
    x = next(mixture(5))
    loaded = SAE.load_from_disk(tmp_path)
    assert torch.equal(loaded(x), sae(x))
    # whatever their norm: activations of inputs of another scale are the same
    torch.testing.assert_close(loaded.encode(10 * x), loaded.encode(x), rtol=1e-3, atol=1e-3)


def test_the_bias_range_follows_the_scale_of_the_inputs_through_a_fold() -> None:
    sae = randomise(GBATrainingSAE(tiny_config()))
    before = sae.in_input_units(sae.bias_range())
    sae.fold_activation_norm_scaling_factor(0.25)
    # the raw inputs' norm is four times that of the scaled ones; pre-activations are the same
    assert float(sae.adapter.input_norm) == pytest.approx(3.0 / 0.25)
    torch.testing.assert_close(sae.in_input_units(sae.bias_range()), before)


@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
def test_a_fold_in_evaluation_mode_stays_one_in_training(activation: str) -> None:
    sae = GBATrainingSAE(tiny_config(activation=activation))
    take_steps(make_trainer(sae, 20), 20)
    x = next(mixture(3))
    before = sae(x)
    sae.eval()
    sae.fold_W_dec_norm()
    torch.testing.assert_close(sae.train()(x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["expected_average_only_in", "covariance_whitening"])
def test_after_a_fold_it_is_calibrated_on_raw_inputs_alone(mode: str) -> None:
    def raw(seed: int) -> Iterator[torch.Tensor]:
        return (7 * batch + 3 for batch in mixture(seed))

    sae = GBATrainingSAE(tiny_config(normalize_activations=mode))
    make_trainer(sae, 40, raw(1)).fit()
    assert len(sae.recent_samples) == 0
    take_steps(make_trainer(sae, 40, raw(2)), 40)
    x = torch.cat(list(islice(raw(2), 40)))
    assert float((sae.eval().encode(x) > 0).sum()) / len(x) == pytest.approx(4.0, abs=0.01)


def test_a_fold_of_a_tied_sae_leaves_its_makers_config() -> None:
    cfg = tiny_config(tied=True)
    sae = GBATrainingSAE(cfg)
    sae.fold_W_dec_norm()
    assert cfg.tied
    assert not sae.cfg.tied


def test_a_checkpoint_with_an_encoder_of_its_own_is_no_tied_sae(tmp_path: Path) -> None:
    sae = tiny_sae(tied=True)
    sae.fold_W_dec_norm()
    sae.save_model(tmp_path)
    tied = tiny_sae(tied=True)
    with pytest.raises(ValueError, match=r"tied=True, but the checkpoint.*tied=False"):
        tied.load_weights_from_checkpoint(tmp_path)


def test_saving_leaves_its_metadata_as_they_were(tmp_path: Path) -> None:
    sae = tiny_sae()
    metadata = sae.cfg.metadata
    before = metadata.to_dict()
    sae.save_inference_model(tmp_path)
    assert SAE.load_from_disk(tmp_path).cfg.metadata.gba
    assert sae.cfg.metadata is metadata
    assert metadata.to_dict() == before


def test_hook_z_inputs_are_reshaped_by_the_saved_sae(tmp_path: Path) -> None:
    cfg = tiny_config(reshape_activations="hook_z")
    cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae = GBATrainingSAE(cfg)
    take_steps(make_trainer(sae, 20), 20)
    sae.eval().save_inference_model(tmp_path)
    x = next(mixture(3))
    loaded = SAE.load_from_disk(tmp_path)
    heads = x.view(-1, 4, 4)
    assert torch.equal(loaded(heads).reshape(-1, 16), sae(x))


@pytest.mark.parametrize(
    "settings",
    [
        {"tied": False},
        {"tied": True},
        *({"architecture": f"gba_{k}transcoder"} for k in ("", "skip_")),
    ],
)
def test_a_checkpoint_loads_once_the_package_is_imported(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    sae = tiny_sae(**settings)
    take_steps(make_trainer(sae, 13), 13)
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert type(loaded) is type(sae)
    assert loaded.state_dict().keys() == sae.state_dict().keys()
    for name, value in sae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    take_steps(make_trainer(loaded, 10), 10)
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("architecture", ["gba", "gba_transcoder", "gba_skip_transcoder"])
def test_a_checkpoint_with_an_encoder_of_its_own_loads_with_the_same_outputs(
    tmp_path: Path, architecture: str
) -> None:
    sae = randomise(tiny_sae(architecture=architecture, dtype="float64"))
    sae.fold_activation_norm_scaling_factor(0.5)
    assert "W_enc" in sae.state_dict()
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert "encoder_correction" in loaded.state_dict()
    x = next(mixture(3)).double()
    torch.testing.assert_close(loaded(x), sae(x))
    take_steps(make_trainer(loaded, 3), 3)
