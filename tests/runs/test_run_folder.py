"""The folder of a run, whatever somebody does to it or its file system says."""

import errno
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import GBATrainingSAE, resumable_run
from sae_lens_gba.errors import DataEndedError, RunFolderError, StorageError
from sae_lens_gba.runs.checkpoints import newest_whole
from sae_lens_gba.runs.folder import remove_checkpoints, remove_replaced_run, run_folder
from tests.toolbox import make_trainer, mixture, tiny_config

fcntl = pytest.importorskip("fcntl", reason="Windows has other locks")


def trainer(steps: int = 6, n_batches: int = 99) -> SAETrainer[Any, Any]:
    batches = (batch for batch, _ in zip(mixture(1, 64), range(n_batches), strict=False))
    sae = GBATrainingSAE(tiny_config(calibration_samples=0))
    return make_trainer(sae, steps, batches, 64)


def held(folder: Path) -> Any:
    return run_folder(folder, resume=False, overwrite=False)


def fail_with(number: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_lock_whose_file_was_removed_by_the_process_before_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    removed: list[bool] = []

    def lock_late(file: Any, how: int) -> None:
        if not removed:  # the process before ends between our opening and our locking
            removed.append(True)
            (tmp_path / ".lock").unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with held(tmp_path), pytest.raises(RunFolderError, match="another process"), held(tmp_path):
        pass


def test_where_nothing_can_be_locked_a_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.ENOLCK))
    with resumable_run(tmp_path):
        trainer().fit()
    assert "can't be locked" in caplog.text


def test_a_lock_that_is_a_link_harms_no_file(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with held(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_checkpoints_on_another_disk_are_removed_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resume").symlink_to(tmp_path / "scratch")
    with resumable_run(tmp_path / "run", checkpoint_minutes=1e-9):
        trainer().fit()
    assert newest_whole(tmp_path / "scratch") is not None
    with resumable_run(tmp_path / "run", overwrite=True):
        trainer().fit()
    remove_checkpoints(tmp_path / "run")
    assert (tmp_path / "run" / "resume").is_symlink()
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("name", ["\N{SUPERSCRIPT TWO}", "0x10", "1e3", "9" * 200])
def test_a_folder_with_an_odd_name_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / "resume" / name).mkdir(parents=True)
    with resumable_run(tmp_path, resume=True, checkpoint_minutes=1e-9) as resume_from:
        assert resume_from is None
        trainer().fit()


@pytest.mark.parametrize("place", ["file", "file/below", "a" * 300])
def test_a_folder_that_can_be_none_is_one_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match="could not be written") as caught,
        held(tmp_path / place),
    ):
        pass
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match="could not be written"):
        trainer().sae.save_inference_model(tmp_path / place)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTEMPTY, errno.EBUSY])
def test_a_disk_that_fails_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr("sae_lens_gba.atomic_write.os.replace", fail_with(number))
    fitted = trainer()
    with resumable_run(tmp_path, checkpoint_minutes=1e-9):
        fitted.fit()
    assert f"no checkpoint this time: {tmp_path}" in caplog.text
    assert os.strerror(number) in caplog.text
    assert fitted.n_training_steps == 6


def test_data_that_end_on_a_full_disk_are_said_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_lens_gba.atomic_write.os.replace", fail_with(errno.ENOSPC))
    with (
        pytest.raises(DataEndedError, match=r"ended after 192 of 384 .*is lost .*free some space"),
        resumable_run(tmp_path),
    ):
        trainer(n_batches=3).fit()


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    for name in (".run.1-ab.partial", "resume/.64.1-ab.partial"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "cfg.json").touch()
    with held(tmp_path):
        assert sorted(p.name for p in tmp_path.rglob("*")) == [".lock", "resume"]


def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    run = tmp_path / "a b\nc"
    with resumable_run(run, checkpoint_minutes=1e-9):
        trainer().fit()
        shutil.rmtree(run)
        trainer().sae.save_inference_model(run)
    assert (run / "cfg.json").is_file()


def test_minutes_that_are_no_number_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="checkpoint_minutes=nan"),
        resumable_run(tmp_path, checkpoint_minutes=math.nan),
    ):
        pass


def test_overwriting_replaces_what_several_saes_left_and_an_evaluation(tmp_path: Path) -> None:
    charted = ("training_record.json", "training_charts.png")
    report = ("report.html", "report.json", "report_latents/0-00000.js")
    for name in ("cfg.json", "evaluation.json", *report, *charted, "l0_16/cfg.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(RunFolderError, match="holds an SAE"), held(tmp_path):
        pass
    with run_folder(tmp_path, resume=False, overwrite=True):
        remove_replaced_run(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "l0_16"]
    assert (tmp_path / "l0_16" / "cfg.json").is_file()  # perhaps of another run
