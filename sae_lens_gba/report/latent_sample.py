"""Which latents are looked at closely."""

from collections.abc import Sequence

import torch

from sae_lens_gba.neuron_groups import NeuronGroups


def sample_latents(
    frequency: torch.Tensor, groups: NeuronGroups | None, n_wanted: int, generator: torch.Generator
) -> list[int]:
    """Latents that fire: about as many of each group, at random.

    Without groups, evenly over the ranks of frequency.

    Args:
        frequency: share of tokens each latent fires on, shape (d_sae,).
        groups: of the SAE, if it has any.
        n_wanted: how many in all.
        generator: draws them.
    """
    if groups is None:
        by_frequency = frequency.argsort(descending=True, stable=True)
        return spread(by_frequency[: int((frequency > 0).sum())].tolist(), n_wanted)
    shuffled = torch.randperm(len(frequency), generator=generator)
    alive = shuffled[frequency[shuffled] > 0]
    n_groups = int(groups.group.max()) + 1
    a_group = -(-n_wanted // n_groups)
    chosen = [alive[groups.group[alive] == k][:a_group] for k in range(n_groups)]
    return torch.cat(chosen).tolist()


def spread(ordered: Sequence[int], n_wanted: int) -> list[int]:
    """At most ``n_wanted``, evenly from first to last."""
    at = torch.linspace(0, max(len(ordered) - 1, 0), min(n_wanted, len(ordered)))
    return [ordered[i] for i in at.round().long().tolist()]
