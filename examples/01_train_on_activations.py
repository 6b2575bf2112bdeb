"""Train a GBA SAE on activations of your own, save it, and load it with plain SAELens."""

import argparse
import tempfile
from collections.abc import Iterator

import torch
from sae_lens import SAE, LoggingConfig, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import GBATrainingSAEConfig

D_IN, N_FEATURES, BATCH = 32, 128, 512


def activations() -> Iterator[torch.Tensor]:
    """Sparse mixtures of 128 features in 32 dimensions; put your own here."""
    features = torch.nn.functional.normalize(torch.randn(N_FEATURES, D_IN), dim=1)
    while True:
        yield ((torch.rand(BATCH, N_FEATURES) < 0.02) * (1 + torch.rand(BATCH, 1))) @ features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    cfg = GBATrainingSAEConfig(d_in=D_IN, d_sae=N_FEATURES, target_l0=3.0)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * BATCH,
            train_batch_size_samples=BATCH,
            lr=1e-3,
            lr_end=1e-4,
            lr_decay_steps=steps // 4,
            lr_warm_up_steps=0,
            lr_scheduler_name="constant",
            n_restart_cycles=1,
            adam_beta1=0.9,
            adam_beta2=0.999,
            device="cpu",
            autocast=False,
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            dead_feature_window=1000,
            feature_sampling_window=1000,
            n_batches_for_norm_estimate=10,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        TrainingSAE.from_dict(cfg.to_dict()),
        activations(),
    )
    sae = trainer.fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        loaded = SAE.load_from_disk(folder)
    x = next(activations())
    print(f"{type(loaded).__name__}: L0 {(loaded.encode(x) > 0).sum(1).float().mean():.2f} of 3")


if __name__ == "__main__":
    main()
