"""What is shown of a latent: a histogram, contexts, what it promotes, what fires with it."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from sae_lens_gba.report.reading import MAX_FIRINGS, Firings, Reading
from sae_lens_gba.report.results import (
    CoFiring,
    Context,
    Histogram,
    Interval,
    LatentDetail,
    TokenWeight,
)

N_TOP = 10
N_PROMOTED = 10
N_CO_FIRING = 8
INTERVALS = ((0.9, 1.0), (0.6, 0.9), (0.3, 0.6), (0.0, 0.3))
A_INTERVAL = 3
HISTOGRAM_BINS = 40
TOKENS_BEFORE = 14
TOKENS_AFTER = 8


def significant(value: float) -> float:
    """Four significant digits: half the size of the JSON, and all that can be seen."""
    return float(f"{value:.4g}")


def build_details(
    reading: Reading,
    latents: Sequence[int],
    text: torch.Tensor,
    model: Any,
    generator: torch.Generator,
) -> tuple[list[LatentDetail], list[str]]:
    """Details of latents, and notes on what could not be had.

    Args:
        text: token ids, shape (n_sequences, n_tokens).
        model: whose tokenizer reads them.
        generator: draws the examples.
    """

    @cache
    def read(token: int) -> str:
        return str(model.tokenizer.decode([token]))

    promoted, demoted, notes = _logit_lens(reading, latents, model, read)
    firings = reading.firings()
    if firings.n_tokens < reading.selectivity.n_samples:
        notes.append(
            f"Examples, histograms and co-firing are of the first {firings.n_tokens:,} tokens: of "
            f"an SAE at most {MAX_FIRINGS:,} activations are kept."
        )
    details = []
    for i, latent in enumerate(latents):
        places, activations = firings.of(latent)
        show = _context_reader(text, places, activations, read)
        strongest_first = places[activations.argsort(descending=True, stable=True)]
        top = one_a_sequence(strongest_first, text.shape[1], N_TOP)
        details.append(
            LatentDetail(
                latent=latent,
                histogram=histogram(activations),
                top=[show(place) for place in top],
                intervals=_intervals(strongest_first.flip(0), text.shape[1], show, generator),
                promoted=promoted[i],
                demoted=demoted[i],
                co_firing=_co_firing(firings, latent, places),
            )
        )
    return details, notes


def histogram(activations: torch.Tensor) -> Histogram:
    """Of activations above 0, shape (n,); the largest is the end of the last bin."""
    if not len(activations):
        return Histogram(start=0.0, width=0.0, counts=[])
    width = activations.double().max() / HISTOGRAM_BINS
    bins = (activations / width).long().clamp(max=HISTOGRAM_BINS - 1)
    counts = bins.bincount(minlength=HISTOGRAM_BINS).tolist()
    return Histogram(start=0.0, width=significant(float(width)), counts=counts)


def _context_reader(
    text: torch.Tensor,
    places: torch.Tensor,
    activations: torch.Tensor,
    read: Callable[[int], str],
) -> Callable[[int], Context]:
    """The context of a place in the text, with the activations of a latent."""
    along_text = torch.zeros(text.numel())
    along_text[places] = activations

    def show(place: int) -> Context:
        sequence = place // text.shape[1] * text.shape[1]
        start = max(place - TOKENS_BEFORE, sequence)
        piece = slice(start, min(place + TOKENS_AFTER + 1, sequence + text.shape[1]))
        return Context(
            tokens=[read(token) for token in text.view(-1)[piece].tolist()],
            activations=[significant(value) for value in along_text[piece].tolist()],
            focus=place - start,
        )

    return show


def one_a_sequence(places: torch.Tensor, n_tokens: int, n_wanted: int) -> list[int]:
    """Of places in a text, the first ``n_wanted``, at most one a sequence of ``n_tokens``."""
    found: dict[int, int] = {}
    for place in places.tolist():
        found.setdefault(place // n_tokens, place)
        if len(found) == n_wanted:
            break
    return list(found.values())


def _intervals(
    weakest_first: torch.Tensor,
    n_tokens: int,
    show: Callable[[int], Context],
    generator: torch.Generator,
) -> list[Interval]:
    """A few random contexts of each part of the activations above 0."""
    n = len(weakest_first)
    intervals = []
    for low, high in INTERVALS:
        members = weakest_first[int(low * n) : int(high * n)]
        members = members[torch.randperm(len(members), generator=generator)]
        chosen = one_a_sequence(members, n_tokens, A_INTERVAL)
        if chosen:
            intervals.append(Interval(low, high, [show(place) for place in chosen]))
    return intervals


def _co_firing(firings: Firings, latent: int, places: torch.Tensor) -> list[CoFiring]:
    if not len(places):
        return []
    together = firings.together(places)
    correlation = phi(together, firings.count, latent, firings.n_tokens)
    best = correlation.topk(min(N_CO_FIRING, len(correlation)))
    return [
        CoFiring(
            latent=other,
            correlation=significant(value),
            share=significant(int(together[other]) / len(places)),
        )
        for value, other in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        if value > 0
    ]


def phi(together: torch.Tensor, count: torch.Tensor, latent: int, n_tokens: int) -> torch.Tensor:
    """Correlation of each latent's being active with that of ``latent``; 0 with itself.

    Args:
        together: tokens on which both are active, shape (d_sae,).
        count: tokens on which each is active, shape (d_sae,).
        latent: index.
        n_tokens: tokens in all.
    """
    p = count.double() / n_tokens
    covariance = together.double() / n_tokens - p[latent] * p
    deviation = (p[latent] * (1 - p[latent]) * p * (1 - p)).sqrt()
    correlation = torch.where(deviation > 0, covariance / deviation, 0.0)
    correlation[latent] = 0.0
    return correlation


def _logit_lens(
    reading: Reading, latents: Sequence[int], model: Any, read: Callable[[int], str]
) -> tuple[list[list[TokenWeight]], list[list[TokenWeight]], list[str]]:
    rows = reading.saved.decoder_rows[list(latents)]
    unembedding = getattr(model, "W_U", None)
    if unembedding is None or unembedding.shape[0] != rows.shape[1]:
        none: list[list[TokenWeight]] = [[]] * len(latents)
        return none, none, ["No logit lens: the SAE's hook does not write to the residual stream."]
    logits = (rows * _final_norm_weight(model)) @ unembedding.detach().float().to(rows.device)
    logits = logits - logits.mean(dim=1, keepdim=True)  # a constant changes no probability
    n_shown = min(N_PROMOTED, logits.shape[1])
    return (
        _token_weights(logits.topk(n_shown, dim=1), read),
        _token_weights(logits.topk(n_shown, dim=1, largest=False), read),
        [],
    )


def _token_weights(found: Any, read: Callable[[int], str]) -> list[list[TokenWeight]]:
    rows = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [
        [TokenWeight(read(t), significant(v)) for t, v in zip(tokens, values, strict=True)]
        for tokens, values in rows
    ]


def _final_norm_weight(model: Any) -> torch.Tensor | float:
    """Scale of the last normalisation, where it is not folded into W_U; shape (d_model,)."""
    norm = getattr(model, "ln_final", None)
    for name in ("weight", "w"):
        weight = getattr(norm, name, None)
        if isinstance(weight, torch.Tensor):
            return weight.detach().float().cpu()
    return 1.0
