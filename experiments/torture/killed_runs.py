"""Training runs that are killed at random moments, and go on until they have ended.

Lost is a run whose SAE is not, bit for bit, that of a run nobody disturbed, that cannot go on, or
one of whose checkpoints is damaged. A language model's activations come in another order after a
kill, so that the SAE is another one: there it must be whole, with the L0 asked for.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.torture.training import (
    KINDS,
    LIVE,
    Files,
    begin,
    row,
    uninterrupted,
    weights,
    work_folder,
)  # fmt: skip
from sae_lens_gba.checksums import check_checksums
from sae_lens_gba.errors import GBAError
from sae_lens_gba.runs.checkpoints import newest_whole
from sae_lens_gba.runs.folder import CHECKPOINTS
from sae_lens_gba.saved.loading import load
from tests.distributed.several import Rank

STEPS, KILLS, CHECKPOINT_SECONDS = 400, 3, 0.1  # a quarter of the steps in the smallest size
When = Callable[[Rank, Path, random.Random, float], None]


def at_any_moment(rank: Rank, _folder: Path, chance: random.Random, seconds: float) -> None:
    rank.process.join(chance.uniform(0, seconds / KILLS))


def in_training(rank: Rank, folder: Path, chance: random.Random, seconds: float) -> None:
    while rank.process.is_alive() and not (folder / ".lock").exists():
        time.sleep(0.002)
    rank.process.join(chance.uniform(0, seconds / KILLS))


def in_a_checkpoint(rank: Rank, folder: Path, chance: random.Random, seconds: float) -> None:
    rank.process.join(chance.uniform(0, seconds / KILLS))
    while rank.process.is_alive() and not any((folder / CHECKPOINTS).glob(".*.partial")):
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.01))


def as_the_sae_is_saved(rank: Rank, folder: Path, chance: random.Random, _seconds: float) -> None:
    while rank.process.is_alive() and not any(folder.glob(".*.partial")):
        time.sleep(0.0002)
    time.sleep(chance.uniform(0, 0.01))


def damage_of(folder: Path) -> str | None:
    """What is wrong with the checkpoints that a killed run has left."""
    for checkpoint in (folder / CHECKPOINTS).glob("[0-9]*"):
        try:
            check_checksums(checkpoint)
            load(checkpoint)
        except GBAError as error:
            return str(error)
    return None


def fault_of(folder: Path, expected: Files | None) -> str | None:
    """What is wrong with the SAE that a run has left in ``folder``.

    Args:
        expected: its files; None where any good SAE will do.
    """
    try:
        l0 = load(folder).cfg["metadata"]["gba"]["l0"]
    except GBAError as error:
        return str(error)
    if expected is None:
        off = abs(l0["measured"] / l0["target"] - 1)
        return f"L0 is off by {off:.0%}" if off > 0.02 else None
    found = weights(folder)
    differ = [name for name, content in expected.items() if found.get(name) != content]
    return f"another {' and '.join(differ)}" if differ else None


def one_run(
    work: Path, args: tuple[Any, ...], expected: Files | None, number: signal.Signals, when: When,
    chance: random.Random, seconds: float, ends: Counter[str],
) -> str | None:  # fmt: skip
    """What is lost of a run that gets `KILLS` signals; what they met is counted in ``ends``."""
    folder = work / "run"
    for _ in range(KILLS):
        rank = begin(work, folder, *args)
        when(rank, folder, chance, seconds)
        if rank.process.is_alive():
            os.kill(rank.process.pid, number)
        rank.wait(120)
        ends[_end_of(rank, number)] += 1
        if "; saved in " in rank.said and newest_whole(folder / CHECKPOINTS) is None:
            return "no checkpoint after the signal"
        if damage := damage_of(folder):
            return damage
        if rank.exit_code == 0:
            break
    rank = begin(work, folder, *args)
    rank.wait(120)
    if rank.exit_code:
        return f"the run did not go on: {rank.said.strip().splitlines()[-1]}"
    return fault_of(folder, expected)


def _end_of(rank: Rank, number: int) -> str:
    if rank.exit_code == 0:
        return "had ended"
    if rank.exit_code == -signal.SIGKILL:
        return "killed"
    if rank.exit_code == 128 + number:
        return "stopped with a checkpoint" if "; saved in " in rank.said else "stopped without"
    return "before training began"


def rows(scale: float) -> list[dict[str, Any]]:
    """A row for each signal and kind of moment; see `experiments.torture.run`."""
    faults: list[tuple[signal.Signals, When, float, int]] = [
        (signal.SIGKILL, at_any_moment, CHECKPOINT_SECONDS, 30),
        (signal.SIGKILL, in_a_checkpoint, CHECKPOINT_SECONDS, 30),
        (signal.SIGKILL, as_the_sae_is_saved, CHECKPOINT_SECONDS, 30),
        (signal.SIGKILL, as_the_sae_is_saved, 0, 30),
        (signal.SIGINT, in_training, 0, 15),
        (signal.SIGTERM, in_training, 0, 15),
    ]
    table = []
    steps = round(STEPS * min(1.0, max(0.25, 10 * scale)))
    with work_folder() as work:
        whole = {k: uninterrupted(work / k, k, steps, CHECKPOINT_SECONDS, {}) for k in KINDS}
        for first, (number, when, every, full_size) in enumerate(faults):
            tried, lost, ends = max(1, round(full_size * scale)), [], Counter[str]()
            name = f"{number.name} {when.__name__.replace('_', ' ')}, up to {KILLS} in a run"
            if not every and number == signal.SIGKILL:
                name += " without a checkpoint"
            chance = random.Random(number)
            for i in range(tried):
                kind = KINDS[(first + i) % len(KINDS)]  # all of them in the smallest size too
                expected, seconds = whole[kind]
                place = work / f"{number.name}-{when.__name__}-{every}-{i}"
                args: tuple[Any, ...] = (kind, steps, every, {})
                wanted = None if kind == LIVE else expected
                loss = one_run(place, args, wanted, number, when, chance, seconds, ends)
                if loss is not None:
                    lost.append(f"{kind}: {loss}")
            table.append(row(name, tried, lost, signals_met=dict(ends)))
    return table
