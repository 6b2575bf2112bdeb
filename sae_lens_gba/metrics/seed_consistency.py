"""Whether runs that differ in their seed find the same latents. Matrices in, numbers out.

PW-MCC, the other measure of it (arXiv 2505.20254), is SAELens' own
`sae_lens.synthetic.evals.mean_correlation_coefficient`.
"""

from collections.abc import Sequence

import torch

from sae_lens_gba.metrics.feature_recovery import best_match


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
    activations are not negative: its opposite direction means something else. The share of A's
    latents found in B differs from that of B's in A.

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
