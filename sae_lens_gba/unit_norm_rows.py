"""Rows of a weight that every optimizer step leaves at unit norm."""

import logging
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

logger = logging.getLogger(__name__)

_UNIT_NORM_ROWS = "_gba_unit_norm_rows"
_hook_handles: list[Any] = []


def keep_rows_at_unit_norm(weight: torch.Tensor) -> None:
    """Have every optimizer put the rows of ``weight`` (n, d) back to unit norm after a step.

    SAELens' trainer owns its optimizer and offers no hook between its step and the next use
    of the weights; torch's own optimizer hook serves any training loop.
    """
    setattr(weight, _UNIT_NORM_ROWS, True)
    if not _hook_handles:
        _hook_handles.append(register_optimizer_step_post_hook(_normalise_marked))


def normalise_rows(weight: torch.Tensor) -> None:
    """Rows of ``weight`` (n, d) to unit norm, in place; a zero row stays zero."""
    nn.functional.normalize(weight.data, dim=1, out=weight.data)


def warn_of_other_norms(weight: torch.Tensor) -> None:
    """Log a warning where rows of ``weight`` (n, d), meant to have unit norm, have not."""
    norms = weight.detach().norm(dim=1)
    low, high = float(norms.min()), float(norms.max())
    if not (low > 0.99 and high < 1.01):
        logger.warning(
            "rows of W_dec have norms from %.3g to %.3g, where GBA keeps them at 1: what trains "
            "this SAE is no optimizer of torch, or has other tensors than the SAE's own, as "
            "FSDP does; call sae_lens_gba.unit_norm_rows.normalise_rows(sae.W_dec) after each "
            "step.",
            low,
            high,
        )


def _normalise_marked(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if getattr(parameter, _UNIT_NORM_ROWS, False):
                normalise_rows(parameter)
