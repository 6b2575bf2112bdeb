"""Every way SAELens trains, with ours selected as any other architecture."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, LoggingConfig, TrainingSAE
from sae_lens.synthetic import SyntheticSAERunner

from sae_lens_gba import GBATrainingSAE, NeuronGroups
from tests.toolbox import D_MODEL, Cache, Fit, synthetic_runner_config, tiny_config


def assert_trained(folder: Path, sae: TrainingSAE[Any]) -> None:
    assert type(sae) is GBATrainingSAE
    assert int(sae.adapter.n_steps) > 0
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
    # a whitening changes each latent's unit, and the offsets are in it
    has_others = NeuronGroups.load(tmp_path / "sae").other_l0s is not None
    assert has_others == (normalize != "covariance_whitening")


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
    tmp_path: Path, fit: Fit, cache_activations: Cache
) -> None:
    first, _ = fit(
        "first", use_cached_activations=True, cached_activations_path=str(cache_activations())
    )
    first.save_model(tmp_path / "checkpoint")
    second, _ = fit("second", from_pretrained_path=str(tmp_path / "checkpoint"))
    assert_trained(tmp_path / "second", second)
    assert int(second.adapter.n_steps) == 2 * int(first.adapter.n_steps)


def test_synthetic_runner(tmp_path: Path) -> None:
    cfg = synthetic_runner_config(tiny_config(), 40, 64, tmp_path, eval_samples=500)
    result: Any = SyntheticSAERunner(cfg).run()
    assert int(result.sae.adapter.n_steps) == 40
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded).__name__ == "JumpReLUSAE"
    assert loaded.cfg.metadata.l0 == pytest.approx(4.0, rel=0.02)
