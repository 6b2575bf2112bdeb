"""Every rank's own batches put together, and whether all ranks can go on."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import torch

from sae_lens_gba.distributed.ranks import Ranks
from sae_lens_gba.errors import RankFailedError, RanksDifferError, StoppedError

_CHECK_EVERY = 100  # steps between two looks at whether what should be equal on all ranks is


class _Status(IntEnum):
    GOES_ON = 0
    STOPPED = 1
    OUT_OF_DATA = 2
    FAILED = 3


class GatheredBatches(Iterator[torch.Tensor]):
    """Batches of all ranks, one after the other: the same on every rank.

    Before each, ranks tell each other how they are, so that all stop at the same step.

    Args:
        own: this rank's batches, shape (n, d_in); n may differ between ranks.
        ranks: all that take part.
        checksum: of what must be equal on all ranks; 64 bits.
    """

    def __init__(self, own: Iterator[torch.Tensor], ranks: Ranks, checksum: Callable[[], int]):
        self.own, self._ranks, self._checksum = own, ranks, checksum
        self._n_drawn = 0
        self._stop_signal = 0
        self._numbers: list[int] = []
        self._save: Callable[[], object] = lambda: None
        self._seconds, self._saved_at, self._is_due = 0.0, 0.0, False

    def save_every(self, seconds: float, save: Callable[[], object]) -> None:
        """Call ``save`` before a batch, on all ranks at the same step, by rank 0's clock."""
        self._seconds, self._save, self._saved_at = seconds, save, time.monotonic()

    def __next__(self) -> torch.Tensor:
        """One rank's trouble is everyone's.

        Raises:
            StoppedError: a rank was asked to stop.
            RankFailedError: a rank has no more data, or failed to get them.
            RanksDifferError: what should be equal on all ranks is not.
        """
        if self._is_due:
            self._save()
            self._saved_at = time.monotonic()
        status, batch, cause = self._draw()
        n = 0 if batch is None else len(batch)
        is_checked = self._n_drawn % _CHECK_EVERY == 0
        checksum = self._checksum() if is_checked else 0
        is_due = 0 < self._seconds <= time.monotonic() - self._saved_at
        said = self._ranks.table([status, n, checksum, is_due])
        self._require_all_go_on([row[0] for row in said], cause)
        self._require_equal([row[2] for row in said])
        self._n_drawn += 1
        self._is_due = bool(said[0][3])
        self._numbers = [row[1] for row in said]
        assert batch is not None
        return self._ranks.gather(batch.to(self._ranks.device), self._numbers)

    def rank_of(self, row: int) -> int:
        """Whose a row of the last batch was."""
        ends = torch.tensor(self._numbers).cumsum(0)
        return int(torch.searchsorted(ends, row, right=True))

    def _draw(self) -> tuple[_Status, torch.Tensor | None, BaseException | None]:
        if self._stop_signal:
            return _Status.STOPPED, None, None
        try:
            return _Status.GOES_ON, next(self.own), None
        except StopIteration:
            return _Status.OUT_OF_DATA, None, None
        except Exception as error:
            return _Status.FAILED, None, error

    def _require_all_go_on(self, statuses: list[int], cause: BaseException | None) -> None:
        worst = max(statuses)
        if worst == _Status.GOES_ON:
            return
        rank = statuses.index(worst)
        after = f"after {self._n_drawn} batches"
        if worst == _Status.STOPPED:
            number = self._ranks.from_rank(rank, self._stop_signal)
            name = signal.Signals(number).name
            raise StoppedError(
                f"rank {rank} was asked to stop by {name}, {after}; all ranks stopped"
            )
        if worst == _Status.OUT_OF_DATA:
            raise RankFailedError(
                f"rank {rank} has no more data {after}, but training goes on: give it more, or "
                "train on fewer samples."
            )
        said = self._ranks.from_rank(rank, cause and f"{type(cause).__name__}: {cause}")
        raise RankFailedError(f"rank {rank} failed to get a batch, {after} ({said})") from cause

    def _require_equal(self, checksums: list[int]) -> None:
        if len(set(checksums)) == 1:
            return
        usual = max(set(checksums), key=lambda c: (checksums.count(c), c == checksums[0]))
        odd = [str(rank) for rank, c in enumerate(checksums) if c != usual]
        raise RanksDifferError(
            f"rank {', '.join(odd)} has another b_dec, scale or other state that all ranks share "
            f"than the other ranks, after {self._n_drawn} batches: suspect its hardware or its "
            "libraries, and go on from the last checkpoint without it."
        )

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT have all ranks stop at the next batch."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, _: Any) -> None:
            self._stop_signal = number

        before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def checksum_of(tensors: list[torch.Tensor]) -> int:
    """Of the bits of all of them, 63 bits."""
    total = 0
    for tensor in tensors:
        for block in tensor.detach().contiguous().view(-1).view(torch.uint8).split(2**20):
            as_bits = block.to(torch.int64)
            places = torch.arange(1, len(as_bits) + 1, device=as_bits.device)
            total = total * 1_000_003 + int((as_bits * places).sum())
    return total % 2**63
