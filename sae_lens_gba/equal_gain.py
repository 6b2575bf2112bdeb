"""Thresholds at which one more activation lowers the squared error alike, whichever latent's it is.

What sample x gains by latent m being active, all others as they are, with r = x - x_hat, h the
latent's pre-activation and d its decoder row (output scale included):

    g = ||r + h d||^2 - ||r||^2   where m is active          (it would be missed)
    g = ||r||^2 - ||r - h d||^2   where it is not            (it would help)

In either case the pairs of highest h are the ones that fire. How many of each latent's do is chosen
so that the sum of all gains is the largest that the wanted L0 allows: with a price per activation,
the same for all, each latent fires as long as its gains pay. Pure functions, no SAE.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from sae_lens_gba.latent_share import ALL_LATENTS, AllLatents
from sae_lens_gba.precision import float64_device

# of its firings so far, the least that a latent keeps: chance shall not silence a rare one
_LEAST_KEPT = 0.25
_LEAST_FIRINGS = 10
_BISECTION_STEPS = 40


@dataclass(frozen=True)
class Pairs:
    """Pairs of sample and latent that may fire.

    Attributes:
        pre_activation: h, shape (n_pairs,).
        gain: g, in squared units of the input, shape (n_pairs,).
        latent: int64, shape (n_pairs,).
        fires: whether h is above the latent's threshold so far, bool, shape (n_pairs,).
    """

    pre_activation: torch.Tensor
    gain: torch.Tensor
    latent: torch.Tensor
    fires: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence["Pairs"]) -> "Pairs":
        """One after the other; at least one."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def on(self, device: torch.device) -> "Pairs":
        return Pairs(*(getattr(self, f.name).to(device) for f in fields(self)))

    def in_order(self) -> "Pairs":
        """By latent, those of the highest pre-activations first."""
        order = self.pre_activation.argsort(descending=True)
        order = order[self.latent[order].argsort(stable=True)]
        h, gain = self.pre_activation[order], self.gain[order]
        return Pairs(h, gain, self.latent[order], self.fires[order])


def gains(
    pre_activation: torch.Tensor, fires: torch.Tensor, residual: torch.Tensor, W_dec: torch.Tensor
) -> torch.Tensor:
    """g of every pair, (n, d_sae).

    Args:
        pre_activation: h, (n, d_sae).
        fires: whether it is part of the output, bool, (n, d_sae).
        residual: r, (n, d_in).
        W_dec: output scale included, (d_sae, d_in).
    """
    squared_norm = W_dec.square().sum(dim=1)
    without = residual @ W_dec.T + pre_activation * fires * squared_norm
    return pre_activation * (2 * without - pre_activation * squared_norm)


def equal_gain_thresholds(
    pairs: Pairs,
    n_active: int,
    threshold: torch.Tensor,
    lowest: torch.Tensor,
    share: AllLatents = ALL_LATENTS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The new thresholds, and how many pairs of each latent lie above; both (d_sae,).

    They are on the CPU if the device of the pairs has no float64.

    Pairs of equal pre-activation fire together or not at all, so a few more or less than wanted
    may. A latent that never fired keeps its threshold unless it pays to lower it.

    Args:
        pairs: all that are above ``lowest``.
        n_active: how many of them are to fire.
        threshold: of each latent so far, (d_sae,).
        lowest: that each latent's may become, (d_sae,).
        share: where the other latents are, if the ones given are not all; ``n_active`` is for all.
    """
    there = float64_device(threshold.device)
    pairs, threshold, lowest = pairs.on(there).in_order(), threshold.to(there), lowest.to(there)
    h, latent, d_sae = pairs.pre_activation, pairs.latent, len(threshold)
    n_pairs = torch.bincount(latent, minlength=d_sae)
    start = n_pairs.cumsum(0) - n_pairs
    rank = torch.arange(len(h), device=h.device) - start[latent] + 1
    is_last = rank == n_pairs[latent]
    following = torch.where(is_last, lowest[latent], h.roll(-1))
    # on the CPU: on a GPU the sum of a run may differ from another's, or be refused
    total = pairs.gain.double().cpu().cumsum(0).to(h.device)
    # by a latent's pairs up to this one
    gained = total - (total - pairs.gain.double())[start[latent]]
    fired = torch.bincount(latent[pairs.fires], minlength=d_sae)
    least = (_LEAST_KEPT * fired).maximum(fired.clamp(max=_LEAST_FIRINGS).to(gained))
    possible = (rank >= least[latent]) & (h > following)

    def firing(price: float) -> torch.Tensor:
        value = torch.where(possible, gained - price * rank, -torch.inf)
        best = torch.where(fired > 0, -torch.inf, 0.0).to(value)
        best = best.scatter_reduce(0, latent, value, "amax")
        reached = torch.where(value == best[latent], rank, 0)
        return torch.zeros_like(n_pairs).scatter_reduce(0, latent, reached, "amax")

    # in steps that are finest near 0: a massive activation's gain can be a million of others'
    sizes = pairs.gain.abs() if len(h) else threshold.new_zeros(1)
    highest, unit = share.sum(torch.stack([sizes.amax(), sizes.median()])).tolist()
    unit = max(unit, 1e-12 * highest) or 1.0
    low, high = -math.asinh(highest / unit), math.asinh(highest / unit)
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2
        too_many = int(share.sum(firing(unit * math.sinh(middle)).sum())) > n_active
        low, high = (middle, high) if too_many else (low, middle)
    count = firing(unit * math.sinh(high))
    # latents that fire more often at the slightly lower price, one after the other
    more = share.whole(firing(unit * math.sinh(low)) - count)
    lacking = n_active - share.sum(count.sum())
    count = count + share.own((lacking - more.cumsum(0) + more).clamp(min=0).minimum(more))
    count = _between_unequal(count, rank, latent, h > following)
    fires = count > 0
    at = (start + count - 1)[fires]
    moved = threshold.clone()
    moved[fires] = (h[at] + following[at]) / 2
    return moved, count


def _between_unequal(
    count: torch.Tensor, rank: torch.Tensor, latent: torch.Tensor, is_end: torch.Tensor
) -> torch.Tensor:
    """``count`` of each latent's pairs, or the nearest number that a threshold can divide."""
    wanted = count[latent]
    below = torch.where(is_end & (rank <= wanted), rank, 0)
    below = torch.zeros_like(count).scatter_reduce(0, latent, below, "amax")
    above = torch.where(is_end & (rank >= wanted), rank, torch.iinfo(rank.dtype).max)
    above = torch.full_like(count, torch.iinfo(rank.dtype).max).scatter_reduce(
        0, latent, above, "amin"
    )
    is_nearer = above - count <= count - below
    return torch.where(is_nearer | (below == 0) & (count > 0), above, below)
