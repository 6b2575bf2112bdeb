"""When a result was made, and with what."""

import time
from datetime import datetime, timezone
from importlib.metadata import version

PACKAGES = ("sae-lens-gba", "sae-lens", "transformer-lens", "transformers", "torch")


def package_versions() -> dict[str, str]:
    """Installed version of each package that decides the numbers."""
    return {package: version(package) for package in PACKAGES}


def utc_now() -> str:
    """ISO 8601, to the second."""
    return utc_time(time.time())


def utc_time(seconds: float) -> str:
    """`utc_now` of another moment, in seconds since the epoch."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
