"""The folder of one published SAE: its files, and reading them with every check.

cfg.json                 configuration of the stock SAE, as SAELens writes it
sae_weights.safetensors  its parameters, stock names
gba_groups.safetensors   group, target and measured frequency of each latent
sparsity.safetensors     log10 of each latent's frequency, as SAELens writes it (optional)
runner_cfg.json          settings of the training run (optional)
frequencies.png          plot of target and measured frequencies (optional)

Only safetensors and JSON are ever read; a pickle beside them is not opened.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from safetensors import SafetensorError, safe_open

from sae_lens_gba.errors import (
    DamagedFileError,
    MissingFileError,
    NewerFormatError,
    NotAGBASAEError,
    WrongShapeError,
)
from sae_lens_gba.neuron_groups import FORMAT_VERSION, GROUPS_FILENAME, NeuronGroups

PLOT_FILENAME = "frequencies.png"
REQUIRED_FILES = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, GROUPS_FILENAME)
OPTIONAL_FILES = (SPARSITY_FILENAME, RUNNER_CFG_FILENAME, PLOT_FILENAME)
ALL_FILES = REQUIRED_FILES + OPTIONAL_FILES

_DAMAGED = "copy or download it again (force_download=True)"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        MissingFileError: there is no such file.
        DamagedFileError: it does not hold a JSON object.
    """
    if not path.is_file():
        raise MissingFileError(f"{path.name} is missing in {path.parent}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the JSON as well as of its encoding
        raise DamagedFileError(f"{path} is not valid JSON ({error}): {_DAMAGED}.") from error
    if not isinstance(content, dict):
        raise DamagedFileError(
            f"{path} holds a {type(content).__name__} instead of a JSON object: {_DAMAGED}."
        )
    return content


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of each entry of a safetensors file, one at a time.

    Raises:
        MissingFileError: there is no such file.
        DamagedFileError: it is not a whole safetensors file.
    """
    if not path.is_file():
        raise MissingFileError(f"{path.name} is missing in {path.parent}.")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is corrupt or truncated ({error}): {_DAMAGED}.") from error


def stock_shapes(cfg: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Parameters of a stock SAE and their shapes, from its cfg.json.

    Raises:
        DamagedFileError: d_in or d_sae is missing or not a positive integer.
        NotAGBASAEError: GBA SAEs are never saved as this architecture.
    """
    for name in ("d_in", "d_sae"):
        value = cfg.get(name)
        if not isinstance(value, int) or value < 1:
            raise DamagedFileError(f"cfg.json has {name}={value!r}: a positive integer is needed.")
    architecture = cfg.get("architecture")
    if architecture not in ("jumprelu", "standard"):
        raise NotAGBASAEError(
            f"cfg.json has architecture={architecture!r}, a GBA SAE is saved as 'jumprelu' or "
            "'standard': load it with SAELens itself, SAE.from_pretrained or SAE.load_from_disk."
        )
    d_in, d_sae = cfg["d_in"], cfg["d_sae"]
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    return {**shapes, "threshold": (d_sae,)} if architecture == "jumprelu" else shapes


def check_weights(folder: Path, cfg: dict[str, Any]) -> None:
    """Names, shapes and finiteness of the weights.

    Raises:
        MissingFileError, DamagedFileError: see `read_tensors`.
        WrongShapeError: a parameter is missing, unknown or of another shape than cfg.json says.
        DamagedFileError: a value is NaN or infinite.
    """
    path = folder / SAE_WEIGHTS_FILENAME
    wanted = stock_shapes(cfg)
    for name, tensor in read_tensors(path):
        shape = tuple(tensor.shape)
        expected = wanted.pop(name, None)
        if shape != expected:
            raise WrongShapeError(
                f"{path} has {name} of shape {shape}, by cfg.json it should be "
                f"{expected or 'absent'}: the two files do not belong together."
            )
        if not torch.isfinite(tensor).all():
            raise DamagedFileError(
                f"{path} has NaN or Inf in {name}: the SAE diverged in training; use an earlier "
                "checkpoint."
            )
    if wanted:
        raise WrongShapeError(
            f"{path} lacks {', '.join(sorted(wanted))}, which {cfg['architecture']!r} SAEs have."
        )


def read_groups(folder: Path, d_sae: int) -> NeuronGroups:
    """The groups of the SAE in ``folder``.

    Raises:
        NotAGBASAEError: there is no groups file.
        NewerFormatError: it is of a newer format.
        DamagedFileError: it is corrupt or truncated.
        WrongShapeError: it is not for ``d_sae`` latents.
    """
    path = folder / GROUPS_FILENAME
    if not path.is_file():
        raise NotAGBASAEError(
            f"{folder} has no {GROUPS_FILENAME}: this SAE was not trained with GBA, or not saved "
            "by sae-lens-gba. SAELens itself loads it: SAE.from_pretrained or SAE.load_from_disk."
        )
    _check_format_version(path)
    try:
        groups = NeuronGroups.load(folder)
    except ValueError as error:
        raise DamagedFileError(str(error)) from error
    for name in ("group", "target_frequency", "measured_frequency"):
        shape = tuple(getattr(groups, name).shape)
        if shape != (d_sae,):
            raise WrongShapeError(
                f"{path} has {name} of shape {shape}, by cfg.json it should be ({d_sae},): the "
                "two files do not belong together."
            )
    return groups


def _check_format_version(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            version = (file.metadata() or {}).get("format_version", "0")
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is corrupt or truncated ({error}): {_DAMAGED}.") from error
    if not version.isdecimal():
        raise DamagedFileError(f"{path} has format_version={version!r}, not a number: {_DAMAGED}.")
    if int(version) > FORMAT_VERSION:
        raise NewerFormatError(
            f"{path} has format version {version}, this sae-lens-gba reads up to "
            f"{FORMAT_VERSION}: pip install --upgrade sae-lens-gba."
        )


def read_sparsity(folder: Path, d_sae: int) -> torch.Tensor | None:
    """log10 of each latent's frequency, shape (d_sae,), or None without the file."""
    path = folder / SPARSITY_FILENAME
    if not path.is_file():
        return None
    sparsity = dict(read_tensors(path)).get("sparsity")
    if sparsity is None or tuple(sparsity.shape) != (d_sae,):
        found = None if sparsity is None else tuple(sparsity.shape)
        raise WrongShapeError(
            f"{path} has 'sparsity' of shape {found}, by cfg.json it should be ({d_sae},)."
        )
    return sparsity
