"""Tiny settings, data and training runs that the tests share."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig

D_MODEL = 16
WORDS = [f"w{i}" for i in range(60)]


def mixture(
    seed: int, batch: int = 256, d_in: int = 16, n_features: int = 48, device: str = "cpu"
) -> Iterator[torch.Tensor]:
    """Endless batches of sparse non-negative mixtures of Gaussian features, plus a mean."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.randn(n_features, d_in, generator=torch.Generator().manual_seed(99))
    while True:
        fires = torch.rand(batch, n_features, generator=generator) < 0.05
        strength = 0.5 + torch.rand(batch, n_features, generator=generator)
        yield ((fires * strength) @ dictionary + 2.0).to(device)


def tiny_config(**settings: Any) -> GBATrainingSAEConfig:
    defaults: dict[str, Any] = {
        "d_in": 16,
        "d_sae": 64,
        "n_groups": 4,
        "highest_target_frequency": 0.3,
        "target_l0": 4.0,
        "adapt_every_n_steps": 5,
    }
    return GBATrainingSAEConfig(**{**defaults, **settings})


def trainer_config(steps: int, batch: int = 256, **settings: Any) -> SAETrainerConfig:
    defaults: dict[str, Any] = {
        "n_checkpoints": 0,
        "checkpoint_path": None,
        "save_final_checkpoint": False,
        "total_training_samples": steps * batch,
        "device": "cpu",
        "autocast": False,
        "lr": 1e-3,
        "lr_end": 1e-3,
        "lr_scheduler_name": "constant",
        "lr_warm_up_steps": 0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "lr_decay_steps": 0,
        "n_restart_cycles": 1,
        "train_batch_size_samples": batch,
        "dead_feature_window": 1000,
        "feature_sampling_window": 2000,
        "n_batches_for_norm_estimate": 4,
        "logger": LoggingConfig(log_to_wandb=False),
    }
    return SAETrainerConfig(**{**defaults, **settings})


def make_trainer(
    sae: Any, steps: int, data: Iterator[torch.Tensor] | None = None, **settings: Any
) -> SAETrainer[Any, Any]:
    provider = mixture(1) if data is None else data
    return SAETrainer(trainer_config(steps, **settings), sae, provider)


def take_steps(trainer: SAETrainer[Any, Any], n: int) -> Any:
    output = None
    for _ in range(n):
        output = trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
    return output


def randomise(sae: GBATrainingSAE) -> GBATrainingSAE:
    """Random weights and biases everywhere: zeros would hide what a test looks for."""
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
            if name == "output_scale":
                parameter.abs_().add_(0.5)
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        sae.b_enc.zero_()
        sae.set_bias(-torch.rand(sae.cfg.d_sae).to(sae.b_enc.dtype))
        sae.adapter.input_norm.fill_(3.0)
    return sae


def load_script(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of examples/ as a module; what stands beside it can be imported by it."""
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
