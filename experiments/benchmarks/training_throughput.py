"""Time and memory of a training step of each architecture, through SAELens' SAETrainer.

Architectures take turns, step by step, on the same batches in one process; medians over the steps
after warm-up, in CPU seconds, which with one thread are those of a machine that does nothing else.
The floor is one bare encoder product. Peak memory is measured in a process of its own for each
architecture.

    python -m experiments.benchmarks.training_throughput
    python -m experiments.benchmarks.training_throughput --quick        # minutes less, for a look
"""

import logging
import multiprocessing
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from experiments.benchmarks.step_parts import seconds_by_part
from experiments.lab.command_line import run_experiments
from experiments.lab.results import Tables
from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig
from sae_lens_gba.batch_statistics import quantile_bias

WARM_UP = 1  # further steps before those that count; the first is taken when a trainer is made


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark.

    Args:
        d_in: input dimension.
        batch: samples a step.
        d_sae: widths.
        l0: active latents a sample; memory, which hardly depends on it, is measured at the last.
        steps: timed.
        wide: from this width on only BatchTopK and GBA: all would take hours, and more than 24 GB.
    """

    d_in: int = 768
    batch: int = 2048
    d_sae: tuple[int, ...] = (8192, 32768, 131072)
    l0: tuple[int, ...] = (64,)
    steps: int = 5
    wide: int = 16_384


@dataclass(frozen=True)
class Case:
    """One column of the table: sizes and precision."""

    d_in: int
    batch: int
    d_sae: int
    l0: int
    autocast: bool = False
    device: str = "cpu"

    def batches(self, n: int) -> list[torch.Tensor]:
        """The same Gaussian batches for every architecture."""
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(self.batch, self.d_in, generator=generator) for _ in range(n)]
        return [x.to(self.device) for x in drawn]


def architectures(case: Case) -> dict[str, Any]:
    """Configs by the name of the architecture."""
    sizes: dict[str, Any] = {"d_in": case.d_in, "d_sae": case.d_sae, "device": case.device}
    widths = [w for w in (512, 2048, 8192, 32768) if w < case.d_sae] + [case.d_sae]
    gba: dict[str, Any] = {**sizes, "target_l0": case.l0, "adapt_every_n_steps": 10}
    return {
        "standard": StandardTrainingSAEConfig(**sizes),
        "topk": TopKTrainingSAEConfig(**sizes, k=case.l0, use_sparse_activations=False),
        "batchtopk": BatchTopKTrainingSAEConfig(**sizes, k=case.l0),
        "matryoshka": MatryoshkaBatchTopKTrainingSAEConfig(
            **sizes, k=case.l0, matryoshka_widths=widths
        ),
        "jumprelu": JumpReLUTrainingSAEConfig(**sizes),
        "gba dense": GBATrainingSAEConfig(**gba, sparse_below_density=0.0),
        "gba": GBATrainingSAEConfig(**gba),
        "gba tied": GBATrainingSAEConfig(**gba, tied=True),
    }


def make_trainer(cfg: Any, case: Case, x: torch.Tensor) -> SAETrainer[Any, Any]:
    """A trainer in the middle of training: every latent of GBA at its target."""
    torch.manual_seed(0)
    sae: TrainingSAE[Any] = TrainingSAE.from_dict(cfg.to_dict())
    settings = SAETrainerConfig(
        10**9, case.batch, lr=1e-4, lr_end=1e-4, autocast=case.autocast, device=case.device
    )
    trainer: SAETrainer[Any, Any] = SAETrainer(settings, sae, iter([]))
    trainer.step(x)
    if isinstance(sae, GBATrainingSAE):
        with torch.no_grad():
            target = sae.adapter.target_frequency
            sae.set_bias(quantile_bias(x - sae.b_dec, sae.W_enc, target, sae.bias_range()))
    return trainer


def time_case(case: Case, steps: int, wide: int) -> dict[str, dict[str, float]]:
    """Median CPU seconds of a step of each architecture, and of the encoder's product."""
    data = case.batches(4)
    trainers = {
        name: make_trainer(cfg, case, data[0])
        for name, cfg in architectures(case).items()
        if case.d_sae < wide or name in ("batchtopk", "gba")
    }
    W = torch.randn(case.d_in, case.d_sae)
    seconds: dict[str, list[float]] = {name: [] for name in [*trainers, "encoder product"]}
    for step in range(steps + WARM_UP):
        x = data[step % len(data)]
        for name, trainer in trainers.items():
            started = time.process_time()
            trainer.step(x)
            seconds[name].append(time.process_time() - started)
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
            x @ W
        seconds["encoder product"].append(time.process_time() - started)
    return {
        name: {"seconds": statistics.median(times[WARM_UP:])} for name, times in seconds.items()
    }


def peak_memory(name: str, case: Case, threads: int) -> float:
    """Peak memory while it is trained for two steps, in bytes above that after import; Linux."""
    torch.set_num_threads(threads)
    (x,) = case.batches(1)
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    make_trainer(architectures(case)[name], case, x).step(x)
    return _resident_bytes("VmHWM") - before


def peak_memory_in_own_process(name: str, case: Case) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_memory, (name, case, torch.get_num_threads()))


def _resident_bytes(field: str) -> float:
    # getrusage would count the parent's peak as this process' own
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.split(f"{field}:")[1].split()[0])


def parts_of_step(case: Case, steps: int) -> dict[str, float]:
    """Mean seconds of a GBA step by parts."""
    (x,) = case.batches(1)
    trainer = make_trainer(architectures(case)["gba"], case, x)
    trainer.step(x)
    return seconds_by_part(lambda: trainer.step(x), steps)


def supports_bfloat16(d_in: int) -> bool:
    """Whether a bf16 product is of use: without hardware for it, it takes minutes."""
    a = torch.randn(256, d_in).bfloat16()
    started = time.process_time()
    a @ torch.randn(d_in, 1024).bfloat16()
    return time.process_time() - started < 0.1  # seconds


def run(config: Config) -> Tables:
    """Step time and memory of every case, and what a step of GBA consists of."""
    rows: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for d_sae in config.d_sae:
        is_narrowest = d_sae == min(config.d_sae)
        for l0 in config.l0:
            # on a CPU bfloat16 wins little, and hours at the wide ones
            for autocast in (
                (False, True) if is_narrowest and supports_bfloat16(config.d_in) else (False,)
            ):
                case = Case(config.d_in, config.batch, d_sae, l0, autocast)
                timed = time_case(case, config.steps, config.wide)
                for name in set(timed) & set(architectures(case)) if l0 == config.l0[-1] else ():
                    timed[name]["peak_memory_bytes"] = peak_memory_in_own_process(name, case)
                rows.append(
                    {"d_sae": d_sae, "l0": l0, "autocast": autocast, "architectures": timed}
                )
                logging.info("%s", table(case, timed))
                if l0 == config.l0[-1]:
                    parts.append(
                        {"d_sae": d_sae, "l0": l0, "autocast": autocast}
                        | {"seconds": parts_of_step(case, config.steps)}
                    )
                    logging.info("parts of a gba step, seconds: %s", parts[-1]["seconds"])
    return {"cases": rows, "parts": parts}


def table(case: Case, timed: dict[str, dict[str, float]]) -> str:
    """A case, to be read."""
    lines = [f"\n{case}\n{'':16s} batchtopk/this  this/encoder  ms/step  peak MiB"]
    batchtopk, product = (timed[name]["seconds"] for name in ("batchtopk", "encoder product"))
    for name, row in timed.items():
        seconds, memory = row["seconds"], row.get("peak_memory_bytes", float("nan")) / 2**20
        lines.append(
            f"{name:16s} {batchtopk / seconds:14.2f}  {seconds / product:12.2f}  "
            f"{seconds * 1e3:7.0f}  {memory:8.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_experiments(
        "Time and memory of a training step of each architecture.",
        {"training_throughput": Config()},
        run,
        quick={"d_sae": (2048, 8192)},
    )
