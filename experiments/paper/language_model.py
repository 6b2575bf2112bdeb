"""Experiment 4: loss against L0, and consistency over seeds, on a real language model.

SmolLM2-135M, a residual stream and an MLP output; activations are cached once. One curve a
method, at least four points each; and, at one point of each curve, the share of latents that
other seeds find as well.

    python -m experiments.paper.language_model [--quick]
"""

import logging
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations, permutations
from statistics import fmean
from typing import Any

import torch
from sae_lens import TrainingSAE
from sae_lens.synthetic.evals import mean_correlation_coefficient

from experiments.lab.activations import ShuffledActivations
from experiments.lab.command_line import run_experiments
from experiments.lab.hook_point import HookPoint, demo_hook_points
from experiments.lab.results import Tables, mean_and_deviation, once
from experiments.lab.training import (
    TrainingSettings,
    build_sae,
    of_saelens,
    train_together,
)
from sae_lens_gba import GBATrainingSAEConfig
from sae_lens_gba.demo.model import default_cache_dir
from sae_lens_gba.metrics import shares_consistent
from sae_lens_gba.saved.stock_form import stock_form


@dataclass(frozen=True)
class Config:
    """Settings of the experiment.

    Args:
        hook_names: where the SAEs are trained.
        train_tokens: tokens cached for training.
        held_out_tokens: of documents that training does not see.
        ce_contexts: held-out contexts for the model's loss with the SAE in place; three runs
            of the whole model each.
        context: tokens a context, BOS included.
        d_in: of the model.
        d_sae: number of latents.
        training: the same for every method. Turn its autocast on only where the CPU has bf16
            arithmetic: without, a product takes sixty times as long.
        l0: L0 of the points of methods that are given one.
        l1_coefficients: of the points of L1.
        l0_coefficients: of the points of JumpReLU.
        highest: HTF of the points of GBA with the paper's settings.
        adapt_every_n_steps: of BA and GBA; the paper's 50 leaves only 30 adaptations.
        consistency_point: index of the point that is trained on every seed.
        seeds: of initial weights and order of the data.
        top_shares: alphas of the consistency.
    """

    hook_names: tuple[str, ...] = ("blocks.8.hook_resid_post", "blocks.8.hook_mlp_out")
    train_tokens: int = 400_000
    held_out_tokens: int = 20_000
    ce_contexts: int = 4
    context: int = 128
    d_in: int = 576
    d_sae: int = 1152
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(600, 512, 1e-3, decay_steps=150)
    )
    l0: tuple[int, ...] = (16, 32, 64, 128)
    l1_coefficients: tuple[float, ...] = (6.0, 3.0, 1.5, 0.7)
    l0_coefficients: tuple[float, ...] = (2.0, 1.0, 0.5, 0.25)
    highest: tuple[float, ...] = (0.02, 0.05, 0.1, 0.5)
    adapt_every_n_steps: int = 10
    consistency_point: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    top_shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def curves(config: Config) -> dict[str, list[dict[str, Any]]]:
    """The points of each method's curve, as `TrainingSAE.from_dict` takes them."""
    every = {"adapt_every_n_steps": config.adapt_every_n_steps}

    def paper(highest: float, **settings: Any) -> dict[str, Any]:
        settings = {"highest_target_frequency": highest, **every, **settings}
        return GBATrainingSAEConfig.paper_iclr(config.d_in, config.d_sae, **settings).to_dict()

    def ours(l0: int) -> dict[str, Any]:
        return {"architecture": "gba", "target_l0": float(l0), **every}

    def one_group(p: float) -> dict[str, Any]:
        return paper(p, lowest_target_frequency=p, n_groups=1)

    widths = [config.d_sae // 16, config.d_sae // 4, config.d_sae]
    points = {
        "l1": [of_saelens("standard", l1_coefficient=c) for c in config.l1_coefficients],
        "topk": [of_saelens("topk", k=k) for k in config.l0],
        "batchtopk": [of_saelens("batchtopk", k=k) for k in config.l0],
        "jumprelu": [of_saelens("jumprelu", l0_coefficient=c) for c in config.l0_coefficients],
        "matryoshka": [
            of_saelens("matryoshka_batchtopk", k=k, matryoshka_widths=widths) for k in config.l0
        ],
        "ba": [one_group(k / config.d_sae) for k in config.l0],
        "gba_paper": [paper(highest) for highest in config.highest],
        "gba_ours": [ours(k) for k in config.l0],
    }
    return {name: [{**p, "d_sae": config.d_sae} for p in group] for name, group in points.items()}


def run_method(config: Config, name: str, here: HookPoint) -> Tables:
    """Train a curve, all points of a seed together; measure it and its consistency."""
    rows, same_point = [], []
    for seed in config.seeds:
        points = list(enumerate(curves(config)[name]))
        if seed != config.seeds[0]:
            points = [points[config.consistency_point]]
        saes: list[TrainingSAE[Any]] = [
            build_sae(point, here.train.shape[1], seed) for _, point in points
        ]
        data = ShuffledActivations(here.train, config.training.batch_size, here.scale, seed)
        seconds = train_together(saes, data, config.training)
        for (setting, _), sae, spent in zip(points, saes, seconds, strict=True):
            inference = stock_form(sae)
            measured, latents = here.measure(inference)
            measured["ce_loss_recovered"] = here.ce_loss_recovered(inference)
            label = {"hook_name": here.name, "method": name, "setting": setting, "seed": seed}
            rows.append({**label, **measured, "seconds": round(spent, 1)})
            logging.info("%s", rows[-1])
            if setting == config.consistency_point:
                same_point.append((sae.W_dec.detach().clone(), latents.peak))
                here.save(inference, default_cache_dir() / "paper" / "saes" / f"{name}_seed_{seed}")
    return {"rows": rows, "consistency": [consistency(config, name, here.name, same_point)]}


def consistency(
    config: Config, name: str, hook_name: str, runs: list[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, Any]:
    """Share of the top latents with MCS > 0.9, and PW-MCC; means over all pairs of seeds."""
    pairs = [
        shares_consistent(a, b, peak, config.top_shares)
        for (a, peak), (b, _) in permutations(runs, 2)
    ]
    stats = [mean_and_deviation(column) for column in zip(*pairs, strict=True)]
    return {
        "hook_name": hook_name,
        "method": name,
        "top_shares": list(config.top_shares),
        "share": [mean for mean, _ in stats],
        "deviation": [deviation for _, deviation in stats],
        "pw_mcc": fmean(
            mean_correlation_coefficient(a, b) for (a, _), (b, _) in combinations(runs, 2)
        ),
    }


def run(config: Config) -> Tables:
    """All methods at all hook points. A method that is done is not done again after a stop."""
    n_tokens = (config.train_tokens, config.held_out_tokens)
    places = demo_hook_points(config.hook_names, n_tokens, config.context, config.ce_contexts)
    done_before = default_cache_dir() / "paper" / "done"
    tables: Tables = {"rows": [], "consistency": []}
    for here in places:
        for name in curves(config):
            settings = {k: v for k, v in asdict(config).items() if k != "hook_names"}
            key = {**settings, "hook_name": here.name, "method": name}
            done = once(done_before, key, partial(run_method, config, name, here))
            for table, new in done.items():
                tables[table] += new
    return tables


if __name__ == "__main__":
    run_experiments(
        "Loss against L0 and consistency over seeds on SmolLM2-135M.",
        {"04_language_model": Config()},
        run,
        quick={
            "hook_names": ("blocks.8.hook_resid_post",),
            "train_tokens": 20_000,
            "held_out_tokens": 4_000,
            "ce_contexts": 4,
            "d_sae": 576,
            "l0": (8, 16, 32, 64),
            "training": TrainingSettings(50, 256, 1e-3, decay_steps=10),
            "seeds": (0, 1),
            "adapt_every_n_steps": 5,
        },
    )
