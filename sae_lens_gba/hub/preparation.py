"""From what the user passed to a folder that is laid out as the repo will be, checked."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME
from tqdm.auto import tqdm

from sae_lens_gba.errors import InvalidPublicationError
from sae_lens_gba.hub.frequency_plot import save_frequency_plot
from sae_lens_gba.hub.model_card import CardEntry
from sae_lens_gba.hub.staging import Source, annotate, default_sae_id, stage
from sae_lens_gba.hub.validation import (
    check_no_private_values,
    check_sae_id,
    check_staged_sae,
)
from sae_lens_gba.saved.files import ALL_FILES, PLOT_FILENAME, read_groups, read_json

Sources = Source | Sequence[Source] | Mapping[str, Source]


@dataclass
class StagedSAEs:
    """SAEs that are ready to go: a folder laid out as the repo will be."""

    folder: Path
    entries: list[CardEntry] = field(default_factory=list)

    def paths(self) -> dict[str, Path]:
        ids = [entry.sae_id for entry in self.entries]
        candidates = ((f"{id}/{name}", self.folder / id / name) for id in ids for name in ALL_FILES)
        return {name: path for name, path in candidates if path.is_file()}


@contextmanager
def working_folder(folder: str | Path | None, keep: bool) -> Iterator[Path]:
    if folder is None:
        path, new = Path(tempfile.mkdtemp(prefix="sae-lens-gba-")), True
    else:
        path = Path(folder).expanduser()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InvalidPublicationError(
                f"folder={str(folder)!r} is not empty: name a new one, or remove what is there."
            )
        new, keep = not path.exists(), True
        path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            # an empty folder that was there before is the user's own, and stays
            for written in [path] if new else list(path.iterdir()):
                if written.is_dir():
                    shutil.rmtree(written, ignore_errors=True)
                else:
                    written.unlink(missing_ok=True)


def prepare(
    saes: Sources,
    work: Path,
    metadata: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    neuronpedia_ids: Mapping[str, str],
    show_progress: bool,
) -> StagedSAEs:
    sources = _with_ids(saes)
    for sae_id, _ in sources:
        if sae_id is not None:
            check_sae_id(sae_id)
    staged = StagedSAEs(work)
    incoming = work / ".incoming"  # no id can begin with a dot
    for given_id, source in tqdm(sources, desc="Preparing SAEs", disable=not show_progress):
        stage(source, incoming)
        annotate(incoming, metadata, None)
        sae_id = _id_of(incoming, given_id)
        if any(entry.sae_id == sae_id for entry in staged.entries):
            raise InvalidPublicationError(
                f"two of the SAEs have the same id {sae_id!r}: pass a dict with ids of your own, "
                "such as {'seed_0': ..., 'seed_1': ...}."
            )
        named = {"neuronpedia_id": neuronpedia_ids[sae_id]} if sae_id in neuronpedia_ids else {}
        annotate(incoming, named, evaluations.get(sae_id))
        check_staged_sae(incoming, sae_id)
        staged.entries.append(_finish(incoming, work, sae_id))
    _check_all_ids_known(staged, "evaluations", evaluations)
    _check_all_ids_known(staged, "neuronpedia_ids", neuronpedia_ids)
    return staged


def _with_ids(saes: Sources) -> list[tuple[str | None, Source]]:
    if isinstance(saes, Mapping):
        sources: list[tuple[str | None, Source]] = list(saes.items())
    elif isinstance(saes, list | tuple):
        sources = [(None, source) for source in saes]
    else:
        sources = [(None, saes)]  # type: ignore[list-item]
    if not sources:
        raise InvalidPublicationError("saes is empty: pass at least one SAE.")
    return sources


def _id_of(folder: Path, given_id: str | None) -> str:
    if given_id is not None:
        return given_id
    cfg = read_json(folder / SAE_CFG_FILENAME)
    sae_id = default_sae_id(cfg, read_groups(folder, cfg["d_sae"]))
    check_sae_id(sae_id)
    return sae_id


def _finish(incoming: Path, work: Path, sae_id: str) -> CardEntry:
    """Move a checked SAE to its place, draw its plot, and say what the card needs of it."""
    destination = work / sae_id
    destination.mkdir(parents=True, exist_ok=True)
    for path in incoming.iterdir():
        path.rename(destination / path.name)
    incoming.rmdir()
    cfg = read_json(destination / SAE_CFG_FILENAME)
    groups = read_groups(destination, cfg["d_sae"])
    drawn = save_frequency_plot(groups, destination / PLOT_FILENAME, sae_id)
    return CardEntry.from_cfg(sae_id, cfg, f"{sae_id}/{PLOT_FILENAME}" if drawn else None)


def _check_all_ids_known(staged: StagedSAEs, name: str, by_id: Mapping[str, Any]) -> None:
    known = [entry.sae_id for entry in staged.entries]
    unknown = [sae_id for sae_id in by_id if sae_id not in known]
    if unknown:
        raise InvalidPublicationError(
            f"{name} has {unknown}, but the SAEs to publish are {known}: use their ids."
        )
    check_no_private_values(dict(by_id), name)
