"""Which group each latent of a trained SAE belongs to: the file that travels with it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

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
_OPTIONAL = ("other_l0s", "offsets")


class GroupRow(TypedDict):
    """One group in `NeuronGroups.summary`: frequencies are shares of samples."""

    group: int
    size: int
    target_frequency: float
    measured_frequency: float


@dataclass(frozen=True)
class NeuronGroups:
    """Groups of a GBA SAE's latents.

    Attributes:
        group: group index of each latent, 0 is the most active, int64, shape (d_sae,).
        target_frequency: mean share of samples that its group's latents should be active on, as
            calibration left it; before that, as training aims at it. Shape (d_sae,).
        measured_frequency: share of samples it was active on at the end of training,
            shape (d_sae,).
        other_l0s: L0s for which thresholds are known, ascending, shape (n,); None knows of none.
        offsets: for each group and each of ``other_l0s``, how far its thresholds move, as a
            multiple of the norm of each latent's encoder column, shape (n_groups, n).
    """

    group: torch.Tensor
    target_frequency: torch.Tensor
    measured_frequency: torch.Tensor
    other_l0s: torch.Tensor | None = None
    offsets: torch.Tensor | None = None

    def summary(self) -> list[GroupRow]:
        """One row a group: size, target and mean measured frequency."""
        rows: list[GroupRow] = []
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
        tensors = {
            name: getattr(self, name).cpu().contiguous()
            for name in _NAMES + _OPTIONAL
            if getattr(self, name) is not None
        }
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
                names = _NAMES + tuple(name for name in _OPTIONAL if name in file.keys())  # noqa: SIM118
                groups = cls(**{name: file.get_tensor(name) for name in names})
        except SafetensorError as error:
            raise _damaged(path, f"is corrupt or truncated ({error})") from error
        groups._check(path, d_sae)
        return replace(groups, group=groups.group.long())

    def _check(self, path: Path, d_sae: int | None) -> None:
        expected = (len(self.group) if d_sae is None and self.group.ndim else d_sae,)
        for name in _NAMES:
            shape = tuple(getattr(self, name).shape)
            if shape != expected:
                raise WrongShapeError(
                    f"{path} has {name} of shape {shape}, by cfg.json it should be {expected}: "
                    "the two files do not belong together."
                )
        for name, least in (("target_frequency", torch.finfo().tiny), ("measured_frequency", 0.0)):
            values = getattr(self, name).double()
            if not bool(((values >= least) & (values <= 1)).all()):
                raise _damaged(path, f"has values of {name} that are not shares of samples")
        # no group is empty, so that there are at most as many as latents
        found = self.group.double().unique()
        if not torch.equal(found, torch.arange(len(found)).double()):
            raise _damaged(path, "has groups that are not numbered 0, 1, 2, ... without a gap")
        if self.other_l0s is not None or self.offsets is not None:
            self._check_offsets(path, len(found))

    def _check_offsets(self, path: Path, n_groups: int) -> None:
        l0s, offsets = self.other_l0s, self.offsets
        if l0s is None or offsets is None or l0s.ndim != 1 or len(l0s) == 0:
            raise _damaged(path, "has other_l0s and offsets that do not belong together")
        if tuple(offsets.shape) != (n_groups, len(l0s)):
            raise _damaged(path, f"has offsets of shape {tuple(offsets.shape)}")
        ascending = bool((l0s > 0).all()) and bool((l0s.diff() > 0).all())
        if not ascending or not bool(torch.isfinite(offsets).all()):
            raise _damaged(path, "has other_l0s that do not ascend, or offsets that are not finite")


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
