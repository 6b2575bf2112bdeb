"""Pairs of activations at two hooks, on the same tokens: what transcoders are trained on."""

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from sae_lens.training.activations_store import ActivationsStore

_TOKENS = "token_ids"
_ROWS = 1024  # of a cache that are compared at a time


def give_pairs(
    store: ActivationsStore, target_of: Mapping[str, str], widths: Mapping[str, int]
) -> ActivationsStore | None:
    """Have SAELens' store give each input's activations with those of its target beside them.

    Live ones come from one pass of the model. Of a cache (see `join_cached_activations`) both
    hooks' columns are read.

    Args:
        store: as SAELens' runners make it for the inputs; nothing was read from it yet.
        target_of: hook of the target, by hook of the input; a store of one hook takes its own.
        widths: of the activations, by hook.

    Returns:
        The store that the targets are read by, of a cache.
    """
    replaced = vars(store)
    if store.cached_activation_dataset is not None:
        target = target_of[store.hook_name]
        targets = copy(store)
        targets.hook_name, targets.d_in = target, widths[target]
        targets.cached_activation_dataset = targets.load_cached_activation_dataset()
        replaced["get_filtered_llm_batch"] = _cached_pairs(store, targets)
        return targets
    # as ActivationsStore.from_config_multi_hook does
    store._hook_names = list(dict.fromkeys([*target_of, *target_of.values()]))
    store._hook_d_ins = dict(widths)
    draw = store.get_multi_hook_data_loader

    def pairs() -> Iterator[dict[str, torch.Tensor]]:
        for batch in draw():
            yield {
                hook: torch.cat([batch[hook], batch[target]], dim=1)
                for hook, target in target_of.items()
            }

    replaced["get_multi_hook_data_loader"] = pairs
    replaced["get_data_loader"] = lambda: (batch[store.hook_name] for batch in pairs())
    return None


def _cached_pairs(
    inputs: ActivationsStore, targets: ActivationsStore
) -> Callable[..., torch.Tensor]:
    read_inputs = inputs.get_filtered_llm_batch

    def pairs(raise_on_epoch_end: bool = False) -> torch.Tensor:
        # rows of both are read in the same order; at the end of the cache the targets begin anew
        # by themselves
        read = read_inputs(raise_on_epoch_end=raise_on_epoch_end)
        return torch.cat([read, targets.get_filtered_llm_batch()], dim=1)

    return pairs


def join_cached_activations(inputs: str | Path, targets: str | Path, output: str | Path) -> Dataset:
    """One cache of two that SAELens' CacheActivationsRunner wrote for two hooks.

    Args:
        inputs: folder of the cache at the input's hook.
        targets: of the same text at the target's hook.
        output: folder to write; name it as ``cached_activations_path``.

    Raises:
        ValueError: they are not of the same tokens, or of the same hook.
    """
    first, second = load_from_disk(str(inputs)), load_from_disk(str(targets))
    if first.num_rows != second.num_rows or not _are_of_same_tokens(first, second):
        raise ValueError(
            f"{inputs} and {targets} are not of the same tokens: cache both hooks with the same "
            "text, context_size, seed and number of tokens."
        )
    if same := set(first.column_names) & set(second.column_names) - {_TOKENS}:
        raise ValueError(
            f"{inputs} and {targets} are both of {', '.join(sorted(same))}: give the caches of two "
            "hooks."
        )
    joined = concatenate_datasets([first, second.remove_columns(_TOKENS)], axis=1)
    joined.save_to_disk(str(output))
    return joined


def _are_of_same_tokens(*caches: Dataset) -> bool:
    parts = [c.select_columns(_TOKENS).with_format("numpy").iter(_ROWS) for c in caches]
    return all(np.array_equal(a[_TOKENS], b[_TOKENS]) for a, b in zip(*parts, strict=True))
