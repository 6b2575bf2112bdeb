"""One long run with checkpoints and kills, and the memory it takes over time.

Lost is a kill after which the run did not go on from its newest checkpoint, an SAE with NaN in the
end, and memory that grows.
"""

import os
import signal
import time
from pathlib import Path
from statistics import median
from typing import Any

from experiments.torture.training import begin, row, work_folder
from sae_lens_gba.runs.checkpoints import newest_whole
from sae_lens_gba.runs.folder import CHECKPOINTS
from sae_lens_gba.saved.loading import load
from tests.distributed.several import Rank

MINUTES, CHECKPOINT_SECONDS, FOREVER = 10.0, 2.0, 10**8
LONGEST_START = 60.0  # seconds
MAY_GROW = 32.0  # MiB, between the first and the last third of a process


def rss(process_id: int) -> float:
    """Resident memory in MiB."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def wait_for_newer(rank: Rank, folder: Path, before: int) -> None:
    """Until a checkpoint of more samples is there, so that all a process needs is loaded."""
    end = time.monotonic() + LONGEST_START
    while newest(folder) <= before and rank.process.is_alive() and time.monotonic() < end:
        rank.process.join(0.1)


def watch(rank: Rank, seconds: float) -> list[float]:
    """Memory of a process, measured about a hundred times, until ``seconds`` are over."""
    end, measured = time.monotonic() + seconds, []
    while time.monotonic() < end and rank.process.is_alive():
        measured.append(rss(rank.process.pid))
        rank.process.join(seconds / 100)
    return measured


def growth(measured: list[float]) -> float:
    """MiB between the first and the last third; the start, when all is loaded, left out."""
    settled = measured[len(measured) // 10 :]
    third = max(1, len(settled) // 3)
    return median(settled[-third:]) - median(settled[:third])


def newest(folder: Path) -> int:
    """Samples at the newest whole checkpoint; 0 where there is none."""
    checkpoint = newest_whole(folder / CHECKPOINTS)
    return 0 if checkpoint is None else int(checkpoint.name)


def rows(scale: float) -> list[dict[str, Any]]:
    """Rows of the table; see `experiments.torture.run`."""
    seconds, kills = 60 * MINUTES * scale, max(2, round(10 * scale))
    lost, grew, memory = [], [], []
    with work_folder() as work:
        folder, before = work / "run", 0
        for i in range(kills):
            every = min(CHECKPOINT_SECONDS, seconds / kills / 8)
            rank = begin(work, folder, "SyntheticSAERunner", FOREVER, every, {})
            wait_for_newer(rank, folder, before)
            memory.append([round(mib, 1) for mib in watch(rank, seconds / kills)])
            last = i == kills - 1
            os.kill(rank.process.pid, signal.SIGTERM if last else signal.SIGKILL)
            rank.wait(60)
            after = newest(folder)
            if before and f"going on from {folder / CHECKPOINTS / str(before)}" not in rank.said:
                lost.append(f"process {i} did not go on from {before} samples")
            if after <= before:
                lost.append(f"process {i} came from {before} to {after} samples")
            if (mib := growth(memory[-1])) > MAY_GROW:
                grew.append(f"process {i}: {mib:.0f} MiB more in the end")
            before = after
        sae = load(folder / CHECKPOINTS / str(before)).sae
        if any(value.isnan().any() for value in sae.state_dict().values()):
            lost.append("NaN in the SAE")
    every_tenth = [series[::10] for series in memory]
    return [
        row(f"{seconds / 60:g} minutes of training, killed", kills, lost, samples=before),
        row("memory of these processes grows", kills, grew, rss_mib=every_tenth),
    ]
