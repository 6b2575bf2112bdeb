"""Explanations of latents: what an explainer is given, and what it said, read back in.

No model is asked here. EleutherAI's delphi takes what `export_for_delphi` writes; what delphi,
Neuronpedia or a person says of the latents, `read_explanations` reads.
"""

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sae_lens_gba.atomic_write import folder_written_whole
from sae_lens_gba.report.reading import Firings
from sae_lens_gba.saved.saved_sae import SavedSAE

LATENTS_PER_FILE = 4096
_DELPHI_NAME = re.compile(r"latent(\d+)\.txt$")
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


def check_export_folder(folder: Path) -> None:
    """Raise FileExistsError if there is something already."""
    if folder.exists():
        raise FileExistsError(f"delphi={folder} exists already: name a new folder.")


def export_for_delphi(
    saved: SavedSAE, firings: Firings, text: torch.Tensor, dataset_name: str, folder: Path
) -> None:
    """Write a report's activations as delphi's cache of latents, all or nothing.

    delphi's ``LatentDataset(raw_dir=folder, modules=[hook_name], ...)`` reads it, without the
    model: ``{hook_name}/{first}_{last}.safetensors`` with ``locations`` (sequence, token, latent
    counted from first), ``activations`` and ``tokens``, and ``{hook_name}/config.json``.

    Args:
        text: token ids, shape (n_sequences, n_tokens).
        dataset_name: for the config.
        folder: must not exist.

    Raises:
        FileExistsError: it does.
    """
    check_export_folder(folder)
    width, metadata = text.shape[1], saved.sae.cfg.metadata
    config = {
        "dataset_repo": dataset_name,
        "dataset_split": "",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": 1,
        "ctx_len": width,
        "n_tokens": text.numel(),
        "n_splits": -(-saved.d_sae // LATENTS_PER_FILE),
        "model_name": str(metadata.model_name),
    }

    with folder_written_whole(folder) as partial:
        module = partial / saved.hook_name
        module.mkdir()
        for first in range(0, saved.d_sae, LATENTS_PER_FILE):
            last = min(first + LATENTS_PER_FILE, saved.d_sae) - 1
            mine = (firings.latent >= first) & (firings.latent <= last)
            place = firings.place[mine].long()
            # delphi's reader knows int32 and int64 as well as its own unsigned types
            locations = torch.stack([place // width, place % width, firings.latent[mine] - first])
            tensors = {
                "locations": locations.T.int().contiguous(),
                "activations": firings.activation[mine].half(),
                "tokens": text.int().contiguous(),
            }
            save_file(tensors, module / f"{first}_{last}.safetensors")
        (module / "config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")


def read_explanations(path: Path, d_sae: int, hook_name: str | None = None) -> dict[int, str]:
    """What is said of latents, by index.

    Args:
        path: a folder of delphi's explanations (``..._latent12.txt``); Neuronpedia's export, one
            ``.jsonl`` or ``.jsonl.gz`` or a folder of them, with ``index`` and ``description`` in
            each line; or a ``.json`` of your own, ``{"12": "months of the year"}``.
        d_sae: how many latents there are.
        hook_name: whose they are, where delphi explained several.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is of none of these forms, names a latent that is not there, or is of other
            hooks.
    """
    if path.is_dir():
        files = sorted(
            p for p in path.iterdir() if p.name.endswith((".txt", ".jsonl", ".jsonl.gz"))
        )
        names = (_DELPHI_NAME.split(p.name) for p in files)
        hooks = {name[0] for name in names if len(name) > 1}
        if len(hooks) > 1:
            if f"{hook_name}_" not in hooks:
                raise ValueError(
                    f"explanations={path} are of {sorted(hook.rstrip('_') for hook in hooks)}, the "
                    f"SAE is at {hook_name}: give a folder of its own alone."
                )
            files = [p for p in files if p.name.startswith(f"{hook_name}_latent")]
    elif path.is_file():
        files = [path]
    else:
        raise FileNotFoundError(f"explanations={path} is not there: give a file or a folder.")
    found: dict[int, str] = {}
    for file in files:
        try:
            found.update(_read(file))
        except (ValueError, KeyError, TypeError, AttributeError, *_DAMAGED) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"explanations={file} can't be read ({reason}): give delphi's folder of "
                "explanations, Neuronpedia's .jsonl, or a .json from latents to sentences."
            ) from error
    if not found:
        raise ValueError(
            f"explanations={path} has none: delphi's end in latent<number>.txt, Neuronpedia's "
            "are .jsonl."
        )
    unknown = [latent for latent in found if not 0 <= latent < d_sae]
    if unknown:
        raise ValueError(
            f"explanations={path} has latent {unknown[0]}, but the SAE has {d_sae}, numbered from "
            "0: give those of this SAE."
        )
    return found


def _read(file: Path) -> dict[int, str]:
    if delphi := _DELPHI_NAME.search(file.name):
        content = file.read_text(encoding="utf-8-sig")
        return {int(delphi[1]): str(json.loads(content)).strip()}
    if file.suffix == ".json":
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        return {int(latent): str(said) for latent, said in content.items()}
    if not file.name.endswith((".jsonl", ".jsonl.gz")):
        return {}
    opened: Any = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8-sig") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    found: dict[int, str] = {}
    for row in rows:  # of several that are said of a latent, the first
        if row["description"] is not None:
            found.setdefault(int(row["index"]), str(row["description"]).strip())
    return found
