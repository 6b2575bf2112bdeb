"""Files and folders appear whole or not at all, and stay after a power cut."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile

from safetensors import SafetensorError

from sae_lens_gba.errors import GBAError, StorageError

_PARTIAL = ".partial"

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TORCH_HAD_NO_ROOM = ("inline_container.cc", "PytorchStreamWriter", "basic_ios::clear")
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a file beside ``path``, then put it in place in one move.

    Any number of processes may write the same ``path`` at once: the last one's file stays. It is
    for whoever may read new files of the process: safetensors' are for their owner alone.

    Raises:
        StorageError: the disk is full, or the folder can't be written.
    """
    partial = _beside(path)
    with write_errors(path):
        try:
            partial.touch()
            mode = partial.stat().st_mode
            write(partial)
            _allow(partial, mode)
            _sync(partial)
            os.replace(partial, path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path, replace: bool = False) -> Iterator[Path]:
    """A new folder beside ``path``, which becomes ``path`` once the block has ended well.

    Its parents are made. ``path`` itself must not exist, or be an empty folder, unless it is to
    be replaced.

    Raises:
        StorageError: the disk is full, or the folder can't be written.
    """
    partial = _beside(path)
    with write_errors(path):
        try:
            partial.mkdir(parents=True)
            yield partial
            _finish(partial)
            _sync(partial)
            if replace:
                remove_at_once(path)
            os.replace(partial, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def files_written_whole(folder: Path) -> Iterator[Path]:
    """A new folder in ``folder``, whose content is moved up once the block has ended well.

    JSON last: a folder with an SAE's ``cfg.json`` has all that it speaks of. ``folder`` is made
    if need be, and may be where another disk begins.

    Raises:
        StorageError: the disk is full, or the folder can't be written; what it held is as before.
    """
    partial = _beside(folder / "files")
    with write_errors(folder):
        try:
            partial.mkdir(parents=True)
            yield partial
            files = sorted(partial.iterdir(), key=lambda file: (file.suffix == ".json", file.name))
            _finish(partial)
            for file in files:
                os.replace(file, folder / file.name)
            _sync(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_at_once(folder: Path) -> None:
    """Remove a folder, if it is there and may be: none that lacks files is left under its name."""
    partial = _beside(folder)
    with suppress(OSError):
        os.replace(folder, partial)
        shutil.rmtree(partial, ignore_errors=True)


def numbered(folder: Path) -> list[Path]:
    """The folders in ``folder`` that numbers name, the lowest first."""
    found = (p for p in folder.glob("*") if p.name.isdecimal() and p.is_dir())
    return sorted(found, key=lambda p: int(p.name))


def remove_older(newest: Path, keep: int) -> None:
    """Of the `numbered` folders beside ``newest``, up to its own number, the last ``keep`` stay."""
    for old in [p for p in numbered(newest.parent) if int(p.name) <= int(newest.name)][:-keep]:
        remove_at_once(old)


def remove_partial(parent: Path) -> None:
    """Remove what killed processes left of the above; no other may be writing."""
    for partial in parent.glob(f".*{_PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # a file, or a folder that was there
            partial.unlink()


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """As `storage_errors`, of whatever the system says: for blocks that write, or explain the rest.

    Raises:
        StorageError: a disk fails, a network's is gone, a file is where a folder should be.
    """
    with storage_errors(path):
        try:
            yield
        except GBAError:
            raise
        except Exception as error:
            number = _system_error(error)
            if number is None or number in _NO_ROOM | _NO_PERMISSION:
                raise
            remedy = "look at its disk, or name another folder"
            if number in (errno.EEXIST, errno.ENOTDIR):
                remedy = "a file is where a folder should be; name another"
            raise StorageError(
                f"{path} could not be written ({os.strerror(number)}): {remedy}."
            ) from error


def require_writable(folder: Path) -> None:
    """That files can be written into ``folder``, which is made if need be.

    Raises:
        StorageError: they can't.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


@contextmanager
def storage_errors(path: Path, named_by: str | None = None) -> Iterator[None]:
    """A full disk or a folder that can't be written ends in one sentence.

    Args:
        path: what is written.
        named_by: what names another folder, where the caller did not choose this one.

    Raises:
        StorageError: what torch, safetensors or the system raised for it is its cause.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = _system_error(error)
        if number in _NO_ROOM:
            remedy = "there is no room: free some space, or name a folder on another disk"
        elif number in _NO_PERMISSION and _concerns(error, path):
            remedy = "it is read-only or not yours: name a folder that you may write"
        else:
            raise
        how = "" if named_by is None else f" ({named_by})"
        raise StorageError(f"{path} could not be written, {remedy}{how}.") from error


def _system_error(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    if isinstance(error, RuntimeError) and any(part in text for part in _TORCH_HAD_NO_ROOM):
        return errno.ENOSPC  # torch.save does not say what the system said
    # Rust's words, in errors of safetensors and of the Hub's downloads; safetensors' before 0.5
    found = re.search(r"\(os error (\d+)\)", text)
    if found is None and isinstance(error, SafetensorError):
        found = re.search(r"\bcode: (\d+)", text)
    return int(found.group(1)) if found else None


def _concerns(error: Exception, path: Path) -> bool:
    """Not so of a file elsewhere that can't be read, such as a data set's."""
    name = getattr(error, "filename", None)
    return name is None or path.absolute().parent in Path(name).absolute().parents


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}{_PARTIAL}")


def _finish(folder: Path) -> None:
    """As `write_atomically` leaves a file, all that is in a folder."""
    mode = folder.stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _allow(path, mode & 0o666)
        _sync(path)


def _allow(file: Path, mode: int) -> None:
    with suppress(OSError):  # network shares on which files are others'
        file.chmod(mode)


def _sync(path: Path) -> None:
    try:  # Windows syncs no file that is open for reading only
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:  # of a folder, on Windows
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that can't sync folders
            raise
    finally:
        os.close(descriptor)
