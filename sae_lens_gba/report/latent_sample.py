"""Which latents are looked at closely: chosen before the text is read, thinned out after.

Which latents are alive is known only after the text has gone by, and the contexts must be
kept while it does. So several times as many candidates as wanted are watched.
"""

from collections.abc import Sequence

import torch

from sae_lens_gba.neuron_groups import NeuronGroups

CANDIDATES_PER_LATENT = 3


def choose_candidates(
    d_sae: int, groups: NeuronGroups | None, n_wanted: int, generator: torch.Generator
) -> list[int]:
    """Random latents, as many of each group; CANDIDATES_PER_LATENT times ``n_wanted`` in all."""
    shuffled = torch.randperm(d_sae, generator=generator)
    if groups is None:
        return shuffled[: CANDIDATES_PER_LATENT * n_wanted].tolist()
    a_group = CANDIDATES_PER_LATENT * _share(n_wanted, groups)
    chosen: list[int] = []
    for members in _by_group(shuffled, groups):
        chosen += members[:a_group].tolist()
    return chosen


def thin_out(
    candidates: Sequence[int],
    groups: NeuronGroups | None,
    frequency: torch.Tensor,
    n_wanted: int,
) -> list[int]:
    """The ``n_wanted`` living candidates to show, about as many of each group.

    Without groups they are spread evenly over the ranks of frequency.
    """
    alive = torch.tensor([c for c in candidates if frequency[c] > 0], dtype=torch.int64)
    if groups is None:
        by_frequency = alive[frequency[alive].argsort(descending=True)]
        steps = torch.linspace(0, max(len(alive) - 1, 0), min(n_wanted, len(alive)))
        return by_frequency[steps.round().long()].tolist()
    a_group = _share(n_wanted, groups)
    chosen: list[int] = []
    for members in _by_group(alive, groups):
        chosen += members[:a_group].tolist()
    return chosen


def alive_first(latents: Sequence[int], frequency: torch.Tensor, n_wanted: int) -> list[int]:
    """The first ``n_wanted`` living ones."""
    return [latent for latent in latents if frequency[latent] > 0][:n_wanted]


def _share(n_wanted: int, groups: NeuronGroups) -> int:
    n_groups = int(groups.group.max()) + 1
    return -(-n_wanted // n_groups)


def _by_group(latents: torch.Tensor, groups: NeuronGroups) -> list[torch.Tensor]:
    of_latent = groups.group[latents]
    return [latents[of_latent == k] for k in range(int(groups.group.max()) + 1)]
