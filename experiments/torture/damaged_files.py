"""Folders of SAEs, damaged at random, read in a process with bounded memory and time.

What is read must come out as an SAE or as an error of our own; anything else is lost.
"""

import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig
from sae_lens_gba.errors import GBAError
from sae_lens_gba.saved.loading import load

MEMORY, SECONDS = 6 * 2**30, 10  # address space of the process; time of one load
_VALUES: list[Any] = [
    None, True, -1, 0, 10**9, 10**15, 1e308, "", "x", "\ud800", [], [1], {}, {"a": 1}
]  # fmt: skip


def make_folders(parent: Path) -> list[Path]:
    """A checkpoint and the output folder of a run."""
    sae = GBATrainingSAE(GBATrainingSAEConfig(16, 64, n_groups=4, target_l0=4.0))
    sae.save_model(parent / "checkpoint")
    sae.save_inference_model(parent / "run")
    return [parent / "checkpoint", parent / "run"]


def damage(folder: Path, chance: random.Random) -> str:
    """Damage one file of ``folder``; what was done."""
    path = chance.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    content = bytearray(path.read_bytes())
    kind = chance.choice(["cut", "bits", "missing", "value", "value", "value"])
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif kind == "value" and path.suffix == ".json":
        cfg = json.loads(content)
        place = cfg
        while True:
            key = chance.choice(sorted(place))
            if not (isinstance(place[key], dict) and place[key] and chance.random() < 0.7):
                break
            place = place[key]
        place[key] = chance.choice(_VALUES)
        path.write_text(json.dumps(cfg))
    else:  # of the header as a rule: values of weights are anything's
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(min(len(content), 3000))] = chance.randrange(256)
        path.write_bytes(content)
    return f"{kind} in {path.name}"


def outcome(folder: Path) -> str:
    """ "read", "refused", or the name of an error that is none of ours."""
    try:
        load(folder)
    except GBAError as error:
        return "refused" if "\n" not in str(error) else "an error of several lines"
    except BaseException as error:
        return type(error).__name__
    return "read"


def try_folders(n: int, seed: int, limited: bool = True) -> Counter[str]:
    """Outcomes of reading ``n`` damaged folders.

    Args:
        limited: with bounded memory and time, which holds for the rest of the process.
    """
    if limited:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    chance, outcomes = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as work:
        whole = {folder: _contents(folder) for folder in make_folders(Path(work))}
        for _ in range(n):
            folder = chance.choice(list(whole))
            for name, content in whole[folder].items():
                (folder / name).write_bytes(content)
            what = damage(folder, chance)
            if limited:
                signal.signal(signal.SIGALRM, _too_slow)
                signal.alarm(SECONDS)
            result = outcome(folder)
            if limited:
                signal.alarm(0)
            outcomes[result if result in ("read", "refused") else f"{result}: {what}"] += 1
    return outcomes


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"a load took more than {SECONDS} seconds")


def rows(scale: float) -> list[dict[str, Any]]:
    """The row of the table; see `experiments.torture.run`."""
    n = max(20, round(900 * scale))
    command = [sys.executable, "-m", "experiments.torture.damaged_files", str(n)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    outcomes: dict[str, int] = {}
    if finished.returncode == 0:
        outcomes = json.loads(finished.stdout.splitlines()[-1])
    survived = outcomes.get("read", 0) + outcomes.get("refused", 0)
    return [
        {
            "fault": "a file of a saved SAE is cut, missing, or has other bytes or values",
            "tried": n,
            "survived": survived,
            "lost": n - survived,
            "outcomes": outcomes or {finished.stderr[-500:]: n},
        }
    ]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(try_folders(int(sys.argv[1]), seed=0)) + "\n")
