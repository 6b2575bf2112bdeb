"""GBA against SAELens' architectures where the true features are known.

SAELens' SyntheticModel by the SynthSAEBench-16k recipe (arXiv 2602.14687), scaled down: 2048
features in 128 dimensions, 16 hierarchy roots, frequencies from 0.4 to 0.004; for longer, and with
as many latents as features. Every architecture gets its learning rate tuned on seed 0, which falls
to nothing over the last quarter; of a GBA SAE the targets fall for the whole run, as
``sae-lens-gba train`` has it. Two baselines know nothing of features (arXiv 2602.14111): a
BatchTopK SAE whose random decoder is frozen, and random directions.

    python -m experiments.benchmarks.architecture_comparison [--quick] [--methods gba ...]

The comparison on a language model is language_model_comparison.py.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
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
    FROZEN,
    HIERARCHIES,
    MORE_NESTING,
    RANDOM,
    Row,
    best_rate,
    build_sae,
    falling,
    gba_for_hierarchies,
    gba_with_more_nesting,
    of_saelens,
    random_directions,
    recommended_gba,
    train_together,
)
from sae_lens_gba import GBATrainingSAEConfig
from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.demo.model import default_cache_dir
from sae_lens_gba.saved.stock_form import stock_form


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark.

    Args:
        methods: which of `architectures` to train, and RANDOM for untrained directions.
        n_features: true features.
        n_roots: of their hierarchy.
        d_in: dimension of the data.
        d_sae: latents.
        l0: asked of every architecture; about that of the d_sae most frequent features.
        batch_size: samples a step.
        pool_steps: steps until the data begin again.
        steps: of a run.
        learning_rates: to choose from, by the first seed's MCC.
        seeds: of the initial weights.
        held_out: samples measured on.
    """

    methods: tuple[str, ...] = (
        "topk",
        "batchtopk",
        "jumprelu",
        "matryoshka_batchtopk",
        "gba paper",
        "gba",
        HIERARCHIES,
        MORE_NESTING,
        FROZEN,
        RANDOM,
    )
    n_features: int = 2048
    n_roots: int = 16
    d_in: int = 128
    d_sae: int = 512
    l0: float = 8.5
    batch_size: int = 1024
    pool_steps: int = 4000
    steps: int = 4000
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    held_out: int = 20_480


def true_model(config: Config) -> SyntheticModel:
    """The recipe of SynthSAEBench-16k with the sizes of ``config``."""
    world = synthsaebench(config.n_features, config.d_in, config.n_roots, least_probability=4e-3)
    return build_world(world, default_cache_dir() / "synthetic_worlds")


def architectures(config: Config) -> dict[str, Row]:
    """As `build_sae` takes them."""
    k, d_sae = config.l0, config.d_sae
    paper = GBATrainingSAEConfig.paper_v1(config.d_in, d_sae).to_dict()
    widths = [d_sae // 32, d_sae // 8, d_sae // 2, d_sae]
    saelens: dict[str, Row] = {
        "topk": {"k": round(k)},
        "batchtopk": {"k": k},
        # SAELens' coefficient of 1 leaves L0 a third above its target
        "jumprelu": {
            "jumprelu_sparsity_loss_mode": "quadratic",
            "target_l0": k,
            "l0_coefficient": 10.0,
        },
        "matryoshka_batchtopk": {"k": k, "matryoshka_widths": widths},
    }
    return {
        **{name: of_saelens(name, d_sae=d_sae, **own) for name, own in saelens.items()},
        "gba paper": {**paper, "adapt_every_n_steps": 10},
        "gba": recommended_gba(d_sae, k),
        HIERARCHIES: gba_for_hierarchies(d_sae, k),
        MORE_NESTING: gba_with_more_nesting(d_sae, k),
        FROZEN: {**of_saelens("batchtopk", d_sae=d_sae, k=k), FROZEN: True},
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
def measure(sae: SAE[Any], model: SyntheticModel, n_samples: int) -> Row:
    """SAELens' measures of recovery on held-out samples."""
    with temporary_seed(2):
        result = eval_sae_on_synthetic_data(
            sae, model.feature_dict, model.activation_generator, n_samples, 2048
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

    def samples(self) -> Samples:
        config = self.config
        world = [config.n_features, config.n_roots, config.d_in]
        sizes = [*world, config.pool_steps * config.batch_size]
        file = self.folder / f"samples_{'_'.join(map(str, sizes))}.npy"
        return Samples(stored_samples(self.model, config, file), config.batch_size)

    def train(self, name: str, spec: Row, rate: float, seed: int) -> Row:
        """The row of one run."""
        config = self.config
        steps = config.steps
        label = {"method": name, "learning_rate": rate, "seed": seed, "steps": steps}
        settings = falling(steps, config.batch_size, rate)

        def compute() -> Row:
            sae = build_sae(spec, config.d_in, seed, steps)
            (seconds,) = train_together([sae], self.samples(), settings)
            measured = measure(stock_form(sae), self.model, config.held_out)
            row = {**label, **measured, "seconds": round(seconds, 1)}
            logging.info("%s", row)
            return row

        window = settings.dead_feature_window
        key = {**label, "spec": spec, "config": self._data(), "dead_feature_window": window}
        return once(self.folder, key, compute)

    def untrained(self, seed: int) -> Row:
        """The row of random directions."""
        config = self.config
        label = {"method": RANDOM, "learning_rate": 0.0, "seed": seed, "steps": 0}

        def compute() -> Row:
            x = torch.cat([next(self.samples()) for _ in range(8)])
            sae = random_directions(x, config.d_sae, config.l0, seed)
            return {**label, **measure(sae, self.model, config.held_out), "seconds": 0.0}

        return once(self.folder, {**label, "config": self._data()}, compute)

    def _data(self) -> Row:
        config = self.config
        names = ("n_features", "n_roots", "d_in", "d_sae", "l0", "batch_size", "pool_steps",
                 "held_out")  # fmt: skip
        return {name: getattr(config, name) for name in names}


def run(config: Config) -> Tables:
    """Rows of every architecture, and those of the runs that tuned it."""
    folder = default_cache_dir() / "architecture_comparison"
    benchmark = Benchmark(config, true_model(config), folder)
    tables: Tables = {"rows": [], "tuning": [], "chosen": []}
    specs = architectures(config)
    chosen: dict[str, float] = {}
    for name in config.methods:
        if name == RANDOM:
            continue
        tuning, chosen[name] = best_rate(
            partial(benchmark.train, name, specs[name], seed=config.seeds[0]),
            config.learning_rates,
            by="mcc",
        )
        tables["tuning"] += tuning
        tables["chosen"].append({"method": name, "learning_rate": chosen[name]})
    for name, seed in product(config.methods, config.seeds):
        if name == RANDOM:
            row = benchmark.untrained(seed)
        else:
            row = benchmark.train(name, specs[name], chosen[name], seed)
        tables["rows"].append(row)
    return tables


# as many latents as features, at the L0 that the data have: where others lose their latents
FULL_WIDTH = Config(
    methods=(
        "batchtopk",
        "jumprelu",
        "matryoshka_batchtopk",
        "gba",
        HIERARCHIES,
        MORE_NESTING,
        FROZEN,
        RANDOM,
    ),
    d_sae=2048,
    l0=14.0,
)
# the same samples three times
LONG = Config(
    methods=("batchtopk", "matryoshka_batchtopk", "gba", HIERARCHIES, MORE_NESTING), steps=12_000
)


def main() -> None:
    """The mixture that is measured at length, then the others."""
    quick = {
        "n_features": 512,
        "n_roots": 8,
        "d_in": 64,
        "d_sae": 128,
        "l0": 6.0,
        "batch_size": 512,
        "pool_steps": 300,
        "steps": 200,
        "seeds": (0, 1),
    }
    run_experiments(
        "Feature recovery of GBA and SAELens' architectures at the same L0.",
        {
            "architecture_comparison": Config(),
            "architecture_comparison_full_width": FULL_WIDTH,
            "architecture_comparison_long": LONG,
        },
        run,
        quick,
        by_method=True,
    )


if __name__ == "__main__":
    main()
