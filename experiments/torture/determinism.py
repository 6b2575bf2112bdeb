"""The same seed twice, in two processes with one thread: the same SAE, bit for bit."""

from typing import Any

from experiments.torture.training import KINDS, row, uninterrupted, work_folder

SETTINGS: list[dict[str, Any]] = [
    {},
    {"activation": "relu", "tied": True},
    {"bias_update": "paper", "group_sizing": "equal"},
    {"sparse_below_density": 0.0},
    {"sparse_below_density": 1.0, "n_nested_reconstructions": 1},
    {"dtype": "bfloat16"},
    {"normalize_activations": "expected_average_only_in"},
]


def rows(scale: float) -> list[dict[str, Any]]:
    """The row of the table; see `experiments.torture.run`."""
    cases = [(kind, settings) for kind in KINDS for settings in SETTINGS]
    cases = cases[: max(1, round(len(cases) * min(1.0, 2 * scale)))]
    lost = []
    with work_folder() as work:
        for i, (kind, settings) in enumerate(cases):
            steps = max(40, round(500 * scale))
            once, again = (
                uninterrupted(work / f"{i}-{turn}", kind, steps, 0, settings)[0] for turn in "ab"
            )
            if once != again:
                lost.append(f"{kind} with {settings}")
    return [row("the same seed again, in another process", len(cases), lost)]
