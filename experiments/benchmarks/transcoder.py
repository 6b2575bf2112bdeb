"""GBA transcoders against a TopK transcoder: one MLP of a language model, at the same L0.

SmolLM2-135M, the MLP of layer 8, from its input to its output; held-out explained variance of the
MLP's output, the model's loss with the transcoder in the MLP's place, L0 and dead latents. TopK is
written out here, in plain torch, as sparsify trains it: random encoder, decoder of zeros; its
learning rate is the best of some on the first seed. GBA is as the command makes it.

    python -m experiments.benchmarks.transcoder [--quick]
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.saes.sae import SAEMetadata
from torch import nn
from torch.nn import functional as F

from experiments.lab.activations import ShuffledActivations
from experiments.lab.command_line import run_experiments
from experiments.lab.hook_point import HookPoint, demo_hook_points
from experiments.lab.results import Tables, once
from experiments.lab.training import Row, TrainingSettings, best_rate, train_together
from sae_lens_gba.at_target import at_its_target, decoded
from sae_lens_gba.demo.model import default_cache_dir
from sae_lens_gba.registration import CLASSES
from sae_lens_gba.saved.stock_form import stock_form


@dataclass(frozen=True)
class Config:
    """Settings.

    Args:
        hook_name, hook_name_out: the MLP's input and output.
        train_tokens, held_out_tokens, ce_contexts, context: as in language_model_comparison.
        d_sae, l0: of all transcoders.
        steps, batch_size: the learning rate falls to nothing over the last quarter.
        learning_rate: of GBA.
        topk_learning_rates: to choose from, by the first seed's explained variance.
        seeds: of initial weights and order of the data.
    """

    hook_name: str = "blocks.8.mlp.hook_in"
    hook_name_out: str = "blocks.8.hook_mlp_out"
    train_tokens: int = 400_000
    held_out_tokens: int = 60_000
    ce_contexts: int = 64
    context: int = 128
    d_sae: int = 2304
    l0: int = 32
    steps: int = 2000
    batch_size: int = 512
    learning_rate: float = 5e-3
    topk_learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1)


class TopKTranscoder(nn.Module):
    """y = topk(relu(W_enc^T (x - mean) + b_enc)) W_dec + b_dec, on x and y of norm sqrt(d).

    Attributes:
        cfg, device: what `at_its_target` and SAELens look at.
    """

    def __init__(self, config: Config, inputs: HookPoint, targets: HookPoint):
        super().__init__()
        d_in, d_out = inputs.train.shape[1], targets.train.shape[1]
        self.k, self.scales = config.l0, (inputs.scale, targets.scale)
        x, y = (h.train[:20_000].float() * h.scale for h in (inputs, targets))
        self.mean = x.mean(dim=0)
        self.encoder = nn.Linear(d_in, config.d_sae)
        self.encoder.bias.data.zero_()
        self.W_dec = nn.Parameter(torch.zeros(config.d_sae, d_out))
        self.b_dec = nn.Parameter(y.mean(dim=0))
        hooks = {"hook_name": config.hook_name, "hook_name_out": config.hook_name_out}
        self.cfg = SimpleNamespace(metadata=SAEMetadata(**hooks), d_out=d_out)
        self.device = torch.device("cpu")

    def active(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and indices of the active latents of scaled inputs, each (n, k)."""
        found = self.encoder(x - self.mean).relu().topk(self.k, dim=-1, sorted=False)
        return found.values, found.indices

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled inputs (n, d_in) -> scaled targets (n, d_out)."""
        values, latents = self.active(x)
        rows = F.embedding_bag(latents, self.W_dec, per_sample_weights=values, mode="sum")
        return rows + self.b_dec

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        values, latents = self.active(x * self.scales[0])
        acts = values.new_zeros(*values.shape[:-1], len(self.W_dec))
        return acts.scatter_(-1, latents, values)

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        return (feature_acts @ self.W_dec + self.b_dec) / self.scales[1]


@dataclass(frozen=True)
class Benchmark:
    """Runs, each done once and kept in ``folder``."""

    config: Config
    inputs: HookPoint
    targets: HookPoint
    folder: Path

    def row(self, method: str, rate: float, seed: int) -> Row:
        """One run's."""
        steps = self.config.steps
        label = {"method": method, "learning_rate": rate, "seed": seed, "steps": steps}

        def compute() -> Row:
            train = self.topk if method == "topk" else self.gba
            transcoder, seconds = train(method, rate, seed)
            row = {**label, **self.measured(transcoder), "seconds": round(seconds, 1)}
            logging.info("%s", row)
            return row

        key = {**label, **{f: getattr(self.config, f) for f in _KEY}}
        return once(self.folder, key, compute)

    def gba(self, method: str, rate: float, seed: int) -> tuple[Any, float]:
        config, steps = self.config, self.config.steps
        torch.manual_seed(seed)
        cls, config_class = CLASSES[method]
        settings: Row = {
            "d_in": self.inputs.train.shape[1],
            "d_out": self.targets.train.shape[1],
            "d_sae": config.d_sae,
            "target_l0": float(config.l0),
            "hook_name_out": config.hook_name_out,
            "l0_warm_up_steps": steps,
        }
        transcoder = cls(config_class(**settings))
        transcoder.cfg.metadata.hook_name = config.hook_name
        schedule = TrainingSettings(steps, config.batch_size, rate, decay_steps=steps // 4)
        (seconds,) = train_together([transcoder], self.pairs(seed), schedule)
        return stock_form(transcoder), seconds

    def topk(self, method: str, rate: float, seed: int) -> tuple[Any, float]:
        steps = self.config.steps
        torch.manual_seed(seed)
        transcoder = TopKTranscoder(self.config, self.inputs, self.targets)
        adam = torch.optim.Adam(transcoder.parameters(), lr=rate)
        data, d_in = self.pairs(seed), self.inputs.train.shape[1]
        seconds = 0.0
        for step in range(steps):
            batch = next(data)
            started = time.process_time()
            for group in adam.param_groups:
                group["lr"] = rate * min(1.0, (steps - step) / (steps // 4))
            x = batch[:, :d_in] * self.inputs.scale
            y = batch[:, d_in:] * self.targets.scale
            adam.zero_grad()
            (transcoder.predict(x) - y).square().sum(dim=1).mean().backward()
            adam.step()
            seconds += time.process_time() - started
        return transcoder.eval(), seconds

    def pairs(self, seed: int) -> Iterator[torch.Tensor]:
        """Batches of inputs and targets side by side, raw."""
        both = torch.cat([self.inputs.train, self.targets.train], dim=1)
        return ShuffledActivations(both, self.config.batch_size, 1.0, seed)

    @torch.no_grad()
    def measured(self, transcoder: Any) -> Row:
        """On held-out text."""
        explained = ExplainedVarianceCalculator()
        fired = torch.zeros(self.config.d_sae)
        parts = (h.held_out.float().split(1024) for h in (self.inputs, self.targets))
        for x, y in zip(*parts, strict=True):
            acts = transcoder.encode(x)
            explained.add_batch(decoded(transcoder, acts, x), y)
            fired += (acts > 0).sum(dim=0)
        with at_its_target(transcoder, self.inputs.model) as seen_there:
            recovered = replace(self.targets, scale=1.0).ce_loss_recovered(seen_there)
        return {
            "explained_variance": explained.compute(),
            "ce_recovered": recovered,
            "l0": float(fired.sum()) / len(self.inputs.held_out),
            "dead": int((fired == 0).sum()),
        }


_KEY = (
    "hook_name",
    "hook_name_out",
    "d_sae",
    "l0",
    "batch_size",
    "train_tokens",
    "held_out_tokens",
    "ce_contexts",
    "context",
)


def run(config: Config) -> Tables:
    inputs, targets = demo_hook_points(
        (config.hook_name, config.hook_name_out),
        (config.train_tokens, config.held_out_tokens),
        config.context,
        config.ce_contexts,
    )
    bench = Benchmark(config, inputs, targets, default_cache_dir() / "transcoder")
    rows = [
        bench.row(method, config.learning_rate, seed)
        for seed in config.seeds
        for method in ("gba_transcoder", "gba_skip_transcoder")
    ]
    tuning, best = best_rate(
        lambda rate: bench.row("topk", rate, config.seeds[0]),
        config.topk_learning_rates,
        by="explained_variance",
    )
    rows += [bench.row("topk", best, seed) for seed in config.seeds]
    return {"tuning": tuning, "rows": rows}


def main() -> None:
    run_experiments(
        __doc__,
        {"transcoder": Config()},
        run,
        quick={"train_tokens": 20_000, "held_out_tokens": 2_000, "steps": 100,
               "ce_contexts": 2, "d_sae": 576, "l0": 16, "seeds": (0,)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
