"""What happens before and after an optimizer's step on the decoder of a GBA SAE.

SAELens' trainer owns its optimizer and offers no hook between its step and the next use of the
weights; torch's own optimizer hooks serve any training loop. They are installed when the first SAE
trains, see every optimizer of the process, and act only where it holds a marked weight.
"""

import logging
import math
from typing import Any

import torch
from torch import nn
from torch.optim import Adam
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

logger = logging.getLogger(__name__)

_ATTENDED, _ENCODER, _WARNED = "_gba_decoder", "_gba_encoder", "_gba_warned"
_FUSED_DEVICES = ("cpu", "cuda")
_hook_handles: list[Any] = []


def attend_optimizer_of(W_dec: torch.Tensor, W_enc: nn.Parameter | None = None) -> None:
    """Have every optimizer put the rows of ``W_dec`` (d_sae, d_in) back to unit norm after a step.

    Where it is an `Adam` whose ``fused`` and ``foreach`` were left to torch, it also makes its
    step in one pass over the weights (``fused``), with the same numbers. An optimizer that has not
    got ``W_enc``, where there is one, says so.
    """
    setattr(W_dec, _ATTENDED, True)
    setattr(W_dec, _ENCODER, W_enc)
    if not _hook_handles:
        _hook_handles.append(register_optimizer_step_pre_hook(_warn_of_an_encoder_left_out))
        _hook_handles.append(register_optimizer_step_pre_hook(_fuse))
        _hook_handles.append(register_optimizer_step_post_hook(_normalise_rows_of_attended))


def normalise_rows(weight: torch.Tensor) -> None:
    """Rows of ``weight`` (n, d) to unit norm, in place; a zero row stays zero."""
    nn.functional.normalize(weight.data, dim=1, out=weight.data)


def warn_of_other_norms(weight: torch.Tensor) -> None:
    """Log a warning where rows of ``weight`` (n, d), meant to have unit norm, have not."""
    norms = weight.detach().norm(dim=1)
    low, high = float(norms.min()), float(norms.max())
    if math.isfinite(low + high) and not (low > 0.99 and high < 1.01):  # else it diverged
        logger.warning(
            "rows of W_dec have norms from %.3g to %.3g, where GBA keeps them at 1: what trains "
            "this SAE is no optimizer of torch, or has other tensors than the SAE's own, as "
            "FSDP does; call sae_lens_gba.optimizer_hooks.normalise_rows(sae.W_dec) after each "
            "step.",
            low,
            high,
        )


def _is_attended(parameter: torch.Tensor) -> bool:
    return getattr(parameter, _ATTENDED, False)


def _normalise_rows_of_attended(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in filter(_is_attended, group["params"]):
            normalise_rows(parameter)


def _warn_of_an_encoder_left_out(optimizer: Optimizer, *_: Any) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = {id(p) for p in parameters}
    for W_dec in filter(_is_attended, parameters):
        W_enc = getattr(W_dec, _ENCODER)
        left_out = W_enc is not None and W_enc.requires_grad and id(W_enc) not in held
        if left_out and not hasattr(optimizer, _WARNED):
            setattr(optimizer, _WARNED, True)
            logger.warning(
                "this optimizer moves W_dec but not W_enc, which is a parameter of its own since "
                "the SAE was folded: unless another one has it, make a new optimizer (SAETrainer)."
            )


def _fuse(optimizer: Optimizer, *_: Any) -> None:
    if not isinstance(optimizer, Adam):
        return
    for group in optimizer.param_groups:
        if not any(map(_is_attended, group["params"])) or not _can_be_fused(optimizer, group):
            continue
        group["fused"] = True
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if state:  # resumed from steps that were not fused, and counted on the host
                state["step"] = state["step"].to(parameter.device, torch.float32)


def _can_be_fused(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    parameters = group["params"]
    moments = [t for p in parameters for t in optimizer.state.get(p, {}).values()]
    return (
        group.get("fused") is None
        and group.get("foreach") is None
        and not group.get("differentiable")
        and all(p.device.type in _FUSED_DEVICES for p in parameters)
        # on a CPU, weights and moments that are laid out differently would be mixed up silently
        and all(t.is_contiguous() for t in [*parameters, *moments])
    )
