"""When a result was made, and with what."""

from datetime import datetime, timezone
from importlib.metadata import version

PACKAGES = ("sae-lens-gba", "sae-lens", "transformer-lens", "transformers", "torch")


def package_versions() -> dict[str, str]:
    """Installed version of each package that decides the numbers."""
    return {package: version(package) for package in PACKAGES}


def utc_now() -> str:
    """ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
