"""Learning rates and coefficients of architectures that are to be compared at one L0."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

TUNED = "tuned"  # stands for a coefficient that is chosen so that L0 is met


@dataclass(frozen=True)
class Tuner:
    """Gives every architecture the learning rate, and the coefficient, that serve it best.

    Attributes:
        train: runs a specification (as `TrainingSAE.from_dict` takes it) with a learning rate for
            so many steps, and measures it: a row with "l0" and the measure of ``best_by``.
        l0: to be met by architectures with a coefficient; the others have the L0 they have.
        l0_tolerance: relative.
        learning_rates: to choose from.
        tune_steps: of the runs that choose.
        steps: of the runs that the choice is for.
        best_by: measure whose highest value wins.
    """

    train: Callable[[Row, float, int], Row]
    l0: float
    l0_tolerance: float
    learning_rates: tuple[float, ...]
    tune_steps: int
    steps: int
    best_by: str

    def tuned(self, spec: Row) -> tuple[list[Row], float, Row]:
        """Rows of the runs that chose, the learning rate, and ``spec`` filled in."""
        field = next((key for key, value in spec.items() if value == TUNED), None)
        tries: list[tuple[Row, float, Row]] = []
        coefficient = 0.3
        for rate in self.learning_rates:
            filled = spec
            if field is None:
                row = self.train(spec, rate, self.tune_steps)
            else:
                coefficient, row = self._matched(spec, field, rate, self.tune_steps, coefficient)
                filled = {**spec, field: coefficient}
            tries.append((row, rate, filled))
        matched = [t for t in tries if field is None or self._meets_l0(t[0])] or tries
        # a run that diverged is the worst
        _, rate, filled = max(matched, key=lambda t: _or_worst(t[0][self.best_by]))
        if field is not None:  # L0 goes on to change with training
            coefficient, _ = self._matched(spec, field, rate, self.steps, filled[field])
            filled = {**spec, field: coefficient}
        return [row for row, _, _ in tries], rate, filled

    def _matched(
        self, spec: Row, field: str, rate: float, steps: int, start: float
    ) -> tuple[float, Row]:
        """The coefficient with which ``l0`` is met after ``steps``, and the run with it.

        Secant in the logarithms of coefficient and L0; after six runs the nearest will do.
        """
        tried: list[tuple[float, float]] = []
        nearest: tuple[float, float, Row] = (math.inf, start, {})
        log_coefficient = math.log(start)
        for _ in range(6):
            coefficient = math.exp(log_coefficient)
            row = self.train({**spec, field: coefficient}, rate, steps)
            miss = math.log(max(row["l0"], 1e-3) / self.l0)
            nearest = min(nearest, (abs(miss), coefficient, row), key=lambda n: n[0])
            if self._meets_l0(nearest[2]):
                break
            tried.append((log_coefficient, miss))
            slope = -1.0
            if len(tried) > 1:
                (x0, y0), (x1, y1) = tried[-2:]
                slope = min((y1 - y0) / (x1 - x0), -0.3)
            log_coefficient -= max(-1.5, min(1.5, miss / slope))
        return nearest[1:]

    def _meets_l0(self, row: Row) -> bool:
        return abs(row["l0"] / self.l0 - 1) <= self.l0_tolerance


def _or_worst(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
