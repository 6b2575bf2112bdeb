"""Is L0 what was asked? Whatever the data, their unit, the batch and the length of the run.

Each case trains a small SAE (256 latents on mixtures of 512 features in 32 dimensions) by
SAELens' trainer and measures L0 on held-out samples of the distribution that it ended with, as a
user's: in evaluation mode, and as left by the last adaptation (``miss_uncalibrated``).

    python -m experiments.benchmarks.l0_control
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from sae_lens.synthetic import HierarchyConfig, SyntheticModel, SyntheticModelConfig
from sae_lens.training.sae_trainer import SAETrainer

from experiments.lab.command_line import run_experiments
from experiments.lab.training import TrainingSettings, build_sae, trainer_config
from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig

D_IN, D_SAE, HELD_OUT = 32, 256, 40 * 512

Change = Callable[[int, torch.Tensor], torch.Tensor]  # of step and batch


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        name: of the row.
        settings: of the config, beside d_sae.
        steps, batch_size, learning_rate: of the training.
        change: what is done to a batch, by step; the last step's is done to the held-out
            samples.
        shift_at: step from which the data are of another model; None never.
        decay: share of the steps in which the learning rate falls to 0.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 600
    batch_size: int = 512
    learning_rate: float = 3e-3
    change: Change = lambda _, batch: batch
    shift_at: int | None = None
    decay: float = 0.0


def _only(step_wanted: int, what: Change) -> Change:
    return lambda step, batch: what(step, batch) if step == step_wanted else batch


def _times(factor: float) -> Change:
    return lambda _, batch: batch * factor


_PAPER = {
    field: value
    for field, value in GBATrainingSAEConfig.paper_v1(D_IN, D_SAE).to_dict().items()
    if field not in ("architecture", "d_in", "d_sae", "device", "metadata")
}

CASES = (
    Case("target_l0 2", {"target_l0": 2.0}),
    Case("target_l0 4", {}),
    Case("target_l0 8", {"target_l0": 8.0}),
    Case("target_l0 16", {"target_l0": 16.0}),
    Case("learning rate falls", {}, decay=0.25),
    Case("300 steps", {}, steps=300),
    Case("learning rate 1e-2", {}, learning_rate=1e-2),
    Case("batch 4096, 300 steps", {}, steps=300, batch_size=4096),
    Case("batch 64", {}, steps=1000, batch_size=64),
    Case("tied", {"tied": True}),
    Case("untied ReLU", {"activation": "relu"}),
    Case("tied ReLU", {"activation": "relu", "tied": True}),
    Case("one group", {"n_groups": 1}),
    Case("layer_norm", {"normalize_activations": "layer_norm"}),
    Case("bfloat16 weights", {"dtype": "bfloat16"}),
    Case("first batch x 10", change=_only(0, _times(10.0))),
    Case("first batch x 0.01", change=_only(0, _times(0.01))),
    Case("first batch zeros", change=_only(0, _times(0.0))),
    Case("first batch one row", change=_only(0, lambda _, batch: batch[:1])),
    Case("first batch constant", change=_only(0, lambda _, batch: batch[:1].expand_as(batch))),
    *(Case(f"inputs x {c:g}", change=_times(c)) for c in (1e-6, 1e-3, 1e-2, 1e3, 1e6)),
    Case("inputs x 5 from step 400", change=lambda s, b: b * 5 if s >= 400 else b),
    Case("inputs / 5 from step 400", change=lambda s, b: b / 5 if s >= 400 else b),
    Case("other data from step 400", shift_at=400),
    Case("other data from step 400, then 600", shift_at=400, steps=1000),
    Case("bias_update group_mean", {"bias_update": "group_mean"}),
    Case("the paper's rule, as published", _PAPER),
)


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
        seeds: of weights and data.
        pool_batches: samples of each model, in batches of 512.
        names: of the cases; empty for all.
    """

    seeds: tuple[int, ...] = (0, 1)
    pool_batches: int = 800
    names: tuple[str, ...] = ()


def run(cfg: Config) -> dict[str, list[dict[str, Any]]]:
    pools = [_pool(seed, cfg.pool_batches) for seed in (0, 1)]
    cases = [case for case in CASES if not cfg.names or case.name in cfg.names]
    return {"rows": [_row(case, seed, pools) for case in cases for seed in cfg.seeds]}


@torch.no_grad()
def _pool(seed: int, n_batches: int) -> torch.Tensor:
    model = SyntheticModel(
        SyntheticModelConfig(
            num_features=512,
            hidden_dim=D_IN,
            hierarchy=HierarchyConfig(total_root_nodes=8, branching_factor=4, max_depth=2),
            seed=seed,
        )
    )
    torch.manual_seed(seed)
    return torch.cat([model.sample(512) for _ in range(n_batches)])


def _row(case: Case, seed: int, pools: list[torch.Tensor]) -> dict[str, Any]:
    settings = {"target_l0": 4.0, **case.settings}
    sae = build_sae({"architecture": "gba", "d_sae": D_SAE, **settings}, D_IN, seed)
    assert isinstance(sae, GBATrainingSAE)
    training = TrainingSettings(
        case.steps, case.batch_size, case.learning_rate, int(case.decay * case.steps)
    )
    trainer: SAETrainer[Any, Any] = SAETrainer(trainer_config(training), sae, iter(()))
    data = _batches(case, seed, pools)
    for step in range(case.steps):
        trainer.step(case.change(step, next(data)))
        trainer.n_training_steps += 1
    last = pools[0 if case.shift_at is None else 1][-HELD_OUT:]
    held_out = case.change(case.steps - 1, last)
    left = _l0(sae, held_out)
    sae.eval()
    got, target = _l0(sae, held_out), sae.cfg.spectrum().l0
    return {
        "case": case.name,
        "seed": seed,
        "target_l0": target,
        "l0": got,
        "miss": got / target - 1,
        "miss_uncalibrated": left / target - 1,
        "explained_variance": _explained_variance(sae, held_out),
    }


def _batches(case: Case, seed: int, pools: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    step = 0
    while True:
        pool = pools[0 if case.shift_at is None or step < case.shift_at else 1][:-HELD_OUT]
        yield pool[torch.randint(len(pool), (case.batch_size,), generator=generator)]
        step += 1


@torch.no_grad()
def _l0(sae: GBATrainingSAE, x: torch.Tensor) -> float:
    return float((sae.encode(x) > 0).sum()) / len(x)


@torch.no_grad()
def _explained_variance(sae: GBATrainingSAE, x: torch.Tensor) -> float:
    error = (sae.decode(sae.encode(x)).float() - x).square().sum()
    return 1 - float(error / (x - x.mean(dim=0)).square().sum())


def main() -> None:
    run_experiments(
        "L0 against target_l0, in every condition we know of.",
        {"l0_control": Config()},
        run,
        quick={"seeds": (0,), "names": ("target_l0 4", "first batch x 10", "inputs x 1e+06")},
    )


if __name__ == "__main__":
    main()
