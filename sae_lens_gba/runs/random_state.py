"""The state of the global random generators, and data that go on where they were."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sae_lens.synthetic.training import SyntheticActivationIterator
from tqdm.auto import trange


def random_state() -> dict[str, Any]:
    """Of torch (CPU and CUDA), numpy and Python, as torch.save and a weights-only load take it."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def draw_again(provider: Iterator[Any], n_batches: int, before: dict[str, Any]) -> None:
    """Bring a new data provider to where it was after ``n_batches``.

    Cached activations, and any other iterator, are drawn again from the generators' state
    ``before``. Synthetic activations have no state but that of the generators.
    """
    if isinstance(provider, SyntheticActivationIterator):
        return
    set_random_state(before)
    for _ in trange(n_batches, desc="Data up to the checkpoint", leave=False):
        next(provider)
