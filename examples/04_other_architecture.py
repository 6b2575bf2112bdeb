"""Make SAELens' own standard or jumprelu SAE hold a frequency spectrum."""

import argparse
from collections.abc import Iterator

import torch
from sae_lens import JumpReLUTrainingSAEConfig, TrainingSAE
from sae_lens.saes.sae import TrainStepInput

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
    cfg = JumpReLUTrainingSAEConfig(D_IN, D_SAE, l0_coefficient=0.0, decoder_init_norm=1.0)
    sae = TrainingSAE.from_dict(cfg.to_dict())
    hook = BiasAdaptationHook.attach(sae, target_l0=3.0)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    data = activations()
    coefficients = dict.fromkeys(sae.get_coefficients(), 0.0)
    for step in range(steps):
        output = sae.training_forward_pass(
            step_input=TrainStepInput(
                sae_in=next(data),
                coefficients=coefficients,
                dead_neuron_mask=None,
                n_training_steps=step,
                is_logging_step=False,
            )
        )
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for row in hook.groups().summary():
        print(
            "group {group}: {size:3d} latents, target {target_frequency:.4f}, "
            "measured {measured_frequency:.4f}".format(**row)
        )
    hook.remove()


if __name__ == "__main__":
    main()
