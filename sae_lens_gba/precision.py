"""State that must stay precise keeps at least float32 when its module is cast."""

from collections.abc import Callable
from typing import Any

import torch


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
