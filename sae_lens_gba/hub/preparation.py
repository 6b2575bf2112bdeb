"""From what the user passed to a folder that is laid out as the repo will be, checked."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sae_lens_gba.errors import (
    DamagedFileError,
    InvalidPublicationError,
    MissingFileError,
    WrongShapeError,
)
from sae_lens_gba.hub.frequency_plot import save_frequency_plot
from sae_lens_gba.hub.model_card import CardEntry
from sae_lens_gba.hub.validation import (
    check_no_private_values,
    check_publishable,
    check_sae_id,
)
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.saved.files import ALL_FILES, PLOT_FILENAME
from sae_lens_gba.saved.saved_sae import SavedSAE, as_saved, read_saved
from sae_lens_gba.training_sae import GBATrainingSAE

Source = GBATrainingSAE | str | Path
Sources = Source | Sequence[Source] | Mapping[str, Source]

# settings of a run that say where its files were on one machine, and nothing about the SAE
_PLACES = (
    "cached_activations_path",
    "checkpoint_path",
    "from_pretrained_path",
    "output_path",
    "resume_from_checkpoint",
)


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
    for given_id, source in tqdm(sources, desc="Preparing SAEs", disable=not show_progress):
        saved = _saved(source, given_id)
        sae_id = given_id or _default_id({**saved.cfg["metadata"], **metadata}, saved)
        if any(entry.sae_id == sae_id for entry in staged.entries):
            raise InvalidPublicationError(
                f"two of the SAEs have the same id {sae_id!r}: pass a dict with ids of your own, "
                "such as {'seed_0': ..., 'seed_1': ...}."
            )
        named = {"neuronpedia_id": neuronpedia_ids[sae_id]} if sae_id in neuronpedia_ids else {}
        saved = _annotated(saved, {**metadata, **named}, evaluations.get(sae_id))
        check_publishable(saved, sae_id)
        staged.entries.append(_write(saved, work, sae_id))
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


def _saved(source: Source, sae_id: str | None) -> SavedSAE:
    try:
        if isinstance(source, GBATrainingSAE):
            return as_saved(source)
        if not isinstance(source, str | Path):
            raise InvalidPublicationError(
                f"a {type(source).__name__} can't be published: pass a GBATrainingSAE, the output "
                "folder of a run, or a training checkpoint."
            )
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise MissingFileError(
                f"{folder} is not a folder: pass the output folder of a GBA run."
            )
        return read_saved(folder)
    except (DamagedFileError, WrongShapeError) as error:
        name = "an SAE" if sae_id is None else f"SAE {sae_id!r}"
        raise InvalidPublicationError(f"{name} can't be published: {error}") from error


def _default_id(metadata: Mapping[str, Any], saved: SavedSAE) -> str:
    """``{hook_name}/l0_{L0 asked for}/width_{d_sae}``: blocks.8.hook_resid_post/l0_32/width_4608.

    Raises:
        InvalidPublicationError: the SAE has no hook_name, or none that an id can be made of.
    """
    hook_name = metadata.get("hook_name")
    if not hook_name:
        raise InvalidPublicationError(
            "an SAE has no hook_name in its metadata: pass metadata={'hook_name': ...}."
        )
    l0 = float(_groups(saved).target_frequency.sum())
    sae_id = f"{hook_name}/l0_{round(l0) if l0 >= 10 else f'{l0:.2g}'}/width_{saved.d_sae}"
    check_sae_id(sae_id)
    return sae_id


def _groups(saved: SavedSAE) -> NeuronGroups:
    assert saved.groups is not None  # nothing else is published
    return saved.groups


def _annotated(
    saved: SavedSAE, metadata: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> SavedSAE:
    """``saved`` with its configurations as they are published.

    Where the run's files were on this machine is removed from runner_cfg.json; ``metadata``
    replaces fields of both; group summary and evaluation go to ``metadata.gba`` of cfg.json,
    where a reader finds them without the weights.
    """
    known = {**(saved.cfg.get("metadata") or {}), **metadata}
    gba = {"version": version("sae-lens-gba"), **(known.get("gba") or {})}
    gba["groups"] = _groups(saved).summary()
    if evaluation is not None:
        gba["evaluation"] = dict(evaluation)
    # where it was trained is of no use to the one who loads it
    cfg = {**saved.cfg, "device": "cpu", "metadata": {**known, "gba": gba}}
    runner_cfg = saved.runner_cfg
    if runner_cfg is not None:
        changes = {**dict.fromkeys(_PLACES), **metadata}
        runner_cfg = {name: changes.get(name, value) for name, value in runner_cfg.items()}
    return replace(saved, cfg=cfg, runner_cfg=runner_cfg)


def _write(saved: SavedSAE, work: Path, sae_id: str) -> CardEntry:
    """Write a checked SAE and its plot, and say what the card needs of it."""
    saved.save(work / sae_id)
    drawn = save_frequency_plot(_groups(saved), work / sae_id / PLOT_FILENAME, sae_id)
    return CardEntry.from_cfg(sae_id, saved.cfg, f"{sae_id}/{PLOT_FILENAME}" if drawn else None)


def _check_all_ids_known(staged: StagedSAEs, name: str, by_id: Mapping[str, Any]) -> None:
    known = [entry.sae_id for entry in staged.entries]
    unknown = [sae_id for sae_id in by_id if sae_id not in known]
    if unknown:
        raise InvalidPublicationError(
            f"{name} has {unknown}, but the SAEs to publish are {known}: use their ids."
        )
    check_no_private_values(dict(by_id), name)
