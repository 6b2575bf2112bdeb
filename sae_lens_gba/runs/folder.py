"""The folder of a run: one run's, and held by one process at a time."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_gba.atomic_write import remove_partial, storage_errors, write_errors
from sae_lens_gba.checksums import CHECKSUMS_FILENAME
from sae_lens_gba.errors import RunFolderError
from sae_lens_gba.runs.checkpoints import newest_whole
from sae_lens_gba.saved.evaluation import EVALUATION_FILENAME
from sae_lens_gba.saved.files import ALL_FILES
from sae_lens_gba.training_record.record import CHARTS_NAME, RECORD_NAME

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

CHECKPOINTS = "resume"
TO_REPLACE = ".to_replace"  # what is here is an earlier run's, until the first step of the new one
_REPORT, _REPORT_LATENTS = ("report.html", "report.json"), "report_latents"
LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # as on some network file systems

_log = logging.getLogger(__name__)


def has_ended(folder: Path) -> bool:
    """Whether a run's SAE is in ``folder`` itself, and no checkpoint to go on from."""
    if (folder / TO_REPLACE).exists() or not (folder / SAE_CFG_FILENAME).is_file():
        return False
    return newest_whole(folder / CHECKPOINTS) is None


@contextmanager
def run_folder(folder: Path, resume: bool, overwrite: bool) -> Iterator[Path | None]:
    """Hold ``folder`` while the block runs; gives the checkpoint to go on from, or None.

    Args:
        folder: made if need be.
        resume: go on from the newest whole checkpoint; a run without one begins.
        overwrite: the folder may be an earlier run's, which `remove_replaced_run` removes. Where
            this one is killed before that, to resume it is to begin it.

    Raises:
        RunFolderError: it is an earlier run's, or another process trains into it.
        StorageError: it can't be written, or the disk is full, now or in the block.
    """
    checkpoints = folder / CHECKPOINTS
    with storage_errors(folder), _made(folder), _locked(folder / LOCK):
        remove_partial(folder)
        remove_partial(checkpoints)
        to_replace = folder / TO_REPLACE
        never_began = resume and to_replace.exists()
        resume_from = newest_whole(checkpoints) if resume and not never_began else None
        if resume_from is None and (overwrite or never_began):
            to_replace.touch()
        elif resume_from is None:
            _require_unused(folder)
        if resume and resume_from is None:
            _log.info("%s holds no run to go on with: a new one begins.", folder)
        try:
            yield resume_from
        except Exception:  # unlike after a signal, there is nothing to resume
            to_replace.unlink(missing_ok=True)
            raise
        to_replace.unlink(missing_ok=True)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder is there; if it was not before, and nothing came into it, not afterwards."""
    with write_errors(folder):
        existed = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not existed:
            with suppress(OSError):
                folder.rmdir()


def remove_checkpoints(folder: Path) -> None:
    """Those of the run in ``folder``; where they are on another disk, the link to it stays."""
    for checkpoint in (folder / CHECKPOINTS).glob("*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    with suppress(OSError):
        (folder / CHECKPOINTS).rmdir()


def remove_replaced_run(folder: Path) -> None:
    """Remove the SAE, report, evaluation and checkpoints of a run that another one replaces.

    SAEs in folders below, as runs of several have them, are replaced when new ones are saved.
    """
    if not (folder / TO_REPLACE).exists():
        return
    remove_checkpoints(folder)
    latents = folder / _REPORT_LATENTS
    if (folder / EVALUATION_FILENAME).is_file():  # `sae_lens_gba.report.write_report` left it
        for name in _REPORT:
            (folder / name).unlink(missing_ok=True)
        if all(path.suffix == ".js" for path in latents.glob("*")):
            shutil.rmtree(latents, ignore_errors=True)
    for name in (*ALL_FILES, EVALUATION_FILENAME, CHECKSUMS_FILENAME, RECORD_NAME, CHARTS_NAME):
        (folder / name).unlink(missing_ok=True)
    (folder / TO_REPLACE).unlink()  # last: whoever is killed here begins anew


def _require_unused(folder: Path) -> None:
    if newest_whole(folder / CHECKPOINTS) is not None:
        what = "a run that was interrupted: go on with it (resume=True, --resume),"
    elif _has_sae(folder):
        what = "an SAE:"
    else:
        return
    raise RunFolderError(
        f"{folder} holds {what} name another folder, or replace it (overwrite=True, --overwrite)."
    )


def _has_sae(folder: Path) -> bool:
    """In the folder itself, or in those below it, as runs of several SAEs have them."""
    return any((path / SAE_CFG_FILENAME).is_file() for path in [folder, *folder.glob("[!.]*")])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The system's own lock, which ends with the process, however that ends."""
    with _lock(path) as file:
        try:
            yield
        finally:
            if fcntl is None:  # Windows removes no file that is open
                file.close()
            path.unlink(missing_ok=True)


def _lock(path: Path) -> TextIO:
    while True:
        path.parent.mkdir(exist_ok=True)  # another process's, which has ended meanwhile
        file = path.open("a")  # not "w": a link may lead to a file that is worth something
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            raise RunFolderError(
                f"another process trains into {path.parent}: name another folder, or wait for its "
                "end."
            ) from None
        except FileNotFoundError:
            pass  # a process that ended in between has removed it: once more
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning(
                "%s can't be locked (%s): see to it that no other process trains into it.",
                path.parent,
                error.strerror,
            )
            return file
        file.close()
