"""SAELens' SyntheticModel, sampled by what fires instead of by all that might.

SAELens draws a Gaussian for every feature and sets most of what fires to zero again, because a
child fires only where its parent does. Here children are drawn only under parents that fire. The
distribution is the same (tests/experiments/test_synthetic_worlds.py); the random numbers are not.
"""

from collections.abc import Iterator

import torch
from sae_lens.synthetic import SyntheticModel
from sae_lens.synthetic.hierarchy import HierarchyNode

from sae_lens_gba.sparse_autoencoder_ops import ActiveSet


class SparseSampler:
    """Draws from a SyntheticModel with low-rank correlation and a hierarchy.

    Args:
        model: whose ``feature_dict``, ``activation_generator`` and ``hierarchy`` are taken.

    Raises:
        ValueError: the model has no low-rank correlation, or a hierarchy whose nodes are not
            all features.
    """

    def __init__(self, model: SyntheticModel):
        generator = model.activation_generator
        if generator.low_rank_correlation is None or generator.correlation_thresholds is None:
            raise ValueError(
                "correlation=None can't be sampled here: give the model a low-rank one."
            )
        self.factor, self.own_scale = generator.low_rank_correlation
        self.threshold = generator.correlation_thresholds
        self.mean = generator.mean_firing_magnitudes
        self.std = generator.std_firing_magnitudes
        self.directions = model.feature_dict.feature_vectors.detach()
        self.bias = model.feature_dict.bias.detach()
        n = generator.num_features
        roots = model.hierarchy.roots if model.hierarchy is not None else []
        families = [node for root in roots for node in _parents_below(root)]
        width = max((len(node.children) for node in families), default=0)
        self.children = torch.full((n, max(width, 1)), -1)
        self.exclusive = torch.zeros(n, dtype=torch.bool)
        self.rescales = torch.zeros(n, dtype=torch.bool)
        has_parent = torch.zeros(n, dtype=torch.bool)
        for node in families:
            ids = torch.tensor([_feature(child) for child in node.children])
            parent = _feature(node)
            self.children[parent, : len(ids)] = ids
            self.exclusive[parent] = node.mutually_exclusive_children
            self.rescales[parent] = node.scale_children_by_parent
            has_parent[ids] = True
        self.is_parent = self.children[:, 0] >= 0
        self.independent = (~has_parent).nonzero().squeeze(1)

    @torch.no_grad()
    def firings(self, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What fires in ``n`` samples: samples, ascending; features; magnitudes; each (nnz,)."""
        common = torch.randn(n, self.factor.shape[1])
        free = self.independent
        drive = common @ self.factor[free].T
        drive += torch.randn(drive.shape) * self.own_scale[free]
        sample, place = (drive > self.threshold[free]).nonzero(as_tuple=True)
        feature = free[place]
        value = self._magnitude(feature)
        found = []
        while len(sample) > 0:
            kept = value > 0
            sample, feature, value = sample[kept], feature[kept], value[kept]
            found.append((sample, feature, value))
            parents = self.is_parent[feature]
            sample, feature, value = self._children(
                common, sample[parents], feature[parents], value[parents]
            )
        samples, features, values = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = samples.argsort(stable=True)
        return samples[order], features[order], values[order]

    def _children(
        self,
        common: torch.Tensor,
        sample: torch.Tensor,
        parent: torch.Tensor,
        parent_value: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Which children fire under parents that do, (n_pairs,) each -> (nnz,) each."""
        child = self.children[parent]
        drive = torch.einsum("pr,pcr->pc", common[sample], self.factor[child])
        drive += torch.randn(drive.shape) * self.own_scale[child]
        value = self._magnitude(child)
        fires = (drive > self.threshold[child]) & (child >= 0) & (value > 0)
        # of children that exclude one another, any one stays
        lots = torch.rand(drive.shape).where(fires, -1.0)
        first = lots == lots.amax(dim=1, keepdim=True)
        fires &= first | ~self.exclusive[parent].unsqueeze(1)
        scale = torch.where(self.rescales[parent], parent_value / self.mean[parent], 1.0)
        pair, place = fires.nonzero(as_tuple=True)
        return sample[pair], child[pair, place], value[pair, place] * scale[pair]

    def _magnitude(self, feature: torch.Tensor) -> torch.Tensor:
        return self.mean[feature] + self.std[feature] * torch.randn(feature.shape)

    @torch.no_grad()
    def sample(self, n: int) -> torch.Tensor:
        """Inputs for an SAE, (n, hidden_dim)."""
        samples, features, values = self.firings(n)
        firing = ActiveSet(samples, features, n, len(self.directions))
        return self.bias + firing.matmul(values, self.directions)


def _parents_below(node: HierarchyNode) -> Iterator[HierarchyNode]:
    if node.children:
        yield node
        for child in node.children:
            yield from _parents_below(child)


def _feature(node: HierarchyNode) -> int:
    if node.feature_index is None:
        raise ValueError("a hierarchy node without a feature can't be sampled here.")
    return node.feature_index
