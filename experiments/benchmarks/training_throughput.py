"""Time and memory of a training step of each architecture, through SAELens' SAETrainer.

Architectures take turns, step by step, on the same batches in one process, so that whatever else
the machine does falls on all alike; medians over the steps after warm-up. The floor is one bare
encoder product. Peak memory is measured in a process of its own for each architecture.

    python experiments/benchmarks/training_throughput.py            # the table of the README
    python experiments/benchmarks/training_throughput.py --quick    # minutes less, for a look
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    LoggingConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from experiments.lab.results import provenance
from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig
from sae_lens_gba.bias_adaptation import quantile_bias

RESULT = Path(__file__).parent.parent / "results" / "training_throughput.json"
D_IN, BATCH = 768, 2048
WARM_UP = 1  # further steps before those that count; the first is taken when a trainer is made


@dataclass(frozen=True)
class Case:
    """One column of the table: sizes and precision."""

    d_sae: int
    l0: int
    autocast: bool


def architectures(case: Case) -> dict[str, Any]:
    sizes = {"d_in": D_IN, "d_sae": case.d_sae}
    widths = [w for w in (512, 2048, 8192, 32768) if w < case.d_sae] + [case.d_sae]
    gba = {**sizes, "target_l0": case.l0, "adapt_every_n_steps": 10}
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
    torch.manual_seed(0)
    sae = TrainingSAE.from_dict(cfg.to_dict())
    trainer_cfg = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False,
        total_training_samples=10**9, device="cpu", autocast=case.autocast, lr=1e-4, lr_end=1e-4,
        lr_scheduler_name="constant", lr_warm_up_steps=0, adam_beta1=0.9, adam_beta2=0.999,
        lr_decay_steps=0, n_restart_cycles=1, train_batch_size_samples=BATCH,
        dead_feature_window=1000, feature_sampling_window=2000, n_batches_for_norm_estimate=1,
        logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(trainer_cfg, sae, iter([]))
    trainer.step(x)
    if isinstance(sae, GBATrainingSAE):
        # in the middle of training: every latent at its target
        sae.set_bias(
            quantile_bias(x - sae.b_dec, sae.W_enc, sae.adapter.target_frequency, sae.bias_range())
        )
    return trainer


def batches(seed: int, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, D_IN, generator=generator) for _ in range(n)]


def time_case(case: Case, steps: int) -> dict[str, dict[str, float]]:
    data = batches(0, 4)
    trainers = {name: make_trainer(cfg, case, data[0]) for name, cfg in architectures(case).items()}
    W = torch.randn(D_IN, case.d_sae)
    seconds: dict[str, list[float]] = {name: [] for name in [*trainers, "encoder product"]}
    for step in range(steps + WARM_UP):
        x = data[step % len(data)]
        for name, trainer in trainers.items():
            started = time.perf_counter()
            trainer.step(x)
            seconds[name].append(time.perf_counter() - started)
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
            x @ W
        seconds["encoder product"].append(time.perf_counter() - started)
    medians = {name: statistics.median(times[WARM_UP:]) for name, times in seconds.items()}
    return {
        name: {
            "seconds": value,
            "batchtopk_over_this": medians["batchtopk"] / value,
            "this_over_encoder_product": value / medians["encoder product"],
        }
        for name, value in medians.items()
    }


def peak_memory(name: str, case: Case) -> float:
    """Peak memory while it is trained for two steps, in bytes above that after import; Linux."""
    x = batches(0, 1)[0]
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    trainer = make_trainer(architectures(case)[name], case, x)
    trainer.step(x)
    return _resident_bytes("VmHWM") - before


def _resident_bytes(field: str) -> float:
    # getrusage would count the parent's peak as this process' own
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.split(f"{field}:")[1].split()[0])


def memory_in_own_process(name: str, case: Case, threads: int) -> float:
    arguments = ["--memory-of", name, "--case", json.dumps(asdict(case)), "--threads", str(threads)]
    process = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    )
    return float(process.stdout)


def adaptation_share(case: Case, steps: int) -> float:
    """Share of a step that counting and updating take."""
    x = batches(0, 1)[0]
    trainer = make_trainer(architectures(case)["gba"], case, x)
    sae = trainer.sae
    inside: list[float] = []
    original = sae._observe_and_adapt

    def timed(hidden_pre: torch.Tensor) -> None:
        started = time.perf_counter()
        original(hidden_pre)
        inside.append(time.perf_counter() - started)

    sae._observe_and_adapt = timed
    started = time.perf_counter()
    for _ in range(steps):
        trainer.step(x)
    return sum(inside) / (time.perf_counter() - started)


def supports_bfloat16(limit_seconds: float = 2.0) -> bool:
    """Whether a bf16 product is of use: without hardware for it, it takes minutes."""
    a = torch.randn(256, D_IN).bfloat16()
    started = time.perf_counter()
    a @ torch.randn(D_IN, 1024).bfloat16()
    return time.perf_counter() - started < limit_seconds / 20


def cases(quick: bool, bfloat16: bool) -> list[Case]:
    sizes = [2048, 8192] if quick else [2048, 8192, 32768]
    precisions = [False, True] if bfloat16 else [False]
    return [Case(d, l0, a) for d in sizes for l0 in (16, 64) for a in precisions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--memory-of")
    parser.add_argument("--case", type=json.loads)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(peak_memory(arguments.memory_of, Case(**arguments.case)))
        return
    bfloat16 = supports_bfloat16()
    rows = []
    for case in cases(arguments.quick, bfloat16):
        timed = time_case(case, arguments.steps)
        # memory hardly depends on L0: once a width will do
        for name in architectures(case) if case.l0 == 64 else ():
            timed[name]["peak_memory_bytes"] = memory_in_own_process(name, case, arguments.threads)
        rows.append({**asdict(case), "architectures": timed})
        print(table(case, timed), flush=True)
    main_case = Case(8192, 64, autocast=False)
    share = adaptation_share(main_case, 20)
    print(f"bias adaptation: {share:.2%} of the step")
    result = {
        "provenance": provenance(),
        "d_in": D_IN,
        "batch": BATCH,
        "steps": arguments.steps,
        "bfloat16_measured": bfloat16,
        "bias_adaptation_share_of_step": share,
        "cases": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def table(case: Case, timed: dict[str, dict[str, float]]) -> str:
    lines = [f"\n{case}\n{'':16s} batchtopk/this  this/encoder  ms/step  peak MiB"]
    for name, row in timed.items():
        memory = row.get("peak_memory_bytes", float("nan")) / 2**20
        lines.append(
            f"{name:16s} {row['batchtopk_over_this']:14.2f}  "
            f"{row['this_over_encoder_product']:12.2f}  {row['seconds'] * 1e3:7.0f}  {memory:8.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
