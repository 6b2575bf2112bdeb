from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import GBATrainingSAE
from tests.toolbox import make_trainer, mixture, take_steps, tiny_config


@pytest.mark.parametrize("stop_at", [10, 13], ids=["at an adaptation", "between two adaptations"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mode", ["none", "expected_average_only_in"])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(
    tmp_path: Path, stop_at: int, tied: bool, mode: str
) -> None:
    def new_run() -> SAETrainer[Any, Any]:
        torch.manual_seed(0)
        sae = GBATrainingSAE(tiny_config(tied=tied, normalize_activations=mode))
        trainer = make_trainer(sae, 25, mixture(1))
        if mode != "none":
            trainer.activation_scaler.scaling_factor = 0.7
        return trainer

    whole = new_run()
    take_steps(whole, 25)

    first = new_run()
    take_steps(first, stop_at)
    first.save_checkpoint("stopped", base_path=tmp_path)

    second = new_run()
    second.load_trainer_state(tmp_path / "stopped")
    second.sae.load_weights_from_checkpoint(tmp_path / "stopped")
    for _ in range(stop_at):
        next(second.data_provider)
    take_steps(second, 25 - stop_at)
    assert second.n_training_steps == whole.n_training_steps
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(second.sae.state_dict()[name], value), name
