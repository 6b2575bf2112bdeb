"""Activations of the demo's language model, cached once and shared by all runs.

SAELens' CacheActivationsRunner runs the model once for every hook point, can't be handed a
model that is already loaded, and keeps BOS, whose massive activations would dominate every
loss; hence this cache of one pass.
"""

import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

from sae_lens_gba.atomic_write import write_atomically

BATCH_CONTEXTS = 16


def tokenise(
    model: TransformerBridge,
    texts: Dataset,
    n_tokens: int,
    context: int,
    contexts_per_document: int | None = None,
) -> torch.Tensor:
    """Contexts of one document each, BOS first, int64, shape (n, context).

    What is left at the end of a document, and short ones, are left out.

    Args:
        model: whose tokenizer it is.
        texts: documents, in column ``text``.
        n_tokens: to have at least, BOS not counted.
        context: tokens a context, BOS included.
        contexts_per_document: its first ones; None for all.

    Raises:
        ValueError: the texts don't hold that many tokens.
    """
    rows: list[list[int]] = []
    bos = model.tokenizer.bos_token_id
    for text in texts["text"]:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        starts = range(0, len(ids) - context + 2, context - 1)
        chosen = starts[:contexts_per_document]
        rows += [[bos, *ids[start : start + context - 1]] for start in chosen]
        if len(rows) * (context - 1) >= n_tokens:
            return torch.tensor(rows)
    raise ValueError(f"the texts hold only {len(rows) * (context - 1)} of {n_tokens} tokens.")


@torch.no_grad()
def cached_activations(
    model: TransformerBridge, tokens: torch.Tensor, hook_names: tuple[str, ...], path: Path
) -> dict[str, torch.Tensor]:
    """Activations at every hook point, BOS left out, bfloat16, each (n, d_in).

    Those in ``path``, to whose name that of the model and the tokens is added, are read; the others
    are computed in one pass and added to it.
    """
    of_these = sha256(tokens.numpy().tobytes() + str(model.cfg.model_name).encode()).hexdigest()
    path = path.with_name(f"{path.stem}_{of_these[:12]}{path.suffix}")
    stored = load_file(path) if path.is_file() else {}
    missing = [name for name in hook_names if name not in stored]
    if not missing:
        return stored
    collected: dict[str, list[torch.Tensor]] = {name: [] for name in missing}
    # the model runs no further than the last hook point needs
    stop = 1 + max(int(name.split(".")[1]) for name in missing)
    for i, batch in enumerate(tokens.split(BATCH_CONTEXTS)):
        _, cache = model.run_with_cache(
            batch, names_filter=missing, stop_at_layer=stop, prepend_bos=False
        )
        for name in missing:
            collected[name].append(cache[name][:, 1:].flatten(0, 1).bfloat16())
        if i % 50 == 0:
            logging.info("cached %d of %d contexts", BATCH_CONTEXTS * i, len(tokens))
    new = {name: torch.cat(parts).contiguous() for name, parts in collected.items()}
    if path.is_file():  # another process may have added to it in these minutes
        stored = load_file(path)
    activations = {**stored, **new}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: save_file(activations, file))
    return activations


def mean_norm(activations: torch.Tensor) -> float:
    """Mean norm of up to 20k rows of (n, d_in)."""
    sample = activations[:: max(1, len(activations) // 20_000)].float()
    return float(sample.norm(dim=1).mean())


class ShuffledActivations(Iterator[torch.Tensor]):
    """Batches of random rows, float32, without end; a new order every epoch.

    Args:
        activations: shape (n, d_in).
        batch_size: rows a batch.
        scale: what the rows are multiplied by.
        seed: of the order.
    """

    def __init__(self, activations: torch.Tensor, batch_size: int, scale: float, seed: int):
        if batch_size > len(activations):
            raise ValueError(f"batch_size={batch_size} is above the {len(activations)} rows.")
        self.activations = activations
        self.batch_size = batch_size
        self.scale = scale
        self._generator = torch.Generator().manual_seed(seed)
        self._order: list[torch.Tensor] = []

    def __next__(self) -> torch.Tensor:
        if not self._order:
            n_batches = len(self.activations) // self.batch_size
            order = torch.randperm(len(self.activations), generator=self._generator)
            self._order = list(order[: n_batches * self.batch_size].split(self.batch_size))
        return self.activations[self._order.pop()].float() * self.scale
