"""The paper's data model X = H V as a SAELens data provider."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

RowScale = Literal["none", "l1", "l2"]


@dataclass(frozen=True)
class FeatureMixtureConfig:
    """A mixture of n features in d dimensions (arXiv 2506.14002, section 2).

    The paper leaves open what its rows of H look like beyond "non-negative and s-sparse".
    Each of those choices is an argument; the defaults are the ones under which SAELens'
    TopK came closest to the paper's TopK rows (see experiments/paper/imbalanced_set.py).

    Args:
        n_features: number of features n.
        d_in: dimension d; n > d is superposition.
        sparsities: each row has exactly s active features, s drawn from these, all equally
            likely. (3, 20) is the paper's imbalanced set.
        relative_frequencies: how often each feature occurs, up to a common factor; None is
            uniform. A row of sparsity s has feature i with probability exactly
            ``s * w_i / sum(w)``.
        row_scale: rows of H, whose non-zero entries are 1, divided by their l1 or l2 norm, or
            left alone.
        unit_norm_inputs: whether each row of X is put to unit norm, as a bias range of
            [-1, 0] presumes.

    Raises:
        ValueError: a sparsity is impossible with these frequencies, or a weight is not
            positive.
    """

    n_features: int = 128
    d_in: int = 42
    sparsities: tuple[int, ...] = (3, 20)
    relative_frequencies: tuple[float, ...] | None = None
    row_scale: RowScale = "l1"
    unit_norm_inputs: bool = False

    def __post_init__(self) -> None:
        weights = self.relative_frequencies
        if weights is not None and (len(weights) != self.n_features or min(weights) <= 0):
            raise ValueError(
                f"relative_frequencies must be {self.n_features} positive numbers, one a feature."
            )
        if not self.sparsities or min(self.sparsities) < 1:
            raise ValueError(f"sparsities={self.sparsities!r} must be integers, at least 1.")
        most = float((self._shares() * max(self.sparsities)).max())
        if most > 1 + 1e-9:
            raise ValueError(
                f"sparsities={self.sparsities!r} would need a feature with probability "
                f"{most:.3g} a row: lower the sparsity, or make relative_frequencies more even."
            )

    def _shares(self) -> torch.Tensor:
        """Frequencies up to a factor, adding up to 1, float64, shape (n_features,)."""
        given = self.relative_frequencies
        weights = torch.ones(self.n_features) if given is None else torch.tensor(given)
        weights = weights.double()
        return weights / weights.sum()

    def feature_frequencies(self) -> torch.Tensor:
        """f: share of rows in which each feature is active, shape (n_features,)."""
        mean_sparsity = sum(self.sparsities) / len(self.sparsities)
        return (self._shares() * mean_sparsity).float()


class FeatureMixture(Iterator[torch.Tensor]):
    """Batches of X = H V for any SAELens trainer; the same seed gives the same batches.

    V and the stream of rows come from one generator of their own, so neither the global
    random state nor the number of SAEs trained before has any effect. ``sample`` draws from
    the same stream: for held-out rows make a second mixture with `held_out`.

    Args:
        cfg: the data model.
        batch_size: rows a batch.
        seed: of the features and of the rows.
        device: of the batches; drawn on the CPU, so that they don't depend on it.

    Attributes:
        features: V, rows of unit norm, shape (n_features, d_in).
    """

    def __init__(
        self,
        cfg: FeatureMixtureConfig,
        batch_size: int = 512,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        self.cfg = cfg
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        features = torch.randn(cfg.n_features, cfg.d_in, generator=_generator(seed, stream=0))
        self.features = torch.nn.functional.normalize(features, dim=1).to(device)
        self._shares = cfg._shares()
        self._rows = _generator(seed, stream=1)

    def __next__(self) -> torch.Tensor:
        return self.sample(self.batch_size)[0]

    def held_out(self) -> "FeatureMixture":
        """The same features, rows from a stream of their own."""
        other = FeatureMixture(self.cfg, self.batch_size, self.seed, self.device)
        other._rows = _generator(self.seed, stream=2)
        return other

    def sample(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw n rows.

        Returns:
            X, shape (n, d_in), and H, shape (n, n_features), such that X = H V. With
            ``unit_norm_inputs`` H carries the factor as well.
        """
        H = self._active(n).float()
        if self.cfg.row_scale != "none":
            H = torch.nn.functional.normalize(H, p=int(self.cfg.row_scale[1]), dim=1)
        H = H.to(self.device)
        X = H @ self.features
        if self.cfg.unit_norm_inputs:
            norm = X.norm(dim=1, keepdim=True).clamp(min=1e-8)
            X, H = X / norm, H / norm
        return X, H

    def _active(self, n: int) -> torch.Tensor:
        """Which features are in each row, bool, shape (n, n_features).

        Systematic sampling: the features lie in random order on a line, each as long as its
        probability; points at distance 1 from a random start pick those they fall on. It is
        the simplest way to have both exactly s a row and exactly the given probabilities.
        """
        choices = torch.tensor(self.cfg.sparsities)
        s = choices[torch.randint(len(choices), (n, 1), generator=self._rows)]
        # numpy sorts rows this short more than twice as fast as torch does
        keys = torch.rand(n, self.cfg.n_features, generator=self._rows).numpy()
        order = torch.from_numpy(np.argsort(keys, axis=1))
        start = torch.rand(n, 1, generator=self._rows, dtype=torch.float64)
        ends = (self._shares[order] * s).cumsum(dim=1) + start
        begins = torch.cat([start, ends[:, :-1]], dim=1)
        return torch.zeros(order.shape, dtype=torch.bool).scatter_(
            1, order, ends.floor() > begins.floor()
        )


def geometric_relative_frequencies(n: int, highest_over_lowest: float) -> tuple[float, ...]:
    """n weights that fall geometrically from ``highest_over_lowest`` to 1."""
    return tuple(highest_over_lowest ** (1 - i / max(n - 1, 1)) for i in range(n))


def _generator(seed: int, stream: int) -> torch.Generator:
    # streams of one seed must not overlap with those of the next
    return torch.Generator().manual_seed(1000 * seed + stream)
