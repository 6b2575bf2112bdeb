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
from sae_lens import (
    CacheActivationsRunner,
    CacheActivationsRunnerConfig,
    LanguageModelSAETrainingRunner,
)
from transformer_lens import HookedTransformer

from tests.toolbox import (
    D_MODEL,
    HOOK,
    VOCABULARY,
    Cache,
    Fit,
    boot,
    hooked_transformer,
    language_model_config,
    random_texts,
    save_tiny_llama,
    tiny_config,
)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a word tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("tiny-llm")
    save_tiny_llama(folder, VOCABULARY)
    return folder


@pytest.fixture(scope="session")
def tiny_bridge(tiny_llm_folder: Path) -> Any:
    return boot(tiny_llm_folder)


@pytest.fixture(scope="session")
def tiny_hooked_transformer(tiny_llm_folder: Path) -> HookedTransformer:
    return hooked_transformer(tiny_llm_folder)


@pytest.fixture(scope="session")
def tiny_texts() -> Dataset:
    return random_texts()


@pytest.fixture
def fit(tmp_path: Path, tiny_texts: Dataset, tiny_hooked_transformer: Any) -> Fit:
    """Trains by SAELens' runner into a folder of this name; the SAE, and the run's config."""

    def fit(name: str, model: Any = tiny_hooked_transformer, **settings: Any) -> Any:
        cfg = language_model_config(
            tmp_path / name, **{"sae": tiny_config(d_in=D_MODEL), **settings}
        )
        runner = LanguageModelSAETrainingRunner(
            cfg, override_model=model, override_dataset=tiny_texts
        )
        return runner.run(), cfg

    return fit


@pytest.fixture
def cache_activations(
    tmp_path: Path,
    tiny_hooked_transformer: Any,
    tiny_texts: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> Cache:
    """Caches a hook's activations as SAELens does; the folder."""
    # this runner takes no model of the caller's
    monkeypatch.setattr(
        "sae_lens.cache_activations_runner.load_model", lambda **_: tiny_hooked_transformer
    )

    def cache_activations(
        hook: str = HOOK, texts: Dataset = tiny_texts, tokens: int = 2048
    ) -> Path:
        folder = tmp_path / f"cache_{hook}_{tokens}"
        cfg = CacheActivationsRunnerConfig(
            dataset_path="tiny/texts",
            model_name="tiny/random",
            model_batch_size=4,
            hook_name=hook,
            d_in=D_MODEL,
            training_tokens=tokens,
            context_size=16,
            new_cached_activations_path=str(folder),
            buffer_size_gb=1e-5,  # the default fills 2 GB before it writes anything
            model_from_pretrained_kwargs={},
            dtype="float32",
            device="cpu",
        )
        CacheActivationsRunner(cfg, override_dataset=texts).run()
        return folder

    return cache_activations
