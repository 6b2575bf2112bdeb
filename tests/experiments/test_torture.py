import sys
from importlib import import_module
from pathlib import Path

import pytest
from huggingface_hub import constants

from experiments.torture.damaged_files import DOORS, try_folders
from experiments.torture.run import MODULES

# each is a test suite or a subprocess of its own
NOT_HERE = {"damaged_files", "properties"}


@pytest.mark.parametrize("door", DOORS)
def test_a_damaged_folder_is_read_or_refused(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # no plots, which take long
    outcomes = try_folders(door, 20 if "repo" in DOORS[door][0] else 60, seed=1, limited=False)
    assert set(outcomes) <= {"read", "refused"}, outcomes
    assert outcomes["refused"] > 0 or door.startswith("list"), outcomes


@pytest.mark.parametrize("module", [name for name in MODULES if name not in NOT_HERE])
def test_nothing_is_lost_at_the_smallest_size(module: str) -> None:
    table = import_module(f"experiments.torture.{module}").rows(0.002)
    assert all(row["tried"] == row["survived"] > 0 for row in table), [
        row for row in table if row["lost"]
    ]
