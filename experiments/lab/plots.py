"""What the plots of results share. They read JSON and never train."""

import argparse
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from experiments.lab.results import RESULTS

Rows = list[dict[str, Any]]
Plot = Callable[[dict[str, Any]], Figure]


def group_by(rows: Rows, *names: str) -> dict[tuple[Any, ...], Rows]:
    """Rows by the values of some fields, in order of first appearance."""
    groups: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return dict(groups)


def values(rows: Rows, name: str) -> list[Any]:
    """One field of every row."""
    return [row[name] for row in rows]


def mean_of(rows: Rows, name: str) -> float:
    """Mean of one field over rows."""
    return fmean(values(rows, name))


def plot_results(plots: Mapping[str, Plot], argv: list[str] | None = None) -> None:
    """Plot the results in a folder of which experiment there is a plot; PNGs go beside the JSON.

    Args:
        plots: by the names of the experiments.
        argv: the folder; None takes the arguments of the process.
    """
    parser = argparse.ArgumentParser(description="Plots of the results in a folder.")
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    folder: Path = parser.parse_args(argv).results
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if result["experiment"] in plots:
            figure = plots[result["experiment"]](result)
            _caption(figure, result)
            figure.savefig(path.with_suffix(".png"), dpi=120, bbox_inches="tight")
            logging.info("wrote %s", path.with_suffix(".png").name)


def _caption(figure: Figure, result: dict[str, Any]) -> None:
    """Where the numbers come from, in small print."""
    origin, seeds = result["provenance"], result["config"].get("seeds")
    commit = (origin["git_commit"] or "unknown commit")[:10]
    text = f"sae-lens-gba {origin['versions']['sae-lens-gba']} · {commit}"
    if seeds:
        text = f"seeds {seeds} · {text}"
    figure.text(0.995, 0.005, text, ha="right", va="bottom", fontsize=6, color="grey")
