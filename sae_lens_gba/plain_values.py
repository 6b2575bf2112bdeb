"""Settings as JSON can hold them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's, paths and torch's dtypes as text; also in dicts and lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")  # as TransformerLens and transformers take it
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(one) for one in value)
    return value


def make_plain(settings: Any, names: Iterable[str]) -> None:
    """The attributes of these names, in place."""
    for name in names:
        value = getattr(settings, name)
        if (as_plain := plain(value)) is not value:
            setattr(settings, name, as_plain)


def require_json(settings: dict[str, Any]) -> None:
    """Raise ValueError for a setting that can't be written as JSON."""
    for name, value in settings.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}={value!r} is not possible: it can't be written as JSON ({error}); give "
                "numbers, texts, lists and dicts."
            ) from error
