"""Contexts of documents, and a model's activations on them without BOS.

BOS is in front of every context, where its massive activations would dominate every loss.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

BATCH_CONTEXTS = 16


def contexts(tokenizer: Any, text: str, size: int) -> list[list[int]]:
    """Contexts of ``size`` tokens of one document, BOS first; the rest at its end is left out."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = range(0, len(ids) - size + 2, size - 1)
    return [[tokenizer.bos_token_id, *ids[start : start + size - 1]] for start in starts]


@torch.no_grad()
def activations_on(
    model: Any, tokens: torch.Tensor, hook_names: Sequence[str]
) -> Iterator[dict[str, torch.Tensor]]:
    """Activations of a TransformerLens model on contexts (n, size), a few contexts at a time.

    Yields:
        For each hook point, such as "blocks.8.hook_resid_post", shape (n_tokens, d_in).
    """
    # the model runs no further than the last hook point needs
    stop = 1 + max(int(name.split(".")[1]) for name in hook_names)
    for batch in tokens.split(BATCH_CONTEXTS):
        _, cache = model.run_with_cache(
            batch, names_filter=list(hook_names), stop_at_layer=stop, prepend_bos=False
        )
        yield {name: cache[name][:, 1:].flatten(0, 1) for name in hook_names}
