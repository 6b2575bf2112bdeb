from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer

from tests.toolbox import make_trainer, take_steps, tiny_sae


@pytest.mark.parametrize("stop_at", [10, 13], ids=["at an adaptation", "between two adaptations"])
@pytest.mark.parametrize("mode", ["none", "expected_average_only_in"])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(
    tmp_path: Path, stop_at: int, mode: str
) -> None:
    def new_run() -> SAETrainer[Any, Any]:
        torch.manual_seed(0)
        sae = tiny_sae(normalize_activations=mode, l0_warm_up_steps=20)
        trainer = make_trainer(sae, 25)
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


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
@pytest.mark.parametrize("architecture", ["gba", "gba_skip_transcoder"])
def test_a_checkpoint_is_read_back_bit_by_bit(
    tmp_path: Path, dtype: str, activation: str, architecture: str
) -> None:
    # SAELens casts all of the file to the dtype of the weights
    settings = {"dtype": dtype, "activation": activation, "architecture": architecture}
    sae = tiny_sae(**settings)
    take_steps(make_trainer(sae, 13), 13)
    for n, counter in enumerate(("n_steps", "n_samples", "silent_samples", "fire_counts")):
        getattr(sae.adapter, counter).add_(2 ** (24 + 4 * n) + 1)
    sae.save_model(tmp_path)
    again = tiny_sae(**settings)
    again.load_weights_from_checkpoint(tmp_path)
    for loaded in (again, TrainingSAE.load_from_disk(tmp_path)):
        state = loaded.state_dict()
        assert state.keys() == sae.state_dict().keys()
        for name, value in sae.state_dict().items():
            assert state[name].dtype == value.dtype, name
            assert torch.equal(state[name], value), name
