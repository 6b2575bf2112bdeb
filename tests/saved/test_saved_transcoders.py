"""Transcoders on disk: what is read of them, other L0s, and the form that circuit-tracer loads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sae_lens_gba import GBATrainingSAE, GBATrainingSkipTranscoderConfig, at_l0, calibrate
from sae_lens_gba.errors import (
    GBAError,
    InvalidPublicationError,
    NotTrainableError,
    WrongShapeError,
)
from sae_lens_gba.hub.publishing import publish
from sae_lens_gba.saved.circuit_tracer import export_for_circuit_tracer
from sae_lens_gba.saved.loading import list_published, load, to_training_sae
from sae_lens_gba.saved.saved_sae import SavedSAE, as_saved, write_json
from tests.hub_fixtures import D_IN, D_OUT, D_SAE, HOOK, TARGET, MakeSAE, activations, trainer


@pytest.fixture
def folder(skip_transcoder: GBATrainingSAE, tmp_path: Path) -> Path:
    skip_transcoder.save_inference_model(tmp_path / "run")
    return tmp_path / "run"


def test_what_is_known_of_it_is_read(folder: Path, skip_transcoder: GBATrainingSAE) -> None:
    saved = load(folder)
    assert (saved.hook_name, saved.hook_name_out) == (HOOK, TARGET)
    assert saved.widths == {HOOK: D_IN, TARGET: D_OUT}
    assert saved.decoder_rows.shape == (D_SAE, D_OUT)
    assert isinstance(saved.training_config, GBATrainingSkipTranscoderConfig)
    assert saved.training_config.hook_name_out == TARGET
    (listed,) = list_published(folder)
    assert (listed.is_gba, listed.hook_name_out) == (True, TARGET)
    assert torch.equal(saved.sae(activations(8)), as_saved(skip_transcoder).sae(activations(8)))


def test_a_checkpoint_is_read_with_its_scale_folded_in(make_sae: MakeSAE, tmp_path: Path) -> None:
    scaled = {"normalize_activations": "expected_average_only_in"}
    sae = make_sae(0, architecture="gba_transcoder", **scaled)
    run = trainer(sae, 40, n_checkpoints=1, checkpoint_path=str(tmp_path))
    run.fit()
    (checkpoint,) = tmp_path.iterdir()
    x = activations(64, seed=5)
    saved = load(checkpoint)
    assert saved.sae.cfg.normalize_activations == "none"
    assert float((saved.sae.encode(x) > 0).sum(1).float().mean()) == pytest.approx(3, abs=0.5)


def test_weights_of_other_widths_are_refused(folder: Path) -> None:
    cfg = load(folder).cfg
    for changes in ({"d_out": D_OUT + 1}, {"architecture": "jumprelu_transcoder"}):
        write_json(folder / "cfg.json", {**cfg, **changes})
        with pytest.raises(WrongShapeError, match=r"W_dec|W_skip"):
            load(folder)


def test_it_is_had_at_another_l0(folder: Path) -> None:
    x = activations(4096, seed=9)
    for sae in (at_l0(folder, 2.0).sae, calibrate(folder, x, 2.0).sae):
        assert float((sae.encode(x) > 0).sum(1).float().mean()) == pytest.approx(2.0, rel=0.1)


def test_its_card_says_what_it_is(folder: Path) -> None:
    card = publish(folder, "user/tiny", license="mit", dry_run=True, show_progress=False).card
    assert "GBA transcoders for" in card
    assert f"| `{HOOK}` to `{TARGET}` |" in card
    assert "name: transcoder" in card
    without = {"metadata": {"hook_name_out": None}}
    with pytest.raises(InvalidPublicationError, match="no hook_name_out in its metadata"):
        publish(folder, "user/tiny", **without, dry_run=True, show_progress=False)  # type: ignore[arg-type]


def test_it_is_not_taken_for_an_sae_to_train(folder: Path) -> None:
    with pytest.raises(NotTrainableError, match="'jumprelu_skip_transcoder' can't be trained"):
        to_training_sae(folder)


@pytest.fixture(params=[("gba_transcoder", "relu"), ("gba_skip_transcoder", "jumprelu")])
def layers(make_sae: MakeSAE, request: pytest.FixtureRequest) -> list[SavedSAE]:
    """Of a model of two layers, the last one first."""
    architecture, activation = request.param
    settings = {"architecture": architecture, "activation": activation, "d_out": D_IN}
    saved = []
    for layer in (1, 0):
        sae = make_sae(60, seed=layer, hook_name_out=f"blocks.{layer}.hook_mlp_out", **settings)
        sae.cfg.metadata.hook_name = f"blocks.{layer}.mlp.hook_in"
        saved.append(as_saved(sae))
    return saved


def test_the_files_for_circuit_tracer_have_its_equations(
    layers: list[SavedSAE], tmp_path: Path
) -> None:
    folder = export_for_circuit_tracer(layers, tmp_path / "set")
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {
        "model_kind": "transcoder_set",
        "model_name": "user/tiny-model",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
    }
    x = activations(32, seed=3)
    for layer, saved in enumerate(reversed(layers)):
        weights = load_file(folder / f"layer_{layer}.safetensors")
        pre_acts = torch.nn.functional.linear(x, weights["W_enc"], weights["b_enc"])
        limit = weights.get("activation_function.threshold", torch.zeros(()))
        out = (pre_acts * (pre_acts > limit)) @ weights["W_dec"] + weights["b_dec"]
        if "W_skip" in weights:
            out = out + x @ weights["W_skip"].T
        torch.testing.assert_close(out, saved.sae(x))


def test_circuit_tracer_loads_them(layers: list[SavedSAE], tmp_path: Path) -> None:
    theirs = pytest.importorskip(
        "circuit_tracer.transcoder.single_layer_transcoder",
        reason="circuit-tracer needs other releases of the hosts",
    )
    folder = export_for_circuit_tracer(layers, tmp_path / "set")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    hooks = {name: config[name] for name in ("feature_input_hook", "feature_output_hook")}
    paths = {i: str(folder / f"layer_{i}.safetensors") for i in range(2)}
    found: Any = theirs.load_transcoder_set(paths, scan="tiny", **hooks, device=torch.device("cpu"))
    x = activations(32, seed=3)
    for layer, saved in enumerate(reversed(layers)):
        torch.testing.assert_close(found[layer](x), saved.sae(x))
        torch.testing.assert_close(found[layer].encode(x), saved.sae.encode(x))


def test_what_is_no_set_of_layers_is_not_written(layers: list[SavedSAE], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of layers \[1\] .* are no set"):
        export_for_circuit_tracer(layers[:1], tmp_path / "set")
    with pytest.raises(GBAError, match="nowhere does not exist"):  # a folder is one of them
        export_for_circuit_tracer(tmp_path / "nowhere", tmp_path / "set")
    elsewhere = replace(layers[0], label="mine")
    elsewhere.sae.cfg.metadata.hook_name_out = "blocks.0.hook_mlp_out"
    with pytest.raises(ValueError, match=r"mine goes from blocks\.1\.mlp\.hook_in to blocks\.0"):
        export_for_circuit_tracer([elsewhere], tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_saes_are_not_written_as_transcoders(jumprelu_sae: GBATrainingSAE, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="circuit-tracer takes transcoders"):
        export_for_circuit_tracer([as_saved(jumprelu_sae)], tmp_path / "set")
    assert not (tmp_path / "set").exists()
