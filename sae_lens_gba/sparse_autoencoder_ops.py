"""Encode and decode that pay for active latents only, with exact gradients.

Of the five matrix products of a dense autoencoder step only the encoder's is dense here.
The products with the sparse activations, A (batch, d_sae), run over its active entries:

    decode      A W_dec                       weighted sum of rows         (embedding_bag)
    dA          (dOut W_dec^T) on A's pattern  sampled dense-dense product  (sampled_addmm)
    dW_dec      A^T dOut                      the same sum, by latent      (embedding_bag)
    dW_enc, dx  dA^T x,  dA W_enc^T           likewise

Results agree with the dense twin, `torch.where(h > threshold, h, 0)` and a matrix product, to
rounding (tests/test_sparse_autoencoder_ops.py). Nothing of size batch x d_sae is kept for
backward, and the encoder works in chunks of rows, so it is never held whole either.

Weights are float32 or float64, on CUDA also of half precision. Not for autograd of second order.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

CHUNK_ROWS = 512  # on a CPU: what is found of a chunk is still in its cache
_CHUNK_ENTRIES = 2**29  # on a GPU: 2 GiB in float32, of which a dense step holds several
_NUMPY_DTYPES = (torch.float32, torch.float64)  # compares six times faster than torch on a CPU
_SPARSE_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}


@dataclass(frozen=True)
class ActiveSet:
    """The pattern of a sparse (batch, d_sae) matrix: which latents are active on which sample.

    Attributes:
        samples: row of each active entry, ascending, int64, shape (nnz,).
        latents: column of each, ascending within a row, int64, shape (nnz,).
        batch: number of rows.
        d_sae: number of columns.
    """

    samples: torch.Tensor
    latents: torch.Tensor
    batch: int
    d_sae: int

    @cached_property
    def sample_offsets(self) -> torch.Tensor:
        """Where each sample's entries begin, and the end: shape (batch + 1,)."""
        return _offsets(self.samples, self.batch)

    @cached_property
    def _by_latent(self) -> tuple[torch.Tensor, torch.Tensor]:
        return _order(self.latents, self.d_sae), _offsets(self.latents, self.d_sae)

    def in_bands(
        self, band_of_latent: torch.Tensor, n_bands: int
    ) -> tuple["ActiveSet", torch.Tensor]:
        """The pattern with a row for every band of latents and every sample.

        Args:
            band_of_latent: int64, below ``n_bands``, shape (d_sae,).
            n_bands: number of bands.

        Returns:
            A pattern of ``n_bands * batch`` rows, those of the first band first, and where its
            entries are among this pattern's.
        """
        band = band_of_latent[self.latents]
        order = _order(band, n_bands)
        rows = band[order] * self.batch + self.samples[order]
        return ActiveSet(rows, self.latents[order], n_bands * self.batch, self.d_sae), order

    def matmul(self, values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """A @ table: values (nnz,), table (d_sae, d) -> (batch, d)."""
        return _weighted_row_sums(self.latents, values, table, self.sample_offsets)

    def transposed_matmul(self, values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """A.T @ table: values (nnz,), table (batch, d) -> (d_sae, d)."""
        order, offsets = self._by_latent
        return _weighted_row_sums(self.samples[order], values[order], table, offsets)

    def sampled_matmul(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """(left @ right.T) at the active entries: (batch, d), (d_sae, d) -> (nnz,).

        In at least float32: there is no kernel for less.
        """
        left, right = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (left, right))
        zeros = left.new_zeros(self.latents.shape)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(
                self.sample_offsets,
                self.latents,
                zeros,
                (self.batch, self.d_sae),
                check_invariants=False,
            )
        return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()

    def to_coo(self, values: torch.Tensor) -> torch.Tensor:
        """Coalesced sparse tensor, shape (batch, d_sae), differentiable in values (nnz,)."""
        return torch.sparse_coo_tensor(
            torch.stack([self.samples, self.latents]),
            values,
            (self.batch, self.d_sae),
            is_coalesced=True,
            check_invariants=False,
        )


def density_that_pays(weight: torch.Tensor) -> float:
    """Share of active entries below which sparse products are faster than dense ones.

    On a CPU as measured. On a GPU computed, not measured: where the traffic of the sparse products
    takes as long as the arithmetic of the dense ones, both at the peak rates of an H100.

    Args:
        weight: says where products are made, and, with autocast, in which precision.

    Returns:
        0 where there are no kernels for them.
    """
    device = weight.device.type
    if weight.dtype not in _SPARSE_DTYPES.get(device, ()):
        return 0.0
    if device == "cpu":
        return 0.1
    if (_autocast_dtype(device) or weight.dtype).itemsize == 2:
        return 0.0017
    return 0.0034 if weight.dtype == torch.float32 and _multiplies_in_tf32() else 0.025


def find_active(
    x: torch.Tensor,
    W_enc: torch.Tensor,
    b_enc: torch.Tensor,
    threshold: torch.Tensor | None,
    max_density: float,
) -> tuple[ActiveSet, torch.Tensor] | None:
    """Active latents of a batch, and their pre-activations; no gradient.

    One read from the device for each chunk of rows: how many are active.

    Args:
        x: centred input, shape (batch, d_in).
        W_enc: shape (d_in, d_sae).
        b_enc: shape (d_sae,).
        threshold: a latent is active above it, shape (d_sae,); None means 0.
        max_density: share of active entries above which sparse products do not pay.

    Returns:
        The pattern and the pre-activations at it, shape (nnz,), in the dtype of ``b_enc``; None
        when more than ``max_density`` of the first chunk of rows is active.
    """
    batch, d_sae = x.shape[0], W_enc.shape[1]
    device = x.device.type
    precision = _autocast_dtype(device)
    if precision is not None:  # once: by itself, autocast casts for every chunk
        x, W_enc = x.to(precision), W_enc.to(precision)
    # h + b > t where h > t - b: no pass over all of h for the bias
    limit = -b_enc if threshold is None else threshold - b_enc
    n_rows = CHUNK_ROWS if device == "cpu" else max(1, _CHUNK_ENTRIES // d_sae)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for start in range(0, batch, n_rows):
        product = x[start : start + n_rows] @ W_enc
        position = _positions_above(limit, product)
        if start == 0 and position.numel() > max_density * product.numel():
            return None
        found.append((position + start * d_sae, product.view(-1).index_select(0, position)))
    positions = torch.cat([position for position, _ in found])
    samples = positions.div(d_sae, rounding_mode="floor")
    active = ActiveSet(samples, positions - samples * d_sae, batch, d_sae)
    products = torch.cat([values for _, values in found]).to(b_enc.dtype)
    return active, products + b_enc[active.latents]


class SparseEncode(torch.autograd.Function):
    """Gives pre-activations at the active entries their gradients to x, W_enc and b_enc."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        W_enc: torch.Tensor,
        _b_enc: torch.Tensor,
        hidden_pre: torch.Tensor,
        active: ActiveSet,
    ) -> torch.Tensor:
        """x (batch, d_in), W_enc (d_in, d_sae), b_enc (d_sae,), hidden_pre (nnz,) -> (nnz,)."""
        ctx.save_for_backward(x, W_enc if ctx.needs_input_grad[0] else None)
        ctx.active = active
        return hidden_pre.clone()

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, None, None]:
        x, W_enc = ctx.saved_tensors
        active: ActiveSet = ctx.active
        grad_x = active.matmul(grad, W_enc.T) if ctx.needs_input_grad[0] else None
        grad_W = active.transposed_matmul(grad, x).T if ctx.needs_input_grad[1] else None
        grad_b = None
        if ctx.needs_input_grad[2]:
            precise = grad.to(torch.promote_types(grad.dtype, torch.float32))
            grad_b = precise.new_zeros(active.d_sae).index_add_(0, active.latents, precise)
        return grad_x, grad_W, grad_b, None, None


class SparseDecode(torch.autograd.Function):
    """(acts * output_scale) @ W_dec over the active entries."""

    @staticmethod
    def forward(
        ctx: Any,
        acts: torch.Tensor,
        W_dec: torch.Tensor,
        output_scale: torch.Tensor,
        active: ActiveSet,
    ) -> torch.Tensor:
        """acts (nnz,), W_dec (d_sae, d_in), output_scale (d_sae,) -> (batch, d_in)."""
        ctx.save_for_backward(acts, W_dec, output_scale)
        ctx.active = active
        return active.matmul((acts * output_scale[active.latents]).to(acts.dtype), W_dec)

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, None]:
        acts, W_dec, output_scale = ctx.saved_tensors
        active: ActiveSet = ctx.active
        grad = grad.contiguous()
        scale = output_scale[active.latents]
        along = active.sampled_matmul(grad, W_dec)
        grad_W = grad_scale = None
        if ctx.needs_input_grad[1]:
            grad_W = active.transposed_matmul((acts * scale).to(acts.dtype), grad)
        if ctx.needs_input_grad[2]:
            grad_scale = torch.zeros_like(output_scale)
            grad_scale.index_add_(0, active.latents, acts * along)
        return (along * scale).to(acts.dtype), grad_W, grad_scale, None


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _multiplies_in_tf32() -> bool:
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if precision is not None:  # where it was set, torch refuses to tell in the older terms
        return str(precision) == "tf32"
    return torch.get_float32_matmul_precision() != "highest"


def _positions_above(limit: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Where in values (n, m), flat, an entry is above its column's limit (m,); ascending, int64."""
    if values.device.type == "cpu" and values.dtype in _NUMPY_DTYPES:
        return torch.from_numpy(np.flatnonzero(values.detach().numpy() > limit.detach().numpy()))
    return (values > limit).view(-1).nonzero().squeeze(1)


def _order(bin_of: torch.Tensor, n_bins: int) -> torch.Tensor:
    """What sorts ``bin_of`` stably; of narrow keys, in a fraction of the time."""
    narrow = torch.int16 if n_bins <= 2**15 else torch.int32
    return bin_of.to(narrow).argsort(stable=True)


def _offsets(bin_of: torch.Tensor, n_bins: int) -> torch.Tensor:
    # not by bincount, which reads its largest entry on the host
    counts = bin_of.new_zeros(n_bins).scatter_add_(0, bin_of, torch.ones_like(bin_of))
    return F.pad(counts.cumsum(0), (1, 0))


def _weighted_row_sums(
    rows: torch.Tensor, weights: torch.Tensor, table: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Row i of the result: sum of weights[j] * table[rows[j]] for j in bag i."""
    return F.embedding_bag(
        rows,
        table.contiguous(),
        offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def squared_power_mean_error(
    preds: torch.Tensor, target: torch.Tensor, exponent: float
) -> torch.Tensor:
    """Terms whose mean is (mean over samples of ||preds - target||^exponent)^(2/exponent).

    With an exponent of 2 that is the mean squared error; with less, samples that are far off
    count for less. Errors below a hundredth of the root mean square count as if squared.

    Args:
        preds, target: (n, d), in whatever types: torch 2.6 has no gradient between types.
        exponent: above 0, at most 2.

    Returns:
        (n, 1), to be summed over the last dimension as SAELens sums squared errors, or (n, d).
    """
    dtype = torch.promote_types(preds.dtype, target.dtype)
    if exponent == 2:
        return F.mse_loss(preds.to(dtype), target.to(dtype), reduction="none")
    squared = (preds.to(dtype) - target.to(dtype)).square().sum(dim=-1)
    return (power_mean_weights(squared, exponent) * squared).unsqueeze(-1)


@torch.no_grad()
def power_mean_weights(squared: torch.Tensor, exponent: float) -> torch.Tensor:
    """What each squared error counts for, where their mean is to be that of a power mean.

    They are a constant to the gradient as well: the mean of ``weights * squared`` has the power
    mean's value and its gradient.

    Args:
        squared: squared norms of the samples' errors, shape (..., n).
        exponent: as of `squared_power_mean_error`.

    Returns:
        Of the shape and type of ``squared``.
    """
    relative = squared.to(torch.promote_types(squared.dtype, torch.float32))
    mean = relative.mean(dim=-1, keepdim=True)
    relative = (relative / mean.clamp_min(torch.finfo(torch.float32).tiny)).clamp_min_(1e-4)
    power_mean = relative.pow(exponent / 2).mean(dim=-1, keepdim=True).pow(2 / exponent)
    return (power_mean / relative).pow(1 - exponent / 2).to(squared.dtype)
