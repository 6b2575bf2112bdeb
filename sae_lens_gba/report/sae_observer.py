"""Everything that is kept of one SAE while the text goes by."""

from collections.abc import Sequence
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.evals import ExplainedVarianceCalculator

from sae_lens_gba.report.context_keeper import ContextKeeper
from sae_lens_gba.report.latent_statistics import (
    CoFiringCounts,
    GrowingHistogram,
    LatentStatistics,
)
from sae_lens_gba.report.loading import LoadedSae

N_TOP = 10
N_RANDOM = 80


class SaeObserver:
    """Encodes batches with one SAE; O(d_sae * n_watched) memory, whatever the text's length.

    Args:
        loaded: the SAE.
        watched: latents of which contexts are kept.
        generator: chooses the random examples.
    """

    def __init__(
        self, loaded: LoadedSae, watched: Sequence[int], generator: torch.Generator
    ) -> None:
        self.loaded = loaded
        self.watched = torch.tensor(sorted(set(watched)), dtype=torch.int64)
        self.statistics = LatentStatistics(loaded.d_sae)
        self.variance = ExplainedVarianceCalculator()
        self.histogram = GrowingHistogram(len(self.watched))
        self.co_firing = CoFiringCounts(self.watched, loaded.d_sae)
        self.top = ContextKeeper(len(self.watched), N_TOP)
        self.random = ContextKeeper(len(self.watched), N_RANDOM)
        self._generator = generator

    @torch.no_grad()
    def update(self, inputs: torch.Tensor, tokens: torch.Tensor, counts: torch.Tensor) -> None:
        """Take in a batch.

        Args:
            inputs: model activations, shape (n_sequences, n_tokens, d_in).
            tokens: token ids, shape (n_sequences, n_tokens).
            counts: bool, False on special tokens, same shape.
        """
        scaler, sae = self.loaded.scaler, self.loaded.sae
        x = inputs[counts]
        acts, pre_activations = _encode(sae, scaler.scale(x).to(sae.dtype))
        reconstruction = scaler.unscale(sae.decode(acts).float())
        self.variance.add_batch(reconstruction, x)
        acts = (acts.to_dense() if acts.is_sparse else acts).float().cpu()
        self.statistics.update(acts, acts if pre_activations is None else pre_activations)
        self.co_firing.update(acts)
        self.histogram.update(acts[:, self.watched])
        self._keep_contexts(acts[:, self.watched], tokens.cpu(), counts.cpu())

    def _keep_contexts(
        self, acts: torch.Tensor, tokens: torch.Tensor, counts: torch.Tensor
    ) -> None:
        whole = torch.zeros(*tokens.shape, len(self.watched))
        whole[counts] = acts
        active = whole > 0
        self.top.offer(torch.where(active, whole, -torch.inf), tokens, whole)
        chance = torch.rand(whole.shape, generator=self._generator)
        self.random.offer(torch.where(active, chance, -torch.inf), tokens, whole)


def _encode(sae: SAE[Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Activations, and pre-activations if the architecture has any; both (n_tokens, d_sae)."""
    seen: list[torch.Tensor] = []
    hook = getattr(sae, "hook_sae_acts_pre", None)
    handle = hook.register_forward_hook(lambda *args: seen.append(args[-1])) if hook else None
    try:
        acts = sae.encode(x)
    finally:
        if handle is not None:
            handle.remove()
    whole = [h for h in seen if h.shape == acts.shape]
    return acts, whole[-1].float().cpu() if whole else None
