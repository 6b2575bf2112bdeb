"""The learning rate's experiment at a size of seconds."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.benchmarks import architecture_comparison, learning_rate


def test_a_row_for_each_case_and_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = replace(architecture_comparison.Config(), n_features=64, n_roots=2, d_in=16)
    monkeypatch.setattr(architecture_comparison, "Config", lambda: small)
    case = learning_rate.Case("synthetic", 64, 64, 8, rates=(1e-3, 1e-2))
    config = replace(
        learning_rate.Config(),
        cases=(case, replace(case, decay=False)),
        target_l0=(("synthetic", 4.0),),
        held_out=1024,
    )
    rows = learning_rate.run(config)["rows"]
    assert [(row["decay"], row["learning_rate"]) for row in rows] == [
        (True, 1e-3), (True, 1e-2), (False, 1e-3), (False, 1e-2)
    ]  # fmt: skip
    assert len({row["loss"] for row in rows}) == 4  # they are different runs
    # all is there already: nothing is trained again
    monkeypatch.setattr(learning_rate, "train_together", None)
    assert learning_rate.run(config)["rows"] == rows
