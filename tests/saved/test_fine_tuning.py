"""From a stock SAE back to a training SAE."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE

from sae_lens_gba import GBATrainingSAE, NeuronGroups, at_l0
from sae_lens_gba.adaptation_settings import AdaptationSettings
from sae_lens_gba.errors import NotTrainableError
from sae_lens_gba.frequency_spectrum import GroupSizing
from sae_lens_gba.saved.loading import load, to_training_sae
from tests.hub_fixtures import D_IN, D_SAE, activations, trainer
from tests.toolbox import make_trainer, take_steps, tiny_config


def stock_sae(kind: str = "jumprelu", d_sae: int = D_SAE, **settings: Any) -> SAE[Any]:
    return SAE.from_dict({"architecture": kind, "d_in": D_IN, "d_sae": d_sae, **settings})


def random_stock_sae(kind: str = "jumprelu") -> SAE[Any]:
    torch.manual_seed(0)
    sae = stock_sae(kind)
    for name, parameter in sae.named_parameters():
        parameter.data = torch.randn_like(parameter) * 0.5
        if name == "threshold":
            parameter.data.abs_()
    return sae


@pytest.mark.parametrize("which", ["jumprelu_sae", "relu_sae"])
def test_a_loaded_sae_computes_the_same_as_a_training_sae(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    trained: GBATrainingSAE = request.getfixturevalue(which)
    trained.save_inference_model(tmp_path / "run")
    loaded = load(tmp_path / "run")
    sae = to_training_sae(loaded)
    x = activations(64, seed=3)
    torch.testing.assert_close(sae(x), loaded.sae(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.encode(x), loaded.sae.encode(x), rtol=1e-5, atol=1e-5)
    for name in ("group", "measured_frequency"):
        assert torch.equal(getattr(sae.groups(), name), getattr(loaded.groups, name))
    # those that it was trained with, and would have after its own checkpoints: not the calibrated
    assert torch.equal(sae.groups().target_frequency, trained.adapter.target_frequency)
    assert sae.cfg.activation == trained.cfg.activation
    assert sae.cfg.tied == trained.cfg.tied
    assert sae.cfg.metadata.hook_name == trained.cfg.metadata.hook_name


def test_training_goes_on_where_it_was(sae_folder: Path) -> None:
    sae = to_training_sae(sae_folder)
    x = activations(2000, seed=11)

    @torch.no_grad()
    def error() -> float:
        return float((sae(x) - x).pow(2).sum())

    before, b_dec, bias = error(), sae.b_dec.detach().clone(), sae.bias.clone()
    run = trainer(sae, 1000)
    run.step(next(run.data_provider))
    # a new SAE's first batch would start b_dec at its mean: this one keeps its own
    assert float((sae.b_dec.detach() - b_dec).abs().max()) < 0.01
    assert torch.equal(sae.bias, bias)
    run.fit()
    assert error() < 0.9 * before
    assert not torch.equal(sae.bias, bias)
    assert float(sae.groups().measured_frequency.sum()) == pytest.approx(3.0, rel=0.15)


def test_a_new_l0_gives_the_rarest_targets_to_the_least_active_latents(sae_folder: Path) -> None:
    loaded = load(sae_folder)
    sae = loaded.to_training_sae(target_l0=5.0)
    targets = sae.groups().target_frequency
    assert float(targets.sum()) == pytest.approx(5.0, rel=1e-4)
    measured = NeuronGroups.load(sae_folder).measured_frequency
    most_active_first = measured.sort(descending=True, stable=True).indices
    assert (targets[most_active_first].diff() <= 0).all()
    x = activations(8)
    torch.testing.assert_close(sae(x), loaded.sae(x), rtol=1e-5, atol=1e-5)


def test_a_saved_training_sae_is_what_from_pretrained_path_reads(
    sae_folder: Path, tmp_path: Path
) -> None:
    # with another L0, targets go to latents by frequency: not in the order of the latents
    sae = to_training_sae(sae_folder, target_l0=5.0)
    assert (sae.groups().group.diff() < 0).any()
    sae.save_model(tmp_path / "start")
    again: TrainingSAE[Any] = TrainingSAE.load_from_disk(tmp_path / "start")
    assert isinstance(again, GBATrainingSAE)
    x = activations(8)
    assert torch.equal(again(x), sae(x))
    assert torch.equal(again.groups().group, sae.groups().group)
    assert torch.equal(again.groups().target_frequency, sae.groups().target_frequency)


def test_a_live_training_sae_is_taken_as_it_would_be_saved(jumprelu_sae: GBATrainingSAE) -> None:
    x, bias = activations(64, seed=3), jumprelu_sae.bias.clone()
    expected = deepcopy(jumprelu_sae).eval()(x)
    same_l0 = at_l0(jumprelu_sae, jumprelu_sae.adapter.target_l0)
    for sae in (to_training_sae(jumprelu_sae), same_l0.sae):
        torch.testing.assert_close(sae(x), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(jumprelu_sae.bias, bias)
    with pytest.raises(NotTrainableError, match=f"d_sae=7 is not possible: the SAE has {D_SAE}"):
        to_training_sae(jumprelu_sae, d_sae=7)


def test_an_sae_of_half_precision_is_not_trained_in_it(sae_folder: Path) -> None:
    saved = load(sae_folder, dtype=torch.float16)
    assert saved.training_config is not None
    assert saved.cfg["dtype"] == "float16"
    with pytest.raises(ValueError, match="dtype='float16' is not possible: it must be 'float32'"):
        saved.to_training_sae()
    assert saved.to_training_sae(dtype="float32").W_dec.dtype == torch.float32


@pytest.mark.parametrize("kind", ["jumprelu", "standard"])
def test_an_sae_that_gba_never_saw_can_be_trained_with_it(kind: str) -> None:
    stock = random_stock_sae(kind)
    sae = to_training_sae(stock, n_groups=4, target_l0=3.0, adapt_every_n_steps=10)
    x = activations(16)
    torch.testing.assert_close(sae(x), stock(x), rtol=1e-4, atol=1e-4)
    trainer(sae, 30).fit()
    assert torch.isfinite(sae(x)).all()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE), rtol=1e-5, atol=1e-5)


def test_a_folder_of_a_stock_sae_will_do(tmp_path: Path) -> None:
    stock = random_stock_sae()
    stock.cfg.metadata.neuronpedia_id = "gpt2-small/0-res"
    stock.save_model(tmp_path)
    sae = to_training_sae(tmp_path, target_l0=3.0)
    x = activations(16)
    torch.testing.assert_close(sae(x), stock(x), rtol=1e-4, atol=1e-4)
    assert sae.cfg.metadata.neuronpedia_id is None  # which shows another SAE


def test_biases_above_zero_come_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    to_training_sae(random_stock_sae("standard"), n_groups=4, target_l0=3.0)
    assert "b_enc of this SAE is above 0" in caplog.text


@pytest.mark.parametrize("sizing", ["power_law", "equal"])
def test_groups_of_a_hook_give_the_targets_whatever_the_order_of_latents(
    sizing: GroupSizing, tmp_path: Path
) -> None:
    settings = AdaptationSettings(target_l0=3.0, n_groups=5, group_sizing=sizing)
    spectrum = settings.spectrum_of(D_SAE)
    order = torch.randperm(D_SAE)
    group, target = spectrum.group_of_latent()[order], spectrum.target_of_latent()[order]
    groups = NeuronGroups(group, target, measured_frequency=torch.rand(D_SAE))
    sae = to_training_sae(random_stock_sae(), groups)
    sae.save_model(tmp_path)
    again: TrainingSAE[Any] = TrainingSAE.load_from_disk(tmp_path)
    assert isinstance(again, GBATrainingSAE)
    for trained in (sae, again):
        assert torch.equal(trained.groups().group, group)
        torch.testing.assert_close(trained.groups().target_frequency, target)


def test_groups_that_no_settings_give_are_formed_anew_at_their_l0() -> None:
    group = torch.tensor([0] * 30 + [1, 1])
    target = torch.tensor([0.1] * 30 + [0.01, 0.01])
    measured = torch.rand(D_SAE)
    sae = to_training_sae(random_stock_sae(), NeuronGroups(group, target, measured))
    targets = sae.groups().target_frequency
    assert float(targets.sum()) == pytest.approx(3.02, rel=1e-4)
    assert sae.adapter.group.bincount().tolist() == list(sae.cfg.spectrum().sizes)
    assert (targets[measured.argsort(descending=True)].diff() <= 0).all()


def test_at_another_l0_it_trains_at_that_one(sae_folder: Path, tmp_path: Path) -> None:
    at_2 = at_l0(sae_folder, 2.0)
    sae = at_2.to_training_sae()
    x = activations(8)
    torch.testing.assert_close(sae(x), at_2.sae(x), rtol=1e-5, atol=1e-5)
    sae.save_model(tmp_path)
    again: TrainingSAE[Any] = TrainingSAE.load_from_disk(tmp_path)
    assert isinstance(again, GBATrainingSAE)
    assert sae.cfg.target_l0 == pytest.approx(2.0, rel=0.01)
    for trained in (sae, again):
        assert trained.adapter.target_l0 == pytest.approx(2.0, rel=0.01)


def test_a_latent_without_a_decoder_stays_silent_in_the_output() -> None:
    stock = random_stock_sae()
    stock.W_dec.data[5] = 0.0
    sae = to_training_sae(stock, n_groups=4, target_l0=3.0)
    assert sae.output_scale[5].item() == 0.0
    assert sae.W_dec[5].norm().item() == pytest.approx(1.0)
    x = activations(16)
    torch.testing.assert_close(sae(x), stock(x), rtol=1e-4, atol=1e-4)


def test_what_can_not_be_trained_is_refused(sae_folder: Path) -> None:
    groups = load(sae_folder).groups
    with pytest.raises(NotTrainableError, match="architecture 'topk'"):
        to_training_sae(stock_sae("topk", k=2), groups)
    with pytest.raises(NotTrainableError, match="groups are for 32 latents"):
        to_training_sae(stock_sae(d_sae=64), groups)
    with pytest.raises(ValueError, match="target_l0=-1"):
        to_training_sae(sae_folder, target_l0=-1)
    with pytest.raises(ValueError, match="did you mean 'target_l0'"):
        to_training_sae(sae_folder, targetl0=3)
    with pytest.raises(ValueError, match="without groups has no L0 to keep"):
        to_training_sae(random_stock_sae())


def test_neither_targets_nor_nested_weight_fall_once_more(
    jumprelu_sae: GBATrainingSAE, tmp_path: Path
) -> None:
    jumprelu_sae.cfg.l0_warm_up_steps = 500
    jumprelu_sae.save_inference_model(tmp_path / "run")
    still = to_training_sae(tmp_path / "run").cfg
    assert (still.l0_warm_up_steps, still.n_nested_reconstructions) == (0, 1)
    anew = to_training_sae(tmp_path / "run", l0_warm_up_steps=9).cfg
    assert (anew.l0_warm_up_steps, anew.n_nested_reconstructions) == (9, 5)


def test_one_that_has_not_trained_yet_is_fine_tuned_once_it_was_saved(tmp_path: Path) -> None:
    x = 50 * activations(512, seed=11) + 100
    stock = random_stock_sae()
    to_training_sae(stock, target_l0=3.0).save_inference_model(tmp_path / "saved")
    sae = to_training_sae(tmp_path / "saved")
    before = {name: value.detach().clone() for name, value in sae.named_parameters()}
    run = trainer(sae, 1)
    run.step(x)
    # the first batch says in which unit they are from here on: the step is all that moves them
    step = 1.01 * float(run.optimizer.param_groups[0]["lr"] * sae.input_scale)
    for name in ("b_dec", "threshold"):
        now = sae.in_input_units(sae.get_parameter(name))
        torch.testing.assert_close(now, before[name], rtol=0, atol=step)


def test_one_that_was_trained_on_whitened_activations_is_fine_tuned(tmp_path: Path) -> None:
    def data() -> Iterator[torch.Tensor]:
        for seed in count():
            yield 20 * activations(256, seed) + 50

    torch.manual_seed(0)
    cfg = tiny_config(d_in=D_IN, normalize_activations="covariance_whitening")
    whitened = make_trainer(GBATrainingSAE(cfg), 100, data()).fit()
    whitened.save_inference_model(tmp_path / "whitened")
    stock, x = load(tmp_path / "whitened").sae, next(data())

    @torch.no_grad()
    def error(sae: SAE[Any]) -> float:
        return float((sae(x) - x).square().mean())

    sae = to_training_sae(tmp_path / "whitened")
    take_steps(make_trainer(sae, 1, data()), 1)
    assert error(sae) < 1.2 * error(stock)
