"""From what the user passed to a folder that is laid out as the repo will be, checked."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_gba.errors import (
    DamagedFileError,
    GBAError,
    InvalidPublicationError,
    MissingFileError,
    WrongShapeError,
    brief,
)
from sae_lens_gba.hub.frequency_plot import save_frequency_plot
from sae_lens_gba.hub.model_card import CardEntry
from sae_lens_gba.hub.validation import (
    check_no_private_values,
    check_plain,
    check_publishable,
    check_sae_id,
    in_metadata,
)
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.saved.evaluation import EVALUATION_FILENAME, read_evaluation
from sae_lens_gba.saved.files import ALL_FILES, PLOT_FILENAME
from sae_lens_gba.saved.saved_sae import SavedSAE, as_saved, own_errors, read_saved
from sae_lens_gba.training_sae import GBATrainingSAE

_log = logging.getLogger(__name__)

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
# that an SAE's metadata may lack
_OF_ANY_METADATA = ("dataset_path", "hook_name", "model_name", "neuronpedia_id")
# settings of a run that cfg.json lacks, from which the card is made
_OF_THE_RUN = (
    "training_tokens", "train_batch_size_tokens", "lr", "lr_end", "lr_scheduler_name",
    "lr_warm_up_steps", "lr_decay_steps", "seed",
)  # fmt: skip


def prepare(
    saes: Sources,
    work: Path,
    metadata: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    neuronpedia_ids: Mapping[str, str],
    show_progress: bool,
) -> list[CardEntry]:
    """Write the SAEs into ``work``, each into a folder named by its id; see `publish`."""
    entries: dict[str, CardEntry] = {}
    check_plain(metadata, "metadata")
    check_plain(metadata.get("gba", {}), "metadata['gba']")
    check_plain(evaluations, "evaluations")
    for name, content in evaluations.items():
        check_plain(content, f"evaluations[{name!r}]")
    sources = _with_ids(saes)
    for given_id, source in tqdm(sources, desc="Preparing SAEs", disable=not show_progress):
        saved = _saved(source, given_id)
        _check_names(metadata, saved.cfg)
        sae_id = _default_id(saved, metadata) if given_id is None else given_id
        check_sae_id(sae_id)
        if sae_id in entries:
            raise InvalidPublicationError(
                f"two of the SAEs have the same id {sae_id!r}: give ids of your own, a dict such "
                "as {'seed_0': ..., 'seed_1': ...} or seed_0=FOLDER on the command line."
            )
        named = {"neuronpedia_id": neuronpedia_ids[sae_id]} if sae_id in neuronpedia_ids else {}
        measured = evaluations.get(sae_id) or _evaluation_beside(source)
        saved = _annotated(saved, {**metadata, **named}, measured)
        check_publishable(saved, sae_id)
        saved.write_files(work / sae_id)
        plot = f"{sae_id}/{PLOT_FILENAME}"
        drawn = save_frequency_plot(_groups(saved), work / plot, sae_id)
        with _as_readers_will(sae_id):
            SAE.load_from_disk(work / sae_id)
            entries[sae_id] = CardEntry.from_cfg(sae_id, saved.cfg, plot if drawn else None)
    for name, by_id in (("evaluations", evaluations), ("neuronpedia_ids", neuronpedia_ids)):
        unknown = [sae_id for sae_id in by_id if sae_id not in entries]
        if unknown:
            raise InvalidPublicationError(
                f"{name} has {unknown}, but the SAEs to publish are {list(entries)}: use their ids."
            )
        check_no_private_values(by_id, name)
    return list(entries.values())


def _check_names(metadata: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    """Other fields than the SAE has may be added: with a warning where one of them may be meant."""
    known = {*(cfg.get("metadata") or {}), *_OF_ANY_METADATA}
    for name in [name for name in metadata if name not in known]:
        if name in cfg:
            raise InvalidPublicationError(
                f"metadata has {name!r}, which is a setting of the SAE itself: leave it out."
            )
        for meant in get_close_matches(name, known, n=1, cutoff=0.9):
            _log.warning("metadata has %r, a field of its own: did you mean %r?", name, meant)


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
        with own_errors(source):
            folder = Path(source).expanduser()
            if not folder.is_dir():
                raise MissingFileError(
                    f"{folder} is not a folder: pass the output folder of a GBA run."
                )
            _check_links(folder)
        return read_saved(folder)
    except (DamagedFileError, WrongShapeError) as error:
        name = "an SAE" if sae_id is None else f"SAE {sae_id!r}"
        raise InvalidPublicationError(f"{name} can't be published: {error}") from error


def _check_links(folder: Path) -> None:
    """What a link leads to was not meant to be published, as far as anyone can say."""
    for name in (*ALL_FILES, EVALUATION_FILENAME):
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InvalidPublicationError(
                f"{path} is a link that leads out of the SAE's folder: put the file itself there, "
                "if it is to be published."
            )


@contextmanager
def _as_readers_will(sae_id: str) -> Iterator[None]:
    try:
        with own_errors(sae_id):
            yield
    except GBAError as error:
        raise InvalidPublicationError(
            f"SAE {sae_id!r} could not be loaded by anyone ({brief(str(error.__cause__))}): fix "
            "its cfg.json or metadata."
        ) from error


def _evaluation_beside(source: Source) -> dict[str, Any] | None:
    """What ``sae-lens-gba report`` measured of the SAE in a folder."""
    if isinstance(source, GBATrainingSAE):
        return None
    try:
        found = read_evaluation(Path(source).expanduser())
    except DamagedFileError as error:
        raise InvalidPublicationError(f"an SAE can't be published: {error}") from error
    return None if found is None else asdict(found)


def _default_id(saved: SavedSAE, metadata: Mapping[str, Any]) -> str:
    """Hook, L0 asked for and width, such as blocks.8.hook_resid_post/l0_32/width_4608."""
    hook_name = {**(saved.cfg.get("metadata") or {}), **metadata}.get("hook_name")
    if not hook_name:
        raise InvalidPublicationError(
            f"an SAE has no hook_name in its metadata: {in_metadata('hook_name', '...')}."
        )
    l0 = float(_groups(saved).target_frequency.sum())
    return f"{hook_name}/l0_{round(l0) if l0 >= 10 else f'{l0:.2g}'}/width_{saved.d_sae}"


def _groups(saved: SavedSAE) -> NeuronGroups:
    assert saved.groups is not None  # nothing else is published
    return saved.groups


def _annotated(
    saved: SavedSAE, metadata: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> SavedSAE:
    """``saved`` with its configurations as they are published.

    Where the run's files were on this machine is removed from runner_cfg.json; ``metadata``
    replaces fields of both; group summary, evaluation and what the card shows of the run go to
    ``metadata.gba`` of cfg.json, where a reader finds them without the weights.
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
        gba["run"] = {name: runner_cfg[name] for name in _OF_THE_RUN if name in runner_cfg}
    return replace(saved, cfg=cfg, runner_cfg=runner_cfg)
