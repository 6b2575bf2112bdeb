"""The folder of a run: one run's, and held by one process at a time."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_gba.atomic_write import remove_partial_folders, storage_errors
from sae_lens_gba.checksums import CHECKSUMS_FILENAME
from sae_lens_gba.errors import RunFolderError
from sae_lens_gba.runs.checkpoints import newest_whole
from sae_lens_gba.saved.files import ALL_FILES

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

CHECKPOINTS = "resume"
_LOCK = ".lock"


def has_ended(folder: Path) -> bool:
    """Whether a run's SAE is in ``folder``, and no checkpoint to go on from."""
    return _has_sae(folder) and newest_whole(folder / CHECKPOINTS) is None


@contextmanager
def run_folder(folder: Path, resume: bool, overwrite: bool) -> Iterator[Path | None]:
    """Hold ``folder`` while the block runs; gives the checkpoint to go on from, or None.

    Args:
        folder: made if need be.
        resume: go on from the newest whole checkpoint; a run without one begins.
        overwrite: an earlier run's SAE and checkpoints are removed.

    Raises:
        RunFolderError: it is an earlier run's, or another process trains into it.
        StorageError: it can't be written, or the disk is full, now or in the block.
    """
    checkpoints = folder / CHECKPOINTS
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / _LOCK):
            remove_partial_folders(folder)
            remove_partial_folders(checkpoints)
            if overwrite and not resume:
                _remove_run(folder)
            resume_from = newest_whole(checkpoints) if resume else None
            if resume_from is None:
                _require_unused(folder)
            yield resume_from


def _remove_run(folder: Path) -> None:
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for name in (*ALL_FILES, CHECKSUMS_FILENAME):
        (folder / name).unlink(missing_ok=True)


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
    with path.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(
                    f"another process trains into {path.parent}: name another folder, or wait for "
                    "its end."
                ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
