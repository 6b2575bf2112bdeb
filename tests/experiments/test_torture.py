from importlib import import_module

import pytest

from experiments.torture.damaged_files import try_folders
from experiments.torture.run import MODULES

# each is a test suite or a subprocess of its own
NOT_HERE = {"damaged_files", "properties"}


def test_a_damaged_folder_is_read_or_refused() -> None:
    outcomes = try_folders(60, seed=1, limited=False)
    assert set(outcomes) == {"read", "refused"}, outcomes


@pytest.mark.parametrize("module", [name for name in MODULES if name not in NOT_HERE])
def test_nothing_is_lost_at_the_smallest_size(module: str) -> None:
    table = import_module(f"experiments.torture.{module}").rows(0.002)
    assert all(row["tried"] == row["survived"] > 0 for row in table), [
        row for row in table if row["lost"]
    ]
