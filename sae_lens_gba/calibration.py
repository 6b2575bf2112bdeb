"""Thresholds at which groups of latents fire exactly as often as asked, on given samples.

The margin of latent m on a sample is how far its pre-activation lies above its threshold, in a
unit of its own (the norm of its encoder column):

    u_m = (h_m - threshold_m) / unit_m        active iff u_m > 0 and h_m > 0

Moving the thresholds of a group by ``offset * unit_m`` makes all pairs with u > offset active,
so the offset for a wanted number of active pairs lies between two order statistics of the
group's margins: exact on these samples, with no iteration. This file is pure functions.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sae_lens_gba.latent_share import ALL_LATENTS, AllLatents
from sae_lens_gba.precision import float64_device

SAMPLES_FILENAME = "recent_samples.safetensors"
_FIRST_DEPTH = 0.1  # in units: how far below their thresholds pairs are collected at first
_DEEPER = 1.6  # times as far in the next pass, for groups that lack pairs
_A_LITTLE_DEEPER = 1.2  # times as far in all samples as in a few of them
_A_FEW = 1024
LEAST_FIRINGS = 30  # of each group, on all samples, that a calibration must expect to mean anything
_BISECTION_STEPS = 100


@dataclass(frozen=True)
class Margins:
    """The pairs of sample and latent that fire, or would with lower thresholds.

    Attributes:
        value: u of each pair, highest first within a group, float64, shape (n_pairs,); like
            latent, on the CPU if the SAE's device has no float64.
        latent: which latent, int64, shape (n_pairs,).
        starts: where each group's pairs begin, and the end; length n_groups + 1.
        n_samples: samples looked at.
        is_complete: by group, whether every pair above the lowest threshold is there.
    """

    value: torch.Tensor
    latent: torch.Tensor
    starts: tuple[int, ...]
    n_samples: int
    is_complete: tuple[bool, ...]

    def available(self, group: int) -> int:
        return self.starts[group + 1] - self.starts[group]

    def offset(self, group: int, n_active: int) -> float:
        """Midway between the last pair that is to fire and the first that is not.

        Pairs of equal samples fire together or not at all, whichever is nearer to ``n_active``.
        """
        values = self.value[self.starts[group] : self.starts[group + 1]]
        if len(values) == 0:
            return 0.0
        last = values[min(max(n_active, 1), len(values)) - 1]
        n_higher = int((values > last).sum())
        n_not_lower = int((values >= last).sum())
        end = n_not_lower if n_not_lower - n_active <= n_active - n_higher else n_higher
        if end == 0:  # just above the strongest
            return float(values[0] + values[0].abs() * 1e-3)
        if end == len(values):  # just below the weakest
            return float(values[-1] - values[-1].abs().clamp(min=1e-12) * 1e-6)
        return float((values[end - 1] + values[end]) / 2)


@dataclass(frozen=True)
class Calibration:
    """Thresholds for one L0.

    Attributes:
        offset: by group, in units; a threshold moves by ``offset[group] * unit``. Float64.
        frequency: share of the samples on which each latent is active then, (d_sae,).
        n_samples: samples looked at.
        possible_l0: what was asked for, or as much of it as there is with thresholds as low as
            they may be. `l0` differs from it where pre-activations are equal.
    """

    offset: torch.Tensor
    frequency: torch.Tensor
    n_samples: int
    possible_l0: float

    @property
    def l0(self) -> float:
        """Active latents a sample."""
        return float(self.frequency.sum())


class RecentSamples:
    """The last batches that were trained on, as long as they are needed for ``capacity`` samples.

    They are copied: a batch may be a slice, which would keep all of its buffer in memory, or be
    overwritten by the next. Memory is that of ``capacity`` samples, rounded up to batches.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.batches: deque[torch.Tensor] = deque()

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.batches)

    def add(self, batch: torch.Tensor) -> None:
        """Take in a batch of shape (n, d_in); the oldest that are not needed any more go."""
        self.batches.append(batch.clone())
        self.keep(self.capacity)

    def keep(self, n_samples: int) -> None:
        """The last ``n_samples``, rounded up to batches."""
        while self.batches and len(self) - len(self.batches[0]) >= n_samples:
            self.batches.popleft()

    def save(self, folder: Path) -> None:
        """As ``recent_samples.safetensors`` of a checkpoint: one tensor, and the batches' sizes."""
        samples = torch.cat(list(self.batches)) if self.batches else torch.empty(0, 0)
        sizes = torch.tensor([len(b) for b in self.batches], dtype=torch.int64)
        save_file({"samples": samples, "sizes": sizes}, folder / SAMPLES_FILENAME)

    def load(self, folder: Path, device: torch.device) -> None:
        """What a checkpoint has of them, in place of what is held; SAELens' own have none."""
        if not (folder / SAMPLES_FILENAME).is_file():
            return
        saved = load_file(folder / SAMPLES_FILENAME, device=str(device))
        sizes: list[int] = saved["sizes"].tolist()
        batches = saved["samples"].split(sizes) if sizes else ()
        self.batches = deque(batch.clone() for batch in batches)


def collect_margins(
    pre_activations: Iterable[torch.Tensor],
    threshold: torch.Tensor,
    unit: torch.Tensor,
    group: torch.Tensor,
    depth: torch.Tensor,
    share: AllLatents = ALL_LATENTS,
    lowest: torch.Tensor | None = None,
) -> Margins:
    """Margins of all pairs with ``h > lowest`` and ``u > -depth``.

    Args:
        pre_activations: h, in chunks of shape (n, d_sae).
        threshold: shape (d_sae,).
        unit: above 0, shape (d_sae,).
        group: group of each latent, int64, shape (d_sae,).
        depth: of each group, in units, shape (n_groups,).
        share: where the other latents are, if the ones given are not all: the margins are
            those of all, on every process.
        lowest: below which no threshold may go, shape (d_sae,); None means 0.
    """
    n_groups = len(depth)
    floor = torch.zeros_like(threshold) if lowest is None else lowest
    limit = torch.maximum(threshold - depth.to(threshold)[group] * unit, floor)
    values, latents, n_samples, there = [], [], 0, float64_device(threshold.device)
    for h in pre_activations:
        fires = h > limit
        latent = fires.nonzero()[:, 1]
        values.append(((h[fires] - threshold[latent]) / unit[latent]).to(there).double())
        latents.append(latent.to(there))
        n_samples += h.shape[0]
    latent = torch.cat(latents)
    group_of_pair = share.concatenate(group.to(there)[latent])
    value, latent = share.concatenate(torch.cat(values)), share.concatenate(share.in_whole(latent))
    order = value.argsort(descending=True)
    order = order[group_of_pair[order].argsort(stable=True)]
    value, latent = value[order], latent[order]
    sizes = torch.bincount(group_of_pair, minlength=n_groups)
    # a latent whose encoder is 0 to rounding has no pairs, however deep one looks
    has_more = (limit > floor) & (unit > 1e-6 * unit.max())
    bounded = share.sum(torch.bincount(group[has_more], minlength=n_groups))
    return Margins(
        value,
        latent,
        (0, *sizes.cumsum(0).tolist()),
        n_samples,
        tuple(n == 0 for n in bounded.tolist()),
    )


def calibrate_groups(
    pre_activations: Callable[[int | None], Iterable[torch.Tensor]],
    threshold: torch.Tensor,
    unit: torch.Tensor,
    group: torch.Tensor,
    group_frequency: torch.Tensor,
    l0s: Sequence[float],
    share: AllLatents = ALL_LATENTS,
    lowest: torch.Tensor | None = None,
) -> list[Calibration]:
    """Thresholds for each of several L0s, from as few passes over the samples as it takes.

    Each group's mean frequency becomes ``group_frequency`` with its odds multiplied by one
    factor for all groups, which is 1 when ``l0`` is what the frequencies add up to. A group
    that can't fire as often as that, its thresholds at their lowest, leaves the rest to the others;
    an L0 that all of them can't give ends with the most that they can.

    Args:
        pre_activations: gives h in chunks of shape (n, d_sae): of all samples, for None, the same
            on every call; or of about as many as asked for, which are like the others.
        threshold: shape (d_sae,).
        unit: above 0, shape (d_sae,).
        group: group of each latent, int64, shape (d_sae,).
        group_frequency: shares of samples, float64, shape (n_groups,).
        l0s: active latents a sample.
        share: where the other latents are, if the ones given are not all. What is found is for
            all of them.
        lowest: below which no threshold may go, shape (d_sae,); None means 0.
    """
    n_groups = len(group_frequency)
    group_frequency = group_frequency.cpu()
    sizes = share.sum(torch.bincount(group, minlength=n_groups)).cpu().double()
    depth = torch.full((n_groups,), _FIRST_DEPTH, dtype=torch.float64)
    # a few samples say how deep to look in all
    for n_samples in (_A_FEW, None):
        lacking = torch.ones(n_groups, dtype=torch.bool)
        while lacking.any():
            h = pre_activations(n_samples)
            margins = collect_margins(h, threshold, unit, group, depth, share, lowest)
            available = torch.tensor([margins.available(k) for k in range(n_groups)]).double()
            complete = torch.tensor(margins.is_complete)
            # what is not there yet may be there further down
            most = torch.where(complete, available / margins.n_samples, sizes)
            found = [expected_active(group_frequency, sizes, most, l0) for l0 in l0s]
            wanted = torch.stack(found).amax(dim=0) * margins.n_samples
            lacking = (wanted >= available) & ~complete
            depth[lacking] *= _DEEPER
        depth *= _A_LITTLE_DEEPER
    return [_calibration(margins, expected, int(sizes.sum())) for expected in found]


def expected_active(
    frequency: torch.Tensor, sizes: torch.Tensor, most: torch.Tensor, l0: float
) -> torch.Tensor:
    """Active latents a sample by group, ``l0`` in all, at most ``most`` of each.

    Frequencies are shares of samples, whose odds are all multiplied by one factor.
    """
    odds = frequency / (1 - frequency).clamp(min=1e-9)

    def at(log_factor: float) -> torch.Tensor:
        multiplied = odds * math.exp(log_factor)
        return torch.minimum(sizes * multiplied / (1 + multiplied), most)

    low, high = -40.0, 40.0
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(at(middle).sum()) < l0 else (low, middle)
    return at(high)


def _calibration(margins: Margins, expected: torch.Tensor, d_sae: int) -> Calibration:
    wanted = (expected * margins.n_samples).round().long().tolist()
    offset = torch.tensor([margins.offset(k, n) for k, n in enumerate(wanted)]).double()
    offset = offset.to(margins.value.device)
    pairs = torch.tensor(margins.starts, device=offset.device).diff()
    fires = margins.value > offset.repeat_interleave(pairs)
    counts = torch.bincount(margins.latent[fires], minlength=d_sae)
    frequency = counts.double() / margins.n_samples
    return Calibration(offset, frequency, margins.n_samples, float(expected.sum()))
