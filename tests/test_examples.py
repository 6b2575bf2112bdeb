"""Every example runs, quickly, says something, and fits on a page."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_lens_gba import GBATrainingSAE
from tests.toolbox import D_MODEL, WORDS, make_trainer, tiny_config

EXAMPLES = Path(__file__).parent.parent / "examples"


Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script in an empty folder, as the command line does; what it prints."""

    def run(script: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [script, *arguments])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_activations_of_ones_own_are_trained_on_and_fire_as_often_as_asked(run: Run) -> None:
    said = run("01_train_on_activations.py", "--steps", "200")
    (l0,) = re.findall(r"JumpReLUSAE: L0 (\S+) of 3", said)
    assert float(l0) == pytest.approx(3.0, abs=0.15)


@pytest.fixture
def on_tiny_model(tmp_path: Path, tiny_llm_folder: Path, tiny_bridge: object) -> list[str]:
    """Arguments of the examples that read text with a language model."""
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(WORDS) for _ in range(40)))
    return ["--model", str(tiny_llm_folder), "--dataset", "texts.txt"]


TINY = ["--context", "16", "--tokens", "2048", "--batch", "128", "--d-sae", "64"]


def test_an_sae_of_a_language_model_is_trained(run: Run, on_tiny_model: list[str]) -> None:
    hook = ["--hook", "blocks.0.hook_resid_post", "--target-l0", "4"]
    said = run("02_language_model.py", *on_tiny_model, *TINY, *hook)
    (l0,) = re.findall(r"JumpReLUSAE, 64 latents: calibrated to L0 (\S+)", said)
    assert float(l0) == pytest.approx(4.0, rel=0.05)


def test_cached_activations_serve_several_saes(run: Run, on_tiny_model: list[str]) -> None:
    arguments = ["--hook", "model.layers.0", "--l0s", "3", "5"]
    said = run("03_cached_activations.py", *on_tiny_model, *TINY, *arguments)
    got = [float(l0) for l0 in re.findall(r"L0 (\S+) of", said)]
    assert got == pytest.approx([3.0, 5.0], rel=0.05)


def test_another_sae_is_made_to_hold_a_spectrum(run: Run) -> None:
    said = run("04_other_architecture.py", "--steps", "60")
    assert "group 9:" in said


def test_l0s_and_seeds_are_swept_in_one_run(run: Run, on_tiny_model: list[str]) -> None:
    arguments = ["--hook", "blocks.0.hook_resid_post", "--l0s", "3", "5"]
    said = run("05_sweep.py", *on_tiny_model, *TINY, *arguments)
    assert re.findall(r"L0 asked (\d)", said) == ["3", "5"]
    assert said.count("found again with another seed") == 2


def test_an_sae_of_others_is_trained_further(run: Run) -> None:
    said = run("06_fine_tune.py", "--steps", "200")
    l0, before, after = (float(x) for x in re.findall(r"(\d+\.\d+) (?:of|before|after)", said))
    assert l0 == pytest.approx(4.0, rel=0.1)
    assert after < before


def test_a_publication_is_shown_and_loaded(run: Run) -> None:
    said = run("07_publish_and_load.py")
    assert "dry run" in said
    assert "measured_frequency" in said


@pytest.fixture
def sae_of_tiny_model(tmp_path: Path) -> str:
    sae = GBATrainingSAE(tiny_config(d_in=D_MODEL))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    sae.cfg.metadata.context_size = 16
    sae.cfg.metadata.prepend_bos = True
    make_trainer(sae, 20).fit()
    sae.save_inference_model(tmp_path / "sae")
    return "sae"


def test_a_report_is_written(
    run: Run, tmp_path: Path, sae_of_tiny_model: str, on_tiny_model: list[str]
) -> None:
    said = run("08_report.py", sae_of_tiny_model, *on_tiny_model, "--tokens", "640")
    assert "sae: explained variance" in said
    assert "fires most on 'w" in said
    (page,) = re.findall(r"open (\S+) in a browser", said)
    assert (tmp_path / page).is_file()


def test_saelens_evaluations_are_run_and_kept(
    run: Run, tmp_path: Path, sae_of_tiny_model: str, on_tiny_model: list[str]
) -> None:
    run("09_evaluate.py", sae_of_tiny_model, *on_tiny_model, "--batches", "1")
    measured = json.loads((tmp_path / "sae" / "saelens_evaluation.json").read_text())
    assert 0 < measured["sparsity"]["l0"] < 64
    assert "ce_loss_score" in measured["model_performance_preservation"]


def test_two_processes_train_one_sae(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [str(EXAMPLES / "10_two_processes.py"), "--steps", "60"]
    ran = subprocess.run(
        [*command, *script],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(EXAMPLES.parent),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert "rank 0 of 2 trained 64 latents" in ran.stdout
    assert "rank 1 of 2 trained 64 latents" in ran.stdout
    (l0,) = re.findall(r"128 latents: L0 (\S+)", ran.stdout)
    assert float(l0) == pytest.approx(3, rel=0.05)


def test_every_mlp_gets_a_transcoder(run: Run, on_tiny_model: list[str], tmp_path: Path) -> None:
    said = run("11_transcoder.py", *on_tiny_model, *TINY, "--target-l0", "4")
    l0s = re.findall(r"JumpReLUSkipTranscoder of layer \d, calibrated to L0 (\S+)", said)
    assert [float(l0) for l0 in l0s] == pytest.approx([4.0, 4.0], rel=0.05)
    assert (tmp_path / "for_circuit_tracer" / "layer_1.safetensors").is_file()


def test_examples_are_numbered_without_gaps_and_short() -> None:
    scripts = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix == ".py")
    assert [name[:3] for name in scripts] == [f"{i:02d}_" for i in range(1, len(scripts) + 1)]
    for name in scripts:
        assert len((EXAMPLES / name).read_text().splitlines()) <= 60
