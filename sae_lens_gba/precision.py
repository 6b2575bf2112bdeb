"""Numbers that must stay precise, whatever the dtype of the weights and the device."""

from collections.abc import Callable
from typing import Any

import torch

_WITHOUT_FLOAT64 = ("mps",)


def float64_device(device: torch.device) -> torch.device:
    """Where to compute in float64 what is on ``device``: there, or on the CPU if it can't."""
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def rounded_down(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest numbers of ``dtype`` that are not above x.

    Numbers of that dtype are above the one if and only if they are above the other.
    """
    nearest = x.to(dtype)
    if dtype == x.dtype:
        return nearest
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return torch.where(nearest.to(x.dtype) > x, below, nearest)


def apply_keeping_float32(
    tensors: dict[str, torch.Tensor], apply: Callable[[], Any], get: Callable[[str], torch.Tensor]
) -> None:
    """Run ``apply`` (a module's ``_apply``), then undo any loss of precision below float32.

    Args:
        tensors: by name, what must keep its precision.
        apply: moves or casts the module's tensors.
        get: the tensor of that name afterwards.
    """
    before = {name: tensor.data for name, tensor in tensors.items()}
    apply()
    for name, old in before.items():
        new = get(name)
        if old.is_floating_point() and not old.is_meta and not new.is_meta:
            wanted = torch.promote_types(new.dtype, torch.float32)
            if new.dtype != wanted:
                new.data = old.to(new.device, wanted)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes, uint8, shape (*tensor.shape, n): numbers that any cast to a float leaves exact.

    SAELens casts all of a file to the dtype of the weights; bfloat16 has 8 bits for a number,
    float32 has 24.
    """
    return tensor.unsqueeze(-1).contiguous().view(torch.uint8)


def from_bytes(stored: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What `as_bytes` was given; a float where ``like`` is one, else an integer."""
    n_bytes = stored.shape[-1]
    dtype = {4: torch.float32, 8: torch.float64} if like.is_floating_point() else {8: torch.int64}
    if n_bytes not in dtype:
        raise ValueError(f"{n_bytes} bytes are no number of the kind of {like.dtype}.")
    return stored.to(torch.uint8).contiguous().view(dtype[n_bytes]).squeeze(-1)
