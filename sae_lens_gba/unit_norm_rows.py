"""Rows of a weight that every optimizer step leaves at unit norm."""

from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

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


def _normalise_marked(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if getattr(parameter, _UNIT_NORM_ROWS, False):
                normalise_rows(parameter)
