"""Bias adaptation: feedback that moves biases until latents fire as often as they should.

This file is the algorithm: pure functions that know nothing of SAEs, files or training loops.
`sae_lens_gba.bias_adapter.BiasAdapter` keeps the running statistics they need.

    every T steps, over all samples seen since the last adaptation:
      p_m  = share of samples with y_m > 0             y_m: pre-activation, bias included
      r_m  = max(0, max of y_m)
      b_m <- rule(b_m; p_m, r_m, targets)              then clamped to [-c_m, 0]

=============  =========================================  ==========================
paper          here                                       shape, unit
=============  =========================================  ==========================
b              ``bias``                                   (d_sae,) pre-activation
p              ``Observation.frequency``                  (d_sae,) share of samples
r              ``Observation.peak``                       (d_sae,) pre-activation
p_k (TAF)      ``Targets.frequency`` (one per latent)     (d_sae,) share of samples
group k        ``Targets.group``                          (d_sae,) int
gamma_minus    ``AdaptationRates.decrease``               share (of r, or of c)
gamma_plus     ``AdaptationRates.increase``               share (of s, or of c)
epsilon        ``AdaptationRates.dead_frequency``         share of samples
-b_min         ``bias_range`` (c)                         (d_sae,) pre-activation
T              ``BiasAdapter.adapt_every_n_steps``        optimizer steps
=============  =========================================  ==========================

Why the clamp is in units of the input: a latent's pre-activation w.(x - b_dec) can't exceed
||w|| ||x - b_dec||, so with c_m = ||w_m|| * (typical norm of the centred input) the range
[-c_m, 0] holds every bias that can matter for a typical sample. For inputs of unit norm and
unit-norm w this is the paper's b_min = -1. Multiplying the inputs by s multiplies y, r, c
and hence every step by s: training does not depend on the unit of the activations.

Source: arXiv 2506.14002, section 3 ("paper"); the other rules are this project's. To add a
rule, write one function and name it in UPDATE_RULES: configs and the command line take it then.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sae_lens_gba.latent_share import ALL_LATENTS, AllLatents

_OVERDUE = 5.0  # times a latent should have fired while it was silent
_GAIN = 0.3  # of all rules but the paper's: bias moves by _GAIN * decrease * c * miss


@dataclass(frozen=True)
class Observation:
    """What one adaptation sees: statistics of the samples since the last one.

    Attributes:
        frequency: share of samples on which each latent was active (p).
        peak: largest pre-activation, at least 0 (r).
        silent_samples: samples since each latent was last active, in this window or before.
        near_frequency: share of samples on which it was active with a pre-activation below
            ``band``.
        band: width of the band above the threshold, in pre-activation units; 0 if none was set.
    """

    frequency: torch.Tensor
    peak: torch.Tensor
    silent_samples: torch.Tensor
    near_frequency: torch.Tensor
    band: torch.Tensor


@dataclass(frozen=True)
class Targets:
    """What each latent should do.

    Attributes:
        group: group index of each latent, shape (d_sae,).
        frequency: share of samples, shape (d_sae,).
        n_groups: number of groups.
        share: whether these are all latents, or where the others are.
    """

    group: torch.Tensor
    frequency: torch.Tensor
    n_groups: int
    share: AllLatents = ALL_LATENTS

    def group_mean(self, values: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
        """Mean of ``values`` over each group's latents (those in ``where``).

        Shape (n_groups,); 0 for a group without any such latent.
        """
        weight = torch.ones_like(values) if where is None else where.to(values.dtype)
        sums = values.new_zeros(2, self.n_groups)
        sums[0].index_add_(0, self.group, values * weight)
        sums[1].index_add_(0, self.group, weight)
        total, count = self.share.sum(sums)
        return total / count.clamp(min=1)


@dataclass(frozen=True)
class AdaptationRates:
    """Step sizes and limits of the update rules.

    Attributes:
        decrease: how far a latent that fires too often is moved, per adaptation.
        increase: how far a dead latent is moved, per adaptation.
        dead_frequency: a latent below this share of samples is dead.
        frequency_cap: group_newton and group_mean only: a single latent is pushed down above this
            multiple of its target.
    """

    decrease: float
    increase: float
    dead_frequency: float
    frequency_cap: float


UpdateRule = Callable[
    [torch.Tensor, Observation, Targets, AdaptationRates, torch.Tensor], torch.Tensor
]


def paper(
    bias: torch.Tensor,
    seen: Observation,
    targets: Targets,
    rates: AdaptationRates,
    bias_range: torch.Tensor,
) -> torch.Tensor:
    """The rule of arXiv 2506.14002.

    p_m > target_m:  b_m <- max(b_m - decrease * r_m, -c_m)
    p_m < epsilon:   b_m <- min(b_m + increase * s_k, 0),
    s_k the mean of r over the latents of group k with r > 0. All others stay.
    """
    too_often = seen.frequency > targets.frequency
    lowered = torch.maximum(bias - rates.decrease * seen.peak, -bias_range)
    return _raise_dead(torch.where(too_often, lowered, bias), seen, targets, rates)


def log_proportional(
    bias: torch.Tensor,
    seen: Observation,
    targets: Targets,
    rates: AdaptationRates,
    bias_range: torch.Tensor,
    least_miss: float = -2.0,
) -> torch.Tensor:
    """Each latent on its own, a step proportional to the log of its miss.

    b_m <- clamp(b_m - 0.3 * decrease * c_m * clamp(log(p_m / target_m), -2, 2), -c_m, 0);
    dead latents are raised as in `paper`.
    """
    miss = (seen.frequency / targets.frequency).log().clamp(least_miss, 2.0)
    dead = seen.frequency < rates.dead_frequency
    step = torch.where(dead, 0.0, _GAIN * rates.decrease * bias_range * miss)
    return _raise_dead(_clamp(bias - step, bias_range), seen, targets, rates)


def log_proportional_one_sided(
    bias: torch.Tensor,
    seen: Observation,
    targets: Targets,
    rates: AdaptationRates,
    bias_range: torch.Tensor,
) -> torch.Tensor:
    """As `log_proportional`, but only latents above their target are moved."""
    return log_proportional(bias, seen, targets, rates, bias_range, least_miss=0.0)


def group_mean(
    bias: torch.Tensor,
    seen: Observation,
    targets: Targets,
    rates: AdaptationRates,
    bias_range: torch.Tensor,
) -> torch.Tensor:
    """Each group's mean frequency on target; its latents free to differ, up to a cap.

    e_k = clamp(log(mean over group k of p_m / p_k), -2, 2)
    u_m = clamp(log(p_m / (cap * p_k)), 0, 3)
    b_m <- b_m - 0.3 * decrease * c_m * (e_k + u_m)
    p_m < epsilon:  b_m <- b_m + increase * c_m
    b_m <- clamp(b_m, -c_m, 0)

    Neurons of a group move together, so each can settle at its feature's own frequency
    while the group, and with it L0, stays on target. A latent counts as dead only once it
    has been silent for five times as long as its target says: with few samples between
    two adaptations, a rare latent on target is often silent in between.
    """
    relative = seen.frequency / targets.frequency
    group_miss = targets.group_mean(relative).log().clamp(-2.0, 2.0)[targets.group]
    excess = (relative / rates.frequency_cap).log().clamp(0.0, 3.0)
    moved = bias - _GAIN * rates.decrease * bias_range * (group_miss + excess)
    return _clamp(_raise_overdue(moved, seen, targets, rates, bias_range), bias_range)


def group_newton(
    bias: torch.Tensor,
    seen: Observation,
    targets: Targets,
    rates: AdaptationRates,
    bias_range: torch.Tensor,
) -> torch.Tensor:
    """As `group_mean`, with a group's step from the slope of its frequency: Newton's.

    e_k = clamp(log(mean over group k of p_m / p_k), -2, 2)
    h_k = (sum of near_m) / (sum of p_m * band_m / c_m)    relative loss of frequency per c
    b_m <- b_m - c_m * (clamp(e_k / h_k, -2 decrease, 2 decrease) + 0.3 * decrease * u_m)

    near_m: share of samples on which latent m fired within ``band_m`` of its threshold. A group
    whose slope is not known takes the fixed step of `group_mean`; caps and dead latents too are
    as there.
    """
    relative = seen.frequency / targets.frequency
    group_miss = targets.group_mean(relative).log().clamp(-2.0, 2.0)
    near = targets.group_mean(seen.near_frequency)
    passed = targets.group_mean(seen.frequency * _of_range(seen.band, bias_range))
    fixed = _GAIN * rates.decrease * group_miss
    newton = (group_miss * passed / near).clamp(-2 * rates.decrease, 2 * rates.decrease)
    step = torch.where((near > 0) & (passed > 0), newton, fixed)[targets.group]
    excess = (relative / rates.frequency_cap).log().clamp(0.0, 3.0)
    moved = bias - bias_range * (step + _GAIN * rates.decrease * excess)
    return _clamp(_raise_overdue(moved, seen, targets, rates, bias_range), bias_range)


UPDATE_RULES: dict[str, UpdateRule] = {
    rule.__name__: rule
    for rule in (paper, log_proportional, log_proportional_one_sided, group_mean, group_newton)
}


def _raise_dead(
    bias: torch.Tensor, seen: Observation, targets: Targets, rates: AdaptationRates
) -> torch.Tensor:
    dead = seen.frequency < rates.dead_frequency
    mean_peak = targets.group_mean(seen.peak, where=seen.peak > 0)[targets.group]
    raised = (bias + rates.increase * mean_peak).clamp(max=0.0)
    return torch.where(dead, raised, bias)


def _raise_overdue(
    bias: torch.Tensor,
    seen: Observation,
    targets: Targets,
    rates: AdaptationRates,
    bias_range: torch.Tensor,
) -> torch.Tensor:
    overdue = seen.silent_samples * targets.frequency >= _OVERDUE
    dead = (seen.frequency < rates.dead_frequency) & overdue
    return torch.where(dead, bias + rates.increase * bias_range, bias)


def _clamp(bias: torch.Tensor, bias_range: torch.Tensor) -> torch.Tensor:
    return bias.clamp(min=-bias_range).clamp(max=0.0)


def _of_range(band: torch.Tensor, bias_range: torch.Tensor) -> torch.Tensor:
    """Its share of c; 0 for a latent whose encoder is zero, which has neither."""
    return band / bias_range.clamp(min=torch.finfo(bias_range.dtype).tiny)


def next_band(
    seen: Observation, targets: Targets, rates: AdaptationRates, bias_range: torch.Tensor
) -> torch.Tensor:
    """Width above each threshold in which the next window's firings give the slope.

    One share of c for all latents of a group, moved so that a quarter of the group's firings
    fall into it: enough of them to count, near enough to say how frequency falls just there.

    Returns:
        Shape (d_sae,), in pre-activation units.
    """
    width = targets.group_mean(_of_range(seen.band, bias_range))
    fired = targets.group_mean(seen.frequency)
    near = targets.group_mean(seen.near_frequency)
    wider = (0.25 * fired / near).clamp(0.5, 2.0)
    width = torch.where((width > 0) & (fired > 0), width * wider, 0.2 * rates.decrease)
    return width.clamp(max=1.0)[targets.group] * bias_range
