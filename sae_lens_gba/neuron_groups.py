"""Which group each latent of a trained SAE belongs to: the file that travels with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sae_lens_gba.atomic_write import write_atomically

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
    def load(cls, folder: str | Path) -> "NeuronGroups":
        """Read them from the folder of a saved GBA SAE.

        Raises:
            FileNotFoundError: the folder has no groups file.
            ValueError: the file is damaged, or of a newer format than this version reads.
        """
        path = Path(folder) / GROUPS_FILENAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: {folder} is not the output folder of a GBA SAE."
            )
        try:
            with safe_open(path, framework="pt") as file:
                version = int((file.metadata() or {}).get("format_version", "0"))
                if version > FORMAT_VERSION:
                    raise ValueError(
                        f"{path} has format version {version}, this sae_lens_gba reads up to "
                        f"{FORMAT_VERSION}: upgrade sae-lens-gba."
                    )
                return cls(**{name: file.get_tensor(name) for name in _NAMES})
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): copy or download it again.") from error
