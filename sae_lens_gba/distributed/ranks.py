"""The processes that train one SAE together, and what passes between them."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from sae_lens_gba.distributed.watch import Watch
from sae_lens_gba.errors import LostContactError, RankFailedError, RanksDifferError

# of one operation: rank 0 may take this long over a checkpoint, while the others wait. That a rank
# is gone is found out by `Watch`, much sooner.
_TIMEOUT = timedelta(hours=2)
_BLOCK = 2**24  # elements in one message to or from rank 0


@dataclass(frozen=True)
class Ranks:
    """One process' view of all that train together: torchrun's ranks.

    Attributes:
        rank: of this process, from 0.
        world: number of processes.
        device: where this process trains: ``cuda:LOCAL_RANK``, or the CPU.
        watch: tells of a rank that fails.
    """

    rank: int
    world: int
    device: torch.device
    watch: Watch

    def part_of(self, n: int) -> int:
        """How many of ``n`` things are this rank's.

        Raises:
            ValueError: some rank would get none.
        """
        if n < self.world:
            raise ValueError(f"a batch of {n} can't be divided among {self.world} ranks.")
        return n // self.world + (self.rank < n % self.world)

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place; bit-equal on all."""
        with _contact():
            dist.all_reduce(values)
        return values

    def share_(self, values: torch.Tensor) -> None:
        """Replace by what rank 0 has."""
        with _contact():
            dist.broadcast(values, src=0)

    def gather(self, rows: torch.Tensor, numbers: list[int]) -> torch.Tensor:
        """Rows of all ranks, in their order.

        Args:
            rows: this rank's, shape (numbers[rank], ...).
            numbers: how many rows each rank has.
        """
        most = max(numbers)
        padded = rows.contiguous()
        if len(rows) < most:
            padded = rows.new_zeros(most, *rows.shape[1:])
            padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in numbers]
        with _contact():
            dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, numbers, strict=True)])

    def table(self, numbers: list[int]) -> list[list[int]]:
        """What every rank says: a row of integers each, of the same length. On the CPU."""
        own = torch.tensor(numbers)
        rows = [torch.empty_like(own) for _ in range(self.world)]
        with _contact():
            dist.all_gather(rows, own)
        return [row.tolist() for row in rows]

    def from_rank(self, source: int, thing: Any) -> Any:
        """What rank ``source`` passes, on every rank: any small object."""
        box = [thing]
        with _contact():
            dist.broadcast_object_list(box, src=source)
        return box[0]

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """A tensor of the CPU to one rank, which must `receive` it."""
        with _contact():
            for block in tensor.contiguous().view(-1).split(_BLOCK):
                dist.send(block, to)

    def receive(self, into: torch.Tensor, source: int) -> None:
        """Fill a contiguous tensor of the CPU with what rank ``source`` sends."""
        with _contact():
            for block in into.view(-1).split(_BLOCK):
                dist.recv(block, source)

    def wait_for_all(self) -> None:
        self.table([0])

    def require_same(self, what: Mapping[str, Any]) -> None:
        """Every rank has these versions or settings.

        Raises:
            RanksDifferError: on all ranks; names the first rank that differs from rank 0, and in
                what.
        """
        expected = self.from_rank(0, dict(what))
        names = [name for name in expected if expected[name] != what.get(name)]
        said = (names[0], what.get(names[0])) if names else None
        for rank, has in enumerate(self.everyones(said)):
            if has is not None:
                name, value = has
                raise RanksDifferError(
                    f"rank {rank} has {name}={value!r}, rank 0 has {expected[name]!r}: start every "
                    "rank with the same."
                )

    def everyones(self, thing: Any) -> list[Any]:
        """What every rank passes: any small objects."""
        things: list[Any] = [None] * self.world
        with _contact():
            dist.all_gather_object(things, thing)
        return things


@contextmanager
def join(silence_s: float = 60.0) -> Iterator[Ranks]:
    """Take part as the rank that torchrun made of this process; one process alone may, too.

    When a rank fails, is killed or hangs, every other one ends within ``silence_s``, and says
    which one and why.

    Args:
        silence_s: a rank that gives no sign of life for so long is taken for dead.

    Raises:
        ValueError: more processes were started on this machine than it has GPUs.
        RankFailedError: another rank failed.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = _device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # what lies on the CPU goes by gloo, also where the SAE is on GPUs
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = _store(rank, world, may_hold=True)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_TIMEOUT)
    # a connection of its own: over the other one this process may be waiting
    store = _store(rank, world, may_hold=False, timeout=timedelta(seconds=silence_s))
    watch = Watch(store, rank, world, silence_s)
    ranks = Ranks(rank, world, device, watch)
    try:
        ranks.wait_for_all()  # every rank has given a sign of life
        watch.start()
        yield ranks
        # kept until the group is gone: up to torch 2.6 that waits for ever, holding the GIL, for a
        # thread that drops the last reference to a tensor
        last = ranks.sum_(torch.zeros(1))
    except LostContactError as error:
        if threading.current_thread() is threading.main_thread():
            # torchrun sends it to all when one has died: first find out which one, and say so
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise RankFailedError(watch.reason()) from error
    except BaseException as error:
        if world == 1:  # perhaps a notebook's, which goes on
            watch.stop()
            dist.destroy_process_group()
        else:
            watch.tell(error)
        raise
    watch.stop()
    dist.destroy_process_group()
    del last


def _device() -> torch.device:
    """Where this process trains."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    n_gpus, n_here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if n_here > n_gpus:
        raise ValueError(
            f"LOCAL_WORLD_SIZE={n_here} processes need as many GPUs, and {n_gpus} can be seen "
            "here: start fewer by --nproc-per-node, or set CUDA_VISIBLE_DEVICES= to train on the "
            "CPU."
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _store(rank: int, world: int, may_hold: bool, timeout: timedelta = _TIMEOUT) -> Any:
    """Where ranks meet: in a process of torchrun, or else in rank 0 if it ``may_hold`` it."""
    if "MASTER_ADDR" not in os.environ:
        if world > 1:
            raise ValueError(
                f"WORLD_SIZE={world}, but MASTER_ADDR is not set: start with torchrun, or unset "
                "WORLD_SIZE for one process."
            )
        return HashStore()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        address,
        port,
        is_master=may_hold and rank == 0 and not is_torchruns,
        timeout=timeout,
        wait_for_workers=False,
    )
    return PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


@contextmanager
def _contact() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's own classes derive from it
        raise LostContactError(f"contact with another rank was lost ({error})") from error
