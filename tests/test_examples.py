"""Every example runs, quickly, says something, and fits on a page."""

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


def test_another_sae_is_made_to_hold_a_spectrum(run: Run) -> None:
    said = run("02_bias_adaptation_hook.py", "--steps", "60")
    assert "group 9:" in said


def test_a_publication_is_shown_and_loaded(run: Run) -> None:
    said = run("03_publish_and_load.py")
    assert "dry run" in said
    assert "measured_frequency" in said


def test_a_report_is_written(run: Run, tmp_path: Path, tiny_llm_folder: Path) -> None:
    sae = GBATrainingSAE(tiny_config(d_in=D_MODEL))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    sae.cfg.metadata.context_size = 16
    make_trainer(sae, 20).fit()
    sae.save_inference_model(tmp_path / "sae")
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(WORDS) for _ in range(40)))
    arguments = ["sae", "--model", str(tiny_llm_folder), "--dataset", "texts.txt"]
    said = run("04_report.py", *arguments, "--tokens", "640")
    assert "sae: explained variance" in said
    assert "fires most on 'w" in said
    (page,) = re.findall(r"open (\S+) in a browser", said)
    assert (tmp_path / page).is_file()


def test_two_processes_train_one_sae(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [str(EXAMPLES / "05_two_processes.py"), "--steps", "60"]
    ran = subprocess.run(
        [*command, *script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert "rank 0 of 2 trained 64 latents" in ran.stdout
    assert "rank 1 of 2 trained 64 latents" in ran.stdout
    assert re.search(r"128 latents: L0 [23]\.\d", ran.stdout)


def test_examples_are_numbered_without_gaps_and_short() -> None:
    scripts = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix == ".py")
    assert [name[:3] for name in scripts] == [f"{i:02d}_" for i in range(1, len(scripts) + 1)]
    for name in scripts:
        assert len((EXAMPLES / name).read_text().splitlines()) <= 60
