"""What ranks are told to do in the tests; imported once, by the process that they are forked from."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.distributed import LatentParallelTrainer, LatentSlice, Ranks, join
from tests.toolbox import make_trainer, mixture, take_steps, tiny_config

BATCH = 128


def samples(seed: int = 1) -> Iterator[torch.Tensor]:
    return (batch.double() for batch in mixture(seed, BATCH))


def part_of(batches: Iterator[torch.Tensor], ranks: Ranks, uneven: bool = False) -> Any:
    """This rank's rows of each."""
    first = BATCH // 2 + 13 * uneven
    sizes = [first, *([0] * (ranks.world - 1))]
    for r in range(1, ranks.world):
        sizes[r] = (BATCH - sum(sizes)) // (ranks.world - r)
    for batch in batches:
        yield batch.split(sizes)[ranks.rank]


def whole_sae(**settings: Any) -> GBATrainingSAE:
    torch.manual_seed(3)
    return GBATrainingSAE(tiny_config(**{"dtype": "float64", **settings}))


def trainer_config(steps: int, **settings: Any) -> SAETrainerConfig:
    defaults = {"lr": 3e-3, "lr_end": 3e-3, "n_batches_for_norm_estimate": 4}
    return SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        **{**defaults, **settings},
    )


def trainer_on(
    ranks: Ranks, sae: GBATrainingSAE | None, steps: int, skip: int = 0, uneven: bool = False, **settings: Any
) -> LatentParallelTrainer:
    own = LatentSlice.of(sae if ranks.rank == 0 else None, ranks)
    data = part_of(islice(samples(), skip, None), ranks, uneven)
    return LatentParallelTrainer(trainer_config(steps, **settings), own, data)


def largest_differences(one: GBATrainingSAE, other: GBATrainingSAE) -> dict[str, float]:
    theirs = other.state_dict()
    return {
        name: float((value.double() - theirs[name].double()).abs().max())
        for name, value in one.state_dict().items()
    }


def train_beside_one_process(
    rank: int, cases: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> dict[str, Any]:
    """For each case, how far apart ranks and one process end: weights, counters, what is shared."""
    found = {}
    with join() as ranks:
        for name, (settings, special) in cases.items():
            steps = special.get("steps", 62)  # stops between two adaptations: counters are not 0
            together = trainer_on(ranks, whole_sae(**settings), steps, uneven=special.get("uneven", False))
            if "dense_ranks" in special:
                dense = rank in special["dense_ranks"]
                together.sae.cfg.sparse_below_density = 0.0 if dense else 1.0
            take_steps(together, steps)
            sae = together.sae
            adam = together.optimizer.state[sae.b_dec]
            shared = [sae.b_dec.detach(), sae.adapter.input_norm, *(adam[k] for k in sorted(adam))]
            everyones = ranks._objects([t.clone() for t in shared])
            same = all(torch.equal(a, b) for t in everyones for a, b in zip(t, shared, strict=True))
            whole = sae.whole()
            end = together.sae.eval().whole()  # calibrated
            if whole is not None and end is not None:
                one = make_trainer(whole_sae(**settings), steps, samples(), BATCH, lr=3e-3, lr_end=3e-3)
                take_steps(one, steps)
                found[name] = {
                    "shared is bit-equal": same,
                    "trained": largest_differences(one.sae, whole),
                    "calibrated": largest_differences(one.sae.eval(), end),
                    "l0": (one.sae._calibration.l0, end._calibration.l0),
                }
    return found
