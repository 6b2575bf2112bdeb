"""Saved SAEs at the L0 one wants, with and without activations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig

from sae_lens_gba import GBATrainingSAE, NeuronGroups, at_l0, calibrate, load
from sae_lens_gba.errors import CalibrationError, GBAError
from tests.toolbox import make_trainer, mixture, take_steps, tiny_config


def samples(n: int, seed: int = 77) -> torch.Tensor:
    return next(mixture(seed, batch=n))


def l0(sae: SAE[Any] | GBATrainingSAE, x: torch.Tensor) -> float:
    return float((sae.encode(x) > 0).sum()) / len(x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sae = GBATrainingSAE(tiny_config(normalize_activations="expected_average_only_in"))
    make_trainer(sae, 300, lr=3e-3).fit()
    path = tmp_path_factory.mktemp("sae")
    sae.save_inference_model(path)
    return path


@pytest.mark.parametrize("wanted", [None, 2.0, 4.0, 9.0])
def test_calibrate_gives_the_l0_asked_for_on_these_activations(
    folder: Path, wanted: float | None
) -> None:
    before = load(folder).threshold
    found = calibrate(folder, samples(4000).split(1000), wanted)
    target = 4.0 if wanted is None else wanted
    assert l0(found.sae, samples(4000)) == pytest.approx(target, rel=2e-3)
    of_numpy = calibrate(folder, samples(4000).numpy(), wanted).threshold
    assert of_numpy is not None
    assert found.threshold is not None
    assert torch.equal(of_numpy, found.threshold)
    assert found.groups is not None
    assert float(found.groups.measured_frequency.sum()) == pytest.approx(target, rel=2e-3)
    assert float(found.groups.target_frequency.sum()) == pytest.approx(target, rel=1e-3)
    assert found.cfg["metadata"]["gba"]["l0"]["n_samples"] == 4000
    assert found.cfg["metadata"]["l0"] == pytest.approx(target, rel=2e-3)
    # what was passed stays as it is
    again = load(folder).threshold
    assert before is not None
    assert again is not None
    assert torch.equal(again, before)


@pytest.mark.parametrize("wanted", [1.0, 2.0, 4.0, 5.3, 8.0, 11.0])
def test_at_l0_needs_no_activations(folder: Path, wanted: float) -> None:
    found = at_l0(folder, wanted)
    assert type(found.sae) is JumpReLUSAE
    assert l0(found.sae, samples(20_000)) == pytest.approx(wanted, rel=0.05)
    assert found.groups is not None
    assert float(found.groups.target_frequency.sum()) == pytest.approx(wanted, rel=1e-3)
    fires = (found.sae.encode(samples(20_000)) > 0).double().mean(dim=0)
    for k in range(int(found.groups.group.max()) + 1):
        own = found.groups.group == k
        said = float(found.groups.measured_frequency[own].mean())
        assert float(fires[own].mean()) == pytest.approx(said, rel=0.15, abs=2e-3)


def test_at_the_l0_it_was_trained_for_the_sae_stays_as_it_is(folder: Path) -> None:
    saved = load(folder)
    assert saved.groups is not None
    same = at_l0(saved, float(saved.groups.target_frequency.sum()))
    torch.testing.assert_close(same.sae.threshold, saved.sae.threshold, rtol=1e-3, atol=1e-4)


def test_the_ends_of_the_range_can_be_asked_for(folder: Path) -> None:
    known = NeuronGroups.load(folder).other_l0s
    assert known is not None
    for end, beyond, too_far in ((known[0], 0.995, 0.97), (known[-1], 1.005, 1.03)):
        at_the_end, a_bit_beyond = (
            at_l0(folder, float(end) * by).sae.get_parameter("threshold") for by in (1, beyond)
        )
        assert torch.equal(at_the_end, a_bit_beyond)
        with pytest.raises(CalibrationError, match="nearest possible value"):
            at_l0(folder, float(end) * too_far)


def test_between_two_l0s_thresholds_are_interpolated_by_its_logarithm(folder: Path) -> None:
    saved = load(folder)
    assert saved.groups is not None
    two = {"other_l0s": torch.tensor([2.0, 8.0]), "offsets": torch.tensor([[0.0, -0.4]] * 4)}
    found = at_l0(replace(saved, groups=replace(saved.groups, **two)), 4.0).sae
    halfway = saved.sae.threshold - 0.2 * saved.sae.W_enc.norm(dim=0)
    torch.testing.assert_close(found.threshold, halfway.clamp(min=0))


def test_an_sae_of_attention_heads_keeps_reading_heads(tmp_path: Path) -> None:
    cfg = tiny_config(reshape_activations="hook_z", calibration_samples=4096)
    cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae = GBATrainingSAE(cfg)
    take_steps(make_trainer(sae, 60), 60)
    sae.save_inference_model(tmp_path)
    x, loaded = samples(4000), load(tmp_path)
    for moved in (at_l0(loaded, 3.0), calibrate(loaded, x, 3.0)):
        heads = x.view(-1, 4, 4)
        assert moved.sae(heads).shape == heads.shape
        assert l0(moved.sae, heads) == pytest.approx(3.0, rel=0.1)
    assert loaded.sae.hook_z_reshaping_mode


def test_a_copy_has_the_dtype_of_what_was_passed(folder: Path) -> None:
    sae = load(folder).sae.to(torch.float64)
    assert calibrate(sae, samples(2000).double(), 3.0).sae.dtype == torch.float64


def test_the_metadata_of_an_sae_of_others_say_the_l0_it_has() -> None:
    sae = others_sae()
    sae.cfg.metadata.l0 = 55.0
    found = calibrate(sae, samples(2000), 3.0)
    assert found.sae.cfg.metadata.l0 == found.cfg["metadata"]["l0"] == pytest.approx(3.0, rel=1e-3)
    assert sae.cfg.metadata.l0 == 55.0


def test_an_empty_batch_says_nothing(folder: Path) -> None:
    x = samples(1000)
    assert l0(calibrate(folder, [x[:0], x], 3.0).sae, x) == pytest.approx(3.0, rel=1e-3)


def test_thresholds_for_other_l0s_travel_with_the_groups(folder: Path, tmp_path: Path) -> None:
    groups = NeuronGroups.load(folder)
    assert groups.other_l0s is not None
    assert groups.offsets is not None
    assert groups.offsets.shape == (4, len(groups.other_l0s))
    assert (groups.other_l0s.diff() > 0).all()
    # a group's thresholds fall as L0 rises, until all that can fire does
    assert (groups.offsets.diff(dim=1)[:, :8] < 0).all()
    assert (groups.offsets.diff(dim=1) <= 0).all()
    moved = at_l0(folder, 2.0)
    moved.save(tmp_path / "moved")
    reloaded = load(tmp_path / "moved").sae
    x = samples(100)
    assert torch.equal(reloaded.encode(x), moved.sae.encode(x))
    assert torch.equal(SAE.load_from_disk(tmp_path / "moved").encode(x), moved.sae.encode(x))


def others_sae(threshold: float = 1.0) -> JumpReLUSAE:
    torch.manual_seed(1)
    sae = JumpReLUSAE(JumpReLUSAEConfig(16, 64))
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T * torch.linspace(0.5, 2, 64))
        sae.b_dec.fill_(2.0)
        sae.threshold.fill_(threshold)
    return sae


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_an_sae_of_others_can_be_calibrated_too(unit: float) -> None:
    sae = others_sae(unit)
    sae.b_dec.data *= unit
    x = samples(2000) * unit
    assert l0(calibrate(sae, x, 3.0).sae, x) == pytest.approx(3.0, rel=1e-3)
    assert float(sae.threshold[0]) == pytest.approx(unit)


def test_what_can_not_be_had_is_said_in_one_sentence(folder: Path) -> None:
    x = samples(1000)
    with pytest.raises(CalibrationError, match=r"target_l0=60 can't be reached .* ask for that"):
        calibrate(others_sae(), x, 60.0)
    with pytest.raises(CalibrationError, match="target_l0=-1 is not possible"):
        calibrate(others_sae(), x, -1)
    with pytest.raises(CalibrationError, match="target_l0 is needed"):
        calibrate(others_sae(), x)
    with pytest.raises(CalibrationError, match="'standard' has no thresholds"):
        calibrate(StandardSAE(StandardSAEConfig(16, 64)), x, 3.0)
    with pytest.raises(CalibrationError, match=r"rarest group .* pass at least"):
        calibrate(folder, x[:20])
    with pytest.raises(CalibrationError, match=r"shape \(1000, 8\), the SAE reads \(n, 16\)"):
        calibrate(folder, x[:, :8])
    with pytest.raises(CalibrationError, match="NaN or Inf"):
        calibrate(folder, x / 0)
    with pytest.raises(CalibrationError, match="activations is empty"):
        calibrate(folder, x[:0])
    with pytest.raises(CalibrationError, match=r"l0=60 is not among .* nearest possible value"):
        at_l0(folder, 60)
    with pytest.raises(CalibrationError, match="nearest possible value"):
        at_l0(folder, float("nan"))
    with pytest.raises(
        CalibrationError, match="without thresholds for other L0s: pass activations"
    ):
        at_l0(others_sae(), 3.0)


def test_an_object_of_saelens_comes_without_thresholds_and_a_folder_may_have_several(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match=r"pass its folder, or what sae_lens_gba.load gives"):
        at_l0(SAE.load_from_disk(folder), 2.0)
    for name in ("a", "b"):
        load(folder).save(tmp_path / "several" / name)
    with pytest.raises(GBAError, match="has several SAEs"):
        at_l0(tmp_path / "several", 2.0)


def test_an_l0_that_equal_samples_keep_away_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.cat([next(mixture(0, batch=1000)), torch.ones(4000, 16)])
    exact = calibrate(folder, x, target_l0=3.0)
    assert exact.sae.cfg.metadata.l0 != pytest.approx(3.0, rel=0.01)
    assert "not target_l0=3" in caplog.text


def test_fine_tuning_on_inputs_of_another_scale_keeps_l0(folder: Path) -> None:
    sae = load(folder).to_training_sae()
    data = (batch * 5 for batch in mixture(4))
    trainer = make_trainer(sae, 60, data, lr=1e-3)
    output = take_steps(trainer, 1)
    first = output.feature_acts.bool().float().sum(-1).to_dense().mean()
    assert float(first) == pytest.approx(4.0, rel=0.1)
    take_steps(trainer, 59)
    assert l0(sae.eval(), 5 * samples(4000)) == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("value", ["16", None, True])
def test_an_l0_that_is_no_number_is_refused(folder: Path, value: Any) -> None:
    with pytest.raises(CalibrationError, match=f"l0={value!r} is not possible: give a number"):
        at_l0(folder, value)
    if value is not None:
        with pytest.raises(CalibrationError, match=f"target_l0={value!r} is not possible"):
            calibrate(load(folder), samples(100), value)
