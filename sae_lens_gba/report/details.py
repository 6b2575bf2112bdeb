"""From what was kept of a latent to what is shown of it."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from sae_lens_gba.report.context_keeper import NO_TOKEN, TOKENS_BEFORE, ContextKeeper
from sae_lens_gba.report.results import (
    CoFiring,
    Context,
    Histogram,
    Interval,
    LatentDetail,
    TokenWeight,
)
from sae_lens_gba.report.sae_observer import SaeObserver

N_PROMOTED = 10
N_CO_FIRING = 8
INTERVALS = ((0.9, 1.0), (0.6, 0.9), (0.3, 0.6), (0.0, 0.3))
A_INTERVAL = 3


def significant(value: float) -> float:
    """Four significant digits: half the size of the JSON, and all that can be seen."""
    return float(f"{value:.4g}")


def token_reader(tokenizer: Any) -> Callable[[int], str]:
    """Text of a token id, remembered."""

    @cache
    def read(token: int) -> str:
        return str(tokenizer.decode([token]))

    return read


def build_details(
    observer: SaeObserver, latents: Sequence[int], model: Any
) -> tuple[list[LatentDetail], list[str]]:
    """Details of watched latents, by index, and notes on what could not be had."""
    read = token_reader(model.tokenizer)
    wanted = sorted(set(latents))
    promoted, demoted, notes = _logit_lens(observer, wanted, model, read)
    statistics = observer.statistics
    phi = observer.co_firing.correlation(statistics.count, statistics.n_tokens)
    row_of = {latent: row for row, latent in enumerate(observer.watched.tolist())}
    details = []
    for i, latent in enumerate(wanted):
        row = row_of[latent]
        details.append(
            LatentDetail(
                latent=latent,
                histogram=_histogram(observer, row),
                top=_contexts(observer.top, row, _found(observer.top, row), read),
                intervals=_intervals(observer.random, row, read),
                promoted=promoted[i] if promoted else [],
                demoted=demoted[i] if demoted else [],
                co_firing=_co_firing(observer, row, latent, phi[row]),
            )
        )
    return details, notes


def _histogram(observer: SaeObserver, row: int) -> Histogram:
    counts = observer.histogram.counts[row]
    in_use = int((counts > 0).nonzero().max()) + 1 if bool(counts.any()) else 0
    width = significant(float(observer.histogram.width[row]))
    return Histogram(start=0.0, width=width, counts=counts[:in_use].tolist())


def _found(keeper: ContextKeeper, row: int) -> list[int]:
    return keeper.key[row].isfinite().nonzero().flatten().tolist()


def _contexts(
    keeper: ContextKeeper, row: int, which: Sequence[int], read: Callable[[int], str]
) -> list[Context]:
    contexts = []
    for k in which:
        tokens, acts = keeper.tokens[row, k], keeper.activations[row, k]
        inside = tokens != NO_TOKEN
        contexts.append(
            Context(
                tokens=[read(t) for t in tokens[inside].tolist()],
                activations=[significant(a) for a in acts[inside].tolist()],
                focus=int(inside[:TOKENS_BEFORE].sum()),
            )
        )
    return contexts


def _intervals(keeper: ContextKeeper, row: int, read: Callable[[int], str]) -> list[Interval]:
    """A few random contexts of each part of the activations above 0."""
    found = torch.tensor(_found(keeper, row), dtype=torch.int64)
    strength = keeper.activations[row, found, TOKENS_BEFORE]
    weakest_first = found[strength.argsort()]
    intervals = []
    for low, high in INTERVALS:
        first, last = int(low * len(found)), int(high * len(found))
        # within an interval their order is by strength; a random key decides who is shown
        members = weakest_first[first:last].sort().values[:A_INTERVAL].tolist()
        if members:
            contexts = _contexts(keeper, row, members, read)
            intervals.append(Interval(low=low, high=high, contexts=contexts))
    return intervals


def _co_firing(observer: SaeObserver, row: int, latent: int, phi: torch.Tensor) -> list[CoFiring]:
    best = phi.topk(min(N_CO_FIRING, len(phi)))
    n_active = max(int(observer.statistics.count[latent]), 1)
    return [
        CoFiring(
            latent=other,
            correlation=significant(value),
            share=significant(int(observer.co_firing.counts[row, other]) / n_active),
        )
        for value, other in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        if value > 0
    ]


def _logit_lens(
    observer: SaeObserver, latents: Sequence[int], model: Any, read: Callable[[int], str]
) -> tuple[list[list[TokenWeight]], list[list[TokenWeight]], list[str]]:
    rows = observer.loaded.decoder_rows[list(latents)]
    unembedding = getattr(model, "W_U", None)
    if unembedding is None or unembedding.shape[0] != rows.shape[1]:
        return [], [], ["No logit lens: the SAE's hook does not write to the residual stream."]
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
