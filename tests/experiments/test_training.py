import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.synthetic.evals import mean_correlation_coefficient

from experiments.lab.training import (
    FROZEN,
    TrainingSettings,
    best_rate,
    build_sae,
    measure_recovery,
    of_saelens,
    random_directions,
    recommended_gba,
    train_together,
)
from sae_lens_gba.saved.stock_form import stock_form
from sae_lens_gba.synthetic import FeatureMixture, FeatureMixtureConfig

ARCHITECTURES: list[dict[str, Any]] = [
    {"architecture": "topk", "k": 4},
    {"architecture": "batchtopk", "k": 4},
    {"architecture": "jumprelu", "l0_coefficient": 1e-3},
    {"architecture": "standard", "l1_coefficient": 1e-3},
    {"architecture": "gba", "tied": True},
]
SHORT = TrainingSettings(steps=30, batch_size=32, learning_rate=1e-2)


def mixture(seed: int = 0) -> FeatureMixture:
    cfg = FeatureMixtureConfig(n_features=16, d_in=8, sparsities=(2,))
    return FeatureMixture(cfg, batch_size=32, seed=seed)


def build(architectures: list[dict[str, Any]], seed: int = 0) -> list[Any]:
    return [build_sae({**a, "d_sae": 24}, 8, seed) for a in architectures]


def trained(architectures: list[dict[str, Any]], seed: int = 0) -> list[Any]:
    saes = build(architectures, seed)
    train_together(saes, mixture(seed), SHORT)
    return saes


def test_training_together_gives_what_training_alone_gives() -> None:
    together = trained(ARCHITECTURES)
    for architecture, sae in zip(ARCHITECTURES, together, strict=True):
        (alone,) = trained([architecture])
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(sae.state_dict()[name], value, rtol=0, atol=0)


def test_looking_at_saes_in_training_leaves_them_as_they_are() -> None:
    def look(step: int, seconds: list[float]) -> None:
        calibrated = deepcopy(looked_at).eval()
        assert not torch.equal(calibrated.bias, looked_at.bias)
        measure_recovery(looked_at, mixture(), n_samples=100)
        looks.append(step)

    looks: list[int] = []
    settings = replace(SHORT, steps=120)
    gba = [{"architecture": "gba", "target_l0": 3.0}]
    (looked_at,), (alone,) = build(gba), build(gba)
    train_together([looked_at], mixture(), settings, at_steps=(60, 90), look=look)
    train_together([alone], mixture(), settings)
    assert looks == [60, 90]
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(looked_at.state_dict()[name], value, rtol=0, atol=0)


def test_seeds_decide_the_weights() -> None:
    (one,), (other) = trained(ARCHITECTURES[:1], seed=0), trained(ARCHITECTURES[:1], seed=1)[0]
    assert not torch.equal(one.W_dec, other.W_dec)


def test_seconds_are_counted_for_each_sae() -> None:
    seconds = train_together(build(ARCHITECTURES[:2]), mixture(), SHORT)
    assert len(seconds) == 2
    assert min(seconds) > 0


def test_normalisation_that_needs_a_run_of_its_own_is_refused() -> None:
    whitened = {**ARCHITECTURES[0], "normalize_activations": "covariance_whitening"}
    with pytest.raises(ValueError, match="covariance_whitening"):
        trained([whitened])


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a["architecture"])
def test_what_is_measured_is_what_is_saved(architecture: dict[str, Any], tmp_path: Any) -> None:
    (sae,) = trained([architecture])
    sae.save_inference_model(str(tmp_path))
    saved = SAE.load_from_disk(str(tmp_path))
    x, _ = mixture().held_out().sample(20)
    torch.testing.assert_close(stock_form(sae)(x), saved(x))


def test_an_sae_whose_decoder_is_the_truth_has_recovered_all() -> None:
    data = mixture()
    sae = build_sae({"architecture": "topk", "k": 2, "d_sae": 16}, 8, 0)
    sae.W_dec.data = -3 * data.features.flip(0)
    recovery = measure_recovery(sae, data, n_samples=100)
    assert recovery.frr_08 == recovery.frr_09 == recovery.uniqueness == 1.0
    assert recovery.mcc == pytest.approx(1.0, abs=1e-5)
    assert recovery.mean_best_cosine == pytest.approx(1.0, abs=1e-5)


def test_a_random_sae_has_recovered_little() -> None:
    data = FeatureMixture(FeatureMixtureConfig(), seed=0)
    sae = build_sae({"architecture": "topk", "k": 2, "d_sae": 64}, 42, 0)
    recovery = measure_recovery(sae, data, n_samples=100)
    assert recovery.frr_08 == 0.0
    assert recovery.mcc < 0.6


def test_reconstruction_and_sparsity_agree_with_a_hand_worked_sae() -> None:
    # encoder and decoder are the identity and the biases 0: a perfect copy of x >= 0 whose
    # L0 is x's own
    cfg = FeatureMixtureConfig(n_features=4, d_in=4, sparsities=(1, 3), row_scale="none")
    data = FeatureMixture(cfg)
    data.features = torch.eye(4)
    sae: Any = build_sae({"architecture": "standard", "d_sae": 5}, 4, 0)
    padded = torch.cat([torch.eye(4), torch.zeros(4, 1)], dim=1)  # the fifth latent is dead
    sae.W_enc.data, sae.W_dec.data = padded, padded.T.contiguous()
    sae.b_enc.data.zero_()
    sae.b_dec.data.zero_()
    # `held_out` draws V anew from the seed; the identity has to stay
    data.held_out = lambda: data  # type: ignore[method-assign]
    recovery = measure_recovery(sae, data, n_samples=2000)
    assert recovery.loss == 0.0
    assert recovery.explained_variance == pytest.approx(1.0)
    assert recovery.l0 == pytest.approx(2.0, abs=0.12)  # 5 * sd of the mean of {1, 3}
    assert recovery.dead == 1
    assert recovery.mcc == pytest.approx(
        mean_correlation_coefficient(sae.W_dec.detach(), torch.eye(4))
    )


@pytest.mark.parametrize("best", [1e-3, 3e-3, 1e-2])
def test_the_rate_of_the_best_run_is_chosen(best: float) -> None:
    def train(rate: float) -> dict[str, float]:
        return {"learning_rate": rate, "quality": -abs(math.log(rate / best))}

    rows, rate = best_rate(train, (1e-3, 3e-3, 1e-2), by="quality")
    assert (rate, len(rows)) == (best, 3)


@pytest.mark.parametrize("diverged", [math.nan, math.inf, -math.inf])
def test_a_run_that_diverged_is_never_chosen(diverged: float) -> None:
    quality = {1e-3: 0.1, 1e-2: diverged}
    _, rate = best_rate(
        lambda rate: {"learning_rate": rate, "quality": quality[rate]}, quality, by="quality"
    )
    assert rate == 1e-3


def test_a_frozen_decoder_stays_and_random_directions_have_the_l0() -> None:
    spec = {**of_saelens("batchtopk", d_sae=32, k=4), FROZEN: True}
    sae = build_sae(spec, 16, 0)
    start, encoder = sae.W_dec.detach().clone(), sae.W_enc.detach().clone()
    data = iter(torch.randn(20, 64, 16))
    train_together([sae], data, TrainingSettings(10, 64, 1e-2))
    assert torch.equal(sae.W_dec, start)
    assert not torch.equal(sae.W_enc, encoder)
    x = torch.randn(4096, 16)
    acts = random_directions(x, 32, 4.0, 0).encode(x)
    assert float((acts > 0).sum(1).float().mean()) == pytest.approx(4.0, rel=0.02)


def test_targets_of_a_recommended_sae_fall_for_the_whole_run() -> None:
    sae = build_sae(recommended_gba(32, 4.0), 16, 0, steps=70)
    assert sae.cfg.l0_warm_up_steps == 70
