"""Comparing the first SAE of a report with another, by the decoder rows of living latents."""

import torch

from sae_lens_gba.metrics import BestMatch, best_match
from sae_lens_gba.report.latent_sample import spread
from sae_lens_gba.report.reading import Reading
from sae_lens_gba.report.results import Comparison, MatchedPair, significant

SAME_FEATURE = 0.9
RELATED = 0.7
UNRELATED = 0.5
N_PAIRS = 12
N_ONLY = 8


def best_living(rows: torch.Tensor, others: torch.Tensor, alive: torch.Tensor) -> BestMatch:
    """For each row the living row of another SAE nearest to it; row 0, cosine 0 without any.

    A dead latent's row is what it was at the start: of two SAEs that started alike it would
    pass for a shared feature.

    Args:
        rows: shape (n, d).
        others: shape (m, d).
        alive: bool, which of the others count, shape (m,).
    """
    living = alive.nonzero().flatten()
    if not len(living):
        return BestMatch(torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.int64))
    found = best_match(rows, others[living], signed=True)
    return BestMatch(found.similarity.clamp(-1, 1), living[found.candidate])


def mutual_pairs(forth: BestMatch, back: BestMatch) -> torch.Tensor:
    """Latents that are the best match of their best match, with a cosine of `RELATED`."""
    own = torch.arange(len(forth.candidate))
    mutual = back.candidate[forth.candidate] == own
    return own[mutual & (forth.similarity >= RELATED)]


def compare(
    first: Reading, other: Reading, generator: torch.Generator
) -> tuple[Comparison, BestMatch]:
    """What two SAEs share and what only one has; and the best match of each of the first's.

    The generator draws the samples.
    """
    frequency, other_frequency = first.frequency, other.frequency
    rows, other_rows = first.saved.decoder_rows, other.saved.decoder_rows
    forth = best_living(rows, other_rows, other_frequency > 0)
    back = best_living(other_rows, rows, frequency > 0)
    pairs = mutual_pairs(forth, back)
    most_active_first = pairs[frequency[pairs].argsort(descending=True, stable=True)].tolist()
    only_first = ((frequency > 0) & (forth.similarity < UNRELATED)).nonzero().flatten()
    only_other = ((other_frequency > 0) & (back.similarity < UNRELATED)).nonzero().flatten()
    best = forth.similarity[frequency > 0]
    comparison = Comparison(
        other=other.saved.label,
        mean_cosine=significant(float(best.mean())) if len(best) else 0.0,
        share_above=significant(int((best > SAME_FEATURE).sum()) / max(len(best), 1)),
        threshold=SAME_FEATURE,
        pairs=[
            MatchedPair(p, int(forth.candidate[p]), significant(float(forth.similarity[p])))
            for p in spread(most_active_first, N_PAIRS)
        ],
        only_first=_some(only_first, generator),
        only_other=_some(only_other, generator),
        n_only_first=len(only_first),
        n_only_other=len(only_other),
    )
    return comparison, forth


def _some(latents: torch.Tensor, generator: torch.Generator) -> list[int]:
    return latents[torch.randperm(len(latents), generator=generator)][:N_ONLY].tolist()
