"""A full disk, folders that can't be written, and two processes that save into one folder.

Lost is a save, publication or download that ends in anything but one sentence, leaves a half file
or harms the SAE that was there, and a run that ends for want of a checkpoint.
"""

import errno
import logging
import os
import random
import resource
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from experiments.torture.training import (
    config,
    in_short,
    publishable_sae,
    row,
    train,
    unlike_ours,
    weights,
    work_folder,
)
from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.errors import GBAError
from sae_lens_gba.hub.publishing import publish
from sae_lens_gba.saved.loading import load
from tests.distributed.several import start
from tests.local_hub import LocalHub

KIB, STEPS, REPO = 1024, 60, "user/saes"
# what the disk is full for, in the words of the table, and how often
FULL_DISKS = {
    "run": ("a run's checkpoints", 30),
    "save_model": ("save_model over another SAE", 60),
    "save_inference_model": ("save_inference_model over another SAE", 60),
    "publish": ("the files to publish", 30),
    "download": ("the cache of downloads", 30),
}


def an_sae(seed: int) -> GBATrainingSAE:
    torch.manual_seed(seed)
    return GBATrainingSAE(config())


def save(sae: GBATrainingSAE, folder: Path, stock: bool) -> None:
    (sae.save_inference_model if stock else sae.save_model)(folder)


def loss_of_save(folder: Path, stock: bool) -> str | None:
    """What is lost when an SAE can't be saved over another one in ``folder``."""
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    try:
        save(an_sae(2), folder, stock)
    except Exception as error:
        if wrong := unlike_ours(error):
            return wrong
    else:
        return None  # there was room
    new = {path.name: path.read_bytes() for path in folder.iterdir()}
    if set(new) - set(old):
        return f"left behind: {sorted(set(new) - set(old))}"
    if new == old:
        return None
    try:  # some files are the new SAE's, then: nobody may take them for one SAE
        load(folder)
    except GBAError:
        return None
    return f"loads as a mixture, {[name for name in old if new.get(name) != old[name]]} are new"


def loss_of_run(folder: Path) -> str | None:
    """What is lost when a run can't write its checkpoints."""
    try:
        train(0, folder, "SAETrainer", STEPS, 1e-6, {})
    except Exception as error:  # a StorageError is of the finished SAE, or of the folder
        if wrong := unlike_ours(error):
            return wrong
    left = [path.name for path in folder.rglob(".*.partial")] if folder.exists() else []
    return f"left behind: {left}" if left else None


def loss_of_transfer(folder: Path, work: Path, what: str, forbid: Callable[[], None]) -> str | None:
    """What is lost when an SAE can't be published or downloaded for want of ``folder``.

    Args:
        folder: for the temporary files of publishing, or for downloads.
        work: where all else is.
        what: "publish" or "download".
        forbid: from when on nothing can be written to ``folder``.
    """
    constants.HF_HUB_OFFLINE = False
    publishable_sae().save_inference_model(work / "sae")
    with LocalHub() as hub:
        there: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token}
        if what == "download":
            constants.HF_HUB_CACHE = str(work / "cache")
            publish({"sae": work / "sae"}, REPO, license="mit", show_progress=False, **there)
        forbid()
        try:
            if what == "download":
                load(REPO, cache_dir=folder, **there)
            else:
                tempfile.tempdir = str(folder)
                publish({"sae": work / "sae"}, REPO, license="mit", show_progress=False, **there)
        except Exception as error:
            if wrong := unlike_ours(error):
                return wrong
        else:
            return None  # there was room
        if what == "publish" and REPO in hub.repos and len(hub.repos[REPO].files()) > 1:
            return "half of it was published"
    left = [path.name for path in folder.rglob("sae-lens-gba-*")]
    return f"left behind: {left}" if left else None


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """A file system of its own at ``folder`` where that may be made; gives what fills it."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode == 0:
        try:
            yield "tmpfs"
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        yield "RLIMIT_FSIZE"


def leave(folder: Path, room: int, how: str) -> None:
    """Fill the disk up but for ``room`` bytes; as a limit, those are of each file."""
    if how == "RLIMIT_FSIZE":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        return
    with (folder / "ballast").open("wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(4 * KIB)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        ballast.truncate(max(0, ballast.tell() - room))


def on_a_full_disk(_rank: int, work: Path, what: str, room: int) -> tuple[str, str | None]:
    """How the disk was full, and what was lost."""
    folder = work / "disk"
    folder.mkdir()
    with small_disk(folder) as how:
        if what == "run":
            leave(folder, room, how)
            lost = loss_of_run(folder / "run")
        elif what in ("publish", "download"):
            lost = loss_of_transfer(folder, work, what, lambda: leave(folder, room, how))
        else:
            (folder / "sae").mkdir()
            save(an_sae(1), folder / "sae", what == "save_inference_model")
            leave(folder, room, how)
            lost = loss_of_save(folder / "sae", what == "save_inference_model")
        if how == "RLIMIT_FSIZE":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    return how, lost


def without_permission(_rank: int, work: Path, what: str) -> str | None:
    """What is lost in a folder that somebody else owns, and nobody may write."""
    folder = work / "theirs"
    folder.mkdir()
    root = os.geteuid() == 0

    def forbid() -> None:
        for file in folder.iterdir():
            file.chmod(0o444)
        work.chmod(0o755)
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)

    try:
        if what in ("publish", "download"):
            return loss_of_transfer(folder, work, what, forbid)
        if what != "run":
            save(an_sae(1), folder, what == "save_inference_model")
        forbid()
        if what == "run":
            return loss_of_run(folder / "run")
        return loss_of_save(folder, what == "save_inference_model")
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def write_often(rank: int, folder: Path, n: int) -> list[str]:
    """Save one SAE ``n`` times, and read what is there each time; what failed."""
    logging.disable(logging.WARNING)
    sae, wrong = an_sae(rank), []
    for _ in range(n):
        try:
            save(sae, folder, True)
        except Exception as error:
            wrong.append(f"a save: {in_short(error)}")
        try:
            load(folder)
        except GBAError:
            pass  # the other one is at it
        except Exception as error:
            wrong.append(f"a load: {in_short(error)}")
    return wrong


def two_writers(work: Path, n: int) -> tuple[list[str], str]:
    """What failed, and what the folder is in the end."""
    lost: list[str] = []
    expected = []
    for rank in range(2):
        an_sae(rank).save_inference_model(work / f"alone.{rank}")
        expected.append(weights(work / f"alone.{rank}"))
    processes = start(write_often, 2, work / "writers", work / "both", n)
    for process in processes:
        process.wait(600)
        lost += ["a writer died"] if process.result is None else process.result
    if left := [path.name for path in (work / "both").glob(".*")]:
        lost.append(f"left behind: {left}")
    try:
        load(work / "both")
    except GBAError:
        return lost, "refused"
    if weights(work / "both") not in expected:
        lost.append("the folder loads as a mixture of both SAEs")
    return lost, "one of both SAEs"


def rows(scale: float) -> list[dict[str, Any]]:
    """Rows of the table; see `experiments.torture.run`."""
    chance = random.Random(3)
    table = []
    for what, (words, full_size) in FULL_DISKS.items():
        lost, hows, tried = [], Counter[str](), max(1, round(full_size * scale))
        for _ in range(tried):
            with work_folder() as work:
                room = chance.randrange(0, 40 * KIB)
                (rank,) = start(on_a_full_disk, 1, work / "rank", work, what, room)
                rank.wait(120)
                how, loss = rank.result or ("?", rank.said[-300:])
                hows[how] += 1
                if loss:
                    lost.append(f"{room} bytes left: {loss}")
        table.append(row(f"full disk: {words}", tried, lost, made_by=dict(hows)))
    lost = []
    for what in FULL_DISKS:
        with work_folder() as work:
            (rank,) = start(without_permission, 1, work / "rank", work, what)
            rank.wait(120)
            if rank.exit_code or rank.result:
                lost.append(f"{what}: {rank.result or rank.said[-300:]}")
    table.append(row("a folder that may not be written", len(FULL_DISKS), lost))
    n = max(5, round(200 * scale))
    with work_folder() as work:
        lost, end = two_writers(work, n)
    table.append(row("two processes save into one folder", 2 * n, lost, in_the_end=end))
    return table
