"""Fixtures and helpers of tests/hub and tests/saved: a Hub for each test, tiny trained SAEs."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, file_download
from packaging.version import Version
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import GBATrainingSAE, GBATrainingTranscoder
from sae_lens_gba.hub.publishing import Publication, publish
from sae_lens_gba.registration import CLASSES
from tests.local_hub import LocalHub
from tests.toolbox import make_trainer

REPO = "user/tiny-gba-saes"
HOOK = "blocks.1.hook_resid_post"
TARGET = "blocks.1.hook_mlp_out"  # of transcoders
D_IN, D_SAE, D_OUT = 16, 32, 12
WEIGHTS = "sae_weights.safetensors"
GROUPS = "gba_groups.safetensors"

HUB_BEFORE_1 = Version(huggingface_hub.__version__) < Version("1")

MakeSAE = Callable[..., GBATrainingSAE]


def activations(n: int, seed: int = 0) -> torch.Tensor:
    """Sparse mixtures of 24 directions, shape (n, D_IN)."""
    directions = torch.randn(24, D_IN, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(n, 24, generator=generator) < 0.1
    return (present * torch.rand(n, 24, generator=generator)) @ directions


def batch_for(sae: Any, seed: int) -> torch.Tensor:
    """`activations`; for a transcoder with targets beside them."""
    x = activations(128, seed)
    if not isinstance(sae, GBATrainingTranscoder):
        return x
    maps = torch.randn(D_IN, sae.d_out, generator=torch.Generator().manual_seed(2))
    return torch.cat([x, (x @ maps).relu() + 1], dim=1)


def trainer(sae: Any, n_steps: int, **changes: Any) -> SAETrainer[Any, Any]:
    batches = (batch_for(sae, seed) for seed in range(n_steps + 10))
    settings = {"lr": 3e-3, "lr_end": 3e-3, "n_batches_for_norm_estimate": 2, **changes}
    return make_trainer(sae, n_steps, batches, batch=128, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def publish_to(hub: LocalHub, saes: Any, repo_id: str = REPO, **options: Any) -> Publication:
    """`publish` on the local Hub."""
    options = {"license": "mit", "show_progress": False, "token": hub.token, **options}
    return publish(saes, repo_id, endpoint=hub.endpoint, **options)


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """No file that is written here grows larger: the nearest thing to a full disk for a test."""
    resource: Any = pytest.importorskip("resource", reason="Windows limits no file's size")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(autouse=True)
def own_cache_and_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub() as server:
        if HUB_BEFORE_1:
            # a commit's address is read as one of HF_ENDPOINT there, whatever endpoint was passed
            template = constants.HUGGINGFACE_CO_URL_TEMPLATE
            template = template.replace(constants.ENDPOINT, server.endpoint)
            monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
            # a thread's session there stays offline if it was made so, by another test
            vars(file_download)["reset_sessions"]()
        yield server


@pytest.fixture(scope="session")
def make_sae() -> MakeSAE:
    """A GBA SAE or transcoder with the metadata of a real one, trained for ``n_steps``."""

    def make(
        n_steps: int = 120, seed: int = 0, architecture: str = "gba", **settings: Any
    ) -> GBATrainingSAE:
        torch.manual_seed(seed)
        defaults: dict[str, Any] = {"n_groups": 4, "target_l0": 3.0, "adapt_every_n_steps": 10}
        if architecture != "gba":
            defaults |= {"d_out": D_OUT, "hook_name_out": TARGET}
        cls, config_class = CLASSES[architecture]
        sae = cls(config_class(D_IN, D_SAE, **{**defaults, **settings}))
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
def trained_saes(make_sae: MakeSAE) -> dict[str, GBATrainingSAE]:
    return {
        "jumprelu": make_sae(),
        "relu": make_sae(seed=1, activation="relu", tied=True),
        "skip": make_sae(seed=2, architecture="gba_skip_transcoder"),
    }


@pytest.fixture
def jumprelu_sae(trained_saes: dict[str, GBATrainingSAE]) -> GBATrainingSAE:
    return deepcopy(trained_saes["jumprelu"])


@pytest.fixture
def relu_sae(trained_saes: dict[str, GBATrainingSAE]) -> GBATrainingSAE:
    return deepcopy(trained_saes["relu"])


@pytest.fixture
def skip_transcoder(trained_saes: dict[str, GBATrainingSAE]) -> GBATrainingSAE:
    return deepcopy(trained_saes["skip"])


@pytest.fixture
def sae_folder(jumprelu_sae: GBATrainingSAE, tmp_path: Path) -> Path:
    """The output folder of a run."""
    folder = tmp_path / "run"
    jumprelu_sae.save_inference_model(folder)
    return folder


@pytest.fixture
def mid_run_checkpoint(make_sae: MakeSAE, tmp_path: Path) -> Path:
    """A checkpoint from before SAELens folds the activations' scale."""
    sae = make_sae(0, normalize_activations="expected_average_only_in")
    trainer(sae, 40, n_checkpoints=1, checkpoint_path=str(tmp_path / "checkpoints")).fit()
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    return checkpoint


@pytest.fixture
def with_plots() -> None:
    """Asks for frequency plots, which take most of the time of a publication."""


@pytest.fixture(autouse=True)
def no_plots_unless_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_plots" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if not installed


@pytest.fixture
def published(hub: LocalHub, jumprelu_sae: GBATrainingSAE, relu_sae: GBATrainingSAE) -> LocalHub:
    """A Hub with two SAEs in one repo."""
    publish_to(hub, {"a/jumprelu": jumprelu_sae, "b/relu": relu_sae})
    hub.requests.clear()
    return hub
