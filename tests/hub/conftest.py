"""A Hub of its own for each test, SAEs trained for a moment, and a clock that does not wait."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from local_hub import LocalHub
from tiny_training import D_IN, D_SAE, HOOK, publish_to, trainer

from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache_and_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the code under test wanted to sleep, in order; it does not."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as server:
        yield server


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., GBATrainingSAE]:
    """A GBA SAE with the metadata of a real one, trained for ``n_steps``."""

    def make(n_steps: int = 120, seed: int = 0, **settings: object) -> GBATrainingSAE:
        torch.manual_seed(seed)
        cfg = GBATrainingSAEConfig(
            **{
                "d_in": D_IN,
                "d_sae": D_SAE,
                "n_groups": 4,
                "target_l0": 3.0,
                "adapt_every_n_steps": 10,
                **settings,
            }
        )
        sae = GBATrainingSAE(cfg)
        metadata = sae.cfg.metadata
        metadata.model_name = "user/tiny-model"
        metadata.hook_name = HOOK
        metadata.dataset_path = "user/tiny-text"
        metadata.context_size = 16
        if n_steps:
            trainer(sae, n_steps).fit()
        return sae

    return make


@pytest.fixture(scope="session")
def jumprelu_sae(make_sae: Callable[..., GBATrainingSAE]) -> GBATrainingSAE:
    return make_sae()


@pytest.fixture(scope="session")
def relu_sae(make_sae: Callable[..., GBATrainingSAE]) -> GBATrainingSAE:
    return make_sae(seed=1, activation="relu", tied=True)


@pytest.fixture
def sae_folder(jumprelu_sae: GBATrainingSAE, tmp_path: Path) -> Path:
    """The output folder of a run."""
    folder = tmp_path / "run"
    jumprelu_sae.save_inference_model(folder)
    return folder


@pytest.fixture
def with_plots() -> None:
    """Asks for frequency plots, which take most of the time of a publication."""


@pytest.fixture(autouse=True)
def _no_plots_unless_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_plots" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if not installed


@pytest.fixture
def published(hub: LocalHub, jumprelu_sae: GBATrainingSAE, relu_sae: GBATrainingSAE) -> LocalHub:
    """A Hub with two SAEs in one repo."""
    publish_to(hub, {"a/jumprelu": jumprelu_sae, "b/relu": relu_sae})
    hub.requests.clear()
    return hub
