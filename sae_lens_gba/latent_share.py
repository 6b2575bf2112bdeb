"""Which of an SAE's latents this process holds: all, unless several processes train it together.

What concerns all latents (a group's mean, an output, L0) goes through the methods below, which
do nothing here. `sae_lens_gba.distributed` has those for a share of the latents.
"""

import torch


class AllLatents:
    """The SAE is whole in this process: a sum over processes is one's own."""

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """Sum over all processes; its gradient is each one's own."""
        return part

    def concatenate(self, values: torch.Tensor) -> torch.Tensor:
        """Values of all processes, in their order, shape (n,); each may have another n."""
        return values

    def whole(self, own: torch.Tensor) -> torch.Tensor:
        """For all latents, in the whole SAE's order, what is given for one's own, (d_sae,)."""
        return own

    def own(self, whole: torch.Tensor) -> torch.Tensor:
        """The reverse of `whole`."""
        return whole

    def in_whole(self, latents: torch.Tensor) -> torch.Tensor:
        """Indices of one's own latents as indices of the whole SAE's."""
        return latents


ALL_LATENTS = AllLatents()
