"""What a GBA training SAE tells wandb of its groups, through SAELens' trainer."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_lens_gba.bias_adapter import BiasAdapter
from sae_lens_gba.metrics import share_on_target


def training_metrics(
    adapter: BiasAdapter, bias: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    """Scalars by name, computed when called; frequencies are those of the last adaptation."""
    targets, share = adapter.targets, adapter.share
    by_group = targets.group_mean(adapter.frequency / adapter.target_frequency)
    bias_by_group = targets.group_mean(bias)
    frequency, target = share.whole(adapter.frequency), share.whole(adapter.target_frequency)
    bias, relative = share.whole(bias), frequency / target
    metrics: dict[str, Callable[[], torch.Tensor]] = {
        "gba/l0_from_frequencies": frequency.sum,
        "gba/l0_target": target.sum,
        "gba/share_above_target": (relative > 1).float().mean,
        "gba/share_within_factor_2_of_target": partial(share_on_target, frequency, target),
        "gba/share_dead": (frequency < adapter.rates.dead_frequency).float().mean,
    }
    for k in range(targets.n_groups):
        metrics[f"gba/frequency_over_target/group_{k:02d}"] = by_group[k].clone
        metrics[f"gba/bias/group_{k:02d}"] = bias_by_group[k].clone
    for percent in (5, 50, 95):
        metrics[f"gba/bias/percentile_{percent:02d}"] = partial(torch.quantile, bias, percent / 100)
    return metrics


@torch.no_grad()
def l0_over_target(adapter: BiasAdapter, feature_acts: torch.Tensor) -> torch.Tensor:
    """Active latents a sample over those asked for, shape (); sparse acts hold active ones only."""
    is_sparse = feature_acts.is_sparse
    n_active = feature_acts.values().numel() if is_sparse else (feature_acts > 0).sum()
    target = adapter.target_frequency.sum()
    l0 = torch.zeros_like(target) + n_active / feature_acts.shape[:-1].numel()
    l0, target = adapter.share.sum(torch.stack([l0, target]))
    return l0 / target


def histograms(
    adapter: BiasAdapter, bias: torch.Tensor, output_scale: torch.Tensor
) -> dict[str, NDArray[Any]]:
    """Values of all latents by name, (d_sae,) each."""
    floor = math.exp(-20)  # log of a silent neuron must stay finite for wandb
    whole = adapter.share.whole
    bias, output_scale, frequency = whole(bias), whole(output_scale), whole(adapter.frequency)
    relative = frequency / whole(adapter.target_frequency)
    return {
        "weights/output_scale": _numpy(output_scale),
        "gba/log10_frequency": _numpy(frequency.clamp(min=floor).log10()),
        "gba/log10_frequency_over_target": _numpy(relative.clamp(min=floor).log10()),
        "gba/bias": _numpy(bias),
    }


def _numpy(values: torch.Tensor) -> NDArray[np.floating[Any]]:
    return values.detach().float().cpu().numpy()
