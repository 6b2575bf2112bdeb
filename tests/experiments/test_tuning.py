"""Which learning rate and coefficient a `Tuner` chooses, by made-up training runs."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from experiments.lab.tuning import TUNED, Tuner

RATES = (1e-3, 3e-3, 1e-2)


@dataclass
class Runs:
    """Stands for training: remembers what was asked, and answers by a formula."""

    best_rate: float
    exponent: float = -0.6
    drift: float = 1.0
    spoilt: dict[float, dict[str, float]] = field(default_factory=dict)
    asked: list[tuple[dict[str, Any], float, int]] = field(default_factory=list)

    def __call__(self, spec: dict[str, Any], rate: float, steps: int) -> dict[str, Any]:
        self.asked.append((spec, rate, steps))
        row = {"l0": 99.0, "quality": -abs(math.log(rate / self.best_rate))}
        if "c" in spec:
            row["l0"] = 50 * spec["c"] ** self.exponent * (self.drift if steps > 100 else 1.0)
        return {**row, **self.spoilt.get(rate, {})}


def tuner(train: Runs) -> Tuner:
    return Tuner(train, 20.0, 0.05, RATES, tune_steps=100, steps=400, best_by="quality")


@pytest.mark.parametrize("best", RATES)
def test_the_rate_of_the_best_run_is_chosen(best: float) -> None:
    train = Runs(best)
    rows, rate, spec = tuner(train).tuned({"architecture": "topk", "k": 20})
    assert rate == best
    assert spec == {"architecture": "topk", "k": 20}
    assert [(r, steps) for _, r, steps in train.asked] == [(r, 100) for r in RATES]
    assert len(rows) == 3


@pytest.mark.parametrize("drift", [0.6, 1.0, 1.7])
def test_a_coefficient_meets_l0_at_the_end_of_the_full_run(drift: float) -> None:
    train = Runs(3e-3, drift=drift)
    _, rate, spec = tuner(train).tuned({"c": TUNED})
    assert rate == 3e-3
    assert abs(train(spec, rate, 400)["l0"] / 20 - 1) <= 0.05


def test_a_rate_with_which_l0_was_not_met_is_passed_over() -> None:
    _, rate, _ = tuner(Runs(1e-2, spoilt={1e-2: {"l0": 40.0}})).tuned({"c": TUNED})
    assert rate == 3e-3


def test_a_run_that_diverged_is_passed_over() -> None:
    _, rate, _ = tuner(Runs(3e-3, spoilt={RATES[0]: {"quality": math.nan}})).tuned({"k": 20})
    assert rate == 3e-3


def test_the_search_ends_when_no_coefficient_will_do() -> None:
    train = Runs(3e-3, exponent=0.0)
    _, _, spec = tuner(train).tuned({"c": TUNED})
    assert spec["c"] > 0
    assert len(train.asked) == 6 * (len(RATES) + 1)
