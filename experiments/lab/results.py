"""Results of experiments as JSON, with all that is needed to repeat them."""

import json
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch

from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.provenance import package_versions, utc_now

RESULTS = Path(__file__).parents[1] / "results"

_made: list[dict[str, str | None]] = []  # of what `once` gave since the last result was written

T = TypeVar("T")
Tables = dict[str, list[dict[str, Any]]]


def write_result(
    path: Path,
    experiment: str,
    config: Any,
    tables: Tables,
    origin: dict[str, Any],
    earlier: dict[str, Any] | None = None,
) -> None:
    """Write one experiment's result, all or nothing.

    Args:
        path: of the JSON file; its folder is made.
        experiment: its name.
        config: the dataclass it was run with, seeds included.
        tables: named lists of rows of plain values; "rows" is the main one.
        origin: `provenance` when the experiment began.
        earlier: of the methods that were measured before, by name.
    """
    result = {
        "experiment": experiment,
        "config": asdict(config),
        "provenance": origin | _computed(),
        **({"earlier": earlier} if earlier else {}),
        **tables,
    }
    text = json.dumps(result, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write_text(text))


def update_result(
    path: Path,
    experiment: str,
    config: Any,
    methods: Sequence[str],
    tables: Tables,
    origin: dict[str, Any],
) -> None:
    """Replace the rows of some methods; those of the others stay, with their own provenance.

    Args:
        path: of the JSON file; it need not exist.
        methods: which ``tables`` are of; their rows name them as "method".
        experiment, config, origin: as for `write_result`.
    """
    old = json.loads(path.read_text()) if path.is_file() else {}
    kept = {
        name: [row for row in old.get(name, []) if row["method"] not in methods] for name in tables
    }
    earlier = {**old.get("earlier", {})}
    if old:
        for method in {row["method"] for row in kept["rows"]}:
            earlier.setdefault(method, old["provenance"])
    earlier = {name: one for name, one in earlier.items() if name not in methods}
    merged: dict[str, Any] = {name: kept[name] + tables[name] for name in tables}
    write_result(path, experiment, config, merged, origin, earlier)


def once(folder: Path, key: dict[str, Any], compute: Callable[[], T]) -> T:
    """What ``compute`` gave when it was first asked for under ``key``; kept as JSON in ``folder``.

    A long experiment that was stopped goes on where it was. Delete the folder when code
    that the results depend on has changed.
    """
    path = result_folder(folder, key).with_suffix(".json")
    if not path.is_file():
        made = {"date": utc_now(), "git_commit": _git("rev-parse", "HEAD")}
        text = json.dumps({"key": key, "value": compute(), "made": made})
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write_text(text))
    content = json.loads(path.read_text())
    written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    _made.append(content.get("made") or {"date": written.isoformat(timespec="seconds")})
    value: T = content["value"]
    return value


def _computed() -> dict[str, Any]:
    """When the rows that `once` gave were computed, and with which commits, as far as is known."""
    if not _made:
        return {}
    dates = sorted(str(one["date"]) for one in _made)
    commits = sorted({str(one.get("git_commit")) for one in _made})
    _made.clear()
    return {"rows_computed": {"from": dates[0], "to": dates[-1], "git_commits": commits}}


def result_folder(folder: Path, key: dict[str, Any]) -> Path:
    """In ``folder``, for what belongs to ``key`` alone."""
    return folder / sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def provenance() -> dict[str, Any]:
    """Versions, git commit, date and command of this process; results don't make a tree dirty."""
    script, *arguments = sys.argv
    code = ("--", ":(top)", ":(top,exclude)experiments/results")
    return {
        "command": shlex.join(["python", Path(script).name, *arguments]),
        "date": utc_now(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no", *code)),
        "python": platform.python_version(),
        "versions": package_versions(),
        "machine": platform.machine(),
        "torch_threads": torch.get_num_threads(),
    }


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float]:
    """Mean, and standard deviation over runs (n - 1); 0 for a single run."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), deviation


def _git(*arguments: str) -> str | None:
    """Output of a git command in this package's source tree; None where there is none."""
    try:
        finished = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return finished.stdout.strip()
