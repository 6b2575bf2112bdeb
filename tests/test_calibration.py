from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainStepInput

from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig, calibrate
from sae_lens_gba.calibration import RecentSamples, calibrate_groups
from sae_lens_gba.sparse_autoencoder_ops import CHUNK_ROWS
from tests.toolbox import make_trainer, mixture, take_steps, tiny_config


def test_each_groups_thresholds_end_between_two_samples_by_hand() -> None:
    # group 0: latents 0 and 1, thresholds 1 and 2, units 1 and 2
    # margins (h - threshold) / unit of latent 0: 4, 1, -0.5; of latent 1: 1.5, 0, -1 (h = 0: none)
    # two active pairs of three samples wanted: between 1.5 and 1 -> offset 1.25
    # group 1: latent 2, threshold 5, unit 1: margins -1, -2, -4.5; one wanted -> offset -1.5
    h = torch.tensor([[5.0, 5.0, 4.0], [2.0, 2.0, 3.0], [0.5, 0.0, 0.5]])
    (found,) = calibrate_groups(
        lambda n: [h[:2], h[2:]],
        threshold=torch.tensor([1.0, 2.0, 5.0]),
        unit=torch.tensor([1.0, 2.0, 1.0]),
        group=torch.tensor([0, 0, 1]),
        group_frequency=torch.tensor([1 / 3, 1 / 3]).double(),
        l0s=[1.0],
    )
    assert found.offset.tolist() == pytest.approx([1.25, -1.5])
    assert found.frequency.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert found.l0 == pytest.approx(1.0)
    assert found.n_samples == 3


@pytest.mark.parametrize(("n_active", "n_fire"), [(0, 0), (1, 2), (2, 2), (3, 2), (4, 5), (6, 6)])
def test_equal_samples_fire_together_whichever_number_is_nearer(n_active: int, n_fire: int) -> None:
    h = torch.tensor([[5.0], [5.0], [3.0], [3.0], [3.0], [1.0]])
    frequency = torch.tensor([n_active / 6]).double().clamp(1e-9, 1 - 1e-9)
    (found,) = calibrate_groups(
        lambda n: [h],
        torch.tensor([4.0]),
        torch.ones(1),
        torch.tensor([0]),
        frequency,
        [float(frequency)],
    )
    assert round(float(found.frequency) * 6) == n_fire


def test_other_l0s_multiply_the_odds_and_stop_where_thresholds_are_zero() -> None:
    torch.manual_seed(0)
    h = torch.randn(4000, 6)
    group = torch.tensor([0, 0, 1, 1, 1, 1])
    frequency = torch.tensor([0.2, 0.05]).double()  # L0 0.6
    low, high, most = calibrate_groups(
        lambda n: [h], torch.ones(6), torch.ones(6), group, frequency, [0.3, 1.2, 5.0]
    )
    assert low.l0 == pytest.approx(0.3, abs=1e-3)
    assert high.l0 == pytest.approx(1.2, abs=1e-3)
    for found in (low, high):
        p = [float(found.frequency[group == k].mean()) for k in (0, 1)]
        odds = [q / (1 - q) for q in p]
        assert odds[0] / odds[1] == pytest.approx((0.2 / 0.8) / (0.05 / 0.95), rel=0.02)
    assert most.l0 == pytest.approx(float((h > 0).sum()) / 4000, abs=2e-3)


@pytest.mark.parametrize("norm", [0.0, 1e-9])
def test_a_latent_without_an_encoder_holds_nothing_up(norm: float) -> None:
    torch.manual_seed(0)
    h, unit, passes = torch.randn(400, 4), torch.ones(4), []
    h[:, 0] *= norm
    unit[0] = norm

    def pre_activations(n: int | None) -> list[torch.Tensor]:
        passes.append(n)
        return [h]

    (found,) = calibrate_groups(
        pre_activations,
        torch.ones(4),
        unit,
        torch.zeros(4).long(),
        torch.tensor([0.6]).double(),
        [2.4],
    )
    assert found.l0 == pytest.approx(float((h[:, 1:] > 0).sum()) / 400, abs=0.01)
    assert len(passes) < 15


def test_too_few_samples_to_calibrate_on_are_said(caplog: pytest.LogCaptureFixture) -> None:
    for n, is_too_few in ((16, True), (4096, False)):
        sae = GBATrainingSAE(tiny_config(calibration_samples=n, l0_warm_up_end=1.5))
        take_steps(make_trainer(sae, 300, mixture(1, batch=16), batch=16), 300)
        sae.settle()
        l0 = float(sae.groups().measured_frequency.sum())
        assert (abs(l0 - 4) > 0.1) is is_too_few
        sae.cfg.metadata.l0 = 17.0  # of the trainer, over all of training
        assert sae.stock_metadata().l0 == pytest.approx(l0)
        assert ("L0 is as the last adaptation left it" in caplog.text) is is_too_few
        caplog.clear()


def test_recent_samples_are_copies() -> None:
    recent, buffer = RecentSamples(100), torch.zeros(1000, 3)
    recent.add(buffer[:40])
    buffer.fill_(1)
    assert recent.batches[0].untyped_storage().nbytes() == 40 * 3 * 4
    assert not recent.batches[0].any()


def test_the_last_batches_are_looked_at_first() -> None:
    sae = GBATrainingSAE(tiny_config())
    for i in range(3):
        sae.recent_samples.add(torch.full((40, 16), float(i)))
    rows = torch.cat(list(sae._recent_rows(60)))
    assert rows[:, 0].tolist() == [2.0] * 40 + [1.0] * 20


def test_recent_samples_keep_no_more_batches_than_they_need() -> None:
    recent = RecentSamples(100)
    for _ in range(10):
        recent.add(torch.zeros(40, 3))
        assert len(recent) <= 120
    assert len(recent) == 120
    recent.add(torch.zeros(500, 3))
    assert [len(batch) for batch in recent.batches] == [500]


@pytest.mark.parametrize(
    ("activation", "calibrate_for"),
    [("jumprelu", "error"), ("jumprelu", "groups"), ("relu", "error")],
)
def test_in_evaluation_mode_l0_is_what_was_asked_and_training_is_untouched(
    activation: str, calibrate_for: str
) -> None:
    def train(evaluate_after: int | None) -> GBATrainingSAE:
        torch.manual_seed(0)
        sae = GBATrainingSAE(tiny_config(activation=activation, calibrate_for=calibrate_for))
        trainer = make_trainer(sae, 40)
        for step in range(40):
            take_steps(trainer, 1)
            if step == evaluate_after:
                sae.eval()
        return sae

    plain, evaluated = train(None), train(23)
    for name, value in plain.state_dict().items():
        assert torch.equal(evaluated.state_dict()[name], value), name
    recent = torch.cat(list(plain.recent_samples.batches))
    biases = plain.bias.clone()
    plain.eval()
    assert float((plain.encode(recent) > 0).sum()) / len(recent) == pytest.approx(4.0, abs=0.01)
    by_group = plain.adapter.targets.group_mean(plain.adapter.frequency)
    targets = torch.tensor(plain.cfg.spectrum().frequencies)
    on_target = torch.allclose(by_group, targets, rtol=1e-2, atol=1e-4)
    assert on_target == ((activation, calibrate_for) != ("jumprelu", "error"))
    assert torch.equal(plain.train().bias, biases)


def test_b_enc_counts_and_bfloat16_thresholds_let_as_many_fire(tmp_path: Path) -> None:
    for settings, b_enc in (({}, -0.3), ({}, 0.3), ({"dtype": "bfloat16"}, 0.0)):
        torch.manual_seed(0)
        sae = GBATrainingSAE(tiny_config(**settings))
        sae.b_enc.data.fill_(b_enc)  # as of a JumpReLU SAE that is fine-tuned
        data = mixture(1) if b_enc else (batch.bfloat16() for batch in mixture(1))
        take_steps(make_trainer(sae, 40, data), 40)
        recent = torch.cat(list(sae.recent_samples.batches))
        sae.save_inference_model(tmp_path)
        for one in (sae.eval(), SAE.load_from_disk(tmp_path)):
            l0 = float((one.encode(recent) > 0).sum()) / len(recent)
            assert l0 == pytest.approx(4.0, abs=0.01), (settings, b_enc)
        denser = calibrate(tmp_path, recent, target_l0=8.0).sae
        # in bfloat16 many pre-activations are equal: they fire together or not at all
        l0 = float((denser.encode(recent) > 0).sum()) / len(recent)
        assert l0 == pytest.approx(8.0, rel=2e-3)


def test_calibration_passes_by_hooks_and_reshaping(tmp_path: Path) -> None:
    cfg = tiny_config(reshape_activations="hook_z")
    cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae = GBATrainingSAE(cfg)
    take_steps(make_trainer(sae, 20), 20)
    sae.turn_on_forward_pass_hook_z_reshaping()  # as in a model
    seen: list[torch.Tensor] = []
    sae.hook_sae_input.register_forward_hook(lambda *args: seen.append(args[2]))
    sae.save_inference_model(tmp_path)
    assert not seen
    x = next(mixture(3))
    stock = SAE.load_from_disk(tmp_path)
    assert torch.equal(stock(x.view(-1, 4, 4)), sae(x.view(-1, 4, 4)))


def test_weights_loaded_in_evaluation_mode_stay() -> None:
    sae, other = GBATrainingSAE(tiny_config()), GBATrainingSAE(tiny_config())
    for one, seed in ((sae, 1), (other, 2)):
        take_steps(make_trainer(one, 20, mixture(seed)), 20)
    expected = {name: value.clone() for name, value in other.state_dict().items()}
    sae.eval()
    sae.load_state_dict(expected)
    sae.train()
    for name, value in sae.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_weights_of_a_checkpoint_are_not_calibrated_on_samples_from_before(tmp_path: Path) -> None:
    sae, other = GBATrainingSAE(tiny_config()), GBATrainingSAE(tiny_config())
    for one, seed in ((sae, 1), (other, 2)):
        take_steps(make_trainer(one, 20, mixture(seed)), 20)
    other.save_model(tmp_path)
    sae.load_weights_from_checkpoint(tmp_path)
    assert torch.equal(sae.eval().bias, other.bias)


def test_an_l0_that_the_samples_do_not_allow_leaves_the_biases_as_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sae = GBATrainingSAE(tiny_config(calibration_samples=4096))
    take_steps(make_trainer(sae, 40), 40)
    centre, bias = sae.in_input_units(sae.b_dec), sae.bias.clone()
    sae.recent_samples.add(centre.expand(4096, -1))  # on which no latent can be active
    assert torch.equal(sae.eval().bias, bias)
    assert not sae.is_calibrated
    assert "target_l0=4 can't be reached: with all biases at 0, 0 latents are active" in caplog.text


def test_too_few_samples_leave_the_biases_as_they_are() -> None:
    sae = GBATrainingSAE(tiny_config())
    take_steps(make_trainer(sae, 10, mixture(1, batch=16), batch=16), 2)
    bias = sae.bias.clone()
    assert torch.equal(sae.eval().bias, bias)


@pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale"])
def test_losses_do_not_depend_on_the_unit_of_inputs_that_are_normalised(mode: str) -> None:
    found = []
    for unit, dtype in ((1.0, torch.float32), (1e-2, torch.float32), (1e2, torch.float32),
                        (30.0, torch.float16)):  # fmt: skip
        torch.manual_seed(0)
        sae = GBATrainingSAE(tiny_config(normalize_activations=mode))
        batch = (next(mixture(1)) * unit).to(dtype)
        sae.training_forward_pass(step_input=TrainStepInput(batch, {}, None, 0, False))
        losses = sae.training_forward_pass(
            step_input=TrainStepInput(batch, {}, None, 0, False)
        ).losses
        found.append({name: float(losses[name]) for name in ("mse_loss", "nested_mse_loss")})
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-2)
    # of one magnitude, as where nothing is normalised
    assert 0.5 < found[0]["nested_mse_loss"] / found[0]["mse_loss"] < 5


def test_samples_that_can_not_be_normalised_are_named() -> None:
    sae = GBATrainingSAE(tiny_config(normalize_activations="constant_norm_rescale"))
    batch = next(mixture(1))
    batch[:3] = 0
    with pytest.raises(ValueError, match=r"once it is normalised.*samples of zeros"):
        sae.training_forward_pass(step_input=TrainStepInput(batch, {}, None, 0, False))


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_training_does_not_depend_on_the_unit_of_the_inputs(factor: float) -> None:
    x = next(mixture(5, batch=4 * CHUNK_ROWS)).double()
    results = []
    for unit in (1.0, factor):
        torch.manual_seed(0)
        sae = GBATrainingSAE(tiny_config(dtype="float64"))
        data = (batch.double() * unit for batch in mixture(1))
        take_steps(make_trainer(sae, 60, data, lr=3e-3), 60)
        sae.eval().requires_grad_(False)
        explained = (
            1
            - (sae(x * unit) - x * unit).square().sum()
            / ((x - x.mean(dim=0)) * unit).square().sum()
        )
        results.append((sae, float(explained)))
    (plain, explained), (scaled, explained_scaled) = results
    assert explained_scaled == pytest.approx(explained, abs=1e-3)
    torch.testing.assert_close(scaled.adapter.frequency, plain.adapter.frequency)
    in_units = [sae.in_input_units(sae.bias) for sae in (scaled, plain)]
    torch.testing.assert_close(in_units[0], factor * in_units[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("what", ["zeros", "one row", "equal rows"])
def test_a_first_batch_that_says_nothing_is_not_taken_for_the_data(what: str) -> None:
    sae = GBATrainingSAE(tiny_config())
    trainer = make_trainer(sae, 10)
    batch = next(mixture(3))
    empty = {"zeros": batch * 0, "one row": batch[:1], "equal rows": batch[:1].expand_as(batch)}
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    trainer.step(empty[what])
    for name, value in sae.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-7, msg=name)
    trainer.step(batch)
    torch.testing.assert_close(sae.adapter.input_norm, (batch - batch.mean(0)).norm(dim=1).median())
    assert (sae.bias < 0).all()


def test_the_scale_follows_a_lasting_change_and_ignores_a_single_batch() -> None:
    sae = GBATrainingSAE(tiny_config())
    trainer = make_trainer(sae, 1000)
    data = mixture(2)
    x = next(data)
    for factor in (5, 1, 1):  # before the first adaptation the first batch may be the strange one
        trainer.step(x * factor)
    norm = float((x - x.mean(dim=0)).norm(dim=1).median())
    assert float(sae.adapter.input_norm) == pytest.approx(norm, rel=1e-3)
    for _ in range(30):
        trainer.step(next(data))
    settled = float(sae.adapter.input_norm)
    trainer.step(next(data) * 1000)
    assert float(sae.adapter.input_norm) == pytest.approx(settled, rel=0.03)
    for _ in range(300):
        trainer.step(next(data) * 5)
    assert float(sae.adapter.input_norm) == pytest.approx(5 * settled, rel=0.15)


def test_data_of_a_few_different_samples_are_calibrated_as_near_as_they_allow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    different = torch.randn(20, 16)
    batches = (different[torch.randint(0, 20, (256,))] for _ in iter(int, 1))
    cfg = GBATrainingSAEConfig(16, 64, target_l0=3.0, calibration_samples=4096)
    sae = GBATrainingSAE(cfg)
    take_steps(make_trainer(sae, 300, batches), 300)
    sae.eval()
    assert "can't be reached" not in caplog.text
    assert sae.stock_metadata().to_dict()["gba"]["l0"]["n_samples"] == 4096
    with torch.no_grad():
        l0 = float((sae.encode(different) > 0).sum(dim=1).float().mean())
    assert l0 == pytest.approx(3.0, rel=0.1)


def test_an_sae_evaluated_in_inference_mode_trains_on() -> None:
    sae = GBATrainingSAE(tiny_config(calibration_samples=1024))
    trainer = make_trainer(sae, 20)
    take_steps(trainer, 10)
    best = {name: value.clone() for name, value in sae.state_dict().items()}
    with torch.inference_mode():
        sae.eval()
    sae.load_state_dict(best)
    sae.train()
    take_steps(trainer, 5)
    sae.load_state_dict(best)
    assert torch.equal(sae.adapter.frequency, best["adapter.frequency"])
