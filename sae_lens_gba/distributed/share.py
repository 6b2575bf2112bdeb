"""The part of an SAE's latents that one rank holds."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from typing_extensions import override

from sae_lens_gba.distributed.ranks import Ranks
from sae_lens_gba.latent_share import AllLatents
from sae_lens_gba.training_sae import outside_compilation


class LatentShare(AllLatents):
    """Every world-th latent, counted through all groups: of every group nearly the same number.

    Whole groups would give one rank most of the memory: the rarest group alone holds about half
    of all latents.

    Args:
        ranks: all that hold a part.
        group: group of each of the whole SAE's latents, shape (d_sae,).

    Attributes:
        indices: for each rank, its latents in the whole SAE, ascending, int64.
    """

    def __init__(self, ranks: Ranks, group: torch.Tensor):
        self.ranks = ranks
        by_group = group.cpu().argsort(stable=True)
        self.indices = [by_group[r :: ranks.world].sort().values for r in range(ranks.world)]
        self._own = self.indices[ranks.rank].to(ranks.device)
        self._numbers = [len(index) for index in self.indices]
        self._to_whole = torch.cat(self.indices).argsort().to(ranks.device)

    def __len__(self) -> int:
        return self._numbers[self.ranks.rank]

    @property
    def d_sae(self) -> int:
        """Latents of the whole SAE."""
        return sum(self._numbers)

    @override
    @outside_compilation
    def sum(self, part: torch.Tensor) -> torch.Tensor:
        # at least float32 on all ranks: where one runs densely under autocast, its part has less
        at_least = torch.float32 if part.is_floating_point() else part.dtype
        return _Sum.apply(part.to(torch.promote_types(part.dtype, at_least)), self.ranks)

    @override
    def concatenate(self, values: torch.Tensor) -> torch.Tensor:
        lengths = [row[0] for row in self.ranks.table([len(values)])]
        return self.ranks.gather(values, lengths)

    @override
    def whole(self, own: torch.Tensor) -> torch.Tensor:
        return self.ranks.gather(own.detach(), self._numbers)[self._to_whole]

    @override
    def own(self, whole: torch.Tensor) -> torch.Tensor:
        return whole[self._own]

    @override
    def in_whole(self, latents: torch.Tensor) -> torch.Tensor:
        return self._own[latents]

    def to_rank_0(self, own: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
        """A tensor of the whole SAE, of this shape, on the CPU of rank 0; None on other ranks.

        Args:
            own: this rank's part; of a tensor without latents, the same on all ranks.
            shape: of the whole.
        """
        own = own.detach().cpu()
        dim = _latent_dim(own.shape, shape)
        if dim is None:
            return own.clone() if self.ranks.rank == 0 else None
        own = own.movedim(dim, 0).contiguous()
        if self.ranks.rank != 0:
            self.ranks.send(own, to=0)
            return None
        whole = own.new_empty(self.d_sae, *own.shape[1:])
        whole[self.indices[0]] = own
        for rank in range(1, self.ranks.world):
            part = own.new_empty(self._numbers[rank], *own.shape[1:])
            self.ranks.receive(part, rank)
            whole[self.indices[rank]] = part
        return whole.movedim(0, dim)

    def from_rank_0(
        self, into: torch.Tensor, whole: torch.Tensor | None, shape: torch.Size
    ) -> None:
        """The reverse of `to_rank_0`: fill one's part from the whole, which rank 0 has."""
        dim = _latent_dim(into.shape, shape)
        part = into.detach().cpu() if dim is None else into.detach().cpu().movedim(dim, 0)
        part = torch.empty_like(part, memory_format=torch.contiguous_format)
        for rank in range(1, self.ranks.world):
            if whole is not None:
                index = self.indices[rank]
                theirs = whole if dim is None else whole.movedim(dim, 0)[index]
                self.ranks.send(theirs.detach().to("cpu", into.dtype), to=rank)
            elif rank == self.ranks.rank:
                self.ranks.receive(part, 0)
        if whole is not None:
            part = whole if dim is None else whole.movedim(dim, 0)[self.indices[0]]
        into.detach().copy_(part if dim is None else part.movedim(0, dim))


def _latent_dim(part: torch.Size, whole: torch.Size) -> int | None:
    """Which dimension counts latents, if any: the one in which the part is smaller."""
    pairs = zip(part, whole, strict=True)
    return next((i for i, (few, all_) in enumerate(pairs) if few != all_), None)


class _Sum(torch.autograd.Function):
    """Sum over ranks. What follows is the same on every rank, so its gradient is each one's own."""

    @staticmethod
    def forward(_: Any, part: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        return ranks.sum_(part.clone(memory_format=torch.contiguous_format))

    @staticmethod
    @once_differentiable
    def backward(_: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None
