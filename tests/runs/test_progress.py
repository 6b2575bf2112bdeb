"""What the progress bar says of a step."""

from types import SimpleNamespace

import torch
from sae_lens.saes.sae import TrainStepOutput

from sae_lens_gba.runs.progress import state_of_training


def test_l0_explained_variance_and_dead_latents_of_a_step() -> None:
    x = torch.tensor([[0.0, 0.0], [4.0, 0.0]])  # mean (2, 0), variance 4
    step = TrainStepOutput(
        sae_in=x,
        sae_out=x + torch.tensor([[0.0, 1.0], [0.0, 1.0]]),  # error 1
        feature_acts=torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0]]),
        hidden_pre=torch.zeros(2, 3),
        loss=torch.zeros(()),
        losses={},
    )
    trainer = SimpleNamespace(sae=None, dead_neurons=torch.tensor([False, False, True]))
    said = state_of_training(trainer, step)  # type: ignore[arg-type]
    assert said == "L0 1.5, expl. var. 0.750, dead 1"
