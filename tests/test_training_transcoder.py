"""What is a transcoder's own: two scales, an encoder that follows nothing, a linear way past."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput

from sae_lens_gba import GBATrainingTranscoder
from sae_lens_gba.at_target import decoded
from sae_lens_gba.saved.stock_form import stock_form
from tests.toolbox import make_trainer, mixture, pairs, randomise, take_steps, tiny_sae

KINDS = ["gba_transcoder", "gba_skip_transcoder"]


def trained(kind: str, data: Iterator[torch.Tensor], steps: int, **settings: Any) -> Any:
    torch.manual_seed(0)
    sae = tiny_sae(architecture=kind, **settings)
    take_steps(make_trainer(sae, steps, data, lr=1e-2), steps)
    return sae.eval()


def scaled(x_by: float, y_by: float) -> Iterator[torch.Tensor]:
    for batch in pairs(1):
        x, y = batch.double().split([16, 24], dim=1)
        yield torch.cat([x * x_by, y * y_by], dim=1)


@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_its_docstring_says(kind: str, activation: str) -> None:
    settings = {"activation": activation, "dtype": "float64", "encoder_correction_rate": 0.3}
    sae: Any = randomise(tiny_sae(architecture=kind, **settings))
    s, t, x = sae.input_scale, sae.target_scale, next(mixture(0)).double()
    assert (float(s), float(t)) == pytest.approx((3 / 16**0.5, 40 / 24**0.5))
    centred = x / s - sae.input_mean
    h = centred @ (0.3 * sae.encoder_correction).T + sae.b_enc
    f = h.clamp(min=0)
    if activation == "jumprelu":
        f = (h - sae.shrinkage.clamp(max=1) * sae.threshold) * (h > sae.threshold)
    y = (f * sae.output_scale) @ sae.W_dec + sae.b_dec
    if kind == "gba_skip_transcoder":
        y = y + 0.3 * centred @ sae.skip.T
    torch.testing.assert_close(sae.encode(x), s * f)
    torch.testing.assert_close(sae(x), t * y)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_in_any_units_of_input_and_target(kind: str) -> None:
    plain = trained(kind, scaled(1, 1), 40, dtype="float64")
    other = trained(kind, scaled(1e-3, 1e4), 40, dtype="float64")
    x = next(mixture(7)).double()
    torch.testing.assert_close(other(1e-3 * x), 1e4 * plain(x), rtol=1e-5, atol=0.1)
    torch.testing.assert_close(other.encode(1e-3 * x), 1e-3 * plain.encode(x), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_both_scales_follow_the_data(kind: str) -> None:
    data = pairs(1)
    x, y = next(data).split([16, 24], dim=1)
    sae = trained(kind, data, 30)
    for scale, part in ((sae.input_scale, x), (sae.target_scale, y)):
        norm = (part - part.mean(dim=0)).norm(dim=1).median()
        assert float(scale) == pytest.approx(float(norm) / part.shape[1] ** 0.5, rel=0.1)


def test_a_target_that_is_constant_at_first_is_learnt_later() -> None:
    def late() -> Iterator[torch.Tensor]:
        for i, batch in enumerate(pairs(1)):
            if i < 3:
                batch[:, 16:] = 5.0
            yield batch

    sae = trained("gba_transcoder", late(), 60)
    assert torch.isfinite(sae(next(mixture(0)))).all()
    assert float(sae.target_scale) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_nested", [1, 3])
def test_sparse_and_dense_steps_have_the_same_loss_and_gradients(kind: str, n_nested: int) -> None:
    batch = next(pairs(0)).double()
    found = []
    for density in (0.0, 1.0):
        torch.manual_seed(1)
        settings = {"sparse_below_density": density, "n_nested_reconstructions": n_nested}
        sae = randomise(tiny_sae(architecture=kind, dtype="float64", **settings))
        step = TrainStepInput(
            sae_in=batch, coefficients={}, dead_neuron_mask=None, n_training_steps=0,
            is_logging_step=False,
        )  # fmt: skip
        out = sae.training_forward_pass(step_input=step)
        assert out.hidden_pre.is_sparse == (density > 0)
        assert torch.equal(out.sae_in, batch[:, 16:])  # SAELens' measures are of the target
        torch.testing.assert_close(out.sae_out, sae(batch[:, :16]))
        error = (out.sae_out - batch[:, 16:]).square().sum(dim=1).mean() / sae.target_scale**2
        torch.testing.assert_close(out.losses["mse_loss"], error)
        assert ("nested_mse_loss" in out.losses) == (n_nested > 1)
        out.loss.backward()
        found.append({n: p.grad for n, p in sae.named_parameters() if p.grad is not None})
    learnt = {"W_dec", "b_dec", "encoder_correction", "shrinkage"}
    assert set(found[0]) == set(found[1]) >= learnt
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_the_nested_loss_is_that_of_the_first_groups_alone(kind: str) -> None:
    sae = randomise(
        tiny_sae(architecture=kind, dtype="float64", n_groups=2, n_nested_reconstructions=2)
    )
    batch = next(pairs(0)).double()
    x, y = batch.split([16, 24], dim=1)
    step = TrainStepInput(batch, {}, None, 0, False)
    nested = sae.training_forward_pass(step_input=step).losses["nested_mse_loss"]
    first = sae.encode(x) * (sae.adapter.group == 0)
    error = (decoded(sae, first, x) - y).square().sum(dim=1).mean() / sae.target_scale**2
    torch.testing.assert_close(nested, sae.cfg.nested_weight * error)


def test_shrinkage_lowers_activations_and_lets_no_latent_fall_silent() -> None:
    sae = trained("gba_transcoder", pairs(0), 40)
    x = next(mixture(3))
    sae.shrinkage.data.zero_()
    plain = sae.encode(x)
    sae.shrinkage.data.fill_(0.6)
    lower = plain - 0.6 * sae.in_input_units(sae.threshold) * (plain > 0)
    torch.testing.assert_close(sae.encode(x), lower)
    sae.shrinkage.data.fill_(1.5)  # as an optimizer's step may leave it
    assert torch.equal(sae.encode(x) > 0, plain > 0)
    take_steps(make_trainer(sae.train(), 1, pairs(1), lr=1e-4), 1)
    assert float(sae.shrinkage.max()) <= 1 + 1e-3


def test_shrinkage_is_learnt() -> None:
    sae = trained("gba_transcoder", pairs(0), 40)
    assert float(sae.shrinkage.detach().abs().min()) > 0


def test_adapting_biases_leaves_the_steps_gradient_as_it_is() -> None:
    gradients = []
    for adapt_every_n_steps in (1, 10**6):
        torch.manual_seed(0)
        sae = randomise(
            tiny_sae(architecture="gba_transcoder", adapt_every_n_steps=adapt_every_n_steps)
        )
        assert isinstance(sae, GBATrainingTranscoder)
        before = sae.bias.clone()
        step = TrainStepInput(next(pairs(0)), {}, None, 0, False)
        sae.training_forward_pass(step_input=step).loss.backward()
        assert torch.equal(sae.bias, before) == (adapt_every_n_steps > 1)
        gradients.append(sae.shrinkage.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


# with all its thresholds as low as they can be, the second has an L0 of 6.6 and the third one of 4
@pytest.mark.parametrize(("shrinkage", "highest"), [(0.0, 2**1.5), (0.7, 2**0.5), (1.0, 1.0)])
def test_other_l0s_are_those_that_stock_thresholds_give(shrinkage: float, highest: float) -> None:
    sae = trained("gba_transcoder", pairs(0), 40)
    sae.shrinkage.data.fill_(shrinkage)
    sae.settle()
    groups, stock = sae.groups(), stock_form(sae).state_dict()
    x = torch.cat(list(sae.recent_samples.batches))[-8192:]
    h = x @ stock["W_enc"] + stock["b_enc"]
    units = stock["W_enc"].norm(dim=0)
    assert float(groups.other_l0s[-1]) == pytest.approx(4 * highest, rel=5e-4)  # 16 is too many
    for l0, offset in zip(groups.other_l0s, groups.offsets.T, strict=True):
        threshold = (stock["threshold"] + offset[groups.group] * units).clamp(min=0)
        assert float((h > threshold).sum() / len(x)) == pytest.approx(float(l0), rel=0.02)


def test_the_linear_way_takes_what_is_linear() -> None:
    W = torch.randn(16, 24)
    linear = (torch.cat([x, x @ W + 1], dim=1) for x in mixture(1))
    x = next(mixture(9))
    y = x @ W + 1
    error = [
        float((trained(kind, linear, 300)(x) - y).square().sum() / (y - y.mean(0)).square().sum())
        for kind in KINDS
    ]
    assert error[1] < 0.05 < error[0]


def test_an_encoder_that_is_written_to_is_what_encodes() -> None:
    sae = randomise(tiny_sae(architecture="gba_transcoder"))
    assert isinstance(sae, GBATrainingTranscoder)
    W_enc = torch.randn(16, 64)
    sae.W_enc.data = W_enc
    sae.W_dec.data.normal_()
    torch.testing.assert_close(sae._encoder().detach(), W_enc)
    torch.testing.assert_close(sae.encoder_correction.detach(), W_enc.T)
