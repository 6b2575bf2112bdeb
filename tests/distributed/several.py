"""Runs a function as several ranks: processes forked from one that has imported everything."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sae_lens_gba.atomic_write import write_atomically

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.distributed.ranks_do", "sae_lens_gba.distributed.runner"])


class Rank:
    """A process that was started, and what came of it.

    Attributes:
        exit_code: as the shell would see it; negative is minus the number of a signal.
        result: what the function returned; None where it failed.
        said: what it wrote to stderr, logging included.
    """

    def __init__(self, process: Any, folder: Path, rank: int, port: socket.socket):
        self.process, self._folder, self._rank, self._port = process, folder, rank, port

    def wait(self, timeout: float) -> None:
        self.process.join(timeout)
        self._port.close()
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"rank {self._rank} did not end within {timeout} s: {self.said}")
        self.exit_code = self.process.exitcode
        path = self._folder / f"result.{self._rank}.pt"
        self.result = torch.load(path, weights_only=False) if path.exists() else None

    @property
    def said(self) -> str:
        path = self._folder / f"stderr.{self._rank}"
        return path.read_text() if path.is_file() else ""  # it was killed before it could speak


def start(function: Callable[..., Any], world: int, folder: Path, *args: Any) -> list[Rank]:
    """``function(rank, *args)`` in ``world`` processes, as torchrun starts them."""
    folder.mkdir(exist_ok=True)
    # held until a rank ends, so that no other process is given it: rank 0 may bind it too
    port = socket.socket()
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port.bind(("127.0.0.1", 0))
    number = port.getsockname()[1]
    ranks = []
    for rank in range(world):
        process = _CONTEXT.Process(target=_be, args=(rank, world, number, folder, function, args))
        process.start()
        ranks.append(Rank(process, folder, rank, port))
    return ranks


def run(
    function: Callable[..., Any], world: int, folder: Path, *args: Any, timeout: float = 120
) -> list[Rank]:
    """As `start`, to the end of all of them."""
    ranks = start(function, world, folder, *args)
    for rank in ranks:
        rank.wait(timeout)
    return ranks


def results(function: Callable[..., Any], world: int, folder: Path, *args: Any) -> list[Any]:
    """What ``function`` returned on each rank; none may fail."""
    ranks = run(function, world, folder, *args)
    assert [rank.exit_code for rank in ranks] == [0] * world, "\n".join(r.said for r in ranks)
    return [rank.result for rank in ranks]


def _be(
    rank: int, world: int, port: int, folder: Path, function: Callable[..., Any], args: Any
) -> None:
    stderr = os.open(folder / f"stderr.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stderr, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    torch.set_num_threads(1)
    code = 0
    try:
        result = function(rank, *args)
        write_atomically(folder / f"result.{rank}.pt", partial(torch.save, result))
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1

    sys.stderr.flush()
    os._exit(code)
