"""A device that is not the CPU, on any machine: what it computes is right, what is mixed up fails.

Its tensors hold their values in a tensor on the CPU that nobody else sees. An operation on them
with a tensor that is on the CPU fails as on a GPU (where tensors of no dimension are let through),
and so does one that a GPU refuses under `torch.use_deterministic_algorithms`, or while
`without_float64` one that MPS refuses.
PyTorch knows the device by its hooks for backends written in Python, autograd and Adam included.
They can't be taken out again: import this in a process of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_setup_privateuseone_for_python_backend(NAME)

_MAY_MIX = {"copy_", "_to_copy"}
_has_float64 = True


@contextmanager
def without_float64() -> Iterator[None]:
    """While entered, the device can't have tensors of float64."""
    global _has_float64
    _has_float64 = False
    try:
        yield
    finally:
        _has_float64 = True


class ElsewhereTensor(torch.Tensor):
    """Claims to be on the device; `values_on_cpu` are not."""

    values_on_cpu: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "ElsewhereTensor":
        is_strided = values.layout == torch.strided
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride() if is_strided else None,
            storage_offset=values.storage_offset() if is_strided else None,
            dtype=values.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.values_on_cpu = values
        return tensor

    @property
    def is_sparse(self) -> bool:  # type: ignore[override]
        return self.values_on_cpu.is_sparse

    @property
    def layout(self) -> torch.layout:  # type: ignore[override]
        return self.values_on_cpu.layout

    def to_dense(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return ElsewhereTensor(self.values_on_cpu.to_dense(*args, **kwargs))

    def tolist(self) -> Any:
        return self.values_on_cpu.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """While entered, ``device="elsewhere"`` can be used."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[1]
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    ours = [t for t in tensors if isinstance(t, ElsewhereTensor)]
    stray = [t for t in tensors if not isinstance(t, ElsewhereTensor) and t.ndim > 0]
    if ours and stray and name not in _MAY_MIX:
        shapes = [tuple(t.shape) for t in stray]
        raise RuntimeError(f"{name}: tensors of shape {shapes} are on the CPU, others are not")
    asked = kwargs.get("device")
    is_ours = bool(ours) if asked is None else torch.device(asked).type == NAME
    if not ours and not is_ours:
        return func(*args, **kwargs)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    weighted = name == "bincount" and len(tensors) > 1
    if weighted or (name == "cumsum" and tensors[0].is_floating_point()):
        raise RuntimeError(f"{name} has no deterministic implementation on a GPU")
    inside = tree_map(
        lambda t: t.values_on_cpu if isinstance(t, ElsewhereTensor) else t, (args, kwargs)
    )
    result = func(*inside[0], **inside[1])
    if name == "copy_":
        return args[0]
    known = {id(t.values_on_cpu): t for t in ours}  # an operation in place returns what it got

    def outside(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not is_ours:
            return value
        if value.dtype == torch.float64 and not _has_float64:
            raise TypeError(f"{name}: the device has no float64")
        return known.get(id(value)) if id(value) in known else ElsewhereTensor(value)

    return tree_map(outside, result)
