"""The folder of one saved SAE: its files, and reading them with every check.

cfg.json                 configuration of the stock SAE, as SAELens writes it
sae_weights.safetensors  its parameters, stock names
gba_groups.safetensors   group, target and measured frequency of each latent
sparsity.safetensors     log10 of each latent's frequency, as SAELens writes it (optional)
runner_cfg.json          settings of the training run (optional)
frequencies.png          plot of target and measured frequencies (optional)
gba_checksums.json       what the first three were when they were saved together (optional)

Only safetensors and JSON are ever read; a pickle beside them is not opened.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATION_WHITENING_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from safetensors import SafetensorError, safe_open

from sae_lens_gba.calibration import SAMPLES_FILENAME
from sae_lens_gba.errors import (
    DamagedFileError,
    MissingFileError,
    NotAGBASAEError,
    WrongShapeError,
    brief,
)
from sae_lens_gba.neuron_groups import GROUPS_FILENAME

PLOT_FILENAME = "frequencies.png"
ALL_FILES = (
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    GROUPS_FILENAME,
    SPARSITY_FILENAME,
    RUNNER_CFG_FILENAME,
    PLOT_FILENAME,
)
# what SAEs and transcoders of this package are saved as
STOCK_ARCHITECTURES = (
    "jumprelu",
    "standard",
    "jumprelu_transcoder",
    "transcoder",
    "jumprelu_skip_transcoder",
    "skip_transcoder",
)
# a training checkpoint has a normalisation that is not folded in yet, and what to calibrate on
_OF_CHECKPOINTS = {ACTIVATION_SCALER_CFG_FILENAME, ACTIVATION_WHITENING_FILENAME, SAMPLES_FILENAME}
LOADED_FILES = frozenset({*ALL_FILES, *_OF_CHECKPOINTS} - {PLOT_FILENAME})

_LARGEST_JSON = 64 << 20  # bytes; a stranger's file must not fill the memory
_DAMAGED = "copy or download it again (force_download=True)"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        MissingFileError: there is no such file.
        DamagedFileError: it does not hold a JSON object, or is too large for one.
    """
    _require(path)
    if path.stat().st_size > _LARGEST_JSON:
        raise DamagedFileError(
            f"{path} has more than {_LARGEST_JSON >> 20} MiB, which none of its kind needs: "
            f"{_DAMAGED}."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        json.dumps(content, ensure_ascii=False).encode()  # half a character can't be written
    except (ValueError, RecursionError) as error:  # ValueError: of the encoding as well
        raise DamagedFileError(f"{path} is not valid JSON ({error}): {_DAMAGED}.") from error
    if not isinstance(content, dict):
        raise DamagedFileError(
            f"{path} holds a {type(content).__name__} instead of a JSON object: {_DAMAGED}."
        )
    return content


def read_cfg(folder: Path) -> dict[str, Any]:
    """The content of cfg.json; ``metadata`` and ``metadata.gba`` are objects where given.

    Raises:
        MissingFileError, DamagedFileError: see `read_json`.
    """
    path = folder / SAE_CFG_FILENAME
    cfg = read_json(path)
    metadata = cfg.get("metadata") or {}
    gba = metadata.get("gba") if isinstance(metadata, dict) else None
    for name, value in (("metadata", metadata), ("metadata.gba", gba or {})):
        if not isinstance(value, dict):
            raise DamagedFileError(
                f"{path} has {name}={brief(repr(value))}, not an object: {_DAMAGED}."
            )
    return cfg


def _require(path: Path) -> None:
    if not path.is_file():
        raise MissingFileError(f"{path} is missing.")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    _require(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is corrupt or truncated ({error}): {_DAMAGED}.") from error


def _read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; their ``shapes`` are compared before any is read."""
    with _opened(path) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        _check_shapes(path, found, shapes)
        return {name: file.get_tensor(name) for name in found}


def _check_shapes(
    path: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    for name, shape in found.items():
        if shape != wanted.get(name):
            raise WrongShapeError(
                f"{path} has {name} of shape {shape}, by cfg.json it should be "
                f"{wanted.get(name, 'absent')}: the two files do not belong together."
            )
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise WrongShapeError(
            f"{path} lacks {', '.join(missing)}, which SAEs of its architecture have."
        )


def _dimensions(cfg: Mapping[str, Any]) -> tuple[int, int, int]:
    """d_in, d_sae and d_out, which is d_in of an SAE."""
    sizes = {"d_out": cfg.get("d_in"), **cfg}
    for name in ("d_in", "d_sae", "d_out"):
        value = sizes.get(name)
        if not isinstance(value, int) or value < 1:
            raise DamagedFileError(
                f"cfg.json has {name}={brief(repr(value))}: a positive integer is needed."
            )
    return sizes["d_in"], sizes["d_sae"], sizes["d_out"]


def check_size(folder: Path, cfg: Mapping[str, Any]) -> None:
    """That a checkpoint is as large as its cfg.json says, before anything that large is made.

    Raises:
        MissingFileError, DamagedFileError, WrongShapeError: see `read_weights`.
    """
    _, d_sae, d_out = _dimensions(cfg)
    with _opened(folder / SAE_WEIGHTS_FILENAME) as file:
        found = {"W_dec": tuple(file.get_slice("W_dec").get_shape())}
    _check_shapes(folder / SAE_WEIGHTS_FILENAME, found, {"W_dec": (d_sae, d_out)})


def read_weights(folder: Path, cfg: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The parameters of the stock SAE that cfg.json describes.

    Raises:
        NotAGBASAEError: GBA SAEs are never saved as this architecture.
        MissingFileError: there is no weights file.
        DamagedFileError: it is corrupt or truncated, d_in or d_sae is no positive integer, or a
            value is NaN or infinite.
        WrongShapeError: a parameter is missing, unknown or of another shape than cfg.json says.
    """
    d_in, d_sae, d_out = _dimensions(cfg)
    architecture = str(cfg.get("architecture"))
    if architecture not in STOCK_ARCHITECTURES:
        raise NotAGBASAEError(
            f"cfg.json has architecture={brief(repr(architecture))}, a GBA SAE is saved as one of "
            f"{list(STOCK_ARCHITECTURES)}: load it with SAELens itself, SAE.from_pretrained or "
            "SAE.load_from_disk."
        )
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
    }
    if "jumprelu" in architecture:
        shapes["threshold"] = (d_sae,)
    if "skip" in architecture:
        shapes["W_skip"] = (d_out, d_in)
    weights = _read_tensors(folder / SAE_WEIGHTS_FILENAME, shapes)
    check_finite(weights, folder / SAE_WEIGHTS_FILENAME)
    return weights


def check_finite(weights: Mapping[str, torch.Tensor], source: object) -> None:
    """Raise DamagedFileError for other than floats of 16 to 64 bits, NaN or infinity."""
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or tensor.dtype.itemsize == 1:
            raise DamagedFileError(
                f"{source} has {tensor.dtype} in {name}: weights are floats of 16 to 64 bits."
            )
        if not torch.isfinite(tensor).all():
            raise DamagedFileError(
                f"{source} has NaN or Inf in {name}: the SAE diverged in training; use an earlier "
                "checkpoint."
            )


def read_sparsity(folder: Path, d_sae: int) -> torch.Tensor | None:
    """log10 of each latent's frequency, shape (d_sae,), or None without the file.

    Raises:
        DamagedFileError, WrongShapeError: see `read_weights`.
    """
    path = folder / SPARSITY_FILENAME
    return _read_tensors(path, {"sparsity": (d_sae,)})["sparsity"] if path.is_file() else None
