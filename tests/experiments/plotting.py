"""Results of tiny experiments, plotted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.lab.plots import Plot, plot_results
from experiments.lab.results import Tables, provenance, write_result


def assert_plotted(
    plots: Mapping[str, Plot], name: str, config: Any, tables: Tables, folder: Path
) -> None:
    """A result that was written gives a plot with something in it."""
    write_result(folder / f"{name}_quick.json", name, config, tables, provenance())
    plot_results(plots, [str(folder)])
    assert (folder / f"{name}_quick.png").stat().st_size > 5000
