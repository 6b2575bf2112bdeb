"""What one batch of inputs says: whether it can be learnt from, its scale, where biases start."""

import math

import torch

_FEWEST_ABOVE = 4  # samples of a batch that must lie above a threshold to say where it is
_TOO_LARGE = 1e8  # times a typical norm: float32 overflows in the gradient's squared norm
_NORM_RATE = 0.01  # share of the way to a batch's norm that an estimate goes, in logarithms


def typical_norm(centred: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Median norm of the rows whose sample is not zero; 0 if all are, shape ().

    A median, since one massive activation (BOS) must not set the scale. Samples of zeros are left
    out, since sparse synthetic data may have more of them than of others. Nothing is read on the
    host.

    Args:
        centred: shape (n, d_in).
        x: the samples as they came, shape (n, d_in).
    """
    norms = centred.norm(dim=-1).float()
    norms = torch.where(x.any(dim=-1), norms, -1.0).sort().values  # NaN stays NaN, and is last
    n_zero = (norms < 0).sum()
    middle = n_zero + (len(norms) - 1 - n_zero).clamp(min=0) // 2
    middle = middle.clamp(max=len(norms) - 1).view(1)  # an index of shape () would be read
    return norms.index_select(0, middle).squeeze(0).clamp(min=0)


def followed_norm(
    estimate: torch.Tensor, norm: torch.Tensor, is_first_window: torch.Tensor
) -> torch.Tensor:
    """An estimated typical norm after one more batch, whose own is given; all shape ().

    The estimate moves by a hundredth of the difference, in logarithms, so that a strange batch
    hardly counts and a lasting change is followed within some hundred steps. Only in the first
    window, when the estimate is that of the first batch, a batch that differs from it by more
    than half replaces it. A norm of 0 says nothing; an estimate of 0 is none.

    Nothing is read on the host.
    """
    ratio = torch.where(norm > 0, norm / estimate, 1.0).to(estimate.dtype)
    is_odd = (ratio.log().abs() > math.log(1.5)) & is_first_window
    slow = ratio.clamp(1 / 4, 4.0) ** _NORM_RATE
    followed = estimate * torch.where(is_odd, ratio, slow)
    return torch.where(estimate > 0, followed, norm)


def quantile_bias(
    sae_in: torch.Tensor,
    W_enc: torch.Tensor,
    target_frequency: torch.Tensor,
    bias_range: torch.Tensor,
) -> torch.Tensor:
    """Biases at which each latent would have fired at its target on these samples.

    Between two samples' pre-activations, so that rounding decides nothing. A target of less than
    a few samples in n lies where there are none: there the largest ones' exponential tail is
    continued. A few hundred latents at a time: sorting all pre-activations at once would take
    more memory than training.

    Args:
        sae_in: centred input, shape (n, d_in).
        W_enc: shape (d_in, d_sae).
        target_frequency: shape (d_sae,).
        bias_range: shape (d_sae,).

    Returns:
        Shape (d_sae,), in [-bias_range, 0].
    """
    chunks = zip(W_enc.split(512, dim=1), target_frequency.split(512), strict=True)
    threshold = torch.cat([_quantile((sae_in @ W).to(p.dtype), p) for W, p in chunks])
    bias = -threshold.to(bias_range.dtype)
    return bias.clamp(min=-bias_range).clamp(max=0.0)


def _quantile(values: torch.Tensor, share_above: torch.Tensor) -> torch.Tensor:
    """For each column of values (n, m), what ``share_above`` (m,) of the column lies above."""
    n = len(values)
    ordered = values.sort(dim=0, descending=True).values
    above = (n * share_above).round().long().clamp(max=n - 1)
    around = torch.stack([(above - 1).clamp(min=0), above])
    inside = ordered.gather(0, around).mean(dim=0)
    n_tail = min(4 * _FEWEST_ABOVE, n - 1)
    start = ordered[n_tail]
    excess = ordered[:n_tail].mean(dim=0) - start
    beyond = start + excess * (n_tail / (n * share_above)).log()
    return torch.where(n * share_above < _FEWEST_ABOVE, beyond, inside)


def require_usable(sae_in: torch.Tensor, step: int, normalised: torch.Tensor | None = None) -> None:
    """Stop before a batch that can't be learnt from reaches counters, biases or weights.

    One read from the device.

    Args:
        sae_in: a batch, shape (n, d_in).
        step: for the message.
        normalised: the same as `normalize_activations` leaves it.

    Raises:
        ValueError: NaN or Inf in either, or a value so large that its squared gradient would
            overflow.
    """
    found = [sae_in.abs().amax().float(), typical_norm(sae_in, sae_in)]
    if normalised is not None and normalised is not sae_in:
        found.append(normalised.abs().amax().float())
    largest, typical, *largest_normalised = torch.stack(found).tolist()
    untouched = "biases and weights were not touched"
    if not math.isfinite(largest):
        raise ValueError(
            f"sae_in has NaN or Inf at training step {step}: {untouched}. Look for it in the "
            "activations: their source and their dtype."
        )
    if not all(map(math.isfinite, largest_normalised)):
        raise ValueError(
            f"sae_in has NaN or Inf at training step {step} once it is normalised: {untouched}. "
            "Leave out samples of zeros, or set normalize_activations='none'."
        )
    if not math.isfinite(typical) or largest > _TOO_LARGE * typical > 0:
        raise ValueError(
            f"sae_in has a value of {largest:.2g} at training step {step}, where a typical sample "
            f"has norm {typical:.2g}: {untouched}. Leave such samples out, or scale them down."
        )
