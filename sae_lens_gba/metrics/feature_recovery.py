"""The nearest row of another matrix. Bare matrices in, numbers out.

Rows are directions; only their directions count, never their norms. Sign-free by default,
as in arXiv 2506.14002. The one-to-one relatives of these measures are SAELens' own
`sae_lens.synthetic.evals.mean_correlation_coefficient` and `feature_uniqueness`.
"""

from typing import NamedTuple

import torch

# cosines held at once: 2**24 float32 are 64 MiB, so 66k x 66k fits easily in 2 GiB
_MAX_COSINES = 2**24


class BestMatch(NamedTuple):
    """The nearest row of another matrix, for each row.

    Attributes:
        similarity: cosine with it (its absolute value, unless signed), shape (n,).
        candidate: which row it is, int64, shape (n,).
    """

    similarity: torch.Tensor
    candidate: torch.Tensor


@torch.no_grad()
def best_match(
    rows: torch.Tensor,
    candidates: torch.Tensor,
    signed: bool = False,
    max_cosines: int = _MAX_COSINES,
    exclude_same: bool = False,
) -> BestMatch:
    """For each row, the candidate with the largest cosine.

    ``similarity[i] = max_j |cos(rows[i], candidates[j])|``, computed a block of rows at a
    time, so that the full matrix of cosines never exists.

    Args:
        rows: shape (n, d).
        candidates: shape (m, d). Rows of zeros have cosine 0 with everything.
        signed: whether -v is a different direction from v.
        max_cosines: cosines held in memory at once; no effect on the result.
        exclude_same: row i does not match candidate i, for a matrix compared with itself; a
            single row then has cosine -inf.

    Raises:
        ValueError: no candidates, the dimensions differ, or there is NaN or Inf.
    """
    if candidates.shape[0] == 0 or rows.ndim != 2 or rows.shape[1:] != candidates.shape[1:]:
        raise ValueError(
            f"can't compare rows of shape {tuple(rows.shape)} with candidates of shape "
            f"{tuple(candidates.shape)}: both must be (any number, at least 1; the same d)."
        )
    block_size = max(1, max_cosines // candidates.shape[0])
    # SAELens' cosine_similarities would normalise all candidates again for every block
    rows, candidates = (
        torch.nn.functional.normalize(
            matrix if matrix.dtype == torch.float64 else matrix.float(), dim=1, eps=1e-30
        )
        for matrix in (rows, candidates)
    )
    similarity = torch.empty(rows.shape[0], dtype=rows.dtype, device=rows.device)
    candidate = torch.empty(rows.shape[0], dtype=torch.long, device=rows.device)
    for start in range(0, rows.shape[0], block_size):
        block = slice(start, start + block_size)
        cosines = rows[block] @ candidates.T
        cosines = cosines if signed else cosines.abs_()
        if exclude_same:
            cosines.diagonal(start).fill_(-torch.inf)
        best = cosines.max(dim=1)
        similarity[block], candidate[block] = best.values, best.indices
    if similarity.isnan().any():
        raise ValueError("rows or candidates have NaN or Inf: they have no directions.")
    return BestMatch(similarity, candidate)
