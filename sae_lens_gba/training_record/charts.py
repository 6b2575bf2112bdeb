"""Charts of a training run as PNG files, made from its record alone.

Importing this without the extra ``plots`` is an ImportError that says so.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.group_colors import group_color
from sae_lens_gba.metrics.frequencies import ON_TARGET_WITHIN
from sae_lens_gba.training_record.record import (
    CHARTS_NAME,
    DENSITY_START,
    DENSITY_STOP,
    QUANTILES,
    TrainingRecord,
    record_training,
)

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:  # found before a long run, not after it
    raise ImportError(
        "training charts need matplotlib: install it with pip install 'sae-lens-gba[plots]'."
    ) from error

DOTS_PER_INCH = 110

_log = logging.getLogger(__name__)


def write_training_charts(record: TrainingRecord, folder: str | Path) -> Path:
    """Write ``training_charts.png`` into an existing folder, all or nothing.

    Raises:
        ValueError: the record is empty.
    """
    if not record.step:
        raise ValueError(
            "the training record is empty: the run ended before the first adaptation of the "
            "biases; train for more than adapt_every_n_steps steps."
        )
    figure = draw(record)
    path = Path(folder) / CHARTS_NAME
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=DOTS_PER_INCH))
    return path


def train_with_charts(runner: Any, folder: str | Path) -> Any:
    """Run a SAELens runner on a GBA SAE, and leave record and charts in ``folder``.

    Args:
        runner: has the SAE as ``sae`` and trains it with ``run()``, as
            ``LanguageModelSAETrainingRunner`` does.
        folder: made if need be; the runner's output folder, for example.

    Returns:
        What ``runner.run()`` returns. If it fails, the record up to then is kept.
    """
    with record_training(runner.sae, folder) as record:
        result = runner.run()
    if record.step:
        write_training_charts(record, folder)
    else:
        _log.warning("no charts: the run ended before the first adaptation of the biases.")
    return result


def draw(record: TrainingRecord) -> Figure:
    """All charts in one figure, without touching pyplot's state or screen."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    _group_frequencies(axes[0], record)
    _l0(axes[1], record)
    _density(axes[2], figure, record)
    _bias_quantiles(axes[3], record)
    _line(axes[4], record, record.on_target, f"share within {ON_TARGET_WITHIN:g}x of target")
    axes[4].set_ylim(0, 1)
    _line(axes[5], record, record.dead, "latents below dead_frequency")
    axes[5].set_ylim(bottom=0)
    for ax in axes:
        ax.set_xlabel("optimizer step")
        ax.grid(alpha=0.3)
    return figure


def _group_frequencies(ax: Axes, record: TrainingRecord) -> None:
    by_group, targets = np.array(record.group_frequency).T, np.array(record.target_frequency).T
    for k, (frequency, target) in enumerate(zip(by_group, targets, strict=True)):
        color = group_color(k, len(by_group))
        # a group that is silent cannot be shown on a log axis
        seen = np.where(frequency > 0, frequency, np.nan)
        ax.plot(record.step, seen, color=color, label=f"group {k}")
        ax.plot(record.step, target, color=color, linestyle=":", linewidth=1)
    ax.set_yscale("log")
    ax.set_title("mean frequency by group (dotted: target)")
    ax.legend(fontsize=7, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _l0(ax: Axes, record: TrainingRecord) -> None:
    ax.plot(record.step, record.l0, label="measured")
    ax.plot(record.step, record.target_l0, color="gray", linestyle=":", label="target")
    ax.set_ylim(bottom=0)
    ax.set_title("L0 (active latents a sample)")
    ax.legend()


def _density(ax: Axes, figure: Figure, record: TrainingRecord) -> None:
    edges = np.linspace(DENSITY_START, DENSITY_STOP, len(record.density[0]) + 1)
    steps = np.concatenate([[0], record.step])
    counts = np.array(record.density, dtype=float).T
    occupied = np.flatnonzero(counts.any(axis=1))
    mesh = ax.pcolormesh(steps, edges, np.where(counts > 0, counts, np.nan), cmap="viridis")
    if len(occupied):
        ax.set_ylim(edges[occupied[0]], edges[occupied[-1] + 1])
    figure.colorbar(mesh, ax=ax, label="latents")
    ax.set_ylabel("log10 frequency")
    ax.set_title("density of frequencies")


def _bias_quantiles(ax: Axes, record: TrainingRecord) -> None:
    quantiles = np.array(record.bias_quantiles).T
    middle = len(QUANTILES) // 2
    for low in range(middle):
        high = len(QUANTILES) - 1 - low
        label = f"{QUANTILES[low]:.0%} to {QUANTILES[high]:.0%}"
        ax.fill_between(
            record.step, quantiles[low], quantiles[high], color="C0", alpha=0.25, label=label
        )
    ax.plot(record.step, quantiles[middle], color="C0", label="median")
    ax.set_title("biases")
    ax.legend(fontsize=8)


def _line(ax: Axes, record: TrainingRecord, values: list[Any], title: str) -> None:
    ax.plot(record.step, values)
    ax.set_title(title)
