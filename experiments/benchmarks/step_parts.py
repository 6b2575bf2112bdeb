"""Where the time of one GBA training step goes."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from sae_lens_gba import GBATrainingSAE, optimizer_hooks, training_sae
from sae_lens_gba.sparse_autoencoder_ops import SparseDecode, SparseEncode

# by the name of a part, what runs in it: an object and the name of its function
_PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "encode, find active": ((training_sae, "find_active"),),
    "decode, losses": ((GBATrainingSAE, "decode"), (GBATrainingSAE, "calculate_aux_loss")),
    "backward: decoder": ((SparseDecode, "backward"),),
    "backward: encoder": ((SparseEncode, "backward"),),
    "backward: assembly, rest": ((torch.Tensor, "backward"),),
    "clip": ((torch.nn.utils, "clip_grad_norm_"),),
    "Adam": ((sys.modules["torch.optim.adam"], "adam"),),  # schedulers wrap its step themselves
    "row norm": ((optimizer_hooks, "normalise_rows"),),
    "bias adaptation": ((GBATrainingSAE, "_observe_and_adapt"),),
}


def seconds_by_part(step: Callable[[], Any], times: int) -> dict[str, float]:
    """Mean CPU seconds of each part of ``step``.

    What runs inside a part that is listed itself counts there alone; "statistics, assembly, rest"
    is what no part claims.
    """
    spent: defaultdict[str, float] = defaultdict(float)
    inner = [0.0]

    @contextmanager
    def counted(part: str) -> Iterator[None]:
        started = time.process_time()
        inner.append(0.0)
        try:
            yield
        finally:
            passed = time.process_time() - started
            spent[part] += passed - inner.pop()
            inner[-1] += passed

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with counted(part):
                return function(*args, **kwargs)

        return run

    with ExitStack() as stack:
        for part, places in _PARTS.items():
            for owner, name in places:
                function = timed(part, getattr(owner, name))
                is_static = isinstance(vars(owner).get(name), staticmethod)
                stack.enter_context(
                    patch.object(owner, name, staticmethod(function) if is_static else function)
                )
        for _ in range(times):
            with counted("statistics, assembly, rest"):
                step()
    longest_first = sorted(spent.items(), key=lambda item: -item[1])
    return {part: seconds / times for part, seconds in longest_first}
