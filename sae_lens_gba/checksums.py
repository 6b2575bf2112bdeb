"""``gba_checksums.json``: what the files beside it were when they were saved together.

It is written last, so that a folder whose files are not all there, or not of one SAE, is noticed.
"""

import json
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path, PurePath

from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.errors import DamagedFileError

CHECKSUMS_FILENAME = "gba_checksums.json"
_CHUNK_BYTES = 1 << 20


def write_checksums(folder: str | Path) -> Path:
    """Write the SHA-256 of all files in ``folder``, those of its folders too, all or nothing."""
    folder = Path(folder)
    path = folder / CHECKSUMS_FILENAME
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != path)
    digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    content = {"sha256": digests}
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path


def has_checksums(folder: Path) -> bool:
    return (folder / CHECKSUMS_FILENAME).is_file()


def check_checksums(folder: Path, names: Collection[str] | None = None) -> None:
    """That the files are those that were saved together; a folder without checksums passes.

    Reads at about the speed of the disk: SHA-256 takes 0.7 s a GiB on one core.

    Args:
        folder: of an SAE or a checkpoint.
        names: of the files that are needed; None is all that are listed.

    Raises:
        DamagedFileError: a listed file is missing or another one.
    """
    path = folder / CHECKSUMS_FILENAME
    if not path.is_file():
        return
    for name, digest in _listed(path).items():
        if names is not None and name not in names:
            continue
        file = folder / name
        if not file.is_file():
            raise DamagedFileError(
                f"{name} is missing in {folder}, which was saved with it: copy the folder again."
            )
        if file_digest(file) != digest:
            raise DamagedFileError(
                f"{file} is not the file that was saved here: copy the whole folder again, or "
                f"delete {CHECKSUMS_FILENAME} in it if you changed the file on purpose."
            )


def _listed(path: Path) -> dict[str, str]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        if all(_is_below(name) and isinstance(digest, str) for name, digest in listed.items()):
            return dict(listed)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        pass
    raise DamagedFileError(f"{path} is damaged: copy the whole folder again, or delete it.")


def _is_below(name: str) -> bool:
    """Not elsewhere on this machine, where a stranger's list may name what has no end."""
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, read in chunks."""
    digest = sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
