"""The record of a training run, and charts made from it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.runs import models
from sae_lens_gba.training_record import TrainingRecord, record_training
from sae_lens_gba.training_record.charts import draw, train_with_charts, write_training_charts
from sae_lens_gba_command import main
from tests.toolbox import make_trainer, mixture, tiny_config

STEPS, PERIOD, BATCH, D_SAE = 43, 10, 64, 32
Trained = tuple[GBATrainingSAE, TrainingRecord]


def new_sae() -> GBATrainingSAE:
    torch.manual_seed(0)
    cfg = tiny_config(d_in=8, d_sae=D_SAE, n_groups=3, target_l0=3.0, adapt_every_n_steps=PERIOD)
    cfg.l0_warm_up_steps = STEPS
    return GBATrainingSAE(cfg)


def train(sae: GBATrainingSAE) -> None:
    make_trainer(sae, STEPS, mixture(1, BATCH, d_in=8), batch=BATCH).fit()


@pytest.fixture(scope="module")
def trained() -> Trained:
    sae = new_sae()
    with record_training(sae) as record:
        train(sae)
    return sae, record


def test_there_is_an_entry_an_adaptation(trained: Trained) -> None:
    record = trained[1]
    assert record.step == [10, 20, 30, 40]
    for name in ("l0", "dead", "on_target", "group_frequency", "bias_quantiles", "density"):
        assert len(getattr(record, name)) == 4, name


def test_the_last_entry_is_the_state_of_the_sae(trained: Trained) -> None:
    sae, record = trained
    frequency, group = sae.adapter.frequency, sae.adapter.group
    assert record.l0[-1] == pytest.approx(float(frequency.sum()))
    for k in range(3):
        assert record.group_frequency[-1][k] == pytest.approx(float(frequency[group == k].mean()))
    assert record.bias_quantiles[-1][2] == pytest.approx(float(sae.bias.quantile(0.5)))
    assert record.bias_quantiles[-1] == sorted(record.bias_quantiles[-1])
    assert record.group_size == group.bincount().tolist()
    for density, dead in zip(record.density, record.dead, strict=True):
        assert sum(density) + dead == D_SAE


def test_targets_are_those_of_the_moment(trained: Trained) -> None:
    sae, record = trained
    expected = [3 * (1.5 - 0.5 * step / STEPS) for step in record.step]
    assert record.target_l0 == pytest.approx(expected, rel=1e-3)
    final = sae.adapter.targets.group_mean(sae.adapter.target_frequency)
    times = torch.tensor(record.target_frequency) / final
    assert (times.diff(dim=0) < 0).all()
    torch.testing.assert_close(times[0], torch.full((3,), expected[0] / 3), rtol=1e-3, atol=0)


def test_biases_that_were_calibrated_for_an_evaluation_are_not_taken_down(
    trained: Trained,
) -> None:
    sae, x = new_sae(), next(mixture(3, BATCH, d_in=8))
    trainer = make_trainer(sae, STEPS, mixture(1, BATCH, d_in=8), batch=BATCH)
    with record_training(sae) as record:
        for step in range(STEPS):
            trainer.step(next(trainer.data_provider))
            if step + 1 == 2 * PERIOD:  # right after an adaptation
                sae.eval()
                sae.encode(x)
                sae.train()
        sae.settle()  # as at saving
    assert record.step == trained[1].step
    assert record.l0 == trained[1].l0


def test_a_run_that_goes_on_has_one_record(trained: Trained, tmp_path: Path) -> None:
    sae = new_sae()
    for _ in range(2):
        with record_training(sae, tmp_path) as record:
            train(sae)
    assert record.step == [10, 20, 30, 40, 50, 60, 70, 80]
    assert record.l0[:4] == trained[1].l0
    assert TrainingRecord.load(tmp_path) == record
    anew = new_sae()
    with record_training(anew, tmp_path) as record:
        train(anew)
    assert record == trained[1]


def test_a_run_that_ends_before_it_adapts_leaves_the_record_of_the_one_before(
    trained: Trained, tmp_path: Path
) -> None:
    trained[1].save(tmp_path)
    with pytest.raises(RuntimeError), record_training(new_sae(), tmp_path):
        raise RuntimeError("as of a setting that is refused")
    assert TrainingRecord.load(tmp_path) == trained[1]


def test_watching_changes_nothing(trained: Trained) -> None:
    alone = new_sae()
    train(alone)
    for name, value in trained[0].state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name
    assert not trained[0].hook_sae_input._forward_pre_hooks


def test_a_record_comes_back_the_same(trained: Trained, tmp_path: Path) -> None:
    trained[1].save(tmp_path)
    assert TrainingRecord.load(tmp_path) == trained[1]
    with pytest.raises(FileNotFoundError, match="train with --report"):
        TrainingRecord.load(tmp_path / "elsewhere")


def test_charts_are_drawn_from_the_record(trained: Trained, tmp_path: Path) -> None:
    record = trained[1]
    path = write_training_charts(record, tmp_path)
    image = imread(path)
    assert image.shape[0] > 500
    colors = np.unique(image[::7, ::7].reshape(-1, image.shape[2]), axis=0)
    assert len(colors) > 20
    axes = draw(record).axes
    assert np.asarray(axes[1].lines[0].get_ydata()).tolist() == record.l0
    assert np.asarray(axes[5].lines[0].get_ydata()).tolist() == record.dead


def test_a_run_too_short_to_adapt_is_no_failure_but_has_no_charts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with record_training(new_sae()) as record:
        pass
    with pytest.raises(ValueError, match="adapt_every_n_steps"):
        write_training_charts(record, tmp_path)
    assert list(tmp_path.iterdir()) == []
    train_with_charts(SimpleNamespace(sae=new_sae(), run=lambda: None), tmp_path)
    assert "before the first adaptation" in caplog.text


@pytest.mark.parametrize(
    ("architecture", "missing", "sentence"),
    [
        ("gba", ["matplotlib.axes"], "pip install 'sae-lens-gba[plots]'"),
        ("topk", [], "architecture='topk' is not possible with --report"),
    ],
)
def test_charts_that_cannot_be_drawn_are_refused_before_any_work(
    architecture: str,
    missing: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    started: list[object] = []
    monkeypatch.setattr(models, "load_model", lambda *_, **__: started.append("a model"))
    monkeypatch.delitem(sys.modules, "sae_lens_gba.training_record.charts")
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    settings = ["--d_in", "16", "--d_sae", "64", "--model_name", "tiny/random"]
    settings += ["--hook_name", "h", "--dataset_path", "d", "--n_batches_in_buffer", "128"]
    settings += ["--target_l0", "4"] if architecture == "gba" else []
    assert main(["train", "--report", "--architecture", architecture, *settings]) == 1
    assert sentence in caplog.text
    assert not started


def test_an_sae_without_groups_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=16, d_sae=64, k=4))
    runner = SimpleNamespace(sae=sae, run=lambda: pytest.fail("it was trained"))
    with pytest.raises(TypeError, match="TopKTrainingSAE, which has no groups"):
        train_with_charts(runner, tmp_path / "charts")
    assert not (tmp_path / "charts").exists()


def test_a_runner_leaves_its_charts_even_if_it_fails_half_way(tmp_path: Path) -> None:
    sae = new_sae()
    result = train_with_charts(SimpleNamespace(sae=sae, run=lambda: train(sae)), tmp_path / "whole")
    assert result is None
    names = ["training_charts.png", "training_record.json"]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == names

    def fail() -> None:
        train(failing)
        raise RuntimeError("no more memory")

    failing = new_sae()
    with pytest.raises(RuntimeError, match="no more memory"):
        train_with_charts(SimpleNamespace(sae=failing, run=fail), tmp_path / "half")
    assert TrainingRecord.load(tmp_path / "half").step == [10, 20, 30, 40]
