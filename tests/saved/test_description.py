"""Figures in an SAE's metadata."""

from typing import Any

import pytest

from sae_lens_gba.saved.description import find_metric


@pytest.mark.parametrize(
    ("evaluation", "expected"),
    [
        ({"l0": 3}, 3),
        ({"metrics/l0": 3.5}, 3.5),
        ({"sparsity": {"l0": 2.0}}, 2.0),
        ({"l0_like": 1.0, "l0": True}, None),
        ({}, None),
    ],
)
def test_a_figure_is_found_under_saelens_names(
    evaluation: dict[str, Any], expected: float | None
) -> None:
    assert find_metric(evaluation, "l0") == expected
