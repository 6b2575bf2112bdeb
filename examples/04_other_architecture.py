"""Make SAELens' own standard or jumprelu training SAE hold an L0, group by group."""

import argparse
from collections.abc import Iterator

import torch
from sae_lens import JumpReLUTrainingSAEConfig, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import BiasAdaptationHook

D_IN, D_SAE, BATCH = 32, 128, 512


def activations() -> Iterator[torch.Tensor]:
    features = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=1)
    while True:
        yield ((torch.rand(BATCH, D_SAE) < 0.02) * (1 + torch.rand(BATCH, 1))) @ features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    # no sparsity loss: the hook keeps the latents sparse
    settings = JumpReLUTrainingSAEConfig(D_IN, D_SAE, l0_coefficient=0.0, decoder_init_norm=1.0)
    sae = TrainingSAE.from_dict(settings.to_dict())
    hook = BiasAdaptationHook.attach(sae, target_l0=3.0)
    cfg = SAETrainerConfig(steps * BATCH, BATCH, lr=1e-3, lr_end=1e-3)
    SAETrainer(cfg, sae, activations()).fit()
    for row in hook.groups().summary():
        print(
            "group {group}: {size:3d} latents, target {target_frequency:.4f}, "
            "measured {measured_frequency:.4f}".format(**row)
        )
    hook.remove()


if __name__ == "__main__":
    main()
