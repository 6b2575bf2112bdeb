"""GBA against SAELens' architectures where the true features are known.

SAELens' SyntheticModel by the SynthSAEBench-16k recipe (arXiv 2602.14687), scaled down: 2048
features in 128 dimensions, 16 hierarchy roots, frequencies from 0.4 to 0.004; and 4096 features
in 192 dimensions. Every architecture gets its learning rate, and those without an L0 of their own
their coefficient, tuned on seed 0; GBA gets ``target_l0`` and nothing else, with a learning rate
tuned like the others'.

    python -m experiments.benchmarks.architecture_comparison [--quick]

The comparison on a language model is language_model_comparison.py.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.synthetic import SyntheticModel, eval_sae_on_synthetic_data
from sae_lens.util import temporary_seed

from experiments.lab.command_line import run_experiments
from experiments.lab.results import Tables, once
from experiments.lab.sparse_samples import SparseSampler
from experiments.lab.synthetic_worlds import build_world, synthsaebench
from experiments.lab.training import (
    TrainingSettings,
    build_sae,
    of_saelens,
    train_together,
)
from experiments.lab.tuning import TUNED, Row, Tuner
from sae_lens_gba import GBATrainingSAEConfig
from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.demo.model import default_cache_dir
from sae_lens_gba.saved.stock_form import stock_form


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark.

    Args:
        methods: which of `architectures` to train.
        n_features: true features.
        n_roots: of their hierarchy.
        d_in: dimension of the data.
        d_sae: latents.
        l0: asked of every architecture; about that of the d_sae most frequent features.
        batch_size: samples a step.
        pool_steps: steps until the data begin again.
        tune_steps: of the runs that choose learning rates and coefficients.
        steps: of the runs of every architecture.
        long_steps: of the runs of ``long_methods``.
        long_methods: the architectures that are trained longer.
        at_steps: when to measure.
        learning_rates: to choose from, constant.
        seeds: of the initial weights.
        held_out: samples measured on.
        l0_tolerance: relative; how well a coefficient must meet ``l0``.
    """

    methods: tuple[str, ...] = (
        "standard",
        "topk",
        "batchtopk",
        "jumprelu",
        "matryoshka_batchtopk",
        "gba paper",
        "gba",
    )
    n_features: int = 2048
    n_roots: int = 16
    d_in: int = 128
    d_sae: int = 512
    l0: float = 8.5
    batch_size: int = 1024
    pool_steps: int = 4000
    tune_steps: int = 1000
    steps: int = 4000
    long_steps: int = 12_000
    long_methods: tuple[str, ...] = ("batchtopk", "matryoshka_batchtopk", "gba")
    at_steps: tuple[int, ...] = (1000, 2000, 4000, 8000, 12_000)
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    held_out: int = 20_480
    l0_tolerance: float = 0.05


def true_model(config: Config) -> SyntheticModel:
    """The recipe of SynthSAEBench-16k with the sizes of ``config``."""
    world = synthsaebench(config.n_features, config.d_in, config.n_roots, least_probability=4e-3)
    return build_world(world, default_cache_dir() / "synthetic_worlds")


def architectures(config: Config) -> dict[str, Row]:
    """As `TrainingSAE.from_dict` takes them, TUNED where a coefficient is to be found."""
    k, d_sae = config.l0, config.d_sae
    paper = GBATrainingSAEConfig.paper_v1(config.d_in, d_sae).to_dict()
    widths = [d_sae // 32, d_sae // 8, d_sae // 2, d_sae]
    saelens: dict[str, Row] = {
        "standard": {"l1_coefficient": TUNED},
        "topk": {"k": round(k)},
        "batchtopk": {"k": k},
        "jumprelu": {"l0_coefficient": TUNED},
        "matryoshka_batchtopk": {"k": k, "matryoshka_widths": widths},
    }
    return {
        **{name: of_saelens(name, d_sae=d_sae, **own) for name, own in saelens.items()},
        "gba paper": {**paper, "adapt_every_n_steps": 10},
        "gba": {"architecture": "gba", "d_sae": d_sae, "target_l0": k},
    }


class Samples(Iterator[torch.Tensor]):
    """Batches of stored samples in their order, again and again from the first."""

    def __init__(self, path: Path, batch_size: int):
        self._rows = np.load(path, mmap_mode="r")
        self._batch_size = batch_size
        self._next = 0

    def __next__(self) -> torch.Tensor:
        if self._next + self._batch_size > len(self._rows):
            self._next = 0
        rows = self._rows[self._next : self._next + self._batch_size]
        self._next += self._batch_size
        return torch.from_numpy(rows.astype(np.float32))


@torch.no_grad()
def stored_samples(model: SyntheticModel, config: Config, path: Path) -> Path:
    """Draw the training samples once: float16, (pool_steps * batch_size, d_in)."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)

        def draw(file: Path) -> None:
            shape = (config.pool_steps * config.batch_size, config.d_in)
            rows, sampler = (
                np.lib.format.open_memmap(file, "w+", np.float16, shape),
                SparseSampler(model),
            )
            for start in range(0, len(rows), config.batch_size):
                rows[start : start + config.batch_size] = sampler.sample(config.batch_size).numpy()
            rows.flush()

        with temporary_seed(1):
            write_atomically(path, draw)
    return path


@torch.no_grad()
def measure(sae: SAE[Any], model: SyntheticModel, config: Config) -> Row:
    """SAELens' measures of recovery on held-out samples."""
    with temporary_seed(2):
        result = eval_sae_on_synthetic_data(
            sae, model.feature_dict, model.activation_generator, config.held_out, 2048
        )
    found = result.classification
    return {
        "mcc": result.mcc,
        "f1": found.f1_score,
        "precision": found.precision,
        "recall": found.recall,
        "uniqueness": result.uniqueness,
        "explained_variance": result.explained_variance,
        "l0": result.sae_l0,
        "dead": result.dead_latents,
    }


@dataclass(frozen=True)
class Benchmark:
    """Runs, each done once and kept in ``folder``."""

    config: Config
    model: SyntheticModel
    folder: Path

    def train(self, name: str, spec: Row, rate: float, seed: int, steps: int) -> list[Row]:
        """Rows of one run, one for each time it was measured; the last at its end."""
        config = self.config
        label = {"method": name, "learning_rate": rate, "seed": seed}
        sizes = [config.n_features, config.d_in, config.pool_steps * config.batch_size]
        file = self.folder / f"samples_{'_'.join(map(str, sizes))}.npy"
        data = stored_samples(self.model, config, file)

        def compute() -> list[Row]:
            sae = build_sae(spec, config.d_in, seed)
            rows: list[Row] = []

            def look(step: int, seconds: list[float]) -> None:
                measured = measure(stock_form(sae), self.model, config)
                rows.append({**label, "steps": step, **measured, "seconds": round(seconds[0], 1)})
                logging.info("%s", rows[-1])

            settings = TrainingSettings(steps, config.batch_size, rate)
            times = [step for step in config.at_steps if step < steps]
            train_together([sae], Samples(data, config.batch_size), settings, [*times, steps], look)
            return rows

        key = {**label, "spec": spec, "until": steps, "data": [*sizes, config.held_out]}
        return once(self.folder, key, compute)

    def tuner(self, name: str) -> Tuner:
        """Chooses by the first seed's MCC."""
        config = self.config

        def last_row(spec: Row, rate: float, steps: int) -> Row:
            return self.train(name, spec, rate, config.seeds[0], steps)[-1]

        return Tuner(
            last_row,
            config.l0,
            config.l0_tolerance,
            config.learning_rates,
            config.tune_steps,
            config.steps,
            best_by="mcc",
        )


def run(config: Config) -> Tables:
    """Rows of every architecture, and those of the runs that tuned it."""
    folder = default_cache_dir() / "architecture_comparison"
    benchmark = Benchmark(config, true_model(config), folder)
    chosen: dict[str, tuple[float, Row]] = {}
    tables: Tables = {"rows": [], "tuning": [], "chosen": []}
    specs = architectures(config)
    for name in config.methods:
        spec = specs[name]
        tuning, rate, filled = benchmark.tuner(name).tuned(spec)
        tables["tuning"] += tuning
        tables["chosen"].append({"method": name, "learning_rate": rate, "settings": filled})
        chosen[name] = rate, filled
    for name, (rate, spec) in chosen.items():
        steps = config.long_steps if name in config.long_methods else config.steps
        for seed in config.seeds:
            tables["rows"] += benchmark.train(name, spec, rate, seed, steps)
    return tables


# twice the features and latents, and fewer samples for each
LARGE = Config(
    methods=("batchtopk", "gba"),
    n_features=4096,
    n_roots=32,
    d_in=192,
    d_sae=1024,
    l0=13.0,
    pool_steps=2000,
    tune_steps=500,
    steps=2000,
    long_methods=(),
    at_steps=(500, 1000, 2000),
)


def main() -> None:
    """The mixture that is measured at length, then the larger one."""
    quick = {
        "n_features": 512,
        "n_roots": 8,
        "d_in": 64,
        "d_sae": 128,
        "l0": 6.0,
        "batch_size": 512,
        "pool_steps": 300,
        "tune_steps": 100,
        "steps": 200,
        "long_steps": 400,
        "at_steps": (200, 400),
        "seeds": (0, 1),
        "l0_tolerance": 0.3,
    }
    run_experiments(
        "Feature recovery of GBA and SAELens' architectures at the same L0.",
        {"architecture_comparison": Config(), "architecture_comparison_large": LARGE},
        run,
        quick,
    )


if __name__ == "__main__":
    main()
