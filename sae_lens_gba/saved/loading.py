"""Loading GBA SAEs from the Hub, a folder or a training checkpoint, and going on with training."""

import logging
from copy import deepcopy
from glob import escape
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_gba.errors import GBAError, MissingFileError
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.saved.description import PublishedSAE, describe
from sae_lens_gba.saved.downloading import download
from sae_lens_gba.saved.files import LOADED_FILES, read_cfg
from sae_lens_gba.saved.saved_sae import SavedSAE, as_saved, own_errors, read_saved
from sae_lens_gba.saved.training_form import training_form
from sae_lens_gba.training_sae import GBATrainingSAE

_CFG_PATTERNS = [SAE_CFG_FILENAME, f"*/{SAE_CFG_FILENAME}"]

logger = logging.getLogger(__name__)


def load(
    source: str | Path,
    sae_id: str | None = None,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    endpoint: str | None = None,
) -> SavedSAE:
    """Load a GBA SAE with its groups.

    Only safetensors and JSON are read. All files are of one commit. Cache, revisions,
    HF_HUB_OFFLINE and tokens work as in huggingface_hub.

    Args:
        source: ``user/repo`` on the Hub, a folder that holds one SAE (output of a run, training
            checkpoint) or several (as a repo does). A folder that exists is taken before a repo.
        sae_id: which SAE of the repo or folder; may be left out if it holds one only.
        revision: branch, tag or commit; None is main.
        device: where to put the SAE.
        dtype: such as "bfloat16" or torch.bfloat16; None is the one it was saved in.
        token: of the Hub; None is the one that is logged in.
        cache_dir: of downloads; None is huggingface_hub's.
        force_download: even what the cache has.
        local_files_only: of what the cache has, nothing else.
        endpoint: of the Hub; None is HF_ENDPOINT, or huggingface.co.

    Raises:
        MissingFileError: repo, revision, SAE or a file of it does not exist.
        NotAGBASAEError: it has no groups, or is of another architecture.
        DamagedFileError: a file is corrupt or truncated.
        WrongShapeError: files do not fit together.
        NewerFormatError: written by a newer sae-lens-gba.
        AccessError: the repo is private or gated, and the token not good for it.
        ConnectionFailedError: the Hub can't be reached, and the cache does not have it.
        StorageError: the cache can't be written, or its disk is full.
    """
    local = _folder(source)
    if local is not None:
        with own_errors(source):
            folder = local / _choose(local, sae_id, str(source))
        return read_saved(folder, device, dtype, sae_id=sae_id, source=str(source))
    repo_id = str(source)
    options: dict[str, Any] = {
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "endpoint": endpoint,
    }
    commit = revision
    if sae_id is None:
        snapshot = download(repo_id, _CFG_PATTERNS, revision=revision, **options)
        sae_id = _choose(snapshot, None, repo_id)
        commit = snapshot.name  # the same, whatever is published in between
    prefix = "" if sae_id == "." else f"{escape(sae_id)}/"
    wanted = [f"{prefix}{name}" for name in sorted(LOADED_FILES)]
    snapshot = download(repo_id, wanted, revision=commit, force_download=force_download, **options)
    if not (snapshot / sae_id / SAE_CFG_FILENAME).is_file():
        raise MissingFileError(
            f"{source} has no SAE {sae_id!r} at {revision or 'main'}: "
            "sae_lens_gba.list_published shows what it has."
        )
    return read_saved(
        snapshot / sae_id, device, dtype, sae_id=sae_id, source=repo_id, commit=snapshot.name
    )


def list_published(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
) -> list[PublishedSAE]:
    """The SAEs in a repo or folder, sorted by id. Downloads their cfg.json files only.

    One that can't be described is left out, with a warning in the log.

    Args:
        source: ``user/repo`` on the Hub, or a folder.
        revision: as in `load`, as are the others.
        token: of the Hub.
        cache_dir: of downloads.
        local_files_only: of what the cache has, nothing else.
        endpoint: of the Hub.

    Raises:
        MissingFileError, AccessError, ConnectionFailedError, StorageError: as in `load`.
    """
    folder = _folder(source)
    if folder is None:
        folder = download(
            str(source),
            _CFG_PATTERNS,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            endpoint=endpoint,
        )
    with own_errors(source):
        ids = _ids(folder)
    listed = []
    for sae_id in ids:
        try:
            with own_errors(f"{source}/{sae_id}"):
                listed.append(describe(sae_id, read_cfg(folder / sae_id)))
        except GBAError as error:  # must not hide the others
            logger.warning("%s is left out of the list: %s", sae_id, error)
    return listed


def to_training_sae(
    sae: SAE[Any] | SavedSAE | str | Path,
    groups: NeuronGroups | None = None,
    **changes: Any,
) -> GBATrainingSAE:
    """A GBATrainingSAE with the function of a stock jumprelu or standard SAE.

    Its settings are those it was trained with, where the SAE says so, with ``changes`` on
    top; nested sets whose weight had fallen to nothing stay away. Groups and L0 are those of
    ``groups``. If a change concerns the frequencies (target_l0, n_groups, ...), or no settings
    give groups of these sizes, the targets go to latents by their measured frequency, highest
    to the most active. Its outputs are the same up to rounding: decoder norms move to
    ``output_scale``. Biases start where they were; b_dec is not started anew.

    For SAELens' ``from_pretrained_path``, save it: ``to_training_sae(...).save_model(folder)``.
    To resume an interrupted run exactly, use the checkpoint itself: this forgets the
    counters since the last adaptation.

    Args:
        sae: a stock SAE, what `load` returns, or a folder.
        groups: of its latents; None takes those of a `SavedSAE` or folder, or, for another
            SAE, groups in the order of its latents.
        changes: fields of `GBATrainingSAEConfig`.

    Raises:
        NotTrainableError: the SAE is of another architecture, or the groups of another SAE.
        ValueError: a setting is not possible.
        GBAError: a folder can't be read; see `load`.
    """
    saved = opened(sae)
    return training_form(saved.sae, saved.groups if groups is None else groups, changes)


def opened(sae: SAE[Any] | SavedSAE | str | Path) -> SavedSAE:
    """An SAE as functions of this package take one: trained with GBA or not, live or a folder."""
    if isinstance(sae, SavedSAE):
        return sae
    if isinstance(sae, TrainingSAE):
        return as_saved(deepcopy(sae))  # which sets its biases
    if isinstance(sae, SAE):
        return SavedSAE(sae, sae.cfg.to_dict())
    folder = Path(sae).expanduser()
    if not folder.is_dir():
        return load(sae)
    return read_saved(folder / _choose(folder, None, str(sae)), groups_required=False)


def _folder(source: str | Path) -> Path | None:
    """The folder that ``source`` names, or None of a repo on the Hub."""
    with own_errors(source):  # is_dir raises where it may not look, or the name is too long
        folder = Path(source).expanduser()
        if folder.is_dir():
            return folder
    text = str(source)
    looks_like_a_path = text.startswith((".", "/", "~")) or "\\" in text or text.count("/") != 1
    if isinstance(source, Path) or looks_like_a_path:
        raise MissingFileError(f"{source} does not exist: pass a folder, or 'user/repo'.")
    return None


def _ids(folder: Path) -> list[str]:
    """Ids of the SAEs below ``folder``; hidden folders are those of writers at work."""
    ids = (path.parent.relative_to(folder) for path in folder.rglob(SAE_CFG_FILENAME))
    return sorted(id.as_posix() for id in ids if not any(p.startswith(".") for p in id.parts))


def _choose(folder: Path, sae_id: str | None, source: str) -> str:
    if sae_id is not None:
        if not (folder / sae_id / SAE_CFG_FILENAME).is_file():
            raise MissingFileError(f"{source} has no SAE {sae_id!r}, it has {_ids(folder)}.")
        return sae_id
    if (folder / SAE_CFG_FILENAME).is_file():
        return "."
    ids = _ids(folder)
    if not ids:
        raise MissingFileError(f"{source} has no {SAE_CFG_FILENAME}: there is no SAE in it.")
    if len(ids) > 1:
        raise MissingFileError(f"{source} has several SAEs, pass one of their ids: {ids}.")
    return ids[0]
