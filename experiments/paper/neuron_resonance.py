"""Experiment 2: a latent learns a feature when it fires about as often as the feature occurs.

Every latent is given one frequency p; the heat map is the share of features recovered over p
and the dimension d, at a fixed number of features and a fixed sparsity.

    python -m experiments.paper.neuron_resonance [--quick]
"""

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

from experiments.lab.command_line import run_experiments
from experiments.lab.results import Tables
from experiments.lab.training import TrainingSettings, build_sae, measure_recovery, train_together
from sae_lens_gba import GBATrainingSAEConfig
from sae_lens_gba.synthetic import FeatureMixture, FeatureMixtureConfig, resonance_band


@dataclass(frozen=True)
class Config:
    """Settings of the experiment.

    Args:
        n_features: n.
        sparsity: s; every feature has frequency f = s / n.
        dimensions: d of each row of the heat map; sqrt(n) divides heavy from light
            superposition.
        frequencies: p of each column, as multiples of f.
        d_sae: number of latents.
        training: the same in every cell.
        adapt_every_n_steps: the paper's 50 would leave a dozen adaptations.
        output_scale: of all latents, and not learnt: small, as the theorem presumes, so that
            latents don't compete for what is left to reconstruct.
        seeds: of features, rows and initial weights.
        n_samples: held-out rows.
    """

    n_features: int = 128
    sparsity: int = 3
    dimensions: tuple[int, ...] = (8, 12, 16, 24, 32, 48)
    frequencies: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    d_sae: int = 512
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(steps=500, batch_size=256)
    )
    adapt_every_n_steps: int = 10
    output_scale: float = 0.01
    seeds: tuple[int, ...] = (0, 1)
    n_samples: int = 5_000


def one_group(config: Config, d: int, p: float) -> dict[str, Any]:
    """Bias adaptation (BA): the paper's rule, every latent with the target p."""
    cfg = GBATrainingSAEConfig.paper_v1(
        d,
        config.d_sae,
        n_groups=1,
        highest_target_frequency=p,
        lowest_target_frequency=p,
        adapt_every_n_steps=config.adapt_every_n_steps,
        bias_init="quantile",
        output_scale_init=config.output_scale,
        learn_output_scale=False,
    )
    return cfg.to_dict()


def run(config: Config) -> Tables:
    """One row a cell and seed."""
    f = config.sparsity / config.n_features
    rows = []
    for seed in config.seeds:
        for d in config.dimensions:
            data = FeatureMixtureConfig(config.n_features, d, (config.sparsity,))
            mixture = FeatureMixture(data, config.training.batch_size, seed)
            targets = [multiple * f for multiple in config.frequencies]
            saes: list[Any] = [build_sae(one_group(config, d, p), d, seed) for p in targets]
            train_together(saes, mixture, config.training)
            band = resonance_band(config.n_features, d, config.sparsity)
            for p, sae in zip(targets, saes, strict=True):
                measured = float(sae.adapter.frequency.mean())
                cell = {"seed": seed, "d": d, "p": p, "f": f, "measured_p": measured}
                recovery = asdict(measure_recovery(sae, mixture, config.n_samples))
                rows.append({**cell, **recovery, "band": [band.lowest, band.highest]})
            logging.info("seed %d, d = %d", seed, d)
    return {"rows": rows}


# a thirty-second of the paper's features, four latents for each as there, and dimensions where
# no random direction is near one
WIDE = Config(
    n_features=2048,
    dimensions=(32, 48, 64, 96),
    frequencies=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    d_sae=8192,
    training=TrainingSettings(steps=1000, batch_size=512, learning_rate=3e-3),
    adapt_every_n_steps=20,
    seeds=(0,),
)


if __name__ == "__main__":
    run_experiments(
        "Feature recovery over latent frequency and dimension.",
        {"02_neuron_resonance": Config(), "02_neuron_resonance_wide": WIDE},
        run,
        quick={
            "dimensions": (8, 16, 32),
            "frequencies": (0.25, 1.0, 4.0, 16.0),
            "training": TrainingSettings(steps=300, batch_size=256),
            "seeds": (0,),
        },
    )
