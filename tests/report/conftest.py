"""The report of `one_latent_a_word`, its page, and a browser to look at it with."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from one_latent_a_word import (
    D_MODEL,
    N_GROUPS,
    N_LATENTS,
    REPLACED,
    VOCABULARY,
    save_sae,
    text_rows,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_lens_gba import NeuronGroups
from sae_lens_gba.report import Report, ReportConfig, collect_report
from sae_lens_gba.report.html import write_html
from sae_lens_gba.report.loading import load_saes

torch.set_num_threads(1)

NO_BROWSER = "SAE_LENS_GBA_NO_BROWSER_TESTS"


@pytest.fixture(scope="session")
def texts() -> Dataset:
    return Dataset.from_dict({"text": text_rows()})


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=N_LATENTS,
            hidden_size=D_MODEL,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    embedding = model.get_input_embeddings().weight.data
    embedding.copy_(torch.linalg.qr(torch.randn_like(embedding)).Q)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Any:
    return TransformerBridge.boot_transformers(str(model_folder), device="cpu")


@pytest.fixture(scope="session")
def sae_folders(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The SAE with one latent a token, in N_GROUPS groups, and a changed copy without groups.

    The copy has the latents in reverse order, and random directions instead of REPLACED.
    """
    root = tmp_path_factory.mktemp("saes")
    directions = model.W_E.detach().float().clone()
    first = save_sae(
        root / "first<b>",
        directions,
        training_architecture="gba",
        training_architecture_details={"target_l0": 1.0},
    )
    NeuronGroups(
        group=torch.arange(N_LATENTS) * N_GROUPS // N_LATENTS,
        target_frequency=torch.full((N_LATENTS,), 1 / N_LATENTS),
        measured_frequency=torch.full((N_LATENTS,), 1 / N_LATENTS),
    ).save(first)
    changed = directions.clone()
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(len(REPLACED), D_MODEL, generator=generator)
    changed[list(REPLACED)] = torch.nn.functional.normalize(noise, dim=1)
    second = save_sae(root / "second", changed.flip(0))
    return first, second


@pytest.fixture(scope="session")
def report(sae_folders: tuple[Path, Path], model: Any, texts: Dataset) -> Report:
    saes = load_saes(sae_folders)
    cfg = ReportConfig(n_tokens=1600, n_latents=20, ce_tokens=320)
    return collect_report(saes, model, texts, "made-up <i>text</i>", cfg)


@pytest.fixture(scope="session")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_html(report, path)
    return path


def _program(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(
            f"no {names[0]} on this machine: install it (Debian: apt-get install chromium "
            f"chromium-driver), or set {NO_BROWSER}=1 to leave the browser tests out.",
            pytrace=False,
        )
    return found


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium. Its absence is a failure unless SAE_LENS_GBA_NO_BROWSER_TESTS=1."""
    if os.environ.get(NO_BROWSER) == "1":
        pytest.skip(f"{NO_BROWSER}=1")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium", "chromium-browser", "google-chrome")
    driver_path = _program("chromedriver", "chromium.chromedriver")
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    yield driver
    driver.quit()
