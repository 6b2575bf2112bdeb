"""A saved SAE in its stock form, and the one reader of the folders it comes from."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.util import str_to_dtype
from safetensors import SafetensorError
from safetensors.torch import save_file

from sae_lens_gba.atomic_write import files_written_whole
from sae_lens_gba.checksums import check_checksums, write_checksums
from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.errors import (
    AccessError,
    DamagedFileError,
    GBAError,
    MissingFileError,
    NotAGBASAEError,
    brief,
)
from sae_lens_gba.neuron_groups import GROUPS_FILENAME, NeuronGroups
from sae_lens_gba.registration import CLASSES
from sae_lens_gba.saved.files import (
    LOADED_FILES,
    check_finite,
    check_size,
    read_cfg,
    read_json,
    read_sparsity,
    read_weights,
)
from sae_lens_gba.saved.stock_form import fold_activation_scaler, stock_form
from sae_lens_gba.saved.training_form import training_config, training_form
from sae_lens_gba.training_sae import GBATrainingSAE

# L0 is right to a percent then, and a wide one is calibrated in a third of the time
_SAMPLES_OF_CHECKPOINTS = 8192
_OPTIONAL = LOADED_FILES - {SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME}
# architectures without a threshold whose latents are active where the pre-activation is above 0
_RELU = ("standard", "transcoder", "skip_transcoder")


@dataclass(frozen=True)
class SavedSAE:
    """An SAE in its stock form, with what lies beside it.

    Attributes:
        sae: the SAE as SAELens itself loads it.
        cfg: content of its cfg.json.
        source: the repo or folder it comes from; "" of a live SAE.
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
    source: str = ""
    label: str = ""
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
        """Where it reads, and, unless it is a transcoder, writes."""
        return str(self.sae.cfg.metadata.hook_name)

    @property
    def hook_name_out(self) -> str:
        """Where it writes: what its output is to be compared with."""
        return str(self.sae.cfg.metadata.hook_name_out or self.hook_name)

    @property
    def widths(self) -> dict[str, int]:
        """Dimensions of the activations at the hooks it reads and writes."""
        cfg = self.sae.cfg
        return {self.hook_name: cfg.d_in, self.hook_name_out: getattr(cfg, "d_out", cfg.d_in)}

    @property
    def d_sae(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def decoder_rows(self) -> torch.Tensor:
        """Float32 on the CPU, shape (d_sae, d_in), or of a transcoder (d_sae, d_out)."""
        return self.sae.W_dec.detach().float().cpu()

    @property
    def threshold(self) -> torch.Tensor | None:
        """Above which pre-activation a latent is active, float32 on the CPU, (d_sae,); or None."""
        threshold = getattr(self.sae, "threshold", None)
        if isinstance(threshold, torch.Tensor):
            return threshold.detach().float().cpu()
        if self.sae.cfg.architecture() not in _RELU:
            return None
        return -self.sae.get_parameter("b_enc").detach().float().cpu()

    def to_training_sae(self, **changes: Any) -> GBATrainingSAE:
        """A training SAE to go on from; see `sae_lens_gba.to_training_sae`."""
        return training_form(self.sae, self.groups, changes)

    def save(self, folder: str | Path) -> None:
        """Write its files, so that `load` and SAELens read them, all of them or none."""
        folder = Path(folder).expanduser()
        with files_written_whole(folder) as new:
            self.write_files(new)
            write_checksums(new)
            for name in _OPTIONAL:  # of what was there
                if not (new / name).exists():
                    (folder / name).unlink(missing_ok=True)

    def write_files(self, folder: Path) -> None:
        """As `save`, one file after the other, into a folder that is nobody's yet."""
        folder.mkdir(parents=True, exist_ok=True)  # of an id that goes on below it
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
    saved = SavedSAE(sae, cfg)
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
    dtype: str | torch.dtype | None = None,
    *,
    groups_required: bool = True,
    **origin: Any,
) -> SavedSAE:
    """Read the folder of one SAE: the output of a run, or a training checkpoint.

    A checkpoint gives its stock form, its normalisation of activations folded in. Where the folder
    has checksums, the files must be those that were saved together.

    Args:
        device: where to put the SAE.
        dtype: such as "bfloat16" or torch.bfloat16; None is the one it was saved in.
        groups_required: False also reads any SAE of SAELens.
        origin: ``source``, ``label``, ``sae_id``, ``commit`` of the result; by default, the
            first two are the folder and its name.

    Raises:
        MissingFileError, NotAGBASAEError, DamagedFileError, WrongShapeError, NewerFormatError:
            see `load`.
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    with own_errors(folder):
        cfg = read_cfg(folder)
        if cfg.get("architecture") in CLASSES:
            check_size(folder, cfg)
            training_config(cfg)  # a newer version's is refused by name
            saved = _read_checkpoint(folder, device)
        else:
            saved = _read_stock(folder, cfg, groups_required, device)
        # last: what is wrong with a single file is better said of that file
        check_checksums(folder, LOADED_FILES)
        log_sparsity = read_sparsity(folder, saved.d_sae)
        path = folder / RUNNER_CFG_FILENAME
        runner_cfg = read_json(path) if path.is_file() else None
        if runner_cfg is not None and (folder / TRAINER_STATE_FILENAME).is_file():
            runner_cfg.pop("training_tokens", None)  # a checkpoint's are fewer
    saved.sae.to(device=device, dtype=str_to_dtype(dtype or saved.sae.cfg.dtype))
    cfg = saved.cfg
    if dtype is not None:
        saved.sae.cfg.dtype, cfg = dtype, {**cfg, "dtype": dtype}
    return replace(
        saved,
        cfg=cfg,
        log_sparsity=saved.log_sparsity if log_sparsity is None else log_sparsity,
        runner_cfg=runner_cfg,
        **{"source": str(folder), "label": folder.resolve().name, **origin},
    )


_OF_UNREADABLE_FILES = (
    ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, SafetensorError,
    TypeError, ValueError,
)  # fmt: skip


@contextmanager
def own_errors(source: object) -> Iterator[None]:
    """Whatever SAELens raises on what it can't read comes out as an error of ours."""
    try:
        yield
    except GBAError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{source} is not a whole SAE: {error}.") from error
    except PermissionError as error:
        raise AccessError(
            f"{source} can't be read ({error}): you have no permission to read it; ask its owner."
        ) from error
    except _OF_UNREADABLE_FILES as error:
        reason = brief(f"{type(error).__name__}: {error}")
        raise DamagedFileError(
            f"the SAE in {source} can't be loaded ({reason}): copy or download it again."
        ) from error


def _read_checkpoint(folder: Path, device: str) -> SavedSAE:
    training_sae: TrainingSAE[Any] = TrainingSAE.load_from_disk(folder, device)
    if isinstance(training_sae, GBATrainingSAE):  # to be calibrated on
        training_sae.recent_samples.load(folder, training_sae.device)
        training_sae.recent_samples.keep(_SAMPLES_OF_CHECKPOINTS)
    fold_activation_scaler(training_sae, folder)
    return as_saved(training_sae, str(folder))


def _read_stock(folder: Path, cfg: dict[str, Any], groups_required: bool, device: str) -> SavedSAE:
    groups, architecture = None, cfg.get("architecture", "standard")
    if groups_required or (folder / GROUPS_FILENAME).is_file():
        groups = _read_groups(folder, cfg.get("d_sae"))
        weights = read_weights(folder, cfg)
        settings = {**cfg, "device": "cpu"}
        sae: SAE[Any] = SAE.load_from_disk(folder, converter=lambda *_, **__: (settings, weights))
    elif architecture in SAE_CLASS_REGISTRY:
        sae = SAE.load_from_disk(folder)
    elif architecture in SAE_TRAINING_CLASS_REGISTRY:
        return _read_checkpoint(folder, device)
    else:
        raise DamagedFileError(
            f"{folder} has architecture={architecture!r}, which this SAELens does not know: import "
            "the package that registers it, or upgrade sae-lens."
        )
    fold_activation_scaler(sae, folder)
    if groups_required:
        training_config(cfg)  # a newer version's is refused here, not where it is used
    return SavedSAE(
        sae.eval(),
        {**cfg, "normalize_activations": sae.cfg.normalize_activations},
        groups=groups,
    )


def _read_groups(folder: Path, d_sae: int | None) -> NeuronGroups:
    try:
        return NeuronGroups.load(folder, d_sae)
    except MissingFileError as error:
        raise NotAGBASAEError(
            f"{folder} has no {GROUPS_FILENAME}: this SAE was not trained with GBA, or not saved "
            "by sae-lens-gba. SAELens itself loads it: SAE.from_pretrained or SAE.load_from_disk."
        ) from error
