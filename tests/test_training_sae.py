import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.config import LoggingConfig
from sae_lens.saes.sae import TrainStepInput

from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.bias_adaptation import UPDATE_RULES
from tests.toolbox import make_trainer, mixture, randomise, take_steps, tiny_config, tiny_sae

ACTIVATIONS = ("jumprelu", "relu")


def step_input(x: torch.Tensor, logging: bool = False) -> TrainStepInput:
    return TrainStepInput(
        sae_in=x,
        coefficients={},
        dead_neuron_mask=None,
        n_training_steps=7,
        is_logging_step=logging,
    )


def test_it_is_selected_by_dictionary() -> None:
    sae = TrainingSAE.from_dict(tiny_config().to_dict())
    assert type(sae) is GBATrainingSAE


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_pass_by_hand(activation: str) -> None:
    # one latent a direction; x - b_dec = (3, 1); biases -2 and -0.5; scales 2 and 1
    sae = GBATrainingSAE(
        tiny_config(d_in=2, d_sae=2, n_groups=1, target_l0=0.2, activation=activation)
    )
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
        sae.b_dec.copy_(torch.tensor([1.0, 1.0]))
        sae.output_scale.copy_(torch.tensor([2.0, 1.0]))
        sae.set_bias(torch.tensor([-2.0, -1.5]))
    acts = sae.encode(torch.tensor([[4.0, 2.0]]))
    # JumpReLU: the bias decides whether, not how loud; ReLU: it lowers the activation
    assert acts.tolist() == ([[3.0, 0.0]] if activation == "jumprelu" else [[1.0, 0.0]])
    out = sae.decode(acts)
    assert out.tolist() == ([[7.0, 1.0]] if activation == "jumprelu" else [[3.0, 1.0]])


def test_a_tied_encoder_is_the_transposed_decoder() -> None:
    sae = GBATrainingSAE(tiny_config(tied=True))
    assert "W_enc" not in dict(sae.named_parameters())
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    take_steps(make_trainer(sae, 20), 20)
    assert torch.equal(sae.W_enc, sae.W_dec.T)


def test_the_encoder_is_the_decoder_plus_a_correction_that_moves_more_slowly() -> None:
    torch.manual_seed(0)
    sae = GBATrainingSAE(tiny_config(encoder_correction_rate=0.3))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    take_steps(make_trainer(sae, 20, lr=1e-3), 1)
    # Adam's first step is lr in every weight with a gradient well above its eps
    correction = sae.encoder_correction.detach()
    moved = correction[correction != 0]
    assert len(moved) > 0
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3), rtol=1e-2, atol=0)
    torch.testing.assert_close(sae.W_enc, (sae.W_dec + 0.3 * correction).T)


def test_the_decoder_learns_from_both_its_uses() -> None:
    x = next(mixture(0)).double()
    torch.manual_seed(0)
    sae = randomise(GBATrainingSAE(tiny_config(dtype="float64", encoder_correction_rate=0.3)))
    with torch.no_grad():
        sae.encoder_correction.zero_()
    tied = GBATrainingSAE(tiny_config(dtype="float64", tied=True))
    shared = {k: v for k, v in sae.state_dict().items() if k != "encoder_correction"}
    tied.load_state_dict(shared)
    for each in (sae, tied):
        each.training_forward_pass(step_input=step_input(x)).loss.backward()
    torch.testing.assert_close(sae.W_dec.grad, tied.W_dec.grad)


@pytest.mark.parametrize("tied", [False, True])
def test_decoder_rows_have_unit_norm_after_every_optimizer_step(tied: bool) -> None:
    sae = GBATrainingSAE(tiny_config(tied=tied))
    trainer = make_trainer(sae, 30)
    for _ in range(30):
        before = sae.W_dec.detach().clone()
        take_steps(trainer, 1)
        assert not torch.equal(before, sae.W_dec)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("save", ["save_model", "save_inference_model"])
def test_rows_that_an_optimizer_did_not_keep_at_unit_norm_are_told_of_at_saving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrapped: bool, save: str
) -> None:
    # like a wrapper that gives the optimizer tensors of its own, on the same memory
    sae = GBATrainingSAE(tiny_config())
    parameters = [p.data.requires_grad_() if wrapped else p for p in sae.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(3):
        sae.training_forward_pass(step_input=step_input(next(mixture(0)))).loss.backward()
        for own, given in zip(sae.parameters(), parameters, strict=True):
            given.grad = own.grad
        optimizer.step()
    getattr(sae, save)(tmp_path)
    assert ("rows of W_dec have norms from" in caplog.text) == wrapped


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_biases_get_no_gradient_and_move_only_when_adapted(activation: str) -> None:
    sae = GBATrainingSAE(
        tiny_config(activation=activation, adapt_every_n_steps=10, bias_init="zero")
    )
    trainer = make_trainer(sae, 20)
    take_steps(trainer, 9)
    assert torch.equal(sae.bias, torch.zeros(64))
    take_steps(trainer, 1)
    assert (sae.bias < 0).any()
    adapted = sae.bias.clone()
    take_steps(trainer, 9)
    assert torch.equal(sae.bias, adapted)
    assert sae.b_enc.grad is None


def test_nothing_adapts_in_eval_mode() -> None:
    sae = GBATrainingSAE(tiny_config(adapt_every_n_steps=1)).eval()
    state = copy.deepcopy(sae.state_dict())
    for x in (next(mixture(0)) for _ in range(3)):
        sae.training_forward_pass(step_input=step_input(x))
        sae(x)
    for name, value in sae.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_loss_that_nobody_learns_from_adapts_nothing() -> None:
    sae = GBATrainingSAE(tiny_config(adapt_every_n_steps=1))
    take_steps(make_trainer(sae, 3), 3)
    state, n_samples = copy.deepcopy(sae.state_dict()), len(sae.recent_samples)
    with torch.no_grad():  # of validation data, in training mode as SAELens leaves SAEs
        sae.training_forward_pass(step_input=step_input(3 * next(mixture(5)) + 2))
    for name, value in sae.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert len(sae.recent_samples) == n_samples


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_samples_of_zeros_do_not_set_the_scale(apply_b_dec_to_input: bool) -> None:
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(32, 16), dim=1)

    def sparse() -> Iterator[torch.Tensor]:
        while True:  # three of four samples have no feature
            yield (torch.rand(256, 32) < 0.009).float() * (1 + torch.rand(256, 32)) @ directions

    cfg = tiny_config(
        d_sae=32, target_l0=0.29, highest_target_frequency=0.05, adapt_every_n_steps=5,
        apply_b_dec_to_input=apply_b_dec_to_input,
    )  # fmt: skip
    sae = GBATrainingSAE(cfg)
    make_trainer(sae, 400, sparse()).fit()
    x = torch.cat(list(islice(sparse(), 40)))
    share_of_zeros = float((~x.any(dim=1)).float().mean())
    assert 0.7 < share_of_zeros < 0.8
    assert float(sae.adapter.input_norm) > 1  # features have norms from 1 to 2
    with torch.no_grad():
        assert float((sae.encode(x) > 0).sum(dim=1).float().mean()) == pytest.approx(0.29, rel=0.3)
        assert float((sae(x) - x).square().sum() / (x - x.mean(dim=0)).square().sum()) < 0.5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_counters_are_those_of_the_activations(activation: str) -> None:
    sae = randomise(GBATrainingSAE(tiny_config(activation=activation, adapt_every_n_steps=100)))
    x = next(mixture(0))
    output = sae.training_forward_pass(step_input=step_input(x))
    acts = output.feature_acts.to_dense() if output.feature_acts.is_sparse else output.feature_acts
    assert torch.equal(sae.adapter.fire_counts, (acts > 0).sum(dim=0))
    above = acts / sae.input_scale + (sae.bias if activation == "jumprelu" else 0.0)
    torch.testing.assert_close(sae.adapter.peak, above.amax(dim=0).clamp(min=0))


@pytest.mark.parametrize("n_nested", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sparse_and_dense_steps_have_the_same_loss_and_gradients(
    tied: bool, activation: str, n_nested: int
) -> None:
    x = next(mixture(0)).double()
    results: list[dict[str, Any]] = []
    for density in (0.0, 1.0):
        torch.manual_seed(5)
        cfg = tiny_config(
            tied=tied,
            activation=activation,
            sparse_below_density=density,
            dtype="float64",
            n_nested_reconstructions=n_nested,
        )
        sae = randomise(GBATrainingSAE(cfg))
        output = sae.training_forward_pass(step_input=step_input(x))
        assert output.feature_acts.is_sparse == (density == 1.0)
        output.loss.backward()
        grads = {n: p.grad for n, p in sae.named_parameters() if p.grad is not None}
        assert {"W_dec", "b_dec", "output_scale"} <= set(grads)
        results.append({"loss": output.loss.detach(), **grads})
    for name, dense in results[0].items():
        torch.testing.assert_close(results[1][name], dense, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [-1e6, 0.0], ids=["nothing is active", "half is"])
def test_a_density_of_zero_is_dense_always(bias: float) -> None:
    sae = randomise(GBATrainingSAE(tiny_config(sparse_below_density=0.0)))
    sae.set_bias(torch.full((64,), bias))
    output = sae.training_forward_pass(step_input=step_input(next(mixture(0))))
    assert not output.feature_acts.is_sparse and not output.hidden_pre.is_sparse


def test_what_pays_on_a_cpu_is_below_a_tenth() -> None:
    x = next(mixture(0))
    for target_l0, is_sparse in ((4.0, True), (8.0, False)):
        sae = GBATrainingSAE(tiny_config(target_l0=target_l0, highest_target_frequency=0.4))
        output = sae.training_forward_pass(step_input=step_input(x))
        assert output.feature_acts.is_sparse == is_sparse


def test_the_input_is_normalised_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = GBATrainingSAE(tiny_config(normalize_activations="layer_norm"))
    calls = []
    real = sae.run_time_activation_norm_fn_in

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return real(x)

    monkeypatch.setattr(sae, "run_time_activation_norm_fn_in", counted)
    x = next(mixture(0))
    output = sae.training_forward_pass(step_input=step_input(x))
    assert len(calls) == 1
    torch.testing.assert_close(output.sae_out, sae.decode(sae.encode(x)))


def test_a_hook_on_the_input_is_heard_in_training() -> None:
    sae = randomise(GBATrainingSAE(tiny_config()))
    x = next(mixture(0))
    plain = sae.training_forward_pass(step_input=step_input(x)).sae_out
    sae.hook_sae_input.add_hook(lambda tensor, hook: tensor * 0.5)
    hooked = sae.training_forward_pass(step_input=step_input(x)).sae_out
    assert not torch.allclose(hooked, plain)


def test_hooks_see_dense_tensors() -> None:
    sae = randomise(GBATrainingSAE(tiny_config(sparse_below_density=1.0)))
    seen = {}
    for point in (sae.hook_sae_acts_pre, sae.hook_sae_acts_post):
        point.add_hook(lambda tensor, hook: seen.update({hook.name: tensor}))
    sae.training_forward_pass(step_input=step_input(next(mixture(0))))
    assert set(seen) == {"hook_sae_acts_pre", "hook_sae_acts_post"}
    assert all(not t.is_sparse and t.shape == (256, 64) for t in seen.values())


def test_the_weights_of_the_beginning_begin_anew() -> None:
    sae = GBATrainingSAE(tiny_config())
    beginning = copy.deepcopy(sae.state_dict())
    take_steps(make_trainer(sae, 20), 20)
    rewound, new = sae, GBATrainingSAE(tiny_config())
    for one in (rewound, new):
        one.load_state_dict(beginning)
        take_steps(make_trainer(one, 1), 1)
    for name, value in new.state_dict().items():
        assert torch.equal(rewound.state_dict()[name], value), name


def test_b_dec_starts_at_the_mean_of_the_first_batch() -> None:
    sae = GBATrainingSAE(tiny_config())
    x = next(mixture(0))
    sae.training_forward_pass(step_input=step_input(x))
    torch.testing.assert_close(sae.in_input_units(sae.b_dec.detach()), x.mean(dim=0))
    torch.testing.assert_close(sae.adapter.input_norm, (x - x.mean(dim=0)).norm(dim=1).median())


@pytest.mark.parametrize("density", [0.0, 1.0], ids=["dense", "sparse"])
def test_nested_loss_is_that_of_the_first_groups_alone(density: float) -> None:
    # four groups in four nested sets: the first ends after group 0, the second after group 1 ...
    cfg = tiny_config(n_nested_reconstructions=4, sparse_below_density=density)
    sae = randomise(GBATrainingSAE(cfg))
    sae.adapter.group = sae.adapter.group.flip(0)  # as in an SAE that is trained further
    x = next(mixture(0))
    output = sae.training_forward_pass(step_input=step_input(x))
    acts, group = sae.encode(x), sae.adapter.group
    recons = [sae.decode(acts * (group <= last)) for last in range(4)]
    norms, p = (torch.stack(recons) - x).norm(dim=2) / sae.input_scale, cfg.error_exponent
    errors = norms.pow(p).mean(dim=1).pow(2 / p)  # power means
    alone = cfg.nested_weight * errors[:-1].mean()
    torch.testing.assert_close(output.losses["nested_mse_loss"], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.losses["mse_loss"], errors[-1], rtol=1e-4, atol=1e-4)
    whole = output.losses["mse_loss"] + output.losses["nested_mse_loss"]
    torch.testing.assert_close(output.loss, whole)


def test_the_nested_loss_falls_with_the_targets_and_keeps_its_mean() -> None:
    x = next(mixture(0))

    def nested_loss(progress: float, warm_up_steps: int) -> float:
        torch.manual_seed(0)
        cfg = tiny_config(l0_warm_up_steps=warm_up_steps, l0_warm_up_start=1.0)
        sae = randomise(GBATrainingSAE(cfg))
        given = replace(step_input(x), coefficients={"l0_warm_up": progress})
        return sae.training_forward_pass(given).losses["nested_mse_loss"].item()

    constant = nested_loss(1.0, warm_up_steps=0)
    assert constant > 0
    assert nested_loss(0.0, 100) == pytest.approx(2 * constant)
    assert nested_loss(0.5, 100) == pytest.approx(constant)
    assert nested_loss(0.75, 100) == pytest.approx(constant / 2)
    assert nested_loss(1.0, 100) == 0.0


def test_decode_takes_what_it_is_given_whatever_was_encoded_last() -> None:
    sae = randomise(GBATrainingSAE(tiny_config(sparse_below_density=1.0)))
    x = next(mixture(0))
    acts, _ = sae.encode_with_hidden_pre(x[:8])
    sae.encode_with_hidden_pre(x[8:])
    torch.testing.assert_close(sae.decode(acts), sae.decode(acts.to_dense()))


def test_one_reconstruction_or_one_group_has_no_nested_loss() -> None:
    for setting in ("n_nested_reconstructions", "n_groups"):
        settings: dict[str, Any] = {setting: 1}
        sae = GBATrainingSAE(tiny_config(**settings))
        output = sae.training_forward_pass(step_input=step_input(next(mixture(0))))
        assert set(output.losses) == {"mse_loss", "l0_over_target"}


def test_b_dec_gets_its_gradient_from_the_output_alone() -> None:
    sae = randomise(GBATrainingSAE(tiny_config(n_nested_reconstructions=1, error_exponent=2.0)))
    x = next(mixture(0))
    output = sae.training_forward_pass(step_input=step_input(x))
    output.loss.backward()
    error = (2 * (output.sae_out - x)).mean(dim=0).detach()  # in units of the input, its square
    torch.testing.assert_close(sae.b_dec.grad, error / sae.input_scale)


def test_a_relu_sae_can_not_undo_the_feedback_by_moving_b_dec() -> None:
    sae = GBATrainingSAE(tiny_config(activation="relu", tied=True))
    trainer = make_trainer(sae, 600)
    take_steps(trainer, 600)
    assert float(sae.adapter.frequency.sum()) == pytest.approx(4.0, rel=0.25)


def test_quantile_start_begins_near_target_l0() -> None:
    sae = GBATrainingSAE(tiny_config(bias_init="quantile"))
    output = sae.training_forward_pass(step_input=step_input(next(mixture(0))))
    l0 = output.feature_acts.bool().float().sum(-1).to_dense().mean()
    assert float(l0) == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("rule", sorted(UPDATE_RULES))
def test_every_rule_trains(rule: str) -> None:
    sae = GBATrainingSAE(tiny_config(bias_update=rule, bias_init="zero"))
    trainer = make_trainer(sae, 60)
    first = take_steps(trainer, 1).loss
    assert take_steps(trainer, 59).loss < first
    assert (sae.bias < 0).any()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (float("nan"), "NaN or Inf at training step 3"),
        (float("inf"), "NaN or Inf at training step 3"),
        (1e10, r"a value of 1e\+10 at training step 3, where a typical sample has norm \d"),
        (1e20, r"a value of 1e\+20 at training step 3, where a typical sample has norm \d"),
        (3e38, r"a value of 3e\+38 at training step 3"),
    ],
)
def test_a_batch_that_can_not_be_learnt_from_stops_and_touches_nothing(
    bad: float, says: str
) -> None:
    sae = GBATrainingSAE(tiny_config())
    trainer = make_trainer(sae, 10)
    take_steps(trainer, 3)
    before = copy.deepcopy(sae.state_dict())
    batch = next(mixture(0))
    batch[3, 5] = bad
    with pytest.raises(ValueError, match=says):
        trainer.step(batch)
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("scale", [1e20, 1e38])
def test_a_batch_all_of_whose_values_are_too_large_touches_nothing(scale: float) -> None:
    # none is larger than the others: it is the norm that overflows
    sae = GBATrainingSAE(tiny_config())
    trainer = make_trainer(sae, 10)
    take_steps(trainer, 3)
    before = copy.deepcopy(sae.state_dict())
    with pytest.raises(ValueError, match=r"typical sample has norm inf: .* not touched"):
        trainer.step(torch.full((256, 16), scale))
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("shape", [(0, 16), (2, 3, 16), (16,)])
def test_no_batch_that_is_not_one_of_samples(shape: tuple[int, ...]) -> None:
    sae = GBATrainingSAE(tiny_config())
    with pytest.raises(ValueError, match=r"a batch of shape .* \(n, d_in=16\), at least one"):
        sae.training_forward_pass(step_input=step_input(torch.ones(shape)))


@pytest.mark.parametrize("shape", [(256, 1), (256, 17), (256,)])
def test_inputs_of_another_width_are_refused_before_anything_is_learnt(
    shape: tuple[int, ...],
) -> None:
    # (256, 1) would be broadcast
    sae = GBATrainingSAE(tiny_config())
    for run in (sae.encode, sae):
        with pytest.raises(ValueError, match=r"inputs of shape .* must be d_in=16"):
            run(torch.ones(shape))
    with pytest.raises(ValueError, match=r"a batch of shape .* \(n, d_in=16\), at least one"):
        sae.training_forward_pass(step_input=step_input(torch.ones(shape)))
    assert float(sae.adapter.input_norm) == 0


@pytest.mark.parametrize("large", [1e5, 1e7])
@pytest.mark.parametrize("at_step", [0, 3])
def test_massive_activations_are_survived(large: float, at_step: int) -> None:
    sae = GBATrainingSAE(tiny_config())
    trainer = make_trainer(sae, 10)
    take_steps(trainer, at_step)
    batch = next(mixture(0))
    batch[3] *= large
    trainer.step(batch)
    take_steps(trainer, 5)
    assert all(bool(torch.isfinite(value).all()) for value in sae.state_dict().values())


def test_logged_metrics_and_histograms_are_finite_even_before_the_first_adaptation() -> None:
    sae = GBATrainingSAE(tiny_config())
    output = sae.training_forward_pass(step_input=step_input(next(mixture(0)), logging=True))
    metrics: dict[str, Any] = output.metrics
    values = {name: float(value()) for name, value in metrics.items()}
    assert {
        "gba/share_of_latents_silent_since_last_adaptation",
        "gba/share_of_latents_within_factor_2_of_target",
    } <= set(values)
    assert all(v == v and abs(v) != float("inf") for v in values.values())
    for name, histogram in sae.log_histograms().items():
        assert torch.isfinite(torch.from_numpy(histogram)).all(), name


@pytest.mark.parametrize("density", [0.0, 1.0], ids=["dense", "sparse"])
def test_the_progress_line_shows_l0_over_target(density: float) -> None:
    sae = randomise(GBATrainingSAE(tiny_config(sparse_below_density=density)))
    output = sae.training_forward_pass(step_input=step_input(next(mixture(0))))
    l0 = float((output.feature_acts.to_dense() > 0).sum()) / 256
    assert float(output.losses["l0_over_target"]) == pytest.approx(l0 / 4.0)


def test_metrics_cost_nothing_when_nobody_logs() -> None:
    sae = GBATrainingSAE(tiny_config())
    assert sae.training_forward_pass(step_input=step_input(next(mixture(0)))).metrics == {}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_weight_types_train(dtype: str) -> None:
    sae = GBATrainingSAE(tiny_config(dtype=dtype, sparse_below_density=1.0, bias_init="zero"))
    take_steps(make_trainer(sae, 12), 12)
    assert sae.W_dec.dtype == getattr(torch, dtype)
    assert sae.threshold.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert (sae.bias < 0).any()


def test_casting_keeps_biases_and_counts_exact() -> None:
    sae = randomise(GBATrainingSAE(tiny_config()))
    threshold = sae.threshold.detach().clone()
    sae.to(torch.bfloat16)
    assert sae.W_dec.dtype == torch.bfloat16
    assert torch.equal(sae.threshold, threshold)
    assert sae.adapter.fire_counts.dtype == torch.long


def test_it_trains_under_autocast() -> None:
    sae = GBATrainingSAE(tiny_config(sparse_below_density=1.0, bias_init="zero"))
    trainer = make_trainer(sae, 12, autocast=True)
    take_steps(trainer, 12)
    assert (sae.bias < 0).any()
    assert sae.adapter.peak.dtype == torch.float32


@pytest.mark.parametrize("learn_output_scale", [False, True])
@pytest.mark.parametrize("architecture", ["gba", "gba_transcoder", "gba_skip_transcoder"])
def test_frozen_and_thawed_it_trains_what_it_trained(
    architecture: str, learn_output_scale: bool
) -> None:
    torch.manual_seed(0)
    sae = tiny_sae(architecture=architecture, learn_output_scale=learn_output_scale)
    trained = [name for name, p in sae.named_parameters() if p.requires_grad]
    take_steps(make_trainer(sae, 10), 2)
    sae.requires_grad_(False)
    sae.requires_grad_(True)
    trainer = make_trainer(sae, 10)
    take_steps(trainer, 2)
    moved = [name for name, p in sae.named_parameters() if p in trainer.optimizer.state]
    assert moved == trained


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_torchs_hooks_see_activations_or_their_gradients(kind: str) -> None:
    sae = tiny_sae(sparse_below_density=1.0)
    seen: list[torch.Size] = []

    def hook(_: Any, *tensors: Any) -> None:
        last = tensors[-1]
        seen.append((last[0] if isinstance(last, tuple) else last).shape)

    getattr(sae.hook_sae_acts_post, f"register_{kind}_hook")(hook)
    take_steps(make_trainer(sae, 10), 3)
    assert seen == [(256, 64)] * 3


def test_a_compiled_training_pass_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("fail_on_recompile_limit_hit", "fail_on_cache_limit_hit")  # the latter of torch 2.6
    (to_fail, *_) = (name for name in names if hasattr(torch._dynamo.config, name))
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        sae = GBATrainingSAE(tiny_config(l0_warm_up_steps=12))
        trainer = make_trainer(sae, 12)
        if compiled:
            compiled_pass = torch.compile(sae.training_forward_pass, backend="aot_eager")
            monkeypatch.setattr(sae, "training_forward_pass", compiled_pass)
        # and it is compiled, not given up on after so many other batches
        with torch._dynamo.config.patch({to_fail: True}):
            take_steps(trainer, 12)
        results.append(sae.state_dict())
    for name, plain in results[0].items():
        torch.testing.assert_close(results[1][name], plain, rtol=1e-4, atol=1e-5)


def test_wandb_offline_logs_a_run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.chdir(tmp_path)
    logger = LoggingConfig(log_to_wandb=True, log_weights_to_wandb=False, wandb_log_frequency=2,
                           eval_every_n_wandb_logs=1)  # fmt: skip
    wandb.init(project="test", mode="offline", dir=str(tmp_path))
    logged: dict[str, Any] = {}
    real_log = wandb.log
    monkeypatch.setattr(wandb, "log", lambda d, **kw: (logged.update(d), real_log(d, **kw)))
    try:
        make_trainer(GBATrainingSAE(tiny_config()), 12, logger=logger).fit()
    finally:
        wandb.finish()
    chart = logged["metrics/gba/frequency over target, by group"]
    columns = dict(zip(chart.table.columns, zip(*chart.table.data, strict=True), strict=True))
    assert set(columns["lineKey"]) == {f"group {k:02d}" for k in range(4)}  # one panel for all
    assert set(columns["step"]) > {2, 12} and max(columns["step"]) <= 12
    assert [n for n in logged if "group" in n and n.startswith("metrics/gba")] == [
        "metrics/gba/frequency over target, by group", "metrics/gba/mean bias, by group"
    ]  # fmt: skip
    assert "gba/log10_frequency_of_latents_that_fired" in logged
    (stored,) = {p.parent for p in tmp_path.rglob("frequency over target*.table.json")}
    assert stored.is_relative_to(tmp_path)


def test_batches_of_one_row_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    sae = GBATrainingSAE(tiny_config())
    trainer = make_trainer(sae, 101, data=(torch.randn(1, sae.cfg.d_in) for _ in range(102)))
    take_steps(trainer, 101)
    assert caplog.text.count("no batch of 100 had two different rows") == 1


@pytest.mark.parametrize("dtype", ["float16", "torch.float16"])
def test_half_precision_is_refused_under_either_name(dtype: str) -> None:
    with pytest.raises(ValueError, match="'float32', 'float64' or 'bfloat16' for training"):
        GBATrainingSAE(tiny_config(dtype=dtype))
