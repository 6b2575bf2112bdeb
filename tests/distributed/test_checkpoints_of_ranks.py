"""A checkpoint of several ranks is one of the whole SAE: any number of ranks goes on from it."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE

from sae_lens_gba import GBATrainingSAE, NeuronGroups
from tests.distributed.ranks_do import BATCH, checkpoint_and_go_on, falling_sae, go_on, samples
from tests.distributed.several import results
from tests.toolbox import make_trainer, take_steps

STOP_AT, STEPS = 13, 25  # between two adaptations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> dict[str, torch.Tensor]:
    return results(checkpoint_and_go_on, 2, folder, folder, STOP_AT, STEPS)[0]


def assert_close(end: dict[str, Any], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        if name != "reconstruction":
            far = float((end[name].double() - value.double()).abs().max())
            assert far <= tolerance, (name, far)


@pytest.mark.parametrize(("world", "tolerance"), [(2, 0), (3, 1e-12)])
def test_ranks_go_on_as_if_nothing_had_happened(
    folder: Path, tmp_path: Path, uninterrupted: dict[str, Any], world: int, tolerance: float
) -> None:
    stopped = folder / "resume" / str(STOP_AT * BATCH)
    end = results(go_on, world, tmp_path, stopped, STOP_AT, STEPS)[0]
    assert_close(end, uninterrupted, tolerance)


def test_one_process_goes_on_with_saelens_alone(
    folder: Path, uninterrupted: dict[str, Any]
) -> None:
    sae = GBATrainingSAE(falling_sae().cfg)
    data = islice(samples(), STOP_AT, None)
    trainer = make_trainer(sae, STEPS, data, BATCH, lr=3e-3, lr_end=3e-3)
    trainer.load_trainer_state(folder / "stopped")
    sae.load_weights_from_checkpoint(folder / "stopped")
    take_steps(trainer, STEPS - STOP_AT)
    weights = {k: uninterrupted[k] for k in sae.state_dict()}
    assert_close(sae.state_dict(), weights, 1e-12)
    assert trainer.n_training_samples == STEPS * BATCH
    assert torch.equal(trainer.act_freq_scores, uninterrupted["act_freq_scores"])


def test_ranks_go_on_from_a_checkpoint_of_one_process(tmp_path: Path) -> None:
    trainer = make_trainer(falling_sae(), STEPS, samples(), BATCH, lr=3e-3, lr_end=3e-3)
    take_steps(trainer, STOP_AT)
    trainer.save_checkpoint("stopped", base_path=tmp_path)
    take_steps(trainer, STEPS - STOP_AT)
    end = results(go_on, 2, tmp_path, tmp_path / "stopped", STOP_AT, STEPS)[0]
    assert_close(end, trainer.sae.state_dict(), 1e-12)


def test_files_are_those_of_one_process(
    folder: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    trainer = make_trainer(falling_sae(), STEPS, samples(), BATCH)
    take_steps(trainer, STOP_AT)
    trainer.save_checkpoint("stopped", base_path=tmp_path)
    trainer.sae.save_inference_model(tmp_path / "stock")
    for name in ("stopped", "stock"):
        ours, theirs = folder / name, tmp_path / name
        assert {p.name for p in ours.iterdir()} == {p.name for p in theirs.iterdir()}
    sae = TrainingSAE.load_from_disk(folder / "stopped")
    assert type(sae) is GBATrainingSAE
    assert sae.cfg.d_sae == 61


def test_the_stock_sae_is_what_the_ranks_were(folder: Path, uninterrupted: dict[str, Any]) -> None:
    stock = SAE.load_from_disk(folder / "stock")
    assert type(stock).__name__ == "JumpReLUSAE"
    x = next(samples(seed=8))
    with torch.no_grad():
        far = (stock.decode(stock.encode(x)) - uninterrupted["reconstruction"]).abs().max()
    assert float(far) < 1e-12
    groups = NeuronGroups.load(folder / "stock", d_sae=61)
    assert groups.other_l0s is not None
    assert float(groups.measured_frequency.sum()) == pytest.approx(4.0, rel=0.02)
