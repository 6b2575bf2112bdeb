"""Train a GBA SAE on activations of your own, save it, and load it with plain SAELens."""

import argparse
import tempfile
from collections.abc import Iterator

import torch
from sae_lens import SAE, TrainingSAE
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
    data = activations()
    sae = TrainingSAE.from_dict(
        GBATrainingSAEConfig(
            d_in=D_IN, d_sae=N_FEATURES, target_l0=3.0, l0_warm_up_steps=steps
        ).to_dict()
    )
    cfg = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-2,  # 5e-3 for many thousands of steps
        lr_end=0.0,  # unused, but SAELens wants it
        lr_decay_steps=steps // 4,
    )
    SAETrainer(cfg, sae, data).fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        loaded = SAE.load_from_disk(folder)
    x = torch.cat([next(data) for _ in range(10)])  # the same features, samples it has not seen
    print(f"{type(loaded).__name__}: L0 {(loaded.encode(x) > 0).sum(1).float().mean():.2f} of 3")


if __name__ == "__main__":
    main()
