from collections.abc import Iterable

import pytest
import torch

from sae_lens_gba.metrics import Selectivity, SelectivityMeter
from tests.toolbox import random_rows


def selectivity(
    batches: Iterable[torch.Tensor], threshold: torch.Tensor | float = 0.0
) -> Selectivity:
    first, *rest = batches
    meter = SelectivityMeter(first.shape[1])
    for batch in (first, *rest):
        meter.add(batch, batch > threshold)
    return meter.compute()


def pre_activations(n: int = 1000, d: int = 5) -> torch.Tensor:
    return random_rows(n, d) + torch.arange(d)


def test_a_hand_worked_latent() -> None:
    # h = 0, 0, 0, 4; threshold 1: active once. mean 1, variance (3 * 1 + 9) / 4 = 3,
    # mean of the active 4, z = (4 - 1) / sqrt(3)
    result = selectivity([torch.tensor([[0.0], [0.0], [0.0], [4.0]])], threshold=1.0)
    assert result.frequency.tolist() == [0.25]
    assert result.peak.tolist() == [4.0]
    assert result.z_score.tolist() == pytest.approx([3**0.5])


def test_how_the_data_are_cut_into_batches_does_not_matter() -> None:
    h, threshold = pre_activations(), torch.linspace(0, 2, 5)
    whole = selectivity([h], threshold)
    for cut in (1, 7, 999):
        for one, other in zip(whole, selectivity(h.split(cut), threshold), strict=True):
            torch.testing.assert_close(one, other)


def test_a_large_mean_costs_no_precision() -> None:
    h = pre_activations()
    shifted = selectivity((h.double() + 1e6).split(100), threshold=1e6 + 1)
    torch.testing.assert_close(shifted.z_score, selectivity([h], 1.0).z_score)


def test_scaling_pre_activations_and_threshold_changes_only_the_peak() -> None:
    h = pre_activations()
    one, scaled = selectivity([h], 1.0), selectivity([4 * h], 4.0)
    torch.testing.assert_close(scaled.frequency, one.frequency)
    torch.testing.assert_close(scaled.z_score, one.z_score)
    torch.testing.assert_close(scaled.peak, 4 * one.peak)


def test_a_latent_that_answers_to_one_rare_thing_is_more_selective_than_noise() -> None:
    # both active on 10 of 1000 samples
    noise = pre_activations(d=1)
    threshold = noise.sort(dim=0).values[-11].item()
    detector = 0.1 * noise
    detector[::100] += 10
    both = selectivity([torch.cat([noise, detector], dim=1)], torch.tensor([threshold, 5.0]))
    assert both.frequency.tolist() == pytest.approx([0.01, 0.01])
    assert both.z_score[0] < 4 < both.z_score[1]


def test_silent_and_constant_latents_score_zero() -> None:
    h = torch.tensor([[-1.0, 2.0], [-2.0, 2.0]])
    result = selectivity([h])
    assert result.frequency.tolist() == [0.0, 1.0]
    assert result.z_score.tolist() == [0.0, 0.0]
    assert result.peak.tolist() == [-1.0, 2.0]


def test_nan_is_refused_before_anything_is_counted() -> None:
    meter = SelectivityMeter(1)
    meter.add(torch.ones(3, 1))
    with pytest.raises(ValueError, match="NaN"):
        meter.add(torch.tensor([[1.0], [float("nan")]]))
    assert meter.compute().frequency.tolist() == [1.0]


def test_wrong_shapes_and_empty_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        SelectivityMeter(3).add(torch.ones(2, 4))
    with pytest.raises(ValueError, match="active has shape"):
        SelectivityMeter(3).add(torch.ones(2, 3), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="no pre-activations"):
        SelectivityMeter(3).compute()
