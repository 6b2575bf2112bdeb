"""Data and a trainer small enough for tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from local_hub import LocalHub
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.hub.publishing import Publication, publish

REPO = "user/tiny-gba-saes"
HOOK = "blocks.1.hook_resid_post"
D_IN, D_SAE = 16, 32


def activations(n: int, seed: int = 0) -> torch.Tensor:
    """Sparse mixtures of 24 directions, shape (n, D_IN)."""
    directions = torch.randn(24, D_IN, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(n, 24, generator=generator) < 0.1
    return (present * torch.rand(n, 24, generator=generator)) @ directions


def batches(seed: int = 0) -> Iterator[torch.Tensor]:
    while True:
        yield activations(128, seed)
        seed += 1


def trainer(sae: GBATrainingSAE, n_steps: int, **changes: object) -> SAETrainer:
    settings: dict[str, object] = {
        "n_checkpoints": 0,
        "checkpoint_path": None,
        "save_final_checkpoint": False,
        "total_training_samples": 128 * n_steps,
        "device": "cpu",
        "autocast": False,
        "lr": 3e-3,
        "lr_end": 3e-3,
        "lr_scheduler_name": "constant",
        "lr_warm_up_steps": 0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "lr_decay_steps": 0,
        "n_restart_cycles": 1,
        "train_batch_size_samples": 128,
        "dead_feature_window": 1000,
        "feature_sampling_window": 2000,
        "logger": LoggingConfig(log_to_wandb=False),
        "n_batches_for_norm_estimate": 2,
        **changes,
    }
    return SAETrainer(SAETrainerConfig(**settings), sae, batches())


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


def edit(hub: LocalHub, **files: bytes | None) -> None:
    """Commit other contents of files of a/jumprelu; None deletes."""
    repo = hub.repos[REPO]
    content = dict(repo.files())
    for name, data in files.items():
        path = f"a/jumprelu/{name}"
        if data is None:
            del content[path]
        else:
            content[path] = data
    repo.commit("main", content, "edited")
