"""Experiment 3: number of groups, highest target frequency, and sizes of the groups.

On features whose frequencies fall geometrically, as the groups' targets do.

    python -m experiments.paper.group_ablation [--quick]
"""

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

from experiments.lab.command_line import run_experiments
from experiments.lab.results import Tables
from experiments.lab.training import TrainingSettings, build_sae, measure_recovery, train_together
from sae_lens_gba import GBATrainingSAEConfig
from sae_lens_gba.synthetic import (
    FeatureMixture,
    FeatureMixtureConfig,
    geometric_relative_frequencies,
)


@dataclass(frozen=True)
class Config:
    """Settings of the experiment.

    Args:
        n_features: n.
        d_in: d.
        sparsity: s.
        highest_over_lowest: ratio of the features' frequencies.
        n_groups: values of K. One group has the target HTF.
        highest: values of HTF.
        lowest: LTF.
        sizings: equal groups (the paper), or sized so that each carries the same share of L0.
        rules: update rules.
        d_sae: number of latents.
        training: the same for all.
        adapt_every_n_steps: see experiment 2.
        output_scale: of all latents at the start; it is learnt.
        seeds: of features, rows and initial weights.
        n_samples: held-out rows.
    """

    n_features: int = 128
    d_in: int = 42
    sparsity: int = 3
    highest_over_lowest: float = 50.0
    n_groups: tuple[int, ...] = (1, 3, 5, 10, 20, 40)
    highest: tuple[float, ...] = (0.05, 0.1, 0.5)
    lowest: float = 0.001
    sizings: tuple[str, ...] = ("equal", "power_law")
    rules: tuple[str, ...] = ("paper",)
    d_sae: int = 512
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(steps=800, batch_size=256)
    )
    adapt_every_n_steps: int = 10
    output_scale: float = 0.01
    seeds: tuple[int, ...] = (0, 1)
    n_samples: int = 5_000


def settings(config: Config) -> list[dict[str, Any]]:
    """What differs between the SAEs, as fields of `GBATrainingSAEConfig`."""
    return [
        {
            "n_groups": k,
            "highest_target_frequency": highest,
            "group_sizing": sizing,
            "bias_update": rule,
        }
        for k in config.n_groups
        for highest in config.highest
        for sizing in config.sizings
        for rule in config.rules
        if k > 1 or sizing == config.sizings[0]  # one group has but one size
    ]


def run(config: Config) -> Tables:
    """One row a setting and seed; within a seed all see the same batches."""
    data = FeatureMixtureConfig(
        config.n_features,
        config.d_in,
        (config.sparsity,),
        geometric_relative_frequencies(config.n_features, config.highest_over_lowest),
    )
    shared = {
        "lowest_target_frequency": config.lowest,
        "adapt_every_n_steps": config.adapt_every_n_steps,
        "bias_init": "quantile",
        "output_scale_init": config.output_scale,
    }
    rows = []
    for seed in config.seeds:
        mixture = FeatureMixture(data, config.training.batch_size, seed)
        architectures = [
            GBATrainingSAEConfig.paper_v1(config.d_in, config.d_sae, **shared, **varied)
            for varied in settings(config)
        ]
        saes = [build_sae(cfg.to_dict(), config.d_in, seed) for cfg in architectures]
        train_together(saes, mixture, config.training)
        for cfg, varied, sae in zip(architectures, settings(config), saes, strict=True):
            recovery = asdict(measure_recovery(sae, mixture, config.n_samples))
            rows.append({"seed": seed, **varied, "target_l0": cfg.spectrum().l0, **recovery})
        logging.info("seed %d", seed)
    return {"rows": rows}


if __name__ == "__main__":
    run_experiments(
        "Number of groups, highest target frequency and group sizes.",
        {"03_group_ablation": Config()},
        run,
        quick={
            "n_groups": (1, 3, 10, 40),
            "highest": (0.05, 0.5),
            "training": TrainingSettings(steps=300, batch_size=256),
            "seeds": (0,),
        },
    )
