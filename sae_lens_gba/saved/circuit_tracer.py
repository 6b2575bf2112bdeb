"""Transcoders of all layers of a model, in the form that circuit-tracer loads.

config.yaml             which hooks they read and write
layer_0.safetensors     W_enc (d_sae, d_in), b_enc, W_dec, b_dec, and, where the transcoder has
layer_1.safetensors     them, activation_function.threshold and W_skip (d_out, d_in)
...
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from sae_lens_gba.at_target import is_transcoder
from sae_lens_gba.atomic_write import folder_written_whole
from sae_lens_gba.saved.loading import load
from sae_lens_gba.saved.saved_sae import SavedSAE

_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")


def export_for_circuit_tracer(
    transcoders: Sequence[SavedSAE | str | Path] | str | Path, folder: str | Path
) -> Path:
    """Write a set of transcoders, one of each of a model's layers, for circuit-tracer.

    Uploaded to a repo on the Hub as it is, circuit-tracer loads it by the repo's name.

    Args:
        transcoders: as `load` takes or gives them, in any order; one alone as well.
        folder: to be made.

    Returns:
        The folder.

    Raises:
        ValueError: one is no transcoder, or they are not of layers 0, 1, 2, ... at the same hooks
            and of one width.
    """
    if isinstance(transcoders, str | Path):
        transcoders = [transcoders]
    loaded = [t if isinstance(t, SavedSAE) else load(t) for t in transcoders]
    for t in loaded:
        if not is_transcoder(t.sae):
            raise ValueError(
                f"{t.label or 'one of them'} is an SAE at {t.hook_name}: circuit-tracer takes "
                "transcoders."
            )
    by_layer = {_place(t)[0]: t for t in loaded}
    places = {_place(t)[1:] for t in loaded}
    shapes = {(t.d_sae, *t.widths.values()) for t in loaded}
    if sorted(by_layer) != list(range(len(loaded))) or len(places) != 1 or len(shapes) != 1:
        raise ValueError(
            f"transcoders of layers {sorted(_place(t)[0] for t in loaded)} at {sorted(places)}, "
            f"of widths {sorted(shapes)}, are no set: circuit-tracer takes one of each layer from "
            "0 on, all at the same hooks and of the same width."
        )
    ((read, written),) = places
    config = {
        "model_kind": "transcoder_set",
        "model_name": str(loaded[0].sae.cfg.metadata.model_name),
        "feature_input_hook": read,
        "feature_output_hook": written,
    }
    path = Path(folder).expanduser()
    with folder_written_whole(path) as new:
        (new / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        for layer, transcoder in by_layer.items():
            save_file(_weights(transcoder), new / f"layer_{layer}.safetensors")
    return path


def _place(transcoder: SavedSAE) -> tuple[int, str, str]:
    """Layer, and names within it of the hooks that are read and written."""
    found = [_LAYER.fullmatch(h) for h in (transcoder.hook_name, transcoder.hook_name_out)]
    read, written = found
    if read is None or written is None or read[1] != written[1]:
        raise ValueError(
            f"{transcoder.label or 'a transcoder'} goes from {transcoder.hook_name} to "
            f"{transcoder.hook_name_out}: circuit-tracer takes hooks of one layer, such as "
            "blocks.8.mlp.hook_in and blocks.8.hook_mlp_out."
        )
    return int(read[1]), read[2], written[2]


def _weights(transcoder: SavedSAE) -> dict[str, torch.Tensor]:
    weights = {name: w.detach().cpu() for name, w in transcoder.sae.state_dict().items()}
    weights["W_enc"] = weights["W_enc"].T
    if "threshold" in weights:
        weights["activation_function.threshold"] = weights.pop("threshold")
    return {name: w.contiguous() for name, w in weights.items()}
