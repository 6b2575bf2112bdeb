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
from transformer_lens import HookedTransformer

from tests.toolbox import WORDS, boot, hooked_transformer, save_tiny_llama

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
    return hooked_transformer(tiny_llm_folder)


@pytest.fixture(scope="session")
def tiny_texts() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(WORDS), (300, 40), generator=generator).tolist()
    return Dataset.from_dict({"text": [" ".join(WORDS[i] for i in row) for row in rows]})
