"""From whatever is to be published to a folder of its stock form."""

import json
import logging
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors import SafetensorError
from safetensors.torch import save_file

from sae_lens_gba.errors import DamagedFileError, InvalidPublicationError, MissingFileError
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.saved.files import (
    OPTIONAL_FILES,
    PLOT_FILENAME,
    REQUIRED_FILES,
    read_groups,
    read_json,
)
from sae_lens_gba.training_sae import GBATrainingSAE

Source = GBATrainingSAE | str | Path

# settings of a run that say where its files were on one machine, and nothing about the SAE
_PLACES = (
    "cached_activations_path",
    "checkpoint_path",
    "from_pretrained_path",
    "output_path",
    "resume_from_checkpoint",
)

logger = logging.getLogger(__name__)


def stage(source: Source, folder: Path) -> None:
    """Write the stock form of ``source`` into ``folder``, which is created.

    Args:
        source: a live GBATrainingSAE, the output folder of a run, or a training checkpoint.
        folder: must not exist.

    Raises:
        MissingFileError: the source folder or one of its files does not exist.
        DamagedFileError: one of its files is corrupt or truncated.
        NotAGBASAEError: it is the folder of another kind of SAE.
        InvalidPublicationError: it is none of the three.
    """
    if isinstance(source, GBATrainingSAE):
        _save(source, folder)
        return
    if not isinstance(source, str | Path):
        raise InvalidPublicationError(
            f"a {type(source).__name__} can't be published: pass a GBATrainingSAE, the output "
            "folder of a run, or a training checkpoint."
        )
    source = Path(source).expanduser()
    if not source.is_dir():
        raise MissingFileError(f"{source} is not a folder: pass the output folder of a GBA run.")
    if is_checkpoint(source):
        _save(load_checkpoint(source), folder)
        names: tuple[str, ...] = (SPARSITY_FILENAME, RUNNER_CFG_FILENAME)
    else:
        folder.mkdir(parents=True)
        cfg = read_json(source / SAE_CFG_FILENAME)
        read_groups(source, cfg.get("d_sae", 0))
        names = tuple(name for name in REQUIRED_FILES + OPTIONAL_FILES if name != PLOT_FILENAME)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds a GBA SAE in training form rather than in stock form."""
    return read_json(folder / SAE_CFG_FILENAME).get("architecture") == "gba"


def load_checkpoint(folder: Path, device: str = "cpu") -> GBATrainingSAE:
    """The training SAE of a checkpoint, its activation normalisation folded in.

    The trainer's pickled state is not read.

    Raises:
        MissingFileError: a file is missing.
        DamagedFileError: a file is corrupt, truncated, or of other shapes than cfg.json says.
    """
    try:
        sae = GBATrainingSAE.load_from_disk(folder, device=device)
    except FileNotFoundError as error:
        raise MissingFileError(f"{folder} is not a whole checkpoint: {error}.") from error
    except (SafetensorError, RuntimeError) as error:
        raise DamagedFileError(
            f"the checkpoint in {folder} can't be loaded ({error}): copy it again."
        ) from error
    if (folder / ACTIVATION_SCALER_CFG_FILENAME).is_file():
        _fold_activation_scaler(sae, folder / ACTIVATION_SCALER_CFG_FILENAME)
    return sae


def _fold_activation_scaler(sae: GBATrainingSAE, path: Path) -> None:
    # as SAELens' trainer does at the end of a run
    scaler = ActivationScaler()
    scaler.load(path)
    if scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        w = scaler.whitening
        sae.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix)


def _save(sae: GBATrainingSAE, folder: Path) -> None:
    sae.save_inference_model(folder)
    frequency = sae.groups().measured_frequency
    if bool(frequency.any()):
        # the same numbers as SAELens' trainer writes, 1e-10 included
        log_sparsity = torch.log10(frequency.float() + 1e-10)
        save_file({"sparsity": log_sparsity}, folder / SPARSITY_FILENAME)


def default_sae_id(cfg: Mapping[str, Any], groups: NeuronGroups) -> str:
    """``{hook_name}/l0_{L0 asked for}/width_{d_sae}``: blocks.8.hook_resid_post/l0_32/width_4608.

    Raises:
        InvalidPublicationError: the SAE has no hook_name.
    """
    hook_name = (cfg.get("metadata") or {}).get("hook_name")
    if not hook_name:
        raise InvalidPublicationError(
            "an SAE has no hook_name in its metadata: pass metadata={'hook_name': ...}."
        )
    l0 = float(groups.target_frequency.sum())
    return f"{hook_name}/l0_{round(l0) if l0 >= 10 else f'{l0:.2g}'}/width_{cfg['d_sae']}"


def annotate(
    folder: Path,
    metadata: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
) -> None:
    """Complete the staged cfg.json and runner_cfg.json.

    Where the run's files were on this machine is removed from runner_cfg.json; ``metadata``
    replaces fields of both; group summary and evaluation go to ``metadata.gba`` of cfg.json,
    where a reader finds them without the weights.
    """
    cfg = read_json(folder / SAE_CFG_FILENAME)
    known: dict[str, Any] = cfg.setdefault("metadata", {})
    known.update(metadata)
    gba = dict(known.get("gba") or {})
    gba.setdefault("version", version("sae-lens-gba"))
    gba["groups"] = NeuronGroups.load(folder).summary()
    if evaluation is not None:
        gba["evaluation"] = dict(evaluation)
    known["gba"] = gba
    cfg["device"] = "cpu"  # where it was trained is of no use to the one who loads it
    _write_json(folder / SAE_CFG_FILENAME, cfg)
    if (folder / RUNNER_CFG_FILENAME).is_file():
        runner_cfg = read_json(folder / RUNNER_CFG_FILENAME)
        runner_cfg.update({name: None for name in _PLACES if name in runner_cfg})
        runner_cfg.update({k: v for k, v in metadata.items() if k in runner_cfg})
        _write_json(folder / RUNNER_CFG_FILENAME, runner_cfg)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
