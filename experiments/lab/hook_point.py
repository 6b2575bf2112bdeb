"""Hook points of the demo's language model, and what an SAE is worth at one of them.

What the paper's experiment and the benchmark on a language model share.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE
from sae_lens.evals import get_recons_loss
from sae_lens.training.activation_scaler import ActivationScaler
from transformer_lens.model_bridge import TransformerBridge

from experiments.lab.activations import cached_activations, mean_norm, tokenise
from experiments.lab.training import measure_reconstruction
from sae_lens_gba.demo.model import MODEL_NAME, default_cache_dir, load_demo_model
from sae_lens_gba.demo.text import demo_texts
from sae_lens_gba.metrics import Selectivity


@dataclass(frozen=True)
class HookPoint:
    """Everything needed to train and measure SAEs at one hook point.

    Attributes:
        name: TransformerLens' name of it.
        model: whose activations these are.
        train: activations to train on, bfloat16, (n, d_in).
        held_out: activations of documents that training doesn't see, likewise.
        ce_tokens: held-out contexts for the model's loss with the SAE in place; each costs
            three runs of the whole model.
        scale: by which activations are multiplied for the SAE: their mean norm is
            sqrt(d_in) then.
    """

    name: str
    model: Any  # TransformerBridge; SAELens' functions are annotated for HookedRootModule only
    train: torch.Tensor
    held_out: torch.Tensor
    ce_tokens: torch.Tensor
    scale: float

    def measure(self, sae: SAE[Any]) -> tuple[dict[str, float], Selectivity]:
        """Loss, L0 and the rest on held-out text, and the latents' peaks and frequencies."""
        parts = (part.float() * self.scale for part in self.held_out.split(1024))
        return measure_reconstruction(sae, parts)

    @torch.no_grad()
    def ce_loss_recovered(self, sae: SAE[Any]) -> float:
        """SAELens' score: 1 with the model's own loss, 0 with the activations set to zero.

        As there, what the model says after BOS does not count, and BOS's activation is left as it
        is by the SAE, but not by the zeros.
        """
        scaler = ActivationScaler(scaling_factor=self.scale)
        totals = torch.zeros(3)
        for batch in self.ce_tokens.split(8):
            losses = get_recons_loss(
                sae,
                self.model,
                scaler,
                batch,
                compute_kl=False,
                compute_ce_loss=True,
                ignore_tokens=[self.model.tokenizer.bos_token_id],
                hook_name=self.name,
            )
            names = ("ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae")
            totals += torch.stack([losses[name][:, 1:].sum() for name in names])  # not after BOS
        ablated, with_sae, without = totals.tolist()
        return (ablated - with_sae) / (ablated - without)

    def save(self, sae: SAE[Any], folder: Path) -> None:
        """As an SAE of the raw activations, in a folder of this hook point's name.

        Args:
            sae: a stock SAE, left as it is.
            folder: made if need be.
        """
        inference = deepcopy(sae)
        inference.fold_activation_norm_scaling_factor(self.scale)
        inference.cfg.metadata.model_name = MODEL_NAME
        inference.cfg.metadata.hook_name = self.name
        inference.save_model(folder / self.name)


def hook_points(
    model: TransformerBridge,
    texts: tuple[Dataset, Dataset],
    names: tuple[str, ...],
    n_tokens: tuple[int, int],
    context: int,
    ce_contexts: int,
    cache: Path,
    contexts_per_document: int | None = None,
) -> Iterator[HookPoint]:
    """The hook points ``names``; one pass of the model serves all, and is kept in ``cache``.

    Args:
        model: whose activations are wanted.
        texts: to train on, and held out.
        names: of the hook points.
        n_tokens: to train on, and held out.
        context: tokens a context, BOS included.
        ce_contexts: held-out contexts for the model's loss, evenly spaced.
        cache: folder; made if need be.
        contexts_per_document: of the held-out text, its first ones; None for all.
    """
    parts = {
        "train": tokenise(model, texts[0], n_tokens[0], context),
        "held_out": tokenise(model, texts[1], n_tokens[1], context, contexts_per_document),
    }
    several = "" if contexts_per_document is None else f"_{contexts_per_document}_a_document"
    files = {"train": "train", "held_out": "held_out" + several}
    train, held_out = (
        cached_activations(model, t, names, cache / f"{files[part]}_{t.numel()}.safetensors")
        for part, t in parts.items()
    )
    for name in names:
        scale = train[name].shape[1] ** 0.5 / mean_norm(train[name])
        # from all over the held-out text: one document can give many contexts in a row
        kept = parts["held_out"]
        ce_tokens = kept[:: max(1, len(kept) // ce_contexts)][:ce_contexts]
        yield HookPoint(name, model, train[name], held_out[name], ce_tokens, scale)


def demo_hook_points(
    names: tuple[str, ...],
    n_tokens: tuple[int, int],
    context: int,
    ce_contexts: int,
    contexts_per_document: int | None = None,
) -> Iterator[HookPoint]:
    """`hook_points` of the demo's model on the demo's texts, kept in the user's cache."""
    texts = (demo_texts(), demo_texts(held_out=True))
    cache = default_cache_dir() / "paper"
    return hook_points(
        load_demo_model(),
        texts,
        names,
        n_tokens,
        context,
        ce_contexts,
        cache,
        contexts_per_document,
    )
