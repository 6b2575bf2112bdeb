"""A saved SAE in its stock form, and the one reader of the folders it comes from."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.util import str_to_dtype
from safetensors import SafetensorError
from safetensors.torch import save_file

from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.errors import (
    DamagedFileError,
    GBAError,
    MissingFileError,
    NewerFormatError,
    NotAGBASAEError,
)
from sae_lens_gba.neuron_groups import GROUPS_FILENAME, NeuronGroups
from sae_lens_gba.saved.files import (
    check_finite,
    read_cfg,
    read_json,
    read_sparsity,
    read_weights,
)
from sae_lens_gba.saved.stock_form import fold_activation_scaler, stock_form
from sae_lens_gba.training_sae import GBATrainingSAE


@dataclass(frozen=True)
class SavedSAE:
    """An SAE in its stock form, with what lies beside it.

    Attributes:
        sae: the SAE as SAELens itself loads it.
        cfg: content of its cfg.json.
        source: the repo or folder it comes from.
        label: short name for people; its folder's, unless given.
        groups: group, target and measured frequency of each latent, (d_sae,) each; None for an
            SAE of others, which `load` does not give.
        log_sparsity: log10 of each latent's frequency, (d_sae,), None if not saved.
        runner_cfg: settings of the training run, None if not saved.
        sae_id: its id in the repo; None for a folder of a single SAE.
        commit: the commit it was loaded from; None for a folder.
    """

    sae: SAE[Any] = field(repr=False)
    cfg: dict[str, Any] = field(repr=False)
    source: str
    label: str
    groups: NeuronGroups | None = field(default=None, repr=False)
    log_sparsity: torch.Tensor | None = field(default=None, repr=False)
    runner_cfg: dict[str, Any] | None = field(default=None, repr=False)
    sae_id: str | None = None
    commit: str | None = None

    @property
    def training_config(self) -> GBATrainingSAEConfig | None:
        """Settings it was trained with; None if not with GBA, or by attached bias adaptation.

        Raises:
            NewerFormatError: it has settings that this version does not know.
        """
        return training_config(self.cfg)

    @property
    def hook_name(self) -> str:
        """Where it reads and writes."""
        return str(self.sae.cfg.metadata.hook_name)

    @property
    def d_sae(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def decoder_rows(self) -> torch.Tensor:
        """Float32 on the CPU, shape (d_sae, d_in)."""
        return self.sae.W_dec.detach().float().cpu()

    @property
    def threshold(self) -> torch.Tensor | None:
        """Above which pre-activation a latent is active, float32 on the CPU, (d_sae,); or None."""
        threshold = getattr(self.sae, "threshold", None)
        if isinstance(threshold, torch.Tensor):
            return threshold.detach().float().cpu()
        b_enc = getattr(self.sae, "b_enc", None)
        return -b_enc.detach().float().cpu() if isinstance(b_enc, torch.Tensor) else None

    def save(self, folder: Path) -> None:
        """Write its files, so that `read_saved` and SAELens read them, into a new folder."""
        folder.mkdir(parents=True)
        write_json(folder / SAE_CFG_FILENAME, self.cfg)
        weights = {name: weight.contiguous() for name, weight in self.sae.state_dict().items()}
        save_file(weights, folder / SAE_WEIGHTS_FILENAME)
        if self.groups is not None:
            self.groups.save(folder)
        if self.log_sparsity is not None:
            save_file({"sparsity": self.log_sparsity}, folder / SPARSITY_FILENAME)
        if self.runner_cfg is not None:
            write_json(folder / RUNNER_CFG_FILENAME, self.runner_cfg)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def as_saved(training_sae: TrainingSAE[Any], source: str = "the SAE") -> SavedSAE:
    """What ``training_sae`` is once saved and loaded again, without a file.

    Raises:
        DamagedFileError: a weight is NaN or infinite.
    """
    sae = stock_form(training_sae)
    check_finite(sae.state_dict(), source)
    cfg = json.loads(json.dumps(sae.cfg.to_dict()))  # tuples as a reader of the file sees them
    saved = SavedSAE(sae, cfg, source, Path(source).name)
    if not isinstance(training_sae, GBATrainingSAE):
        return saved
    groups = training_sae.groups()
    frequency = groups.measured_frequency
    # the same numbers as SAELens' trainer writes, 1e-10 included
    log_sparsity = torch.log10(frequency.float() + 1e-10) if bool(frequency.any()) else None
    return replace(saved, groups=groups, log_sparsity=log_sparsity)


def read_saved(
    folder: Path,
    device: str = "cpu",
    dtype: str | None = None,
    *,
    groups_required: bool = True,
    **origin: Any,
) -> SavedSAE:
    """Read the folder of one SAE: the output of a run, or a training checkpoint.

    A checkpoint gives its stock form, its normalisation of activations folded in.

    Args:
        device: where to put the SAE.
        dtype: such as "bfloat16"; None is the one it was saved in.
        groups_required: False also reads any SAE of SAELens.
        origin: ``source``, ``label``, ``sae_id``, ``commit`` of the result; by default, the
            first two are the folder and its name.

    Raises:
        MissingFileError, NotAGBASAEError, DamagedFileError, WrongShapeError, NewerFormatError:
            see `load`.
    """
    cfg = read_cfg(folder)
    with _own_errors(folder):
        if cfg.get("architecture") == "gba":
            saved = _read_checkpoint(folder)
        else:
            saved = _read_stock(folder, cfg, groups_required)
        log_sparsity = read_sparsity(folder, saved.d_sae)
    saved.sae.to(device=device, dtype=str_to_dtype(dtype or saved.sae.cfg.dtype))
    runner_cfg = folder / RUNNER_CFG_FILENAME
    return replace(
        saved,
        log_sparsity=saved.log_sparsity if log_sparsity is None else log_sparsity,
        runner_cfg=read_json(runner_cfg) if runner_cfg.is_file() else None,
        **origin,
    )


@contextmanager
def _own_errors(folder: Path) -> Iterator[None]:
    """Whatever SAELens raises on a folder it can't read comes out as an error of ours."""
    try:
        yield
    except GBAError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{folder} is not a whole SAE: {error}.") from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DamagedFileError(
            f"the SAE in {folder} can't be loaded ({reason}): copy or download it again."
        ) from error


def _read_checkpoint(folder: Path) -> SavedSAE:
    training_sae: TrainingSAE[Any] = TrainingSAE.load_from_disk(folder)
    fold_activation_scaler(training_sae, folder)
    return as_saved(training_sae, str(folder))


def _read_stock(folder: Path, cfg: dict[str, Any], groups_required: bool) -> SavedSAE:
    groups = None
    if groups_required or (folder / GROUPS_FILENAME).is_file():
        groups = _read_groups(folder, cfg.get("d_sae"))
        weights = read_weights(folder, cfg)
        settings = {**cfg, "device": "cpu"}
        sae: SAE[Any] = SAE.load_from_disk(folder, converter=lambda *_, **__: (settings, weights))
    elif _is_registered(cfg.get("architecture", "standard")):
        sae = SAE.load_from_disk(folder)
    else:
        return _read_checkpoint(folder)
    fold_activation_scaler(sae, folder)
    if groups_required:
        training_config(cfg)  # a newer version's is refused here, not where it is used
    return SavedSAE(
        sae.eval(),
        {**cfg, "normalize_activations": sae.cfg.normalize_activations},
        source=str(folder),
        label=folder.resolve().name,
        groups=groups,
    )


def _is_registered(architecture: str) -> bool:
    """Whether it is one of SAELens' stock architectures, rather than of a training run.

    Raises:
        DamagedFileError: it is neither.
    """
    for find in (get_sae_class, get_sae_training_class):
        try:
            find(architecture)
        except KeyError:
            continue
        return find is get_sae_class
    raise DamagedFileError(
        f"cfg.json has architecture={architecture!r}, which this SAELens does not know: import "
        "the package that registers it, or upgrade sae-lens."
    )


def _read_groups(folder: Path, d_sae: int | None) -> NeuronGroups:
    try:
        return NeuronGroups.load(folder, d_sae)
    except MissingFileError as error:
        raise NotAGBASAEError(
            f"{folder} has no {GROUPS_FILENAME}: this SAE was not trained with GBA, or not saved "
            "by sae-lens-gba. SAELens itself loads it: SAE.from_pretrained or SAE.load_from_disk."
        ) from error


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
