"""The report of `one_latent_a_word`, its page, and a browser to look at it with."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sae_lens_gba.report import Report, ReportConfig, collect_report
from sae_lens_gba.report.html import write_html
from sae_lens_gba.sources import load_saes
from tests.one_latent_a_word import Collect, model, model_folder, sae_folders, texts

__all__ = ["model", "model_folder", "sae_folders", "texts"]

NO_BROWSER = "SAE_LENS_GBA_NO_BROWSER_TESTS"


@pytest.fixture(scope="session")
def collect(model: Any, texts: Dataset) -> Collect:
    """Reports on SAEs from these folders; settings are those of `ReportConfig`."""

    def collect(*folders: Path, text: Dataset = texts, **settings: Any) -> Report:
        cfg = ReportConfig(**{"n_tokens": 320, "n_latents": 4, "ce_tokens": 0, **settings})
        return collect_report(load_saes(folders), model, text, "made-up <i>text</i>", cfg)

    return collect


@pytest.fixture(scope="session")
def report(sae_folders: tuple[Path, Path], collect: Collect) -> Report:
    return collect(*sae_folders, n_tokens=1600, n_latents=20, ce_tokens=320)


@pytest.fixture(scope="session")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "my report.html"
    report.save(path.with_suffix(".json"))
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
