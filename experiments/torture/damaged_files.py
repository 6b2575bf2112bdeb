"""Folders of SAEs, damaged at random, opened in a process with bounded memory and time.

They are loaded, listed and published, from this machine and from a Hub. What is opened must be read
or end in an error of our own; anything else is lost.
"""

import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from experiments.torture.training import publishable_sae
from sae_lens_gba.errors import GBAError
from sae_lens_gba.hub.publishing import publish
from sae_lens_gba.saved.loading import list_published, load
from tests.local_hub import LocalHub

MEMORY, SECONDS = 6 * 2**30, 10  # address space of the process; time to open one
REPO = "user/saes"
# what is done with the folder, the words of the table for it, and how often
DOORS = {
    "load": ("a file of a saved SAE is cut, missing, or has other bytes or values", 900),
    "list_published": ("the same, in a folder of SAEs that is listed", 300),
    "publish": ("the same, in an SAE that is published", 300),
    "list_published of a repo": ("the same, in a repo that is listed", 300),
    "publish beside": ("the same, in a repo to which another SAE is published", 300),
}
_NESTED: dict[str, Any] = {}
for _ in range(800):
    _NESTED = {"a": _NESTED}
_VALUES: list[Any] = [
    None, True, -1, 0, 10**9, 10**15, 10**400, 1e308, float("nan"), "", "x", "\ud800", "a\nb\r# c",
    "\x00", "../../x", "<script>", "x" * 10**6, [], [1], [None], {}, {"a": 1}, {"": ""}, _NESTED,
]  # fmt: skip
_YAML = [
    *(json.dumps(value) for value in _VALUES), "2024-13-45", "2024-01-01", "!!bool x",
    "!!timestamp x", "!!int x", "!!binary x", "0b_", "&a [*a]", "[" * 5000, "{[a]: b}", "<<: 3",
    "!!python/name:os", "@",
]  # fmt: skip
Open = Callable[[Path], object]


class TooSlow(BaseException):
    """Nothing may take it for an error of its own."""


def make_folders(parent: Path) -> list[Path]:
    """A checkpoint and the output folder of a run."""
    sae = publishable_sae()
    sae.save_model(parent / "checkpoint")
    sae.save_inference_model(parent / "run")
    return [parent / "checkpoint", parent / "run"]


def opened_by(door: str, work: Path, hub: LocalHub) -> tuple[list[Path], Open]:
    """Whole folders, and what is done with them once they are damaged."""
    checkpoint, run = make_folders(work / "saes")
    there: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token}

    def send(saes: dict[str, Path]) -> None:
        publish(saes, REPO, license="mit", show_progress=False, **there)

    if door == "load":
        return [checkpoint, run], load
    if door == "list_published":
        return [checkpoint, run], lambda folder: list_published(folder.parent)
    if door == "publish":
        return [checkpoint, run], lambda folder: send({"sae": folder})
    send({"sae": run})
    published = work / "published"
    published.mkdir()
    for name in ("README.md", "sae/cfg.json"):
        (published / Path(name).name).write_bytes(hub.repos[REPO].files()[name])

    def in_repo(then: Callable[[], object]) -> Open:
        def do(folder: Path) -> object:
            files = _contents(folder)
            card = {"README.md": files.pop("README.md")} if "README.md" in files else {}
            of_sae = {f"sae/{name}": content for name, content in files.items()}
            hub.create(REPO).commit("main", {**card, **of_sae}, "damaged")
            return then()

        return do

    if door == "publish beside":
        return [published], in_repo(lambda: send({"other": run}))
    return [published], in_repo(lambda: list_published(REPO, **there))


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
            key = chance.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
            if not (isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7):
                break
            place = place[key]
        place[key] = chance.choice(_VALUES)
        path.write_text(json.dumps(cfg))
    elif kind == "value" and path.suffix == ".md":  # of its front matter
        lines = content.decode().split("\n")
        i = chance.choice([i for i, line in enumerate(lines[:40]) if re.match(r"\w+:", line)])
        lines[i] = f"{lines[i].partition(':')[0]}: {chance.choice(_YAML)}"
        path.write_text("\n".join(lines))
    else:  # of the header as a rule: values of weights are anything's
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(min(len(content), 3000))] = chance.randrange(256)
        path.write_bytes(content)
    return f"{kind} in {path.name}"


def outcome(open_it: Open, folder: Path) -> str:
    """ "read", "refused", or the name of an error that is none of ours."""
    try:
        open_it(folder)
    except GBAError as error:
        said = str(error)
        return "refused" if "\n" not in said and len(said) < 1000 else "an error of many lines"
    except (Exception, TooSlow) as error:
        return type(error).__name__
    return "read"


def try_folders(door: str, n: int, seed: int, limited: bool = True) -> Counter[str]:
    """Outcomes of opening ``n`` damaged folders.

    Args:
        door: of `DOORS`.
        limited: with bounded memory and time, and a cache of its own for downloads, which holds
            for the rest of the process.
    """
    chance, outcomes = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as work, LocalHub() as hub:
        if limited:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.signal(signal.SIGALRM, _too_slow)
            constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE = False, f"{work}/cache"
        folders, open_it = opened_by(door, Path(work), hub)
        whole = {folder: _contents(folder) for folder in folders}
        for _ in range(n):
            folder = chance.choice(folders)
            shutil.rmtree(folder)
            folder.mkdir()
            for name, content in whole[folder].items():
                (folder / name).write_bytes(content)
            what = damage(folder, chance)
            signal.alarm(SECONDS if limited else 0)
            result = outcome(open_it, folder)
            signal.alarm(0)
            outcomes[result if result in ("read", "refused") else f"{result}: {what}"] += 1
    return outcomes


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _too_slow(*_: object) -> None:
    raise TooSlow


def rows(scale: float) -> list[dict[str, Any]]:
    """A row for each of `DOORS`; see `experiments.torture.run`."""
    table = []
    for door, (fault, full_size) in DOORS.items():
        n = max(20, round(full_size * scale))
        command = [sys.executable, "-m", "experiments.torture.damaged_files", door, str(n)]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
        outcomes: dict[str, int] = {}
        if finished.returncode == 0:
            outcomes = json.loads(finished.stdout.splitlines()[-1])
        survived = outcomes.get("read", 0) + outcomes.get("refused", 0)
        table.append(
            {
                "fault": fault,
                "tried": n,
                "survived": survived,
                "lost": n - survived,
                "outcomes": outcomes or {finished.stderr[-500:]: n},
            }
        )
    return table


if __name__ == "__main__":
    sys.stdout.write(json.dumps(try_folders(sys.argv[1], int(sys.argv[2]), seed=0)) + "\n")
