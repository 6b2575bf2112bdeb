"""What one SAE did while the text went by."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.evals import ExplainedVarianceCalculator

from sae_lens_gba.at_target import decoded
from sae_lens_gba.metrics import SelectivityMeter
from sae_lens_gba.saved.saved_sae import SavedSAE

MAX_FIRINGS = 2**24  # of an SAE; with 12 bytes each they take 200 MB


@dataclass(frozen=True)
class Firings:
    """The activations above 0, as a sparse matrix of tokens by latents.

    Attributes:
        place: of the token in the text, int32, rising, shape (n_firings,).
        latent: int32, same shape.
        activation: float32, same shape.
        count: tokens each latent fired on, int64, shape (d_sae,).
        n_tokens: how many tokens these are the firings of.
    """

    place: torch.Tensor
    latent: torch.Tensor
    activation: torch.Tensor
    count: torch.Tensor
    n_tokens: int

    def of(self, latent: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Places where a latent fires, int64 and rising, and its activations on them."""
        order, end = self._by_latent
        mine = order[int(end[latent] - self.count[latent]) : int(end[latent])]
        return self.place[mine].long(), self.activation[mine]

    def together(self, places: torch.Tensor) -> torch.Tensor:
        """How many of ``places`` each latent fires on; int64, shape (d_sae,)."""
        places = places.int()
        first = torch.searchsorted(self.place, places)
        n_firings = torch.searchsorted(self.place, places, right=True) - first
        # all firings of the first place, then of the second, ...
        begins = (first - n_firings.cumsum(0) + n_firings).repeat_interleave(n_firings)
        return self.latent[torch.arange(len(begins)) + begins].bincount(minlength=len(self.count))

    @cached_property
    def _by_latent(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Firings in the order of their latents, and where each latent's end."""
        return self.latent.argsort(stable=True), self.count.cumsum(0)


class Reading:
    """Encodes batches with one SAE: measures of all the text, firings of its beginning.

    Memory is O(d_sae), and what `MAX_FIRINGS` take.

    Attributes:
        variance: SAELens' sums for explained variance.
        selectivity: frequencies and Z-scores so far.
        max_activation: largest activation of each latent, shape (d_sae,).
    """

    def __init__(self, saved: SavedSAE) -> None:
        self.saved = saved
        self.variance = ExplainedVarianceCalculator()
        self.selectivity = SelectivityMeter(saved.d_sae)
        self.max_activation = torch.zeros(saved.d_sae)
        self._kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._n_kept_tokens = 0
        self._room = MAX_FIRINGS

    @torch.no_grad()
    def update(self, x: torch.Tensor, target: torch.Tensor, places: torch.Tensor) -> None:
        """Take in a batch.

        Args:
            x: model activations that the SAE reads, shape (n_tokens, d_in).
            target: those that its output is compared with: x, or a transcoder's target.
            places: of the tokens in the text, shape (n_tokens,), on the CPU.
        """
        if not len(x):
            return
        sae = self.saved.sae
        x = x.to(sae.dtype)
        acts, pre_activations = _encode(sae, x)
        self.variance.add_batch(decoded(sae, acts, x).float(), target)
        # AbsTopK's have signs
        acts = (acts.to_dense() if acts.is_sparse else acts).float().abs()
        active = acts > 0
        self.selectivity.add(acts if pre_activations is None else pre_activations, active)
        self.max_activation = torch.maximum(self.max_activation, acts.amax(dim=0).cpu())
        tokens, latents = active.nonzero(as_tuple=True)
        self._room -= len(tokens)
        if self._room >= 0:
            firing = (places[tokens.cpu()], latents.cpu(), acts[tokens, latents].cpu())
            self._kept.append((firing[0].int(), firing[1].int(), firing[2]))
            self._n_kept_tokens += len(x)

    @property
    def frequency(self) -> torch.Tensor:
        """Share of tokens each latent fires on, shape (d_sae,)."""
        return self.selectivity.compute().frequency

    def firings(self) -> Firings:
        """Of all the text, or of as much from its beginning as `MAX_FIRINGS` allow."""
        place, latent, activation = (torch.cat(column) for column in zip(*self._kept, strict=True))
        count = latent.bincount(minlength=self.saved.d_sae)
        return Firings(place, latent, activation, count, self._n_kept_tokens)


def _encode(sae: SAE[Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Activations, and pre-activations if the architecture has any; both (n_tokens, d_sae)."""
    seen: list[torch.Tensor] = []
    with sae.hooks([("hook_sae_acts_pre", lambda value, **_: seen.append(value))]):
        acts = sae.encode(x)
    whole = [h for h in seen if h.shape == acts.shape]
    return acts, whole[-1] if whole else None
