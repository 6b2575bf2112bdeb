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
from tokenizers import Tokenizer, models, pre_tokenizers
from toolbox import D_MODEL, WORDS
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a word tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("tiny-llm")
    vocabulary = {word: i for i, word in enumerate(["<s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=D_MODEL,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bridge(tiny_llm_folder: Path) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(tiny_llm_folder), device="cpu")


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
