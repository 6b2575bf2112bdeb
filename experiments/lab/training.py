"""What the experiments share: architectures, training, measures."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.synthetic.evals import feature_uniqueness, mean_correlation_coefficient
from sae_lens.training.sae_trainer import SAETrainer
from tqdm.auto import trange

from sae_lens_gba.metrics import Selectivity, SelectivityMeter, best_match
from sae_lens_gba.report.random_baseline import random_directions as untrained
from sae_lens_gba.saved.saved_sae import SavedSAE
from sae_lens_gba.saved.stock_form import stock_form
from sae_lens_gba.synthetic.feature_mixture import FeatureMixture

ALL_STEPS = "all steps"  # in a spec, stands for their number
FROZEN = "frozen decoder"
RANDOM = "random directions"
HIERARCHIES = "gba, hierarchies"
MORE_NESTING = "gba, hierarchies, more nesting"
Row = dict[str, Any]


@dataclass(frozen=True)
class TrainingSettings:
    """How an SAE is trained.

    Args:
        steps: optimizer steps.
        batch_size: samples a step.
        learning_rate: of SAELens' Adam.
        decay_steps: over which it falls to nothing at the end; 0 keeps it constant.
        autocast: bfloat16 products.
        dead_feature_window: steps without firing after which SAELens' TopK architectures take a
            latent for dead and revive it; its default suits runs of many thousand steps.
    """

    steps: int = 3000
    batch_size: int = 512
    learning_rate: float = 1e-3
    decay_steps: int = 0
    autocast: bool = False
    dead_feature_window: int = 1000


def falling(steps: int, batch_size: int, learning_rate: float) -> TrainingSettings:
    """Of the benchmarks: the rate falls to nothing over the last quarter.

    After SAELens' window of 1,000 steps too few latents of TopK architectures are revived.
    """
    return TrainingSettings(
        steps,
        batch_size,
        learning_rate,
        decay_steps=steps // 4,
        dead_feature_window=max(1, steps // 20),
    )


@dataclass(frozen=True)
class Recovery:
    """What a trained SAE recovered of a mixture, on held-out rows.

    Attributes:
        frr_08: share of features with a decoder row at |cosine| >= 0.8.
        frr_09: the same at 0.9.
        mean_best_cosine: mean over features of the best |cosine|.
        mcc: SAELens' mean correlation coefficient (one-to-one matched |cosine|).
        uniqueness: SAELens' share of latents that are nearest to a feature of their own.
        l0: active latents a sample.
        explained_variance: SAELens' measure; 1 is perfect.
        loss: mean over samples of the squared error.
        dead: latents never active on the held-out rows.
    """

    frr_08: float
    frr_09: float
    mean_best_cosine: float
    mcc: float
    uniqueness: float
    l0: float
    explained_variance: float
    loss: float
    dead: int


def of_saelens(architecture: str, **settings: Any) -> dict[str, Any]:
    """An architecture of SAELens as it learns best on inputs of norm well above 1.

    Decoder rows start at norm 1 instead of 0.1: all architectures learn faster then. BatchTopK
    has MCC 0.69 instead of 0.47 after a million synthetic samples, and 30 dead latents instead
    of 739 on SmolLM2. JumpReLU's thresholds move by no more than the learning rate per step, so
    they start near where they are needed.

    Args:
        architecture: SAELens' name of it.
        settings: further fields of its config.

    Returns:
        What `build_sae` takes.
    """
    start: dict[str, Any] = {"decoder_init_norm": 1.0}
    if architecture == "jumprelu":
        start |= {"jumprelu_init_threshold": 1.0, "jumprelu_bandwidth": 2.0}
    return {"architecture": architecture, **start, **settings}


def recommended_gba(d_sae: int, target_l0: float, **settings: Any) -> dict[str, Any]:
    """A GBA SAE as ``sae-lens-gba train`` makes it: targets that fall for the whole run."""
    start = {"architecture": "gba", "d_sae": d_sae, "target_l0": target_l0}
    return {**start, "l0_warm_up_steps": ALL_STEPS, **settings}


def gba_for_hierarchies(d_sae: int, target_l0: float, **settings: Any) -> dict[str, Any]:
    """The same as docs/choosing.md has it where features form strict hierarchies."""
    fall = {"l0_warm_up_start": 2.4, "l0_warm_up_end": 1.3}
    return recommended_gba(d_sae, target_l0, **fall, **settings)


def gba_with_more_nesting(d_sae: int, target_l0: float) -> dict[str, Any]:
    """The same with the nested sets' errors weighing more, as docs/choosing.md has it."""
    return gba_for_hierarchies(d_sae, target_l0, nested_weight=4.0, error_exponent=1.0)


def build_sae(
    architecture: dict[str, Any], d_in: int, seed: int, steps: int = 0
) -> TrainingSAE[Any]:
    """A new training SAE whose initial weights depend on ``seed`` only.

    Args:
        architecture: as for `TrainingSAE.from_dict`, without ``d_in``; FROZEN: True keeps the
            decoder's random directions (arXiv 2602.14111).
        d_in: input dimension.
        seed: of torch's global generator, which SAELens' initialisers draw from.
        steps: of the run, for fields that are ALL_STEPS.
    """
    torch.manual_seed(seed)
    spec = {k: steps if v == ALL_STEPS else v for k, v in architecture.items() if k != FROZEN}
    sae: TrainingSAE[Any] = TrainingSAE.from_dict({**spec, "d_in": d_in})
    sae.W_dec.requires_grad_(not architecture.get(FROZEN, False))
    return sae


def random_directions(x: torch.Tensor, d_sae: int, l0: float, seed: int) -> SAE[Any]:
    """A stock SAE of random directions that has this L0 on ``x``, shape (n, d_in)."""
    cfg = JumpReLUSAEConfig(d_in=x.shape[1], d_sae=d_sae)
    of_this_width = SavedSAE(JumpReLUSAE(cfg), cfg.to_dict(), RANDOM, RANDOM)
    return untrained(of_this_width, x, seed, l0).sae


def best_rate(
    train: Callable[[float], Row], rates: Iterable[float], by: str
) -> tuple[list[Row], float]:
    """Rows of a run with each learning rate, and the rate whose measure ``by`` is highest.

    A run that diverged is the worst.
    """
    rows = [train(rate) for rate in rates]
    best = max(rows, key=lambda row: row[by] if math.isfinite(row[by]) else -math.inf)
    return rows, float(best["learning_rate"])


def train_together(
    saes: Sequence[TrainingSAE[Any]],
    data: Iterator[torch.Tensor],
    settings: TrainingSettings,
    at_steps: Sequence[int] = (),
    look: Callable[[int, list[float]], object] | None = None,
) -> list[float]:
    """Train SAEs on the same batches, each by a SAELens trainer of its own.

    One pass over the data serves all: drawing a batch costs as much as a step on it. Every
    SAE ends up as it would have alone.

    Args:
        saes: left trained.
        data: of batches, endless.
        settings: steps and learning rate; batches are as large as ``data`` makes them.
        at_steps: after how many steps to call ``look``, with their number and the CPU
            seconds spent on each SAE so far.
        look: must leave the SAEs as they are.

    Returns:
        CPU seconds spent on each SAE, without the data: unlike wall time they hardly depend on
        what else the machine does.

    Raises:
        ValueError: an SAE wants its activations normalised by statistics of the data, which
            a trainer does only in a run of its own.
    """
    for sae in saes:
        if sae.cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
            raise ValueError(
                f"normalize_activations={sae.cfg.normalize_activations!r} can't be used here: "
                "scale the data instead."
            )
    trainers: list[SAETrainer[Any, Any]] = [
        SAETrainer(trainer_config(settings), sae, data) for sae in saes
    ]
    seconds = [0.0] * len(saes)
    for step in trange(1, settings.steps + 1, desc="steps", leave=False):
        batch = next(data)
        for i, trainer in enumerate(trainers):
            started = time.process_time()
            trainer.step(batch)
            trainer.n_training_steps += 1
            seconds[i] += time.process_time() - started
        if look is not None and step in at_steps:
            look(step, list(seconds))
    return seconds


def trainer_config(settings: TrainingSettings) -> SAETrainerConfig:
    return SAETrainerConfig(
        total_training_samples=settings.steps * settings.batch_size,
        train_batch_size_samples=settings.batch_size,
        lr=settings.learning_rate,
        lr_end=settings.learning_rate,  # where the decay to 0 starts
        lr_decay_steps=settings.decay_steps,
        autocast=settings.autocast,
        dead_feature_window=settings.dead_feature_window,
    )


@torch.no_grad()
def measure_reconstruction(
    sae: SAE[Any], batches: Iterable[torch.Tensor]
) -> tuple[dict[str, float], Selectivity]:
    """Loss, L0, explained variance and dead latents of ``sae``, and how its latents fire.

    Args:
        sae: a stock SAE.
        batches: of inputs, each (n, d_in).
    """
    meter, explained = SelectivityMeter(sae.cfg.d_sae), ExplainedVarianceCalculator()
    n, l0, squared_error = 0, 0.0, 0.0
    for x in batches:
        acts = sae.encode(x)
        reconstruction = sae.decode(acts)
        meter.add(acts)
        explained.add_batch(reconstruction, x)
        n += len(x)
        l0 += float((acts != 0).sum())
        squared_error += float((reconstruction - x).square().sum())
    latents = meter.compute()
    measured = {
        "loss": squared_error / n,
        "l0": l0 / n,
        "explained_variance": explained.compute(),
        "dead": float((latents.frequency == 0).sum()),
    }
    return measured, latents


@torch.no_grad()
def measure_recovery(
    sae: TrainingSAE[Any], mixture: FeatureMixture, n_samples: int = 10_000
) -> Recovery:
    """What ``sae`` recovered of ``mixture``, on rows that it wasn't trained on.

    Args:
        sae: trained on the mixture.
        mixture: its own stream is not used.
        n_samples: held-out rows.
    """
    inference = stock_form(deepcopy(sae))  # which settles its biases: training may go on
    directions = inference.W_dec.detach()
    best = best_match(mixture.features, directions).similarity
    held_out = mixture.held_out().sample(n_samples)[0].split(1000)
    measured, _ = measure_reconstruction(inference, held_out)
    return Recovery(
        frr_08=float((best >= 0.8).float().mean()),
        frr_09=float((best >= 0.9).float().mean()),
        mean_best_cosine=float(best.mean()),
        mcc=mean_correlation_coefficient(directions, mixture.features),
        uniqueness=feature_uniqueness(directions, mixture.features),
        l0=measured["l0"],
        explained_variance=measured["explained_variance"],
        loss=measured["loss"],
        dead=int(measured["dead"]),
    )
