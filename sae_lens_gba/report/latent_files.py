"""Details of latents in files beside the page, which reads those it needs.

A page that was opened from a folder can't fetch JSON, but it can run a script that lies beside it:
each file is one call of a function of the page, with JSON as its argument.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens_gba.atomic_write import folder_written_whole

LATENTS_PER_FILE = 64
FUNCTION = "showDetails"


def latents_folder(path: Path) -> Path:
    """Where a report whose page or JSON is ``path`` has its details."""
    return path.with_name(f"{path.stem}_latents")


def check_latents_folder(path: Path) -> None:
    """Raise FileExistsError if files of somebody else lie where the details would go."""
    folder = latents_folder(path)
    is_folder = folder.is_dir()
    if (folder.exists() and not is_folder) or (
        is_folder and any(p.suffix != ".js" for p in folder.iterdir())
    ):
        raise FileExistsError(
            f"{folder}, where the details of latents go, holds other files: move them, or name "
            "another --output."
        )


def write_details(details: Sequence[Sequence[dict[str, Any]]], path: Path) -> None:
    """Write each SAE's details beside ``path``, all or nothing.

    Raises:
        FileExistsError: see `check_latents_folder`.
    """
    check_latents_folder(path)

    with folder_written_whole(latents_folder(path), replace=True) as folder:
        for index, of_sae in enumerate(details):
            for start in range(0, len(of_sae), LATENTS_PER_FILE):
                name = f"{index}-{start // LATENTS_PER_FILE:05d}"
                part = json.dumps(of_sae[start : start + LATENTS_PER_FILE], ensure_ascii=False,
                                  separators=(",", ":"))  # fmt: skip
                text = f"{FUNCTION}({json.dumps(name)}, {part});\n"
                (folder / f"{name}.js").write_text(text, encoding="utf-8")


def read_details(path: Path, index: int) -> list[dict[str, Any]]:
    """Details of an SAE of the report at ``path``, in the order they were written.

    Raises:
        ValueError: a file is damaged.
    """
    details: list[dict[str, Any]] = []
    for file in sorted(latents_folder(path).glob(f"{index}-*.js")):
        _, _, part = file.read_text(encoding="utf-8").partition(", ")
        try:
            details += json.loads(part.removesuffix(");\n"))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file} is damaged ({error}): make the report again with `sae-lens-gba report`."
            ) from error
    return details
