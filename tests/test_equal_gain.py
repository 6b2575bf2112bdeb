from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.equal_gain import Pairs, equal_gain_thresholds, gains
from tests.toolbox import make_trainer, mixture, take_steps, tiny_config


def all_pairs(
    h: torch.Tensor, gain: torch.Tensor, threshold: torch.Tensor, lowest: torch.Tensor
) -> Pairs:
    possible = h > lowest
    fires = (h > threshold)[possible]
    return Pairs(h[possible], gain[possible], possible.nonzero()[:, 1], fires)


def test_a_gain_is_what_the_squared_error_falls_by() -> None:
    torch.manual_seed(0)
    n, d_sae, d_in = 5, 4, 3
    h, W_dec, target = torch.randn(n, d_sae), torch.randn(d_sae, d_in), torch.randn(n, d_in)
    fires = h > 0.3

    def error(active: torch.Tensor) -> torch.Tensor:
        return (target - (h * active) @ W_dec).square().sum(dim=1)

    found = gains(h, fires, target - (h * fires) @ W_dec, W_dec)
    for m in range(d_sae):
        latent = torch.arange(d_sae) == m
        falls_by = error(fires & ~latent) - error(fires | latent)
        torch.testing.assert_close(found[:, m], falls_by, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_active", [1, 6, 11, 20])
def test_where_gains_fall_with_pre_activations_the_highest_gains_fire(n_active: int) -> None:
    torch.manual_seed(n_active)
    h = torch.rand(7, 3) + 0.1
    gain = torch.tensor([1.0, 2.0, 0.5]) * h - torch.tensor([0.1, 0.7, 0.0])
    threshold, lowest = torch.full((3,), 2.0), torch.zeros(3)  # nothing fires so far
    new, count = equal_gain_thresholds(
        all_pairs(h, gain, threshold, lowest), n_active, threshold, lowest
    )
    fires = h > new
    assert torch.equal(fires.sum(dim=0), count)
    assert torch.equal(fires, gain >= gain.flatten().sort(descending=True).values[n_active - 1])


def test_a_pair_of_little_gain_fires_for_those_of_more_gain_below_it() -> None:
    h = torch.tensor([[4.0, 4.0], [3.0, 3.0], [2.0, 2.0]])
    gain = torch.tensor([[0.0, 2.0], [9.0, 1.0], [0.0, 0.5]])
    threshold, lowest = torch.full((2,), 5.0), torch.zeros(2)
    pairs = all_pairs(h, gain, threshold, lowest)
    for n_active, expected in ((2, [2, 0]), (3, [2, 1]), (4, [2, 2]), (1, [1, 0])):
        new, count = equal_gain_thresholds(pairs, n_active, threshold, lowest)
        assert count.tolist() == expected
        assert torch.equal((h > new).sum(dim=0), count)


def test_equal_pairs_fire_together_and_few_firings_are_kept() -> None:
    # latent 0: all that it has is worth nothing, but it fired on three samples; latent 1: the
    # second and third are equal, and worth more than the first
    h = torch.tensor([[3.0, 5.0], [2.5, 4.0], [2.0, 4.0], [1.0, 1.0]])
    gain = torch.tensor([[-1.0, 1.0], [-1.0, 2.0], [-1.0, 2.0], [-1.0, 0.1]])
    threshold, lowest = torch.tensor([1.5, 4.5]), torch.tensor([0.5, 0.5])
    new, count = equal_gain_thresholds(all_pairs(h, gain, threshold, lowest), 6, threshold, lowest)
    assert count.tolist() == [3, 3]
    assert new.tolist() == [1.5, 2.5]


@pytest.mark.parametrize(("n_fired", "n_kept"), [(100, 25), (24, 10), (7, 7)])
def test_a_latent_worth_nothing_keeps_some_of_its_firings(n_fired: int, n_kept: int) -> None:
    h, threshold = torch.linspace(1, 2, n_fired).unsqueeze(1), torch.tensor([0.5])
    pairs = all_pairs(h, -torch.ones_like(h), threshold, torch.zeros(1))
    _, count = equal_gain_thresholds(pairs, 1, threshold, torch.zeros(1))
    assert count.tolist() == [n_kept]


@pytest.mark.parametrize("n_active", range(1, 9))
def test_what_is_counted_is_what_fires_where_pairs_are_equal(n_active: int) -> None:
    h = torch.tensor([[2.0, 3.0]] + 6 * [[1.0, 1.0]])
    gain = torch.full((7, 2), 0.3)
    threshold, lowest = torch.full((2,), 5.0), torch.zeros(2)
    new, count = equal_gain_thresholds(
        all_pairs(h, gain, threshold, lowest), n_active, threshold, lowest
    )
    assert torch.equal((h > new).sum(dim=0), count)
    # none, one or all of a latent's
    assert abs(int(count.sum()) - n_active) <= 3


def test_a_massive_activation_does_not_blur_the_price_of_all_others() -> None:
    torch.manual_seed(0)
    h = torch.rand(200, 6) + 0.1
    gain = torch.linspace(0.2, 2, 6) * h
    threshold, lowest = torch.full((6,), 2.0), torch.zeros(6)
    expected, _ = equal_gain_thresholds(
        all_pairs(h, gain, threshold, lowest), 300, threshold, lowest
    )
    h[0, 0], gain[0, 0] = 1e5, 1e10
    found, _ = equal_gain_thresholds(all_pairs(h, gain, threshold, lowest), 300, threshold, lowest)
    torch.testing.assert_close(found[1:], expected[1:], rtol=0, atol=0.03)


def test_a_latent_without_pairs_keeps_its_threshold() -> None:
    nothing = Pairs(torch.zeros(0), torch.zeros(0), torch.zeros(0).long(), torch.zeros(0).bool())
    threshold = torch.tensor([1.0, 2.0])
    new, count = equal_gain_thresholds(nothing, 4, threshold, torch.zeros(2))
    assert torch.equal(new, threshold)
    assert count.tolist() == [0, 0]


def test_on_its_samples_an_sae_explains_more_with_the_same_l0() -> None:
    torch.manual_seed(0)
    sae = GBATrainingSAE(tiny_config(calibrate_for="error"))
    take_steps(make_trainer(sae, 300), 300)
    x = torch.cat(list(sae.recent_samples.batches))

    @torch.no_grad()
    def found(calibrate_for: Literal["error", "groups"]) -> tuple[float, float, torch.Tensor]:
        sae.train().cfg.calibrate_for = calibrate_for
        acts = sae.eval().encode(x)
        error = float((sae.decode(acts) - x).square().sum(dim=1).mean())
        fires = acts > 0
        return float(fires.sum()) / len(x), error, fires.double().mean(dim=0)

    by_error, by_groups = found("error"), found("groups")
    assert by_groups[0] == pytest.approx(4.0, rel=2e-3)
    assert by_error[0] == pytest.approx(4.0, rel=2e-3)
    assert by_error[1] < 0.98 * by_groups[1]
    assert (by_error[2] > 0).equal(by_groups[2] > 0)
    # what is saved says where the groups are, not where they were while training
    sae.train().cfg.calibrate_for = "error"
    groups = sae.eval().groups()
    for row in groups.summary():
        assert row["target_frequency"] == pytest.approx(row["measured_frequency"], rel=1e-5)
    torch.testing.assert_close(groups.measured_frequency.double(), by_error[2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["none", "layer_norm", "constant_norm_rescale"])
def test_a_gain_is_of_the_error_in_the_end_however_inputs_are_normalised(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Pairs] = []

    def spy(pairs: Pairs, *args: Any) -> Any:
        seen.append(pairs)
        return equal_gain_thresholds(pairs, *args)

    monkeypatch.setattr("sae_lens_gba.calibrated_biases.equal_gain_thresholds", spy)
    sae = GBATrainingSAE(tiny_config(normalize_activations=mode))
    data = (x * torch.linspace(1, 20, len(x)).unsqueeze(1) for x in mixture(1))
    take_steps(make_trainer(sae, 40, data), 40)
    sae.cfg.calibrate_for = "groups"  # which the gains start from
    x = torch.cat(list(sae.recent_samples.batches))
    acts = sae.eval().encode(x)
    sae.train().cfg.calibrate_for = "error"
    sae.eval()

    @torch.no_grad()
    def error(acts: torch.Tensor) -> float:
        sae.encode(x)  # SAELens undoes the last normalisation
        return float((sae.decode(acts) - x).double().square().sum())

    (pairs,) = seen
    for latent in range(0, 64, 16):
        without = acts * (torch.arange(64) != latent)
        gain = pairs.gain[pairs.fires & (pairs.latent == latent)].double().sum()
        in_input_units = float(gain * sae.input_scale**2)
        assert in_input_units == pytest.approx(error(without) - error(acts), rel=1e-3)


def test_a_group_that_never_fires_keeps_its_target() -> None:
    torch.manual_seed(0)
    sae = GBATrainingSAE(tiny_config())
    take_steps(make_trainer(sae, 50), 50)
    sae.eval()
    assert sae._calibration is not None
    frequency = torch.where(sae.adapter.group == 1, 0.0, sae._calibration.frequency)
    sae._calibration = replace(sae._calibration, frequency=frequency)
    target = sae.groups().target_frequency
    assert float(target.min()) > 0
    assert target[sae.adapter.group == 1].equal(
        sae.adapter.target_frequency[sae.adapter.group == 1]
    )
