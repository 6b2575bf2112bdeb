"""Which learning rate is GBA's own: by width, batch size and length of the run.

SmolLM2-135M's residual stream after layer 8 (cached activations, L0 32), and the synthetic data of
architecture_comparison.py (L0 8.5). Targets fall for the whole run and the rate to nothing over the
last quarter, as ``sae-lens-gba train`` has it by default, or the rate is constant (``decay``
false). Measured on held-out samples.

    python -m experiments.benchmarks.learning_rate
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from sae_lens.util import temporary_seed

from experiments.benchmarks import architecture_comparison
from experiments.lab.activations import ShuffledActivations
from experiments.lab.command_line import run_experiments
from experiments.lab.hook_point import demo_hook_points
from experiments.lab.results import Tables, once
from experiments.lab.training import (
    Row,
    TrainingSettings,
    build_sae,
    measure_reconstruction,
    recommended_gba,
    train_together,
)
from sae_lens_gba.demo.model import default_cache_dir
from sae_lens_gba.saved.stock_form import stock_form


@dataclass(frozen=True)
class Case:
    """Runs that differ in the learning rate only.

    Attributes:
        data: "language model" or "synthetic".
        d_sae: latents.
        batch_size: samples a step.
        steps: optimizer steps.
        decay: whether the rate falls to nothing over the last quarter.
        rates: learning rates of SAELens' Adam; of some also a higher one, and SAELens' default.
    """

    data: str
    d_sae: int
    batch_size: int
    steps: int
    decay: bool = True
    rates: tuple[float, ...] = (3e-3, 5e-3, 1e-2)


_ALL = (3e-4, 3e-3, 5e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Config:
    """Settings of the experiment.

    Args:
        cases: what is trained.
        hook_name: of the language model.
        train_tokens, held_out_tokens, context: of the language model's text.
        target_l0: of each kind of data.
        held_out: synthetic samples measured on.
        seed: of initial weights and order of the data.
    """

    cases: tuple[Case, ...] = (
        Case("language model", 1152, 512, 600, rates=_ALL),
        Case("language model", 1152, 512, 600, decay=False, rates=_ALL),
        Case("language model", 1152, 4096, 200, rates=_ALL),
        Case("language model", 1152, 512, 2000),
        Case("language model", 4608, 512, 400),
        Case("synthetic", 512, 1024, 2000),
    )
    hook_name: str = "blocks.8.hook_resid_post"
    train_tokens: int = 1_050_000
    held_out_tokens: int = 20_000
    context: int = 128
    target_l0: tuple[tuple[str, float], ...] = (("language model", 32.0), ("synthetic", 8.5))
    held_out: int = 20_480
    seed: int = 0


@dataclass(frozen=True)
class Data:
    """Samples to train on, by batch size, and held-out ones."""

    train: Callable[[int], Iterator[torch.Tensor]]
    held_out: torch.Tensor


def run(config: Config) -> Tables:
    """One row a case and learning rate."""
    sources = {"language model": _language_model, "synthetic": _synthetic}
    data = {name: sources[name](config) for name in {case.data for case in config.cases}}
    folder = default_cache_dir() / "learning_rate"
    rows = []
    for case in config.cases:
        for rate in case.rates:
            row: Row = {**asdict(case), "learning_rate": rate, "seed": config.seed}
            del row["rates"]
            spec = recommended_gba(case.d_sae, dict(config.target_l0)[case.data])
            held_out = list(data[case.data].held_out.shape)
            text = {"hook_name": config.hook_name, "context": config.context}
            key = {**row, **text, "tokens": config.train_tokens, "held_out": held_out, "spec": spec}
            train = partial(_trained, config, case, row, data[case.data], spec)
            rows.append(once(folder, key, train))
            logging.info("%s", rows[-1])
    return {"rows": rows}


def _trained(config: Config, case: Case, row: Row, data: Data, spec: Row) -> Row:
    sae = build_sae(spec, data.held_out.shape[1], config.seed, case.steps)
    decay_steps = case.steps // 4 if case.decay else 0
    settings = TrainingSettings(case.steps, case.batch_size, row["learning_rate"], decay_steps)
    (seconds,) = train_together([sae], data.train(case.batch_size), settings)
    parts = (part.float() for part in data.held_out.split(1024))
    measured, _ = measure_reconstruction(stock_form(sae), parts)
    return {**row, "target_l0": spec["target_l0"], **measured, "seconds": round(seconds, 1)}


def _language_model(config: Config) -> Data:
    n_tokens = (config.train_tokens, config.held_out_tokens)
    (here,) = demo_hook_points((config.hook_name,), n_tokens, config.context, ce_contexts=1)
    return Data(
        lambda batch: ShuffledActivations(here.train, batch, here.scale, config.seed),
        here.held_out * here.scale,
    )


def _synthetic(config: Config) -> Data:
    model = architecture_comparison.true_model(architecture_comparison.Config())

    def batches(size: int) -> Iterator[torch.Tensor]:
        torch.manual_seed(config.seed)
        while True:
            yield model.sample(size)

    with temporary_seed(10_000):  # not among the samples that are trained on
        held_out = model.sample(config.held_out)
    return Data(batches, held_out)


def main(argv: list[str] | None = None) -> None:
    quick: dict[str, Any] = {
        "cases": (Case("synthetic", 512, 256, 50, rates=(3e-3, 1e-2)),),
        "held_out": 2048,
    }
    run_experiments(__doc__, {"learning_rate": Config()}, run, quick, argv)


if __name__ == "__main__":
    main()
