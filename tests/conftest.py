"""Shared parts: one thread, no network, tiny models and tiny data."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

from tests.toolbox import D_MODEL, WORDS, boot, save_tiny_llama

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a word tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("tiny-llm")
    save_tiny_llama(folder, ["<s>", "<unk>", *WORDS])
    return folder


@pytest.fixture(scope="session")
def tiny_bridge(tiny_llm_folder: Path) -> Any:
    return boot(tiny_llm_folder)


@pytest.fixture(scope="session")
def tiny_hooked_transformer(tiny_llm_folder: Path) -> HookedTransformer:
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=D_MODEL, n_ctx=64, d_head=4, n_heads=4, d_mlp=32,
        d_vocab=len(WORDS) + 2, act_fn="relu", seed=0,
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_llm_folder)
    return HookedTransformer(cfg, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def tiny_texts() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(WORDS), (300, 40), generator=generator).tolist()
    return Dataset.from_dict({"text": [" ".join(WORDS[i] for i in row) for row in rows]})
