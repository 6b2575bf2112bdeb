"""The output as a sum of parts, one for each band of groups; nested reconstructions are its sums.

Band k holds the latents that the k-th nested set has and those before it have not, so that the
output is the sum of all parts, and that of the first ones is what a nested set gives alone.
"""

from collections.abc import Sequence
from typing import Any

import torch

from sae_lens_gba.host_copy import HostCopy
from sae_lens_gba.sparse_autoencoder_ops import ActiveSet, SparseDecode, power_mean_weights


class NestedBands:
    """Divides latents into bands, most active groups first.

    Args:
        band_of_group: ascending from 0, as `GBATrainingSAEConfig.nested_set_of_group` gives it.
        group_sizes: number of latents in each group.

    Attributes:
        n_bands: number of bands, and of nested sets.
    """

    def __init__(self, band_of_group: Sequence[int], group_sizes: Sequence[int]):
        self.n_bands = band_of_group[-1] + 1
        self._band_of_group = torch.tensor(band_of_group)
        self._sizes = [0] * self.n_bands
        for band, size in zip(band_of_group, group_sizes, strict=True):
            self._sizes[band] += size
        self._in_order = HostCopy(lambda group: bool((group.diff() >= 0).all()))

    def of_latents(self, group: torch.Tensor) -> torch.Tensor:
        """Band of each latent, given its group; both int64, (d_sae,)."""
        # not a buffer of the SAE: that would stay behind where SAELens loads by the meta device
        self._band_of_group = self._band_of_group.to(group.device)
        return self._band_of_group[group]

    def sparse_parts(
        self,
        acts: torch.Tensor,
        active: ActiveSet,
        W_dec: torch.Tensor,
        output_scale: torch.Tensor,
        group: torch.Tensor,
    ) -> torch.Tensor:
        """What each band adds: acts (nnz,), W_dec (d_sae, d_in) -> (n_bands, batch, d_in)."""
        batch = active.batch
        if self.n_bands > 1:
            active, order = active.in_bands(self.of_latents(group), self.n_bands)
            acts = acts.index_select(0, order)
        out = SparseDecode.apply(acts, W_dec, output_scale, active)
        return out.view(self.n_bands, batch, -1)

    def dense_parts(
        self, acts: torch.Tensor, W_dec: torch.Tensor, group: torch.Tensor
    ) -> torch.Tensor:
        """The same of acts (batch, d_sae) and a W_dec that has the output scales in it."""
        if self.n_bands > 1 and not self._in_order(group):
            order = group.argsort(stable=True)
            acts, W_dec = acts.index_select(1, order), W_dec.index_select(0, order)
        pairs = zip(acts.split(self._sizes, dim=1), W_dec.split(self._sizes), strict=True)
        return torch.stack([acts @ W for acts, W in pairs])


class NestedError(torch.autograd.Function):
    """Errors of part_0 + ... + part_k against the target, mean over all k but the last.

    Each is the power mean over samples of `squared_power_mean_error`. The last running sum is the
    whole output, whose error is in the loss already. To a running sum all parts but its last are
    a constant: each band of latents learns to reconstruct what the bands before it leave over, and
    no band has to make up for what those after it lack.
    """

    @staticmethod
    def forward(
        ctx: Any, parts: torch.Tensor, target: torch.Tensor, exponent: float
    ) -> torch.Tensor:
        """parts (n_parts, batch, d_in), target (batch, d_in) -> ()."""
        residual = torch.empty_like(parts[:-1])
        torch.sub(parts[0], target, out=residual[0])
        for k in range(1, len(parts) - 1):
            torch.add(residual[k - 1], parts[k], out=residual[k])
        squared = torch.linalg.vector_norm(residual, dim=2).square()
        weight = power_mean_weights(squared, exponent)
        ctx.save_for_backward(residual, weight)
        return (weight * squared).mean()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        residual, weight = ctx.saved_tensors
        n_sums, batch, d_in = residual.shape
        along = residual.new_empty(n_sums + 1, batch, d_in)
        scale = weight * (2 * grad / weight.numel())
        torch.mul(residual, scale.unsqueeze(2), out=along[:-1])
        along[-1].zero_()
        return along, -along[0], None
