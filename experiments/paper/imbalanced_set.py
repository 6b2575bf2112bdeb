"""Experiment 1: rows with 3 and with 20 active features, every feature equally frequent.

A TopK SAE has one k for both kinds of row; GBA's latents have frequencies, not rows, to keep
to. The paper's table: TopK's recovery depends on k, GBA's is complete.

    python -m experiments.paper.imbalanced_set [--quick]
"""

import logging
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from experiments.lab.command_line import run_experiments
from experiments.lab.results import Tables
from experiments.lab.training import TrainingSettings, build_sae, measure_recovery, train_together
from sae_lens_gba import GBATrainingSAEConfig
from sae_lens_gba.bias_adaptation import UPDATE_RULES, AdaptationRates, Observation, Targets
from sae_lens_gba.synthetic import FeatureMixture, FeatureMixtureConfig


def paper_reset(
    bias: torch.Tensor,
    seen: Observation,
    targets: Targets,
    rates: AdaptationRates,
    bias_range: torch.Tensor,
) -> torch.Tensor:
    """Algorithm 2 as printed: max(b + gamma_+ s, 0) takes a dead latent's bias to 0."""
    dead = seen.frequency < rates.dead_frequency
    moved = UPDATE_RULES["paper"](bias, seen, targets, rates, bias_range)
    return torch.where(dead, 0.0, moved)


UPDATE_RULES["paper_reset"] = paper_reset


@dataclass(frozen=True)
class Config:
    """Settings of the experiment.

    Data, width and steps are those under which SAELens' TopK came nearest to the paper's TopK
    rows: rows of H that sum to 1, and training that ends while TopK is at its best. With rows
    of unit l2 norm TopK k=30 recovers 5 % instead of 83 % (FRR(0.8), 1500 steps, seed 0); and
    after 3000 steps it has given nearly all up again for a better reconstruction (11 %).

    Args:
        mixture: the data.
        training: steps, batch and learning rate, the same for every method.
        at_steps: when to measure; the last is what the table shows.
        d_sae: number of latents, the same for every method.
        methods: which of `architectures` to train; None is all.
        seeds: of features, rows and initial weights.
        n_samples: held-out rows for L0 and explained variance.
    """

    mixture: FeatureMixtureConfig = field(default_factory=FeatureMixtureConfig)
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(steps=1000, batch_size=256)
    )
    at_steps: tuple[int, ...] = (300, 600, 1000)
    d_sae: int = 1024
    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    n_samples: int = 5_000


def architectures(config: Config) -> dict[str, dict[str, Any]]:
    """What `build_sae` takes, by the name of the method.

    The rows named after the paper have output scales that start small and stay so, as its
    theorem presumes: they recover, but don't reconstruct. "learnt" ones may grow.
    """
    f = float(config.mixture.feature_frequencies()[0])
    data_l0 = config.mixture.n_features * f
    size = {"d_sae": config.d_sae}
    # a run of 1000 steps is too short for the paper's way of adapting from 0 every 50
    fast = {"adapt_every_n_steps": 10, "bias_init": "quantile"}

    def paper(highest: float, lowest: float, **more: Any) -> dict[str, Any]:
        bounds = {"highest_target_frequency": highest, "lowest_target_frequency": lowest}
        scale = {"output_scale_init": 0.01, "learn_output_scale": False}
        settings = {**scale, **bounds, **fast, **more}
        return GBATrainingSAEConfig.paper_iclr(
            config.mixture.d_in, config.d_sae, **settings
        ).to_dict()

    # without nesting: this mixture has no hierarchy
    ours = {"architecture": "gba", "target_l0": data_l0, "tied": True, **fast, **size}
    ours["n_nested_reconstructions"] = 1
    return {
        **{f"topk_{k}": {"architecture": "topk", "k": k, **size} for k in (20, 30, 50)},
        "batchtopk_20": {"architecture": "batchtopk", "k": 20, **size},
        "jumprelu": {"architecture": "jumprelu", "l0_coefficient": 3e-3, **size},
        "l1": {"architecture": "standard", "l1_coefficient": 0.1, **size},
        "ba_at_f": paper(f, f, n_groups=1),
        "gba_full_range": paper(0.5, 0.001),
        "gba_too_high": paper(0.5, 0.15),
        "gba_too_low": paper(0.01, 0.001),
        "gba_full_learnt": paper(0.5, 0.001, learn_output_scale=True),
        "gba_l0_matched": paper(0.05, 0.001, learn_output_scale=True),
        "gba_full_from_1": paper(0.5, 0.001, output_scale_init=1.0, learn_output_scale=True),
        "gba_reset": paper(0.5, 0.001, bias_update="paper_reset"),
        "gba_each_step": paper(0.5, 0.001, adapt_every_n_steps=1),
        "gba_each_step_reset": paper(0.5, 0.001, adapt_every_n_steps=1, bias_update="paper_reset"),
        "gba_ours": {**ours, "output_scale_init": 0.01},
    }


def measure_all(
    config: Config,
    tables: Tables,
    names: list[str],
    saes: list[Any],
    mixture: FeatureMixture,
    step: int,
    seconds: list[float],
) -> None:
    """Add a row for every method as it is after ``step`` steps."""
    for name, sae, spent in zip(names, saes, seconds, strict=True):
        recovery = measure_recovery(sae, mixture, config.n_samples)
        label = {"method": name, "seed": mixture.seed, "steps": step, "seconds": round(spent, 1)}
        tables["rows"].append({**label, **asdict(recovery)})
        if step == config.at_steps[-1]:
            logging.info("%s %s", label, recovery)


def run(config: Config) -> Tables:
    """One row a method, seed and checkpoint; in a seed all methods see the same batches."""
    tables: Tables = {"rows": []}
    for seed in config.seeds:
        mixture = FeatureMixture(config.mixture, config.training.batch_size, seed)
        wanted = architectures(config)
        names = list(config.methods or wanted)
        saes = [build_sae(wanted[name], config.mixture.d_in, seed) for name in names]

        measure = partial(measure_all, config, tables, names, saes, mixture)
        train_together(saes, mixture, config.training, config.at_steps, measure)
    return tables


# the same with twice the steps: what GBA still finds, and what TopK gives up again
LONGER = Config(
    training=TrainingSettings(steps=2000, batch_size=256),
    at_steps=(250, 500, 1000, 1500, 2000),
    methods=("topk_30", "gba_full_range", "gba_l0_matched"),
    seeds=(0, 1, 2),
)

# Algorithm 1 puts every row to unit norm
UNIT_NORM = Config(
    mixture=FeatureMixtureConfig(unit_norm_inputs=True),
    methods=("topk_30", "gba_full_range", "gba_reset", "gba_each_step", "gba_ours"),
)


if __name__ == "__main__":
    run_experiments(
        "Feature recovery on the paper's imbalanced set, TopK against GBA.",
        {
            "01_imbalanced_set": Config(),
            "01_imbalanced_set_longer": LONGER,
            "01_imbalanced_set_unit_norm": UNIT_NORM,
        },
        run,
        quick={
            "training": TrainingSettings(steps=500, batch_size=256),
            "at_steps": (250, 500),
            "seeds": (0, 1),
        },
    )
