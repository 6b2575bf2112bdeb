"""Which latents point the same way: cosines between decoder rows, block by block."""

from dataclasses import dataclass

import torch

BLOCK = 1024
SAME_FEATURE = 0.9
RELATED = 0.7
UNRELATED = 0.5


@dataclass(frozen=True)
class Match:
    """For each row of one matrix the nearest row of another.

    Attributes:
        latent: its index, int64, shape (n_rows,).
        cosine: shape (n_rows,).
    """

    latent: torch.Tensor
    cosine: torch.Tensor


def nearest_other(rows: torch.Tensor) -> Match:
    """For each row of (n_rows, d) the nearest of the others; itself if there are none."""
    return _nearest(rows, rows, exclude_same=True)


def nearest_in(rows: torch.Tensor, others: torch.Tensor, among: torch.Tensor) -> Match:
    """For each row of (n_rows, d) the nearest row of (n_others, d).

    Args:
        rows: shape (n_rows, d).
        others: shape (n_others, d).
        among: bool, which of the others count, shape (n_others,). With none, the match is row 0
            with a cosine of 0.
    """
    if not bool(among.any()):
        return Match(torch.zeros(len(rows), dtype=torch.int64), torch.zeros(len(rows)))
    found = _nearest(rows, others[among], exclude_same=False)
    return Match(among.nonzero().flatten()[found.latent], found.cosine)


def mutual_matches(forth: Match, back: Match, at_least: float = RELATED) -> torch.Tensor:
    """Latents that are the best match of their best match, with a cosine of ``at_least``."""
    own = torch.arange(len(forth.latent))
    mutual = back.latent[forth.latent] == own
    return own[mutual & (forth.cosine >= at_least)]


def _nearest(rows: torch.Tensor, others: torch.Tensor, exclude_same: bool) -> Match:
    unit = torch.nn.functional.normalize(rows, dim=1)
    other_unit = torch.nn.functional.normalize(others, dim=1)
    if exclude_same and len(rows) == 1:
        return Match(torch.zeros(1, dtype=torch.int64), torch.zeros(1))
    cosines, latents = [], []
    for start in range(0, len(unit), BLOCK):
        block = unit[start : start + BLOCK] @ other_unit.T
        if exclude_same:
            at = torch.arange(len(block))
            block[at, start + at] = -torch.inf
        best = block.max(dim=1)
        cosines.append(best.values)
        latents.append(best.indices)
    return Match(torch.cat(latents), torch.cat(cosines).clamp(-1, 1))
