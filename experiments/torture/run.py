"""Everything that may go wrong, done on purpose: what was tried, survived and lost, in one JSON.

    python -m experiments.torture.run [--quick]

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
    """How much of it, and of which modules."""

    scale: float = 1.0
    modules: tuple[str, ...] = MODULES


def run(config: Config) -> Tables:
    rows = []
    for name in config.modules:
        try:
            rows += import_module(f"experiments.torture.{name}").rows(config.scale)
        except Exception as error:  # what the other modules found must not be lost with it
            logger.exception("%s failed", name)
            rows.append(
                {"fault": f"{name} failed: {error!r}", "tried": 1, "survived": 0, "lost": 1}
            )
        logger.info("%s: %d rows, %d lost", name, len(rows), sum(row["lost"] for row in rows))
    return {"rows": rows}


def main() -> None:
    run_experiments(__doc__, {"torture": Config()}, run, quick={"scale": 0.1})


if __name__ == "__main__":
    main()
