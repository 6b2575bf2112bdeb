"""What the paper's recovery theorem predicts."""

from typing import NamedTuple


class ResonanceBand(NamedTuple):
    """Latent frequencies at which recovery is guaranteed, as shares of samples.

    Empty when ``lowest >= highest``.

    Attributes:
        lowest: lower bound of p.
        highest: upper bound of p: the least of the three below.
        by_sparsity: ``n ** (-(1 + 1/s) / 2)``.
        by_concentration: ``n ** (-2 (1 + eps)^2 / s)``.
        by_dimension: ``d ** (1 - zeta) / n``.
    """

    lowest: float
    highest: float
    by_sparsity: float
    by_concentration: float
    by_dimension: float


def resonance_band(
    n: int, d: int, s: int, epsilon: float = 0.01, zeta: float = 0.01
) -> ResonanceBand:
    """Bounds of Theorem 6.1 (arXiv 2506.14002) on a latent's activation frequency p.

        1/n <~ p <~ min( n^(-(1 + 1/s)/2), n^(-2 (1 + eps)^2 / s), d^(1 - zeta) / n )

    Inside, with at least ``n p^(-s / (1 - eps)^2)`` latents, all n features are recovered
    within 1/zeta steps, with probability 1 - n^(-4 eps). Assumed: V i.i.d. Gaussian, H
    uniformly s-sparse (so every feature's frequency is f = s/n), a single group of latents
    at a *fixed* bias, small output scales, n large.

    "<~" hides constants and logarithms, here taken as 1: read the bounds as orders of
    magnitude that say how the band moves with n, d and s, not where it begins. Training
    adapts biases and runs for thousands of steps, which the theorem doesn't cover.

    Args:
        n: number of features.
        d: dimension.
        s: active features a row.
        epsilon: trades probability of success for width.
        zeta: trades speed for width.

    Raises:
        ValueError: an argument is out of range.
    """
    if n < 2 or d < 1 or not 1 <= s <= n:
        raise ValueError(f"n={n}, d={d}, s={s}: needs n >= 2, d >= 1 and 1 <= s <= n.")
    if not (0 < epsilon < 1 and 0 < zeta < 1):
        raise ValueError(f"epsilon={epsilon} and zeta={zeta} must be between 0 and 1, exclusive.")
    by_sparsity = n ** (-(1 + 1 / s) / 2)
    by_concentration = n ** (-2 * (1 + epsilon) ** 2 / s)
    by_dimension = d ** (1 - zeta) / n
    highest = min(by_sparsity, by_concentration, by_dimension)
    return ResonanceBand(1 / n, highest, by_sparsity, by_concentration, by_dimension)
