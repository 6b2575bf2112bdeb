"""Train one SAE with two processes, each with a half of its latents and of the samples:

torchrun --nproc-per-node 2 examples/10_two_processes.py

With a language model: torchrun ... -m sae_lens_gba train, and the usual flags.
"""

import argparse
import tempfile
from collections.abc import Iterator

import torch
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig

from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig
from sae_lens_gba.distributed import LatentParallelTrainer, LatentSlice, join

D_IN, N_FEATURES, BATCH = 32, 128, 512


def activations(n: int, seed: int) -> Iterator[torch.Tensor]:
    """n sparse mixtures of 128 features at a time, other ones for every seed."""
    same = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(N_FEATURES, D_IN, generator=same), dim=1)
    own = torch.Generator().manual_seed(seed)
    while True:
        fires = torch.rand(n, N_FEATURES, generator=own) < 0.02
        yield (fires * (1 + torch.rand(n, 1, generator=own))) @ features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    cfg = GBATrainingSAEConfig(d_in=D_IN, d_sae=N_FEATURES, target_l0=3, l0_warm_up_steps=steps)
    training = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-2,
        lr_end=0.0,  # unused, but SAELens wants it
        lr_decay_steps=steps // 4,
    )
    with join() as ranks:
        part = LatentSlice.of(GBATrainingSAE(cfg) if ranks.rank == 0 else None, ranks)
        own_data = activations(ranks.part_of(BATCH), seed=ranks.rank)
        sae = LatentParallelTrainer(training, part, own_data).fit()
        print(f"rank {ranks.rank} of {ranks.world} trained {len(part.share)} latents")
    if ranks.rank == 0:  # there fit() gives back the whole SAE
        with tempfile.TemporaryDirectory() as folder:
            sae.save_inference_model(folder)
            loaded = SAE.load_from_disk(folder)
        x = next(activations(5120, seed=100))
        print(f"{loaded.cfg.d_sae} latents: L0 {(loaded.encode(x) > 0).sum(1).float().mean():.2f}")


if __name__ == "__main__":
    main()
