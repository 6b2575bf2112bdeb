"""constraints.txt lets every Python install that pyproject.toml allows."""

from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
OLDEST = {"python_version": "3.10", "python_full_version": "3.10.0"}


def test_what_is_pinned_for_the_oldest_python_installs_there() -> None:
    installed = {canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    checked = 0
    for line in CONSTRAINTS.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        package = installed.get(canonicalize_name(pin.name))
        # only the pinned version itself says what it needs
        if package is None or not pin.specifier.contains(package.version):
            continue
        if pin.marker is None or pin.marker.evaluate(OLDEST):
            pythons = SpecifierSet(package.metadata["Requires-Python"] or "")
            assert pythons.contains(OLDEST["python_full_version"]), line
            checked += 1
    if not checked:
        pytest.skip("none of the pinned versions is installed")
