"""What is counted of each latent while the text goes by: memory does not grow with the text."""

import torch

HISTOGRAM_BINS = 40


class LatentStatistics:
    """Counts, maxima and moments of every latent; O(d_sae) memory.

    Attributes:
        n_tokens: tokens seen.
        count: tokens each latent was active on, int64, shape (d_sae,).
        maximum: largest activation, shape (d_sae,).
    """

    def __init__(self, d_sae: int) -> None:
        self.n_tokens = 0
        self.count = torch.zeros(d_sae, dtype=torch.int64)
        self.maximum = torch.zeros(d_sae)
        self._sum = torch.zeros(d_sae, dtype=torch.float64)
        self._sum_of_squares = torch.zeros(d_sae, dtype=torch.float64)
        self._sum_where_active = torch.zeros(d_sae, dtype=torch.float64)

    def update(self, acts: torch.Tensor, pre_activations: torch.Tensor) -> None:
        """Take in a batch, both of shape (n_tokens, d_sae)."""
        if not len(acts):
            return
        d_sae = len(self.count)
        self.n_tokens += len(acts)
        tokens, latents = acts.nonzero(as_tuple=True)
        self.count += latents.bincount(minlength=d_sae)
        self.maximum = torch.maximum(self.maximum, acts.amax(dim=0))
        self._sum += pre_activations.sum(dim=0)
        self._sum_of_squares += pre_activations.square().sum(dim=0)
        where_active = pre_activations[tokens, latents].double()
        self._sum_where_active += latents.bincount(where_active, minlength=d_sae)

    def frequency(self) -> torch.Tensor:
        """Share of tokens each latent was active on, shape (d_sae,)."""
        return self.count / max(self.n_tokens, 1)

    def l0(self) -> float:
        """Mean number of active latents a token."""
        return float(self.count.sum()) / max(self.n_tokens, 1)

    def z_score(self) -> torch.Tensor:
        """As `sae_lens_gba.metrics.selectivity` defines it, shape (d_sae,).

        How many standard deviations the mean pre-activation of the tokens a latent is active on
        lies above its mean over all tokens; 0 of a dead latent.
        """
        n = max(self.n_tokens, 1)
        mean = self._sum / n
        deviation = (self._sum_of_squares / n - mean.square()).clamp(min=0).sqrt()
        lift = self._sum_where_active / self.count.clamp(min=1) - mean
        return torch.where((self.count > 0) & (deviation > 0), lift / deviation, 0.0)


class GrowingHistogram:
    """Exact histograms of activations above 0 whose range is not known beforehand.

    Whenever an activation lies beyond the last bin, all bins of that latent are joined two by
    two, which doubles the range: no activation is lost, and between half and all of the bins
    are in use. O(n_latents) memory.
    """

    def __init__(self, n_latents: int, n_bins: int = HISTOGRAM_BINS) -> None:
        self.counts = torch.zeros(n_latents, n_bins, dtype=torch.int64)
        self.width = torch.zeros(n_latents, dtype=torch.float64)

    def update(self, acts: torch.Tensor) -> None:
        """Take in activations of shape (n_tokens, n_latents)."""
        if not len(acts):
            return
        largest = acts.amax(dim=0).double().clamp(min=0)
        n_bins = self.counts.shape[1]
        self.width = torch.where(self.width == 0, largest / n_bins, self.width)
        while bool((full := largest > self.width * n_bins * (1 + 1e-9)).any()):
            self._double(full)
        tokens, latents = (acts > 0).nonzero(as_tuple=True)
        values = acts[tokens, latents].double()
        bins = (values / self.width[latents]).long().clamp(max=n_bins - 1)
        flat = (latents * n_bins + bins).bincount(minlength=self.counts.numel())
        self.counts += flat.view_as(self.counts)

    def _double(self, which: torch.Tensor) -> None:
        joined = torch.zeros_like(self.counts)
        pairs = self.counts.view(len(self.counts), -1, 2).sum(dim=2)
        joined[:, : pairs.shape[1]] = pairs
        self.counts = torch.where(which.unsqueeze(1), joined, self.counts)
        self.width = torch.where(which, 2 * self.width, self.width)


class CoFiringCounts:
    """On how many tokens sampled latents are active together with each latent.

    Attributes:
        counts: int32, shape (n_sampled, d_sae).
    """

    def __init__(self, sampled: torch.Tensor, d_sae: int) -> None:
        self._sampled = sampled
        self.counts = torch.zeros(len(sampled), d_sae, dtype=torch.int32)

    def update(self, acts: torch.Tensor) -> None:
        """Take in activations of shape (n_tokens, d_sae)."""
        active = (acts != 0).float()
        self.counts += (active[:, self._sampled].T @ active).to(torch.int32)

    def correlation(self, count: torch.Tensor, n_tokens: int) -> torch.Tensor:
        """Phi coefficient of each pair being active, 0 with itself, shape of ``counts``.

        Args:
            count: tokens each latent was active on, shape (d_sae,).
            n_tokens: tokens seen.
        """
        p = count.double() / max(n_tokens, 1)
        p_sampled = p[self._sampled].unsqueeze(1)
        covariance = self.counts.double() / max(n_tokens, 1) - p_sampled * p
        deviation = (p_sampled * (1 - p_sampled) * p * (1 - p)).sqrt()
        phi = torch.where(deviation > 0, covariance / deviation, 0.0)
        phi[torch.arange(len(self._sampled)), self._sampled] = 0.0
        return phi
