"""How well activation frequencies meet their targets. Frequencies are shares of tokens."""

import torch

ON_TARGET_WITHIN = 2.0


def share_on_target(
    frequency: torch.Tensor, target: torch.Tensor, within: float = ON_TARGET_WITHIN
) -> torch.Tensor:
    """Share of the latents whose frequency lies within a factor of their target.

    Args:
        frequency: of each latent, shape (d_sae,).
        target: of each latent, above 0, shape (d_sae,).
        within: the factor, at least 1; both ends belong to it.

    Returns:
        A scalar, from 0 to 1.
    """
    relative = frequency / target
    return ((relative >= 1 / within) & (relative <= within)).float().mean()
