"""When one rank fails, every rank ends in time, and says which one failed and why."""

import threading
from pathlib import Path

import pytest
import torch

from sae_lens_gba.distributed.ranks import join
from tests.distributed.ranks_do import fail, n_steps_of
from tests.distributed.several import start

SILENCE_S = 6.0  # of ranks that can't say anything any more
ANOTHER_STATE = (
    "rank 1 has another b_dec, scale or other state that all ranks share than the other ranks"
)
SENTENCES = {
    "nan": "rank 1: sae_in has NaN or Inf",
    "out of data": "rank 1 has no more data after 15 batches",
    "source": "rank 1 failed to get a batch, after 15 batches (OSError: the disk is gone)",
    "parts": f"{ANOTHER_STATE}, after 15 batches",
    "adam": f"{ANOTHER_STATE}, after 15 batches",  # before it makes b_dec another one
    "versions": "rank 1 has torch='1.0', rank 0 has",
    "terminated": "rank 1 was asked to stop by SIGTERM",
    "raises": "rank 1 failed (TypeError",
    "killed": "rank 1 gave no sign of life",
    "hangs": "rank 1 gave no sign of life",
}


def test_without_torchrun_the_first_rank_is_missed_too(tmp_path: Path) -> None:
    # ranks meet in it then: nothing can be asked for the reason any more
    ranks = start(fail, 2, tmp_path / "said", "first is killed", tmp_path, SILENCE_S)
    ranks[1].wait(timeout=60)
    assert ranks[1].exit_code == 1
    assert "the process where the ranks meet is gone" in ranks[1].said
    ranks[0].wait(timeout=60)


@pytest.mark.parametrize("how", SENTENCES)
def test_every_rank_ends_and_names_the_one_that_failed(tmp_path: Path, how: str) -> None:
    # three to tell which of them is not as the others
    world = 3 if how in ("parts", "adam") else 2
    silence_s = SILENCE_S if how in ("killed", "hangs") else 60.0
    ranks = start(fail, world, tmp_path / "said", how, tmp_path, silence_s)
    ranks[0].wait(timeout=60)
    assert ranks[0].exit_code == 1
    assert SENTENCES[how] in ranks[0].said
    if how == "hangs":
        ranks[1].process.kill()
    ranks[1].wait(timeout=60)
    assert ranks[1].exit_code != 0
    if how == "versions":
        return
    checkpoints = [cfg.parent for cfg in (tmp_path / how).rglob("cfg.json")]
    assert len(checkpoints) == 1 + (how == "terminated")
    for checkpoint in checkpoints:
        assert n_steps_of(checkpoint) >= 10


def test_a_checkpoint_that_is_not_complete_is_none(tmp_path: Path) -> None:
    ranks = start(fail, 2, tmp_path / "said", "killed while saving", tmp_path, SILENCE_S)
    for rank in ranks:
        rank.wait(timeout=60)
        assert rank.exit_code != 0
    names = sorted(path.name for path in (tmp_path / "killed while saving").iterdir())
    partial, whole = names
    assert whole == "before"
    assert partial.startswith(".after.") and partial.endswith(".partial")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with (
        pytest.raises(ValueError, match="2 processes need as many GPUs, and 1 can be seen"),
        join(),
    ):
        pass


def test_one_process_outlives_an_error() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="mine"), join():
        raise ValueError("mine")
    assert not torch.distributed.is_initialized()
    assert threading.active_count() == before
