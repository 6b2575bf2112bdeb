"""Comparing the first SAE with another: what is decided by the weights, and what by the text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from sae_lens_gba.report.decoder_matching import (
    SAME_FEATURE,
    UNRELATED,
    Match,
    mutual_matches,
    nearest_in,
)
from sae_lens_gba.report.details import significant
from sae_lens_gba.report.latent_sample import CANDIDATES_PER_LATENT, alive_first
from sae_lens_gba.report.loading import LoadedSae
from sae_lens_gba.report.results import Comparison, MatchedPair
from sae_lens_gba.report.sae_observer import SaeObserver

N_PAIRS = 12
N_ONLY = 8


@dataclass(frozen=True)
class ComparisonPlan:
    """What the weights say, and which latents to watch for it.

    Attributes:
        index: of the other SAE among the report's.
        other: its label.
        forth: best match of each latent of the first SAE among all of the other's, dead or not:
            which are dead is not yet known.
        back: and the other way round.
        pairs: candidates for matched pairs, as latents of the first SAE.
        only_first: candidates for features the other lacks.
        only_other: candidates for features the first lacks.
    """

    index: int
    other: str
    forth: Match
    back: Match
    pairs: list[int]
    only_first: list[int]
    only_other: list[int]

    def watched(self, index: int) -> list[int]:
        """Latents of an SAE of the report whose contexts must be kept."""
        if index == 0:
            return self.pairs + self.only_first
        if index == self.index:
            return self.forth.latent[self.pairs].tolist() + self.only_other
        return []

    def shown(self, index: int, comparison: Comparison) -> list[int]:
        """Of these, the ones that the finished comparison shows."""
        if index == 0:
            return [pair.latent for pair in comparison.pairs] + comparison.only_first
        if index == self.index:
            return [pair.other_latent for pair in comparison.pairs] + comparison.only_other
        return []

    def finish(self, observers: Sequence[SaeObserver]) -> tuple[Comparison, Match]:
        """Leave out the dead: also the best matches, of which the second value is.

        A dead latent's row is what it was at the start: of two SAEs that started alike it would
        pass for a shared feature.
        """
        first = observers[0].statistics.frequency()
        other = observers[self.index].statistics.frequency()
        alive, other_alive = first > 0, other > 0
        rows = observers[0].loaded.decoder_rows
        other_rows = observers[self.index].loaded.decoder_rows
        forth = nearest_in(rows, other_rows, among=other_alive)
        back = nearest_in(other_rows, rows, among=alive)
        both = [p for p in self.pairs if first[p] > 0 and other[self.forth.latent[p]] > 0]
        pairs = [
            MatchedPair(p, int(forth.latent[p]), significant(float(forth.cosine[p])))
            for p in _spread(sorted(both, key=lambda p: -float(first[p])), N_PAIRS)
        ]
        best = forth.cosine[alive]
        comparison = Comparison(
            other=self.other,
            mean_cosine=significant(float(best.mean())) if len(best) else 0.0,
            share_above=significant(int((best > SAME_FEATURE).sum()) / max(len(best), 1)),
            threshold=SAME_FEATURE,
            pairs=pairs,
            only_first=alive_first(self.only_first, first, N_ONLY),
            only_other=alive_first(self.only_other, other, N_ONLY),
            n_only_first=int((alive & (forth.cosine < UNRELATED)).sum()),
            n_only_other=int((other_alive & (back.cosine < UNRELATED)).sum()),
        )
        return comparison, forth


def plan_comparisons(saes: Sequence[LoadedSae], generator: torch.Generator) -> list[ComparisonPlan]:
    """One plan for each SAE but the first.

    Raises:
        ValueError: an SAE has another input dimension than the first.
    """
    plans = []
    rows = saes[0].decoder_rows
    for index, other in enumerate(saes[1:], start=1):
        other_rows = other.decoder_rows
        if other_rows.shape[1] != rows.shape[1]:
            raise ValueError(
                f"{other.label} has d_in={other_rows.shape[1]}, {saes[0].label} has "
                f"{rows.shape[1]}: compare SAEs whose inputs have the same dimension."
            )
        forth = nearest_in(rows, other_rows, among=_all(other_rows))
        back = nearest_in(other_rows, rows, among=_all(rows))
        plans.append(
            ComparisonPlan(
                index=index,
                other=other.label,
                forth=forth,
                back=back,
                pairs=_some(mutual_matches(forth, back), N_PAIRS, generator),
                only_first=_some(_unmatched(forth), N_ONLY, generator),
                only_other=_some(_unmatched(back), N_ONLY, generator),
            )
        )
    return plans


def _all(rows: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(rows), dtype=torch.bool)


def _unmatched(match: Match) -> torch.Tensor:
    return (match.cosine < UNRELATED).nonzero().flatten()


def _some(latents: torch.Tensor, n_wanted: int, generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(latents), generator=generator)
    return latents[order][: CANDIDATES_PER_LATENT * n_wanted].tolist()


def _spread(ordered: Iterable[int], n_wanted: int) -> list[int]:
    """At most ``n_wanted``, evenly from first to last."""
    items = list(ordered)
    at = torch.linspace(0, max(len(items) - 1, 0), min(n_wanted, len(items)))
    return [items[i] for i in at.round().long().tolist()]
