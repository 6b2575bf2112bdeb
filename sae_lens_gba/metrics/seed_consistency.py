"""Whether runs that differ in their seed find the same latents. Matrices in, numbers out."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch
from sae_lens.util import cosine_similarities
from scipy.optimize import linear_sum_assignment

from sae_lens_gba.metrics.feature_recovery import best_match, unit_rows

# the Hungarian method needs the whole matrix, in float64, and O(n^3) time: at 8192 these are
# 0.5 GiB and about a minute; beyond, `match_one_to_one` is greedy
MAX_HUNGARIAN = 8192

_NEIGHBOURS = 64  # of each latent that the greedy matching looks at


def top_latents(score: torch.Tensor, top_share: float = 1.0) -> torch.Tensor:
    """Indices of the ceil(top_share * n) latents that score highest, best first.

    Args:
        score: what to rank by (largest activation, frequency, Z-score), shape (n,).
        top_share: alpha, a share of the latents, above 0 and at most 1.

    Raises:
        ValueError: ``top_share`` is out of range, or a score is NaN.
    """
    if not 0 < top_share <= 1:
        raise ValueError(f"top_share={top_share!r} must be above 0 and at most 1.")
    if torch.isnan(score).any():
        raise ValueError("score has NaN: give latents that were never active a score, e.g. 0.")
    n = -(-score.shape[0] * round(top_share * 1e9) // 10**9)  # ceil, without float surprises
    return score.argsort(descending=True, stable=True)[:n]


def shares_consistent(
    a: torch.Tensor,
    b: torch.Tensor,
    score: torch.Tensor | None = None,
    top_shares: Sequence[float] = (1.0,),
    threshold: float = 0.9,
) -> list[float]:
    """Shares of run A's top latents whose MCS in run B is above ``threshold``.

    The MCS of a latent is its best cosine (arXiv 2506.14002). It is signed, because a latent's
    activations are not negative: its opposite direction means something else.

    Args:
        a: directions of run A's latents, shape (n, d).
        b: of run B's, shape (m, d).
        score: rule by which A's latents are ranked, shape (n,); None needs top_shares of 1.
        top_shares: alpha, the shares of A's latents looked at.
        threshold: a cosine.

    Returns:
        For each alpha, from 0 to 1.

    Raises:
        ValueError: see `top_latents`; a score is missing or of another length.
    """
    if score is None:
        if any(share < 1 for share in top_shares):
            raise ValueError("top_shares below 1 need a score to rank the latents by.")
        score = torch.zeros(a.shape[0])
    if score.shape != (a.shape[0],):
        raise ValueError(f"score has shape {tuple(score.shape)}, but there are {len(a)} latents.")
    consistent = (best_match(a, b, signed=True).similarity > threshold).float()
    return [
        float(consistent[top_latents(score, share).to(a.device)].mean()) for share in top_shares
    ]


def consistency_over_seeds(
    runs: Sequence[torch.Tensor],
    scores: Sequence[torch.Tensor] | None = None,
    top_share: float = 1.0,
    threshold: float = 0.9,
) -> dict[tuple[int, int], float]:
    """`shares_consistent` for every ordered pair (i, j), i != j, of runs.

    Ordered, because the share of A's latents found in B differs from that of B's in A.

    Args:
        runs: directions of each run, shapes (n_i, d).
        scores: a score a run, shapes (n_i,).
        top_share: alpha.
        threshold: a cosine.

    Raises:
        ValueError: fewer than two runs, or see `shares_consistent`.
    """
    if len(runs) < 2:
        raise ValueError(f"consistency needs at least two runs, got {len(runs)}.")
    result = {}
    for i, j in combinations(range(len(runs)), 2):
        for a, b in ((i, j), (j, i)):
            score = None if scores is None else scores[a]
            (share,) = shares_consistent(runs[a], runs[b], score, (top_share,), threshold)
            result[a, b] = share
    return result


class Matching(NamedTuple):
    """A one-to-one matching of min(n, m) pairs.

    Attributes:
        a: latents of run A, int64, shape (min(n, m),).
        b: their partners in run B, same shape.
        similarity: cosine of each pair, same shape.
    """

    a: torch.Tensor
    b: torch.Tensor
    similarity: torch.Tensor


@torch.no_grad()
def match_one_to_one(
    a: torch.Tensor,
    b: torch.Tensor,
    method: Literal["auto", "hungarian", "greedy"] = "auto",
    signed: bool = False,
) -> Matching:
    """Pair the latents of two runs, each used at most once.

    "hungarian" has the largest possible sum of cosines. "greedy" goes through candidate
    pairs from the most alike down and takes each whose latents are both free; the candidates
    are the 64 nearest in B of each latent of A, and the rest is paired with what is left,
    in rounds. It is never better, needs O(64 n) memory, and agrees with Hungarian wherever
    both latents are each other's best. "auto": Hungarian up to `MAX_HUNGARIAN` latents.

    Args:
        a: directions, shape (n, d).
        b: directions, shape (m, d).
        method: as above.
        signed: False matches by absolute cosine, as arXiv 2505.20254 does.

    Raises:
        ValueError: unknown method, or the dimensions differ.
    """
    if method == "auto":
        small = max(a.shape[0], b.shape[0]) <= MAX_HUNGARIAN
        method = "hungarian" if small else "greedy"
    if method == "hungarian":
        cosines = _cosines(a, b, signed)
        rows, columns = linear_sum_assignment(cosines.cpu().numpy(), maximize=True)
        i, j = torch.from_numpy(rows), torch.from_numpy(columns)
        return Matching(i, j, cosines[i, j])
    if method == "greedy":
        return _match_greedily(a, b, signed)
    raise ValueError(f"method={method!r} must be auto, hungarian or greedy.")


def pairwise_mcc(
    a: torch.Tensor,
    b: torch.Tensor,
    method: Literal["auto", "hungarian", "greedy"] = "auto",
) -> float:
    """PW-MCC of arXiv 2505.20254: mean |cosine| of one-to-one matched latents.

    Up to `MAX_HUNGARIAN` latents it is SAELens' `mean_correlation_coefficient`; above, a
    lower bound of it (see `match_one_to_one`).

    Args:
        a: directions, shape (n, d).
        b: directions, shape (m, d).
        method: as in `match_one_to_one`.

    Returns:
        From 0 to 1.
    """
    return float(match_one_to_one(a, b, method).similarity.mean())


def _cosines(a: torch.Tensor, b: torch.Tensor, signed: bool) -> torch.Tensor:
    cosines = cosine_similarities(a, b)
    return cosines if signed else cosines.abs_()


def _match_greedily(a: torch.Tensor, b: torch.Tensor, signed: bool) -> Matching:
    free_a, free_b = torch.arange(a.shape[0]), torch.arange(b.shape[0])
    pairs: list[Matching] = []
    while len(free_a) and len(free_b):
        i, j, similarity = _greedy_round(a[free_a], b[free_b], signed)
        pairs.append(Matching(free_a[i], free_b[j], similarity))
        free_a = free_a[_without(len(free_a), i)]
        free_b = free_b[_without(len(free_b), j)]
    return Matching(*(torch.cat(column) for column in zip(*pairs, strict=True)))


def _greedy_round(
    a: torch.Tensor, b: torch.Tensor, signed: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One pass over each row's nearest candidates, most alike first."""
    k = min(_NEIGHBOURS, b.shape[0])
    block_size = max(1, 2**24 // b.shape[0])
    b = unit_rows(b)
    near = [_nearest(unit_rows(block) @ b.T, k, signed) for block in a.split(block_size)]
    similarity = torch.cat([block.values for block in near]).flatten().cpu()
    candidate = torch.cat([block.indices for block in near]).flatten().tolist()
    taken_a, taken_b, chosen = [False] * a.shape[0], [False] * b.shape[0], []
    for pair in similarity.argsort(descending=True, stable=True).tolist():
        i, j = pair // k, candidate[pair]
        if not (taken_a[i] or taken_b[j]):
            taken_a[i] = taken_b[j] = True
            chosen.append(pair)
    pairs = torch.tensor(chosen)
    return pairs // k, torch.tensor(candidate)[pairs], similarity[pairs]


def _nearest(cosines: torch.Tensor, k: int, signed: bool) -> Any:
    return (cosines if signed else cosines.abs_()).topk(k, dim=1)


def _without(n: int, taken: torch.Tensor) -> torch.Tensor:
    free = torch.ones(n, dtype=torch.bool)
    free[taken] = False
    return free
