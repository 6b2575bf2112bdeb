"""Everything that may go wrong, done on purpose: what was tried, survived and lost, in JSON files.

    python -m experiments.torture.run [--quick] [--only torture/MODULE]

A module of faults has ``rows(scale)``, which gives dicts with ``fault``, ``tried``, ``survived``
and ``lost``; name it in `MODULES`. ``scale`` 1 is the full size.
"""

import logging
from dataclasses import dataclass
from importlib import import_module

from experiments.lab.command_line import run_experiments
from experiments.lab.results import Tables

MODULES = (
    "damaged_files", "properties", "strange_data", "storage", "killed_runs", "publishers",
    "determinism", "soak",
)  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """How much of a module."""

    module: str
    scale: float = 1.0


def run(config: Config) -> Tables:
    try:
        rows = import_module(f"experiments.torture.{config.module}").rows(config.scale)
    except Exception as error:  # the other modules must not be lost with it
        logger.exception("%s failed", config.module)
        fault = f"{config.module} failed: {error!r}"
        rows = [{"fault": fault, "tried": 1, "survived": 0, "lost": 1}]
    logger.info("%s: %d rows, %d lost", config.module, len(rows), sum(row["lost"] for row in rows))
    return {"rows": rows}


def main() -> None:
    configs = {f"torture/{module}": Config(module) for module in MODULES}
    run_experiments(__doc__, configs, run, quick={"scale": 0.1})


if __name__ == "__main__":
    main()
