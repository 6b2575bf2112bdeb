"""The same few lines at the end of every experiment's script."""

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from experiments.lab.results import Tables, provenance, write_result

ConfigT = TypeVar("ConfigT")


def run_experiment(
    name: str,
    description: str,
    config: ConfigT,
    quick: dict[str, Any],
    run: Callable[[ConfigT], Tables],
    results: Path,
    argv: list[str] | None = None,
) -> Path:
    """Run an experiment from the command line and write its JSON.

    Options: ``--quick`` for a reduced size (its result goes to another file, so that it
    never replaces a full one), ``--results`` for the folder, ``--threads``.

    Args:
        name: of the result's file.
        description: for ``--help``.
        config: of the full size, a dataclass.
        quick: fields of ``config`` that ``--quick`` replaces.
        run: the experiment; returns named lists of rows of plain values.
        results: default folder of results.
        argv: arguments; None takes those of the process.

    Returns:
        The file written.
    """
    (path,) = run_experiments({name: config}, description, quick, run, results, argv)
    return path


def run_experiments(
    configs: Mapping[str, ConfigT],
    description: str,
    quick: dict[str, Any],
    run: Callable[[ConfigT], Tables],
    results: Path,
    argv: list[str] | None = None,
) -> list[Path]:
    """Several experiments of one script, one after the other; as `run_experiment`.

    Args:
        configs: of the full size, by the names of the results' files.
        description: for ``--help``.
        quick: fields of every config that ``--quick`` replaces.
        run: the experiment; returns named lists of rows of plain values.
        results: default folder of results.
        argv: arguments; None takes those of the process.

    Returns:
        The files written.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="reduced size, a few minutes")
    parser.add_argument("--results", type=Path, default=results, help="folder of the JSON result")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    # before the runs: in hours of them the source tree may move on, by the first's result at least
    origin = provenance()
    paths = []
    for name, config in configs.items():
        if arguments.quick:
            config = replace(config, **quick)  # type: ignore[type-var]
        path: Path = arguments.results / f"{name}{'_quick' if arguments.quick else ''}.json"
        write_result(path, name, config, run(config), origin)
        logging.info("wrote %s", path.name)
        paths.append(path)
    return paths
