"""What is shown of a latent: a histogram, contexts, what it promotes, what fires with it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from sae_lens.util import get_special_token_ids
from tqdm.auto import tqdm

from sae_lens_gba.report.logit_lens import logit_lens
from sae_lens_gba.report.reading import MAX_FIRINGS, Firings, Reading
from sae_lens_gba.report.results import (
    CoFiring,
    Context,
    Histogram,
    Interval,
    LatentDetail,
    significant,
)

N_TOP = 10
N_CO_FIRING = 8
INTERVALS = ((0.9, 1.0), (0.6, 0.9), (0.3, 0.6), (0.0, 0.3))
A_INTERVAL = 3
HISTOGRAM_BINS = 40
TOKENS_BEFORE = 14
TOKENS_AFTER = 8
BROKEN = "\ufffd"  # what tokenizers read in bytes that are no character
PART_OF_CHARACTER = "‥"
MAX_PARTS = 4  # bytes of the longest characters


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
    tokens = Tokens(model.tokenizer)
    promoted, demoted, notes = logit_lens(reading.saved, latents, model, tokens.read)
    ids, width = text.flatten().tolist(), text.shape[1]
    firings = reading.firings()
    if firings.n_tokens < reading.selectivity.n_samples:
        notes.append(
            f"Examples, histograms and co-firing are of the first {firings.n_tokens:,} tokens: of "
            f"an SAE at most {MAX_FIRINGS:,} activations are kept."
        )
    details = []
    for i, latent in enumerate(tqdm(latents, desc="describing", unit="latent", leave=False)):
        places, activations = firings.of(latent)
        at = dict(zip(places.tolist(), activations.tolist(), strict=True))
        show = partial(_context, ids, width, tokens, at)
        strongest_first = places[activations.argsort(descending=True, stable=True)]
        top = one_a_sequence(strongest_first, width, N_TOP)
        details.append(
            LatentDetail(
                latent=latent,
                histogram=histogram(activations),
                top=[show(place) for place in top],
                intervals=_intervals(strongest_first.flip(0), width, show, generator),
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


class Tokens:
    """The text of tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._read: dict[int, str] = {}
        self.special = frozenset(get_special_token_ids(tokenizer))

    def read(self, token: int) -> str:
        """Of one token by its id, which may be a part of a character only."""
        if token not in self._read:
            self._read[token] = str(self._tokenizer.decode([token]))
        return self._read[token]

    def read_in_a_row(self, tokens: Sequence[int]) -> list[str]:
        """Of tokens that follow each other, one text each.

        Where it takes several to make a character, the first has it, and the others
        `PART_OF_CHARACTER`.
        """
        texts = [self.read(token) for token in tokens]
        for start in range(len(texts)):
            if BROKEN not in texts[start]:
                continue
            for stop in range(start + 2, min(start + MAX_PARTS, len(texts)) + 1):
                whole = str(self._tokenizer.decode(tokens[start:stop]))
                if BROKEN not in whole:
                    texts[start:stop] = [whole] + [PART_OF_CHARACTER] * (stop - start - 1)
                    break
        return texts


def _context(
    text: Sequence[int], width: int, tokens: Tokens, activations: Mapping[int, float], place: int
) -> Context:
    """The context of a place in the text, which has sequences of ``width`` tokens.

    Args:
        activations: of the latent, by place.
    """
    sequence = place // width * width
    start = max(place - TOKENS_BEFORE, sequence)
    around = range(start, min(place + TOKENS_AFTER + 1, sequence + width))
    return Context(
        tokens=tokens.read_in_a_row([text[i] for i in around]),
        activations=[significant(activations[i]) if i in activations else 0.0 for i in around],
        focus=place - start,
        special=[i - start for i in around if text[i] in tokens.special],
    )


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
