"""Which latent is in which group, and how often each group should fire.

A spectrum is K groups; group k holds ``sizes[k]`` latents that share one target
activation frequency (TAF) ``frequencies[k]``, highest first. A frequency is a share of
samples: 0.01 means active on one sample in a hundred. See arXiv 2506.14002, section 4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

GroupSizing = Literal["equal", "power_law"]

_BISECTION_STEPS = 64
# firings a sample of the rarest group: thirty on the samples that calibration has by default
_RAREST_GROUP = 1e-3


@dataclass(frozen=True)
class FrequencySpectrum:
    """Target activation frequencies and the sizes of the groups that share them.

    Attributes:
        frequencies: target of each group, share of samples, highest first. Length K.
        sizes: latents in each group. Length K, sums to d_sae, none is zero.
    """

    frequencies: tuple[float, ...]
    sizes: tuple[int, ...]

    @property
    def n_groups(self) -> int:
        return len(self.sizes)

    @property
    def l0(self) -> float:
        """Active latents a sample when every group is on its target."""
        return sum(s * p for s, p in zip(self.sizes, self.frequencies, strict=True))

    def group_of_latent(self) -> torch.Tensor:
        """Group index of each latent, int64, shape (d_sae,): group 0 first."""
        return torch.repeat_interleave(torch.arange(self.n_groups), torch.tensor(self.sizes))

    def target_of_latent(self) -> torch.Tensor:
        """Target frequency of each latent, float32, shape (d_sae,)."""
        return torch.tensor(self.frequencies)[self.group_of_latent()]


def geometric_frequencies(highest: float, lowest: float, n_groups: int) -> tuple[float, ...]:
    """``p_k = highest * (lowest / highest) ** (k / (K - 1))``, k = 0 .. K-1."""
    if n_groups == 1:
        return (highest,)
    ratio = lowest / highest
    return tuple(highest * ratio ** (k / (n_groups - 1)) for k in range(n_groups))


def group_sizes(
    frequencies: tuple[float, ...], d_sae: int, sizing: GroupSizing, exponent: float
) -> tuple[int, ...]:
    """Integers proportional to 1 ("equal") or p_k ** -exponent ("power_law").

    They add up to ``d_sae``, by largest remainder, and no group is empty.
    """
    power = 0.0 if sizing == "equal" else exponent
    # relative to the highest frequency, so that no power overflows
    weights = [(p / frequencies[0]) ** -power for p in frequencies]
    spare = d_sae - len(weights)  # one latent a group is spoken for
    total = sum(weights)
    shares = [d_sae * w / total for w in weights]
    wanted = [max(0.0, share - 1) for share in shares]
    scale = spare / max(sum(wanted), 1e-300)
    extra = [w * scale for w in wanted]
    sizes = [1 + math.floor(e) for e in extra]
    by_remainder = sorted(range(len(extra)), key=lambda k: math.floor(extra[k]) - extra[k])
    for k in by_remainder[: d_sae - sum(sizes)]:
        sizes[k] += 1
    return tuple(sizes)


def build_spectrum(
    d_sae: int,
    n_groups: int,
    highest: float,
    lowest: float,
    sizing: GroupSizing = "power_law",
    exponent: float = 1.0,
    target_l0: float | None = None,
    floor: float = 1e-7,
) -> FrequencySpectrum:
    """The spectrum for the frequencies as given, or for a requested L0.

    With ``target_l0``, ``lowest`` is not used: the lowest frequency is what is solved
    for, with ``highest``, the number of groups and their sizing kept, so that
    ``sum_k size_k * p_k = target_l0`` exactly. The sizes follow from the continuous
    solution; with those integers fixed, the lowest frequency is then solved again.
    With one group there is no range: its frequency is ``target_l0 / d_sae``.

    Where ``d_sae`` latents can't be that many groups, or not with so low a ``target_l0``, there
    are fewer; so, if that helps, where the latents of one group together would fire on fewer than
    one sample in 1,000.

    Args:
        d_sae: number of latents.
        n_groups: number of groups K, at most.
        highest: target frequency of the most active group, share of samples.
        lowest: target frequency of the least active group, share of samples.
        sizing: "equal" groups (the paper), or "power_law": size_k ~ p_k ** -exponent.
        exponent: 1.0 gives every group the same share of L0, 0.0 equal groups.
        target_l0: active latents a sample.
        floor: the lowest frequency that a solution may use.

    Raises:
        ValueError: ``target_l0`` can't be reached; names the nearest value that can.
    """
    n_groups = min(n_groups, d_sae)
    if target_l0 is None:
        return _spectrum(d_sae, n_groups, highest, lowest, sizing, exponent)

    least, most = d_sae * floor, d_sae * highest
    if target_l0 < least or target_l0 > most:
        limit, value = ("dead_frequency", floor) if target_l0 < least else (
            "highest_target_frequency", highest)  # fmt: skip
        nearest = least * (1 + 1e-5) if target_l0 < least else most * (1 - 1e-5)
        raise ValueError(
            f"target_l0={target_l0} can't be reached with d_sae={d_sae} and {limit}={value}: the "
            f"nearest possible value is {nearest:.6g}; ask for that, or change {limit} or d_sae."
        )
    most_groups: FrequencySpectrum | None = None
    while n_groups > 1:
        spectrum = _solve(target_l0, d_sae, n_groups, highest, sizing, exponent, floor)
        if spectrum is not None:
            firings = (s * p for s, p in zip(spectrum.sizes, spectrum.frequencies, strict=True))
            if min(firings) >= _RAREST_GROUP:
                return spectrum
            most_groups = most_groups or spectrum
        n_groups //= 2
    return most_groups or FrequencySpectrum((target_l0 / d_sae,), (d_sae,))


def _solve(
    l0: float,
    d_sae: int,
    n_groups: int,
    highest: float,
    sizing: GroupSizing,
    exponent: float,
    floor: float,
) -> FrequencySpectrum | None:
    """None where this many groups, the highest fixed, can't have that L0."""

    def with_lowest(lowest: float) -> FrequencySpectrum:
        return _spectrum(d_sae, n_groups, highest, lowest, sizing, exponent)

    guess = _bisect(lambda low: with_lowest(low).l0, l0, floor, highest)
    sizes = with_lowest(guess).sizes

    def with_sizes(lowest: float) -> FrequencySpectrum:
        return FrequencySpectrum(geometric_frequencies(highest, lowest, n_groups), sizes)

    spectrum = with_sizes(_bisect(lambda low: with_sizes(low).l0, l0, floor, highest))
    return spectrum if math.isclose(spectrum.l0, l0, rel_tol=1e-9) else None


def _spectrum(
    d_sae: int,
    n_groups: int,
    highest: float,
    lowest: float,
    sizing: GroupSizing,
    exponent: float,
) -> FrequencySpectrum:
    frequencies = geometric_frequencies(highest, lowest, n_groups)
    return FrequencySpectrum(frequencies, group_sizes(frequencies, d_sae, sizing, exponent))


def _bisect(l0_of: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The lowest frequency in [low, high], on a log scale, where l0_of meets target."""
    for _ in range(_BISECTION_STEPS):
        middle = math.sqrt(low * high)
        if l0_of(middle) < target:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
