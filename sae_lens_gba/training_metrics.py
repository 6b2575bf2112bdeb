"""What a GBA training SAE tells wandb of its groups, through SAELens' trainer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_lens_gba.bias_adapter import BiasAdapter
from sae_lens_gba.metrics import share_on_target

MAX_POINTS = 100  # of a curve: each chart is sent whole
BIAS_PERCENTILES = (5, 50, 95)


@dataclass
class Curves:
    """What wandb draws as one panel with many lines, which it must be sent whole each time.

    Every other point goes when there are `MAX_POINTS`, and a chart is sent when it has grown by
    a tenth: all of a run's charts together stay small. They are in no checkpoint: those of a run
    that goes on begin where it does.

    Attributes:
        step: at which a point was taken, of the adapter.
        lines: by chart and by line, its values; one a step.
        n_sent: points when the charts were last made.
    """

    step: list[int] = field(default_factory=list)
    lines: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    n_sent: int = 0
    _stride: int = 1
    _n_seen: int = 0

    def add(self, step: int, points: dict[str, dict[str, float]]) -> None:
        """Take in a point of every line, by chart and by line."""
        self._n_seen += 1
        if (self._n_seen - 1) % self._stride:
            return
        self.step.append(step)
        for chart, values in points.items():
            lines = self.lines.setdefault(chart, {})
            for name, value in values.items():
                lines.setdefault(name, []).append(value)
        if len(self.step) >= MAX_POINTS:
            self._thin()

    def _thin(self) -> None:
        del self.step[1::2]
        for lines in self.lines.values():
            for values in lines.values():
                del values[1::2]
        self._stride *= 2
        self.n_sent = 0

    def charts(self) -> dict[str, Any]:
        """wandb's charts by name; none if little was added since they were made last."""
        if len(self.step) < 2 or len(self.step) < 1.1 * self.n_sent:
            return {}
        import wandb  # SAELens has imported it by now; without logging it is never needed

        self.n_sent = len(self.step)
        return {
            chart: wandb.plot.line_series(
                xs=self.step,
                ys=list(lines.values()),
                keys=list(lines),
                title=chart.rsplit("/", 1)[-1],
                xname="optimizer step",
            )
            for chart, lines in self.lines.items()
        }


def training_metrics(adapter: BiasAdapter, bias: torch.Tensor, curves: Curves) -> dict[str, Any]:
    """Scalars by name, computed when called, and charts of the groups.

    Frequencies are those since the adaptation before last until the last one. A latent that is
    silent over so few samples need not be dead: SAELens' ``sparsity/dead_features`` says which
    were silent for ``dead_feature_window`` steps.

    Args:
        bias: shape (d_sae,).
        curves: of the run; a point is added.
    """
    whole = adapter.share.whole
    frequency, target = whole(adapter.frequency), whole(adapter.targets.frequency)
    relative = frequency / target
    curves.add(adapter.steps_taken, _points(adapter, bias))
    scalars: dict[str, Callable[[], torch.Tensor]] = {
        "gba/l0_since_last_adaptation": frequency.sum,
        "gba/l0_target": target.sum,
        "gba/share_of_latents_above_target": (relative > 1).float().mean,
        "gba/share_of_latents_within_factor_2_of_target": partial(
            share_on_target, frequency, target
        ),
        "gba/share_of_latents_silent_since_last_adaptation": (frequency == 0).float().mean,
    }
    return {**scalars, **curves.charts()}


def _points(adapter: BiasAdapter, bias: torch.Tensor) -> dict[str, dict[str, float]]:
    targets, of_all = adapter.targets, adapter.share.whole(bias)
    relative = adapter.frequency / targets.frequency
    groups = [f"group {k:02d}" for k in range(targets.n_groups)]
    at = torch.tensor([p / 100 for p in BIAS_PERCENTILES], device=bias.device, dtype=bias.dtype)
    return {
        "gba/frequency over target, by group": dict(
            zip(groups, targets.group_mean(relative).tolist(), strict=True)
        ),
        "gba/mean bias, by group": dict(
            zip(groups, targets.group_mean(bias).tolist(), strict=True)
        ),
        "gba/bias of all latents": {
            f"percentile {percent:02d}": value
            for percent, value in zip(BIAS_PERCENTILES, of_all.quantile(at).tolist(), strict=True)
        },
    }


@torch.no_grad()
def l0_over_target(adapter: BiasAdapter, feature_acts: torch.Tensor) -> torch.Tensor:
    """Active latents a sample over those asked for, shape (); sparse acts hold active ones only."""
    is_sparse = feature_acts.is_sparse
    n_active = feature_acts.values().numel() if is_sparse else (feature_acts > 0).sum()
    target = adapter.targets.frequency.sum()
    l0 = torch.zeros_like(target) + n_active / feature_acts.shape[:-1].numel()
    l0, target = adapter.share.sum(torch.stack([l0, target]))
    return l0 / target


def histograms(
    adapter: BiasAdapter, bias: torch.Tensor, output_scale: torch.Tensor
) -> dict[str, NDArray[Any]]:
    """Values by name: of all latents, or of those that fired, at least one.

    A silent latent has no logarithm of a frequency; ``training_metrics`` says how many there are.
    """
    whole = adapter.share.whole
    bias, output_scale, frequency = whole(bias), whole(output_scale), whole(adapter.frequency)
    fired = frequency > 0
    frequency, target = frequency[fired], whole(adapter.targets.frequency)[fired]
    of_all = {"weights/output_scale": _numpy(output_scale), "gba/bias": _numpy(bias)}
    if not len(frequency):  # wandb can't draw a histogram of nothing
        return of_all
    return {
        **of_all,
        "gba/log10_frequency_of_latents_that_fired": _numpy(frequency.log10()),
        "gba/log10_frequency_over_target_of_latents_that_fired": _numpy(
            (frequency / target).log10()
        ),
    }


def _numpy(values: torch.Tensor) -> NDArray[np.floating[Any]]:
    return values.detach().float().cpu().numpy()
