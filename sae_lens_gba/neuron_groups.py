"""Which group each latent of a trained SAE belongs to: the file that travels with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.errors import (
    DamagedFileError,
    MissingFileError,
    NewerFormatError,
    WrongShapeError,
)

GROUPS_FILENAME = "gba_groups.safetensors"
FORMAT_VERSION = 1

_NAMES = ("group", "target_frequency", "measured_frequency")


@dataclass(frozen=True)
class NeuronGroups:
    """Groups of a GBA SAE's latents.

    Attributes:
        group: group index of each latent, 0 is the most active, int64, shape (d_sae,).
        target_frequency: share of samples each latent should be active on, shape (d_sae,).
        measured_frequency: share of samples it was active on at the end of training,
            shape (d_sae,).
    """

    group: torch.Tensor
    target_frequency: torch.Tensor
    measured_frequency: torch.Tensor

    def summary(self) -> list[dict[str, Any]]:
        """One dict a group: size, target and mean measured frequency."""
        rows = []
        for k in range(int(self.group.max()) + 1):
            members = self.group == k
            measured = self.measured_frequency[members]
            rows.append(
                {
                    "group": k,
                    "size": int(members.sum()),
                    "target_frequency": float(self.target_frequency[members][0]),
                    "measured_frequency": float(measured.mean()),
                }
            )
        return rows

    def save(self, folder: str | Path) -> Path:
        """Write ``gba_groups.safetensors`` into an existing folder, all or nothing."""
        path = Path(folder) / GROUPS_FILENAME
        tensors = {name: getattr(self, name).cpu().contiguous() for name in _NAMES}
        metadata = {"format_version": str(FORMAT_VERSION)}
        write_atomically(path, lambda file: save_file(tensors, file, metadata=metadata))
        return path

    @classmethod
    def load(cls, folder: str | Path, d_sae: int | None = None) -> "NeuronGroups":
        """Read them from the folder of a saved GBA SAE.

        Args:
            folder: holds ``gba_groups.safetensors``.
            d_sae: latents of the SAE beside it; None takes any number.

        Raises:
            MissingFileError: the folder has no groups file.
            NewerFormatError: the file is of a newer format than this version reads.
            DamagedFileError: it is corrupt, truncated, or does not hold groups.
            WrongShapeError: it is not for ``d_sae`` latents.
        """
        path = Path(folder) / GROUPS_FILENAME
        if not path.is_file():
            raise MissingFileError(
                f"{path} does not exist: {folder} is not the output folder of a GBA SAE."
            )
        try:
            with safe_open(path, framework="pt") as file:
                _check_format_version(path, (file.metadata() or {}).get("format_version", "0"))
                groups = cls(**{name: file.get_tensor(name) for name in _NAMES})
        except SafetensorError as error:
            raise _damaged(path, f"is corrupt or truncated ({error})") from error
        groups._check(path, d_sae)
        return groups

    def _check(self, path: Path, d_sae: int | None) -> None:
        expected = (len(self.group) if d_sae is None and self.group.ndim else d_sae,)
        for name in _NAMES:
            shape = tuple(getattr(self, name).shape)
            if shape != expected:
                raise WrongShapeError(
                    f"{path} has {name} of shape {shape}, by cfg.json it should be {expected}: "
                    "the two files do not belong together."
                )
        target, measured = self.target_frequency, self.measured_frequency
        if not (target.is_floating_point() and bool(((target > 0) & (target <= 1)).all())):
            raise _damaged(path, "has target frequencies that are not between 0 and 1")
        if not (measured.is_floating_point() and bool(((measured >= 0) & (measured <= 1)).all())):
            raise _damaged(path, "has measured frequencies that are not between 0 and 1")
        # no group is empty, so that there are at most as many as latents
        found = self.group.unique() if self.group.dtype == torch.int64 else torch.tensor([-1])
        if not torch.equal(found, torch.arange(len(found))):
            raise _damaged(path, "has groups that are not numbered 0, 1, 2, ... without a gap")


def _check_format_version(path: Path, version: str) -> None:
    if not version.isdecimal():
        raise _damaged(path, f"has format_version={version!r}, not a number")
    if int(version) > FORMAT_VERSION:
        raise NewerFormatError(
            f"{path} has format version {version}, this sae-lens-gba reads up to "
            f"{FORMAT_VERSION}: pip install --upgrade sae-lens-gba."
        )


def _damaged(path: Path, what: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path} {what}; the file is damaged: copy or download it again (force_download=True)."
    )
