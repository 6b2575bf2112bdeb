"""Loading published GBA SAEs, from the Hub, a folder or a training checkpoint."""

import tempfile
from dataclasses import dataclass, field, fields
from glob import escape
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from sae_lens import SAE
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
)

from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.errors import MissingFileError, NewerFormatError
from sae_lens_gba.hub.model_card import CardEntry
from sae_lens_gba.hub.staging import is_checkpoint, stage
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.saved.downloading import download
from sae_lens_gba.saved.files import (
    ALL_FILES,
    PLOT_FILENAME,
    check_weights,
    read_groups,
    read_json,
    read_sparsity,
)
from sae_lens_gba.training_sae import GBATrainingSAE


@dataclass(frozen=True)
class LoadedSAE:
    """A GBA SAE in its stock form, with what this package knows about it.

    Attributes:
        sae: the SAE as SAELens itself loads it.
        groups: group, target and measured frequency of each latent, (d_sae,) each.
        training_config: settings it was trained with; None if bias adaptation was attached to
            another architecture.
        cfg: content of cfg.json.
        log_sparsity: log10 of each latent's frequency, (d_sae,), None if not published.
        runner_cfg: settings of the training run, None if not published.
        sae_id: its id in the repo; None for a folder of a single SAE.
        source: the repo or folder.
        commit: the commit it was loaded from; None for a folder.
    """

    sae: SAE[Any] = field(repr=False)
    groups: NeuronGroups = field(repr=False)
    training_config: GBATrainingSAEConfig | None = field(repr=False)
    cfg: dict[str, Any] = field(repr=False)
    log_sparsity: torch.Tensor | None = field(repr=False)
    runner_cfg: dict[str, Any] | None = field(repr=False)
    sae_id: str | None
    source: str
    commit: str | None

    def to_training_sae(self, **changes: Any) -> GBATrainingSAE:
        """A training SAE to go on from; see `sae_lens_gba.saved.fine_tuning.to_training_sae`."""
        from sae_lens_gba.saved.fine_tuning import to_training_sae

        return to_training_sae(self.sae, self.groups, **changes)


@dataclass(frozen=True)
class PublishedSAE:
    """What `list_published` says of one SAE.

    Attributes:
        sae_id: its id in the repo.
        hook_name: where it reads and writes.
        l0: mean number of active latents a token, as measured; None was not.
        is_gba: whether `load` loads it; SAELens loads the others.
    """

    sae_id: str
    architecture: str
    model_name: str | None
    hook_name: str | None
    d_in: int
    d_sae: int
    l0: float | None
    is_gba: bool


def load(
    source: str | Path,
    sae_id: str | None = None,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    endpoint: str | None = None,
) -> LoadedSAE:
    """Load a GBA SAE with its groups.

    Only safetensors and JSON are read. All files are of one commit. Cache, revisions,
    HF_HUB_OFFLINE and tokens work as in huggingface_hub.

    Args:
        source: ``user/repo`` on the Hub, a folder that holds one SAE (output of a run, training
            checkpoint) or several (as a repo does). A folder that exists is taken before a repo.
        sae_id: which SAE of the repo or folder; may be left out if it holds one only.
        revision: branch, tag or commit; None is main.
        device: where to put the SAE.
        dtype: such as "bfloat16"; None is the one it was saved in.
        token, cache_dir, force_download, local_files_only, endpoint: as in huggingface_hub.

    Raises:
        MissingFileError: repo, revision, SAE or a file of it does not exist.
        NotAGBASAEError: it has no groups, or is of another architecture.
        DamagedFileError: a file is corrupt or truncated.
        WrongShapeError: files do not fit together.
        NewerFormatError: written by a newer sae-lens-gba.
        AccessError: the repo is private or gated, and the token not good for it.
        ConnectionFailedError: the Hub can't be reached, and the cache does not have it.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        folder = local / _choose(local, sae_id, str(source))
        return _read(folder, device, dtype, sae_id, str(source), None)
    if isinstance(source, Path) or _looks_like_a_path(source):
        raise MissingFileError(f"{source} does not exist: pass a folder, or 'user/repo'.")
    api = HfApi(endpoint=endpoint, token=token, library_name="sae-lens-gba")
    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    if sae_id is None:
        snapshot = download(api, source, _CFG_PATTERNS, **options)
        sae_id = _choose(snapshot, None, source)
        # the same commit, whatever is published in between
        options["revision"] = snapshot.name
    prefix = "" if sae_id == "." else f"{escape(sae_id)}/"
    # a training checkpoint put there by hand has a scale that is not folded in yet
    names = {*ALL_FILES, ACTIVATION_SCALER_CFG_FILENAME} - {PLOT_FILENAME}
    wanted = [f"{prefix}{name}" for name in sorted(names)]
    snapshot = download(api, source, wanted, force_download=force_download, **options)
    if not (snapshot / sae_id / SAE_CFG_FILENAME).is_file():
        raise MissingFileError(
            f"{source} has no SAE {sae_id!r} at {revision or 'main'}: "
            "sae_lens_gba.list_published shows what it has."
        )
    return _read(snapshot / sae_id, device, dtype, sae_id, source, snapshot.name)


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

    Args:
        source: ``user/repo`` on the Hub, or a folder.
        revision, token, cache_dir, local_files_only, endpoint: as in `load`.

    Raises:
        MissingFileError, AccessError, ConnectionFailedError, DamagedFileError: as in `load`.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if isinstance(source, Path) or _looks_like_a_path(source):
            raise MissingFileError(f"{source} does not exist: pass a folder, or 'user/repo'.")
        folder = download(
            HfApi(endpoint=endpoint, token=token, library_name="sae-lens-gba"),
            source,
            _CFG_PATTERNS,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    return [_describe(folder, sae_id) for sae_id in _ids(folder)]


_CFG_PATTERNS = [SAE_CFG_FILENAME, f"*/{SAE_CFG_FILENAME}"]


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or "\\" in source or source.count("/") != 1


def _ids(folder: Path) -> list[str]:
    """Ids of the SAEs below ``folder``; "." for one in the folder itself."""
    return sorted(
        path.parent.relative_to(folder).as_posix() for path in folder.rglob(SAE_CFG_FILENAME)
    )


def _choose(folder: Path, sae_id: str | None, source: str) -> str:
    if sae_id is not None:
        if not (folder / sae_id / SAE_CFG_FILENAME).is_file():
            raise MissingFileError(f"{source} has no SAE {sae_id!r}, it has {_ids(folder)}.")
        return sae_id
    ids = _ids(folder)
    if "." in ids:
        return "."
    if not ids:
        raise MissingFileError(f"{source} has no {SAE_CFG_FILENAME}: there is no SAE in it.")
    if len(ids) > 1:
        raise MissingFileError(f"{source} has several SAEs, pass one of their ids: {ids}.")
    return ids[0]


def _describe(folder: Path, sae_id: str) -> PublishedSAE:
    cfg = read_json(folder / sae_id / SAE_CFG_FILENAME)
    metadata = cfg.get("metadata") or {}
    has_groups = "groups" in (metadata.get("gba") or {})
    return PublishedSAE(
        sae_id=sae_id,
        architecture=cfg.get("architecture", "standard"),
        model_name=metadata.get("model_name"),
        hook_name=metadata.get("hook_name"),
        d_in=cfg.get("d_in", 0),
        d_sae=cfg.get("d_sae", 0),
        l0=CardEntry.from_cfg(sae_id, cfg, None).l0_measured if has_groups else metadata.get("l0"),
        is_gba=has_groups or is_checkpoint(folder / sae_id),
    )


def _read(
    folder: Path,
    device: str,
    dtype: str | None,
    sae_id: str | None,
    source: str,
    commit: str | None,
) -> LoadedSAE:
    if is_checkpoint(folder):
        with tempfile.TemporaryDirectory() as work:
            stage(folder, Path(work) / "sae")
            return _read(Path(work) / "sae", device, dtype, sae_id, source, commit)
    cfg = read_json(folder / SAE_CFG_FILENAME)
    groups = read_groups(folder, cfg.get("d_sae", 0))
    check_weights(folder, cfg)
    runner_cfg = folder / RUNNER_CFG_FILENAME
    return LoadedSAE(
        sae=SAE.load_from_disk(folder, device=device, dtype=dtype),
        groups=groups,
        training_config=training_config(cfg),
        cfg=cfg,
        log_sparsity=read_sparsity(folder, cfg["d_sae"]),
        runner_cfg=read_json(runner_cfg) if runner_cfg.is_file() else None,
        sae_id=sae_id,
        source=source,
        commit=commit,
    )


def training_config(cfg: dict[str, Any]) -> GBATrainingSAEConfig | None:
    """Settings a stock SAE was trained with, from its cfg.json; None if not with GBA.

    Raises:
        NewerFormatError: it has settings that this version does not know.
    """
    metadata = cfg.get("metadata") or {}
    if metadata.get("training_architecture") != "gba":
        return None
    details = metadata.get("training_architecture_details") or {}
    names = {f.name for f in fields(GBATrainingSAEConfig)}
    unknown = sorted(set(details) - names)
    if unknown:
        raise NewerFormatError(
            f"the training config has settings this version does not know, {unknown}: "
            "pip install --upgrade sae-lens-gba."
        )
    settings = {name: value for name, value in {**cfg, **details}.items() if name in names}
    return GBATrainingSAEConfig.from_dict({**settings, "architecture": "gba", "metadata": metadata})
