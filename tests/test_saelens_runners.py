"""Every way SAELens trains, with ours selected as any other architecture."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    CacheActivationsRunner,
    CacheActivationsRunnerConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.synthetic import SyntheticSAERunner

from sae_lens_gba import GBATrainingSAE, NeuronGroups
from tests.toolbox import D_MODEL, synthetic_runner_config, tiny_config

HOOK = "blocks.0.hook_resid_post"


# of every run on a language model
TINY_RUN: dict[str, Any] = {
    "model_name": "tiny/random",
    "model_from_pretrained_kwargs": {},
    "dataset_path": "tiny/texts",
    "streaming": False,
    "context_size": 16,
    "training_tokens": 1536,
    "train_batch_size_tokens": 64,
    "store_batch_size_prompts": 4,
    "n_batches_in_buffer": 16,
    "logger": LoggingConfig(log_to_wandb=False),
    "checkpoint_path": None,
}
Fit = Callable[..., tuple[Any, LanguageModelSAERunnerConfig[Any]]]


@pytest.fixture
def fit(tmp_path: Path, tiny_texts: Dataset, tiny_hooked_transformer: Any) -> Fit:
    """Trains by SAELens' runner into a folder of this name; the SAE, and the run's config."""

    def fit(name: str, model: Any = tiny_hooked_transformer, **settings: Any) -> Any:
        defaults: dict[str, Any] = {
            **TINY_RUN,
            "sae": tiny_config(d_in=D_MODEL),
            "hook_name": HOOK,
            "is_dataset_tokenized": False,
            "n_batches_for_norm_estimate": 2,
            "n_eval_batches": 1,
            "lr": 1e-3,
            "device": "cpu",
            "output_path": str(tmp_path / name),
        }
        cfg = LanguageModelSAERunnerConfig(**{**defaults, **settings})
        runner = LanguageModelSAETrainingRunner(
            cfg, override_model=model, override_dataset=tiny_texts
        )
        return runner.run(), cfg

    return fit


def assert_trained(folder: Path, sae: TrainingSAE[Any]) -> None:
    assert type(sae) is GBATrainingSAE
    assert int(sae.adapter.n_steps) > 0
    assert float(sae.bias.sum()) < 0
    loaded = SAE.load_from_disk(folder)
    x = torch.randn(10, D_MODEL)
    assert torch.equal(loaded.encode(x), sae.encode(x))
    groups = NeuronGroups.load(folder)
    assert torch.equal(groups.measured_frequency, sae.adapter.frequency)
    # calibrated, whatever runner: card, metadata and groups say what was asked
    metadata = loaded.cfg.metadata
    assert metadata.gba["l0"]["n_samples"] > 0
    for l0 in (metadata.l0, metadata.gba["l0"]["measured"], float(groups.measured_frequency.sum())):
        assert l0 == pytest.approx(metadata.gba["l0"]["target"], rel=0.02)


@pytest.mark.parametrize("model", ["tiny_bridge", "tiny_hooked_transformer"])
@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in", "covariance_whitening"])
def test_language_model_runner(
    tmp_path: Path, fit: Fit, model: str, normalize: str, request: pytest.FixtureRequest
) -> None:
    sae_cfg = tiny_config(d_in=D_MODEL, normalize_activations=normalize)
    sae, _ = fit("sae", request.getfixturevalue(model), sae=sae_cfg)
    assert_trained(tmp_path / "sae", sae)
    runner_cfg = json.loads((tmp_path / "sae" / "runner_cfg.json").read_text())
    assert runner_cfg["sae"]["architecture"] == "gba"


def test_language_model_runner_on_hook_z(tmp_path: Path, fit: Fit) -> None:
    sae_cfg = tiny_config(d_in=D_MODEL, reshape_activations="hook_z")
    sae, _ = fit("sae", hook_name="blocks.0.attn.hook_z", sae=sae_cfg)
    assert int(sae.adapter.n_steps) > 0
    heads = torch.randn(3, 5, 4, 4)
    assert SAE.load_from_disk(tmp_path / "sae")(heads).shape == heads.shape


def test_language_model_runner_with_evals_compiled_and_logged(
    tmp_path: Path, fit: Fit, tiny_bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = LoggingConfig(
        log_to_wandb=True,
        log_weights_to_wandb=False,
        wandb_log_frequency=3,
        eval_every_n_wandb_logs=2,
    )
    # the plain runner compiles with inductor, which wants a C++ compiler; ours needs none
    compile_eagerly = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", lambda f, **_: compile_eagerly(f))
    sae, cfg = fit(
        "out", tiny_bridge, logger=logger, compile_sae=True, n_checkpoints=1, checkpoint_path="ckpt"
    )
    assert_trained(tmp_path / "out", sae)
    (checkpoint,) = Path(str(cfg.checkpoint_path)).glob("*")
    assert type(TrainingSAE.load_from_disk(checkpoint)) is GBATrainingSAE


def test_cached_activations_then_fine_tuning(
    tmp_path: Path,
    fit: Fit,
    tiny_texts: Dataset,
    tiny_hooked_transformer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # this runner takes no model of the caller's
    monkeypatch.setattr(
        "sae_lens.cache_activations_runner.load_model", lambda **_: tiny_hooked_transformer
    )
    cache = CacheActivationsRunnerConfig(
        dataset_path="tiny/texts",
        model_name="tiny/random",
        model_batch_size=4,
        hook_name=HOOK,
        d_in=D_MODEL,
        training_tokens=2048,
        context_size=16,
        new_cached_activations_path=str(tmp_path / "cache"),
        buffer_size_gb=1e-5,  # the default fills 2 GB before it writes anything
        model_from_pretrained_kwargs={},
        dtype="float32",
        device="cpu",
    )
    CacheActivationsRunner(cache, override_dataset=tiny_texts).run()

    first, _ = fit(
        "first", use_cached_activations=True, cached_activations_path=str(tmp_path / "cache")
    )
    first.save_model(tmp_path / "checkpoint")
    second, _ = fit("second", from_pretrained_path=str(tmp_path / "checkpoint"))
    assert_trained(tmp_path / "second", second)
    assert int(second.adapter.n_steps) == 2 * int(first.adapter.n_steps)


def test_the_runner_resumes_from_a_checkpoint(tmp_path: Path, fit: Fit) -> None:
    # bit-equality is shown with SAETrainer (test_checkpoint_resume.py): the runner's activation
    # buffer is not part of SAELens' checkpoints, so its data go on in another order
    part, cfg = fit(
        "part", training_tokens=832, save_final_checkpoint=True,
        checkpoint_path=str(tmp_path / "checkpoints"),
    )  # fmt: skip
    (checkpoint,) = Path(str(cfg.checkpoint_path)).glob("final_*")
    resumed, _ = fit("resumed", resume_from_checkpoint=str(checkpoint))
    assert (int(part.adapter.n_steps), int(resumed.adapter.n_steps)) == (13, 24)
    assert_trained(tmp_path / "resumed", resumed)


def test_synthetic_runner(tmp_path: Path) -> None:
    cfg = synthetic_runner_config(tiny_config(), 40, 64, tmp_path, eval_samples=500)
    result: Any = SyntheticSAERunner(cfg).run()
    assert int(result.sae.adapter.n_steps) == 40
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded).__name__ == "JumpReLUSAE"
    assert loaded.cfg.metadata.l0 == pytest.approx(4.0, rel=0.02)


def test_beside_topk_on_one_model(
    tmp_path: Path, tiny_texts: Dataset, tiny_hooked_transformer: Any
) -> None:
    cfg = MultiSAETrainingRunnerConfig(
        **TINY_RUN,
        saes={"gba": tiny_config(d_in=D_MODEL), "topk": TopKTrainingSAEConfig(D_MODEL, 64, k=4)},
        hook_names=HOOK,
        output_path=str(tmp_path),
    )
    saes = MultiSAETrainingRunner(
        cfg, override_model=tiny_hooked_transformer, override_dataset=tiny_texts
    ).run()
    assert_trained(tmp_path / "gba", saes["gba"])
    assert type(SAE.load_from_disk(tmp_path / "topk")).__name__ == "TopKSAE"
