"""How often, how strongly and how selectively each latent responds, streamed over data."""

from typing import NamedTuple

import torch


class Selectivity(NamedTuple):
    """Per latent, each of shape (d_sae,).

    Attributes:
        frequency: share of samples on which it was active.
        peak: its largest pre-activation; may be negative.
        z_score: how many standard deviations the mean pre-activation of the samples on
            which it was active lies above its mean over all samples; 0 for a latent that
            was never active or never varied.
    """

    frequency: torch.Tensor
    peak: torch.Tensor
    z_score: torch.Tensor


class SelectivityMeter:
    """Accumulates `Selectivity` in O(d_sae) memory; batches of any size give the same result.

    ``z_m = (mean of h_m over samples on which m is active - mean of h_m) / std of h_m``, with
    h the pre-activation. A latent that answers to one rare thing,
    and to nothing else, has its active samples far out in the tail: a high Z-score. One that
    is a thresholded Gaussian has, at frequency p, only what the tail of a Gaussian gives
    (1.75 at p = 0.1, 3.37 at p = 0.001), so compare latents of one frequency.

    Mean and variance are those of each batch, in its own precision, merged in float64 (Chan et
    al.): sums of squares would lose the variance of a pre-activation with a large mean. Beside
    them a batch costs what its active entries cost.

    Attributes:
        n_samples: samples added.
    """

    def __init__(self, d_sae: int):
        self.d_sae = d_sae
        self.n_samples = 0
        self._mean = torch.zeros(d_sae, dtype=torch.float64)
        self._squares = torch.zeros(d_sae, dtype=torch.float64)  # sum of (h - mean)^2
        self._active = torch.zeros(d_sae, dtype=torch.long)
        self._active_sum = torch.zeros(d_sae, dtype=torch.float64)
        self._peak = torch.full((d_sae,), -torch.inf, dtype=torch.float64)

    @torch.no_grad()
    def add(self, pre_activations: torch.Tensor, active: torch.Tensor | None = None) -> None:
        """Count one batch.

        Args:
            pre_activations: dense, shape (n, d_sae), encoder bias included.
            active: which latents are active, bool, same shape; None is those above 0.

        Raises:
            ValueError: wrong shape, or NaN or Inf.
        """
        if pre_activations.ndim != 2 or pre_activations.shape[1] != self.d_sae:
            raise ValueError(
                f"pre_activations have shape {tuple(pre_activations.shape)}, "
                f"expected (n, {self.d_sae})."
            )
        if active is not None and active.shape != pre_activations.shape:
            raise ValueError(
                f"active has shape {tuple(active.shape)}, pre_activations have "
                f"{tuple(pre_activations.shape)}: they must be the same."
            )
        if not len(pre_activations):
            return
        h = pre_activations.detach()
        h = h if h.dtype == torch.float64 else h.float()
        mean = h.mean(dim=0)
        if not torch.isfinite(mean).all():
            raise ValueError("pre_activations have NaN or Inf: nothing was counted.")
        self._merge_moments(len(h), mean, (h - mean).square_().sum(dim=0))
        samples, latents = (h > 0 if active is None else active).nonzero(as_tuple=True)
        active_h = h[samples, latents].cpu().double()
        latents = latents.cpu()
        self._active += latents.bincount(minlength=self.d_sae)
        self._active_sum += latents.bincount(active_h, minlength=self.d_sae)
        self._peak = torch.maximum(self._peak, h.amax(dim=0).cpu())

    def _merge_moments(self, n: int, mean: torch.Tensor, squares: torch.Tensor) -> None:
        mean, squares = mean.cpu().double(), squares.cpu().double()
        total = self.n_samples + n
        shift = mean - self._mean
        self._squares += squares + shift.square() * (self.n_samples * n / total)
        self._mean += shift * (n / total)
        self.n_samples = total

    def compute(self) -> Selectivity:
        """Result so far, float32.

        Raises:
            ValueError: nothing was added.
        """
        if self.n_samples == 0:
            raise ValueError("no pre-activations were added.")
        std = (self._squares / self.n_samples).sqrt()
        lift = self._active_sum / self._active.clamp(min=1) - self._mean
        known = (self._active > 0) & (std > 0)
        z_score = torch.where(known, lift / std.clamp(min=1e-300), 0.0)
        frequency = self._active.double() / self.n_samples
        return Selectivity(frequency.float(), self._peak.float(), z_score.float())
