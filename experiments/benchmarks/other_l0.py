"""One SAE at every L0: how much worse than one trained there?

SAEs are trained on a language model's activations at several L0s; each of some of them is then
used at all the others (`sae_lens_gba.at_l0`, thresholds only), without and with its decoder norms
fitted again by least squares on training activations.

    python -m experiments.benchmarks.other_l0
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE

from experiments.lab.activations import ShuffledActivations
from experiments.lab.command_line import run_experiments
from experiments.lab.hook_point import HookPoint, demo_hook_points
from experiments.lab.results import Tables
from experiments.lab.training import TrainingSettings, build_sae, recommended_gba, train_together
from sae_lens_gba import at_l0
from sae_lens_gba.saved.saved_sae import SavedSAE, as_saved


@dataclass(frozen=True)
class Config:
    """Settings.

    Args:
        hook_name: where the SAEs are trained.
        train_tokens, held_out_tokens, ce_contexts, context: as in language_model_comparison.
        d_sae: latents.
        l0s: trained, and compared at.
        used_elsewhere: of those, which are used at all the others.
        steps, batch_size, learning_rate: the rate falls to nothing over the last quarter.
        fit_samples: training activations on which decoder norms are fitted again.
        seeds: of initial weights and order of the data.
    """

    hook_name: str = "blocks.8.hook_resid_post"
    train_tokens: int = 400_000
    held_out_tokens: int = 20_000
    ce_contexts: int = 16
    context: int = 128
    d_sae: int = 1152
    l0s: tuple[float, ...] = (16.0, 32.0, 64.0, 128.0)
    used_elsewhere: tuple[float, ...] = (32.0, 64.0)
    steps: int = 2000
    batch_size: int = 512
    learning_rate: float = 1e-2
    fit_samples: int = 16_384
    seeds: tuple[int, ...] = (0,)


def run(config: Config) -> Tables:
    (here,) = demo_hook_points(
        (config.hook_name,),
        (config.train_tokens, config.held_out_tokens),
        config.context,
        config.ce_contexts,
    )
    rows = []
    for seed in config.seeds:
        trained = {l0: _train(config, here, l0, seed) for l0 in config.l0s}
        for l0, saved in trained.items():
            rows.append(_row(here, saved.sae, seed, l0, l0, "trained there"))
            if l0 not in config.used_elsewhere:
                continue
            for other in config.l0s:
                if other != l0:
                    moved = at_l0(saved, other).sae
                    rows.append(_row(here, moved, seed, l0, other, "at_l0"))
                    _fit_decoder_norms(moved, here, config.fit_samples)
                    rows.append(_row(here, moved, seed, l0, other, "at_l0, norms fitted"))
    return {"rows": rows}


def _train(config: Config, here: HookPoint, l0: float, seed: int) -> SavedSAE:
    spec = recommended_gba(config.d_sae, l0)
    sae = build_sae(spec, here.train.shape[1], seed, config.steps)
    data = ShuffledActivations(here.train, config.batch_size, here.scale, seed)
    settings = TrainingSettings(
        config.steps, config.batch_size, config.learning_rate, decay_steps=config.steps // 4
    )
    train_together([sae], data, settings)
    return as_saved(sae)


def _row(
    here: HookPoint, sae: SAE[Any], seed: int, trained_at: float, used_at: float, how: str
) -> dict[str, Any]:
    measured, _ = here.measure(sae)
    return {
        "seed": seed,
        "trained_at": trained_at,
        "used_at": used_at,
        "how": how,
        **measured,
        "ce_recovered": here.ce_loss_recovered(sae),
    }


@torch.no_grad()
def _fit_decoder_norms(sae: SAE[Any], here: HookPoint, n_samples: int) -> None:
    """The norms of the decoder's rows that reconstruct best, directions and thresholds as given.

    min over s of sum ||x - b_dec - (a * s) W_dec||^2: normal equations of (A^T A) * (W W^T).
    """
    step = max(1, len(here.train) // n_samples)
    x = here.train[::step].float() * here.scale
    acts = sae.encode(x)
    W_dec = sae.W_dec.data
    gram = (acts.T @ acts) * (W_dec @ W_dec.T)
    along = (acts * ((x - sae.b_dec) @ W_dec.T)).sum(dim=0)
    ridge = 1e-4 * gram.diagonal().mean()
    gram.diagonal().add_(ridge)  # towards 1, what silent latents keep
    W_dec.mul_(torch.linalg.solve(gram, along + ridge).unsqueeze(1))


def main() -> None:
    run_experiments(
        "One SAE at other L0s, against SAEs trained there.",
        {"other_l0": Config()},
        run,
        quick={"train_tokens": 20_000, "held_out_tokens": 2_000, "steps": 100, "ce_contexts": 2,
               "d_sae": 576, "l0s": (16.0, 32.0), "used_elsewhere": (32.0,)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
