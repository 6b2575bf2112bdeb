"""The text as SAELens cuts it, and the model's activations on it."""

import logging
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from sae_lens.training.activations_store import ActivationsStore
from tqdm.auto import tqdm

from sae_lens_gba.saved.saved_sae import SavedSAE
from sae_lens_gba.sources import TextDataset, require_context

# bounds the dense activations of a batch, (tokens, d_sae) float32, to 64 MB
MAX_BATCH_ENTRIES = 2**24
MAX_BATCH_SEQUENCES = 16

_log = logging.getLogger(__name__)


def open_text(
    model: Any,
    saved: SavedSAE,
    dataset: TextDataset,
    context_size: int | None = None,
    autocast: bool = False,
) -> ActivationsStore:
    """SAELens' own store over the text, from its beginning, for one SAE.

    Args:
        context_size: tokens a sequence; None is the SAE's own.
        autocast: whether the model runs in bfloat16.

    Raises:
        ValueError: the SAE's config lacks what the store needs.
    """
    metadata = saved.sae.cfg.metadata
    context_size = context_size or metadata.context_size
    if not context_size:
        raise ValueError(
            f"{saved.label}: its cfg.json has no metadata.context_size: give --context-size."
        )
    require_context(model, int(context_size))
    if metadata.prepend_bos is None:
        metadata.prepend_bos = True  # the default of SAELens' runner
    with warnings.catch_warnings():
        # about training: too few texts for an epoch, text not tokenized
        warnings.simplefilter("ignore")
        store = ActivationsStore.from_sae(
            model,
            saved.sae,
            dataset,
            context_size=int(context_size),
            total_tokens=1,
            device=str(saved.sae.device),
            sequence_separator_token=metadata.get("sequence_separator_token", "bos"),
            disable_concat_sequences=bool(metadata.disable_concat_sequences),
        )
    store.autocast_lm = autocast
    return store


def token_batches(store: ActivationsStore, n_tokens: int, d_sae: int) -> Iterator[torch.Tensor]:
    """Token ids, shape (n_sequences, context_size), until the text or ``n_tokens`` ends."""
    size = max(1, min(MAX_BATCH_SEQUENCES, MAX_BATCH_ENTRIES // (store.context_size * d_sae)))
    n_sequences = -(-n_tokens // store.context_size)
    sequences = islice(_sequences(store), n_sequences)
    n_read = 0
    with tqdm(total=n_sequences * store.context_size, unit="token", desc="reading") as progress:
        while batch := list(islice(sequences, size)):
            tokens = torch.cat(batch)
            yield tokens
            n_read += tokens.numel()
            progress.update(tokens.numel())
    if n_read < n_tokens:
        _log.warning("the text ended after %d of %d tokens", n_read, n_tokens)


def _sequences(store: ActivationsStore) -> Iterator[torch.Tensor]:
    """One by one: of a batch that the end of the text cuts short, the store keeps nothing."""
    while True:
        try:
            yield store.get_batch_tokens(1, raise_at_epoch_end=True)
        except StopIteration:
            return


def activations_on(store: ActivationsStore, tokens: torch.Tensor) -> torch.Tensor:
    """Float32, shape (n_sequences, n_tokens, d_in).

    Raises:
        ValueError: the model has no such hook, one of another width, or no memory for so much.
    """
    try:
        return store.get_activations(tokens).float()
    except (KeyError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"no activations at hook_name={store.hook_name} with d_in={store.d_in} "
            f"({type(error).__name__}: {error}): if this is another model than the SAE's own, give "
            "that with --model; if it is memory, a smaller --context-size."
        ) from error
