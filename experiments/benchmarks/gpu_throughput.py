"""Time and memory of a training step on a GPU, each architecture through SAELens' SAETrainer.

One after the other, since together they would not fit; medians over the steps after warm-up, each
waited for. Beside them stands what a GBA step would take at the peak rates of an H100: a bound, not
a measurement.

    python -m experiments.benchmarks.gpu_throughput    # where a GPU is
"""

import gc
import logging
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from experiments.benchmarks.training_throughput import Case, architectures, make_trainer
from experiments.lab.command_line import run_experiments
from experiments.lab.results import Tables
from sae_lens_gba import GBATrainingSAEConfig
from sae_lens_gba.distributed.plan import Plan

WARM_UP = 3
# operations a second of an H100 SXM at its peak
FLOPS = {"float32": 67e12, "tf32": 494e12, "bfloat16 autocast": 989e12}


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark.

    Args:
        sizes: d_in, d_sae, batch and L0 of each case.
        precisions: of products, names in `FLOPS`.
        steps: timed.
        device: where.
    """

    sizes: tuple[tuple[int, int, int, int], ...] = (
        (768, 24576, 4096, 64),
        (2304, 65536, 4096, 64),
        (4096, 131072, 8192, 100),
    )
    precisions: tuple[str, ...] = tuple(FLOPS)
    steps: int = 20
    device: str = "cuda"


def roofline(case: Case, precision: str) -> dict[str, float]:
    """Seconds of a sparse GBA step by parts, and of a dense SAE's five products, at peak rates."""
    product = 2 * case.batch * case.d_in * case.d_sae / FLOPS[precision]
    planned = Plan(case.d_in, case.d_sae, case.batch, l0=case.l0).times()
    del planned["encoder product (bf16)"], planned["between devices"]
    parts = {"encoder product": product, **planned}
    return {**parts, "step": sum(parts.values()), "five dense products": 5 * product}


def time_architecture(cfg: Any, case: Case, steps: int) -> dict[str, Any]:
    """Median seconds of a step, tokens a second, and peak bytes of device memory."""
    on_gpu = case.device.startswith("cuda")
    data = case.batches(4)
    trainer = make_trainer(cfg, case, data[0])
    seconds = []
    for step in range(WARM_UP + steps):
        if on_gpu and step == WARM_UP:
            torch.cuda.reset_peak_memory_stats()
        _wait(on_gpu)
        started = time.perf_counter()
        trainer.step(data[step % len(data)])
        _wait(on_gpu)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[WARM_UP:])
    return {
        "seconds": median,
        "tokens_per_second": case.batch / median,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
    }


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def time_case(case: Case, steps: int) -> dict[str, dict[str, Any]]:
    """Every architecture by its name; one that can't be timed says why."""
    configs = architectures(case)
    always_sparse = replace(configs["gba"], sparse_below_density=1.0)
    assert isinstance(always_sparse, GBATrainingSAEConfig)
    timed: dict[str, dict[str, Any]] = {}
    for name, cfg in {**configs, "gba sparse": always_sparse}.items():
        try:
            timed[name] = time_architecture(cfg, case, steps)
        except RuntimeError as error:  # that memory is out is one
            logging.warning("%s", name, exc_info=True)
            timed[name] = {"seconds": None, "failed": str(error).partition("\n")[0]}
        gc.collect()
        if case.device.startswith("cuda"):
            torch.cuda.empty_cache()
        logging.info("%s %s", name, timed[name])
    return timed


def run(config: Config) -> Tables:
    """Every size in every precision, with the roofline beside it."""
    before = torch.get_float32_matmul_precision()
    rows: list[dict[str, Any]] = []
    for d_in, d_sae, batch, l0 in config.sizes:
        for precision in config.precisions:
            autocast = precision.startswith("bfloat16")
            case = Case(d_in, batch, d_sae, l0, autocast, config.device)
            logging.info("%s, %s", case, precision)
            torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
            try:
                timed = time_case(case, config.steps)
            finally:
                torch.set_float32_matmul_precision(before)
            rows.append(
                {
                    "d_in": d_in, "d_sae": d_sae, "batch": batch, "l0": l0, "precision": precision,
                    "architectures": timed, "roofline_h100": roofline(case, precision),
                }
            )  # fmt: skip
    name = torch.cuda.get_device_name() if config.device.startswith("cuda") else config.device
    return {"cases": rows, "device": [{"name": name}]}


def main(argv: list[str] | None = None) -> None:
    """Run where a GPU is; say so where none is."""
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use here: nothing was measured.")
        return
    run_experiments(
        "Time and memory of a training step of each architecture, on a GPU.",
        {"gpu_throughput": Config()},
        run,
        quick={"sizes": ((768, 24576, 4096, 64),), "steps": 5},
        argv=argv,
    )


if __name__ == "__main__":
    main()
