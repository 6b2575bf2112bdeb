"""The same few lines at the end of every experiment's script."""

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from experiments.lab.results import RESULTS, Tables, provenance, update_result, write_result

ConfigT = TypeVar("ConfigT")


def run_experiments(
    description: str | None,
    configs: Mapping[str, ConfigT],
    run: Callable[[ConfigT], Tables],
    quick: Mapping[str, Any],
    argv: list[str] | None = None,
    by_method: bool = False,
) -> list[Path]:
    """Run a script's experiments one after the other, each with its JSON.

    Options: ``--quick`` for a reduced size (its result goes to another file, so that it
    never replaces a full one), ``--results`` for the folder, ``--threads``.

    Args:
        description: for ``--help``.
        configs: of the full size, dataclasses by the names of the results' files.
        run: the experiment; returns named lists of rows of plain values.
        quick: fields of every config that ``--quick`` replaces.
        argv: arguments; None takes those of the process.
        by_method: whether ``--methods`` can choose some of ``config.methods``; of the others the
            result keeps the rows that it has.

    Returns:
        The files written.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="reduced size, a few minutes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON result")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--only", choices=list(configs), help="this result alone")
    if by_method:
        parser.add_argument("--methods", nargs="+", help="measure these anew, keep the others")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    # before the runs: in hours of them the source tree may move on, by the first's result at least
    origin = provenance()
    paths = []
    for name, config in configs.items():
        if arguments.only not in (None, name):
            continue
        if arguments.quick:
            config = replace(config, **quick)  # type: ignore[type-var]
        path: Path = arguments.results / f"{name}{'_quick' if arguments.quick else ''}.json"
        methods = getattr(arguments, "methods", None)
        if methods is None:
            write_result(path, name, config, run(config), origin)
        else:
            some = replace(config, methods=tuple(methods))  # type: ignore[type-var]
            update_result(path, name, config, methods, run(some), origin)
        logging.info("wrote %s", path.name)
        paths.append(path)
    return paths
