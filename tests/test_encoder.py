"""W_enc is computed from W_dec, and yet can be written to like a parameter."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.synthetic import FeatureDictionary, init_sae_to_match_feature_dict
from torch import nn

from sae_lens_gba import GBATrainingSAE
from tests.toolbox import make_trainer, mixture, randomise, take_steps, tiny_config

Write = Callable[[GBATrainingSAE, torch.Tensor], object]


def new_data(sae: GBATrainingSAE, value: torch.Tensor) -> None:
    sae.W_enc.data = value


def new_data_in_part(sae: GBATrainingSAE, value: torch.Tensor) -> None:
    sae.W_enc.data[:, :30] = value[:, :30]
    sae.W_enc.data[:, 30:] = value[:, 30:]


def copied(sae: GBATrainingSAE, value: torch.Tensor) -> None:
    with torch.no_grad():
        sae.W_enc.copy_(value)


def by_index(sae: GBATrainingSAE, value: torch.Tensor) -> None:
    with torch.no_grad():
        sae.W_enc[:] = value


def assigned(sae: GBATrainingSAE, value: torch.Tensor) -> None:
    sae.W_enc = nn.Parameter(value)


WRITES = pytest.mark.parametrize("write", [new_data, new_data_in_part, copied, by_index, assigned])
TIED = pytest.mark.parametrize("tied", [False, True])


@WRITES
@TIED
def test_what_is_written_to_w_enc_arrives(write: Write, tied: bool, tmp_path: Path) -> None:
    sae = randomise(GBATrainingSAE(tiny_config(tied=tied, dtype="float64")))
    value = torch.randn(16, 64, dtype=torch.float64)
    write(sae, value.clone())
    torch.testing.assert_close(sae.W_enc, value)
    x = next(mixture(0)).double()
    expected = with_encoder(sae, value, tied)
    torch.testing.assert_close(sae.encode(x), expected.encode(x))
    sae.save_model(tmp_path)
    torch.testing.assert_close(TrainingSAE.load_from_disk(tmp_path).W_enc, value)
    sae.save_inference_model(tmp_path)
    torch.testing.assert_close(SAE.load_from_disk(tmp_path).W_enc.data, value)


def with_encoder(sae: GBATrainingSAE, W_enc: torch.Tensor, tied: bool) -> GBATrainingSAE:
    """The SAE that has this encoder by its own parameters."""
    like = GBATrainingSAE(tiny_config(tied=tied, dtype="float64"))
    like.load_state_dict(sae.state_dict())
    if tied:
        like.W_dec.data = W_enc.T.contiguous()
    else:
        like.encoder_correction.data = like.correction_for(W_enc, like.W_dec.detach())
    return like


@TIED
def test_an_sae_can_be_made_to_match_a_dictionary(tied: bool) -> None:
    dictionary = FeatureDictionary(num_features=64, hidden_dim=16)
    sae = GBATrainingSAE(tiny_config(tied=tied))
    init_sae_to_match_feature_dict(sae, dictionary)
    assert torch.equal(sae.W_dec.detach(), dictionary.feature_vectors)
    assert torch.equal(sae._encoder().detach(), dictionary.feature_vectors.T)
    take_steps(make_trainer(sae, 1), 1)
    torch.testing.assert_close(sae.W_enc.detach(), dictionary.feature_vectors.T, atol=3e-3, rtol=0)


def test_latents_that_were_not_written_to_still_follow_the_decoder() -> None:
    sae = randomise(GBATrainingSAE(tiny_config(dtype="float64")))
    correction = sae.encoder_correction.detach().clone()
    sae.W_enc.data[:, 5] = 7.0
    sae.W_dec.data = -sae.W_dec.data
    followed = (sae.W_dec + sae.cfg.encoder_correction_rate * correction).T.detach()
    for W_enc in (sae.W_enc.detach(), sae._encoder().detach()):
        expected = followed.clone()
        expected[:, 5] = 7.0
        torch.testing.assert_close(W_enc, expected)


def test_reading_w_enc_changes_nothing_in_a_step() -> None:
    saes = []
    for reads in (False, True):
        torch.manual_seed(0)
        sae = GBATrainingSAE(tiny_config())
        trainer = make_trainer(sae, 6)
        for _ in range(6):
            take_steps(trainer, 1)
            if reads:
                sae.W_enc.norm()
                sae.W_enc.data.norm()
        saes.append(sae)
    for name, value in saes[0].state_dict().items():
        assert torch.equal(saes[1].state_dict()[name], value), name


def test_a_step_does_not_hand_out_its_encoder() -> None:
    # a copy of it at each step would cost as much as computing it
    sae = GBATrainingSAE(tiny_config())
    take_steps(make_trainer(sae, 11), 11)
    assert sae._given_out is None


@TIED
def test_gradients_through_w_enc_reach_the_parameters(tied: bool) -> None:
    sae = randomise(GBATrainingSAE(tiny_config(tied=tied)))
    sae.W_enc.norm()
    sae.W_enc.square().sum().backward()
    for parameter in (sae.W_dec, sae.W_dec if tied else sae.encoder_correction):
        assert parameter.grad is not None and parameter.grad.all()


@TIED
def test_copies_have_what_was_written(tied: bool) -> None:
    sae = randomise(GBATrainingSAE(tiny_config(tied=tied)))
    sae.W_enc.data = torch.ones(16, 64)
    torch.testing.assert_close(copy.deepcopy(sae).W_enc.detach(), torch.ones(16, 64))
    torch.testing.assert_close(sae.to(torch.float64).W_enc.detach(), torch.ones(16, 64).double())


@pytest.mark.parametrize("value", [torch.ones(64, 16), torch.ones(16, 1), 3.0])
def test_an_encoder_of_another_shape_is_refused(value: torch.Tensor) -> None:
    sae = GBATrainingSAE(tiny_config())
    with pytest.raises(ValueError, match=r"W_enc=.* must be a tensor of shape \(16, 64\)"):
        sae.W_enc = value  # type: ignore[assignment]


def test_weights_that_are_loaded_replace_what_was_written() -> None:
    sae = randomise(GBATrainingSAE(tiny_config()))
    state = copy.deepcopy(sae.state_dict())
    sae.W_enc.data.zero_()
    sae.load_state_dict(state)
    assert torch.equal(sae.encoder_correction, state["encoder_correction"])
