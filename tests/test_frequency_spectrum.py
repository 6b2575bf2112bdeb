import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_gba.frequency_spectrum import (
    GroupSizing,
    build_spectrum,
    geometric_frequencies,
    group_sizes,
)


def named_value(error: ValueError) -> float:
    found = re.search(r"nearest possible value is ([\d.e+-]+);", str(error))
    assert found is not None
    return float(found[1])


def test_frequencies_are_geometric_from_highest_to_lowest() -> None:
    # ratio 0.01 over two intervals: a factor of 0.1 each
    assert geometric_frequencies(0.1, 0.001, 3) == pytest.approx((0.1, 0.01, 0.001))


def test_one_group_has_the_highest_frequency() -> None:
    assert geometric_frequencies(0.1, 0.001, 1) == (0.1,)


def test_equal_groups_differ_by_at_most_one_neuron() -> None:
    sizes = group_sizes((0.4, 0.2, 0.1), 32, "equal", 1.0)
    assert sum(sizes) == 32
    assert max(sizes) - min(sizes) <= 1


def test_power_law_groups_carry_the_same_share_of_l0() -> None:
    # p = 0.4, 0.2, 0.1 -> sizes as 1 : 2 : 4, so each group carries size * p = 40
    assert group_sizes((0.4, 0.2, 0.1), 700, "power_law", 1.0) == (100, 200, 400)


def test_no_group_is_empty_even_when_its_share_is_below_one_neuron() -> None:
    sizes = group_sizes((0.5, 0.05, 0.0005), 20, "power_law", 1.0)
    assert min(sizes) >= 1
    assert sum(sizes) == 20


@settings(max_examples=60, deadline=None)
@given(
    d_sae=st.integers(40, 5000),
    n_groups=st.integers(1, 20),
    highest=st.floats(0.05, 0.9),
    share=st.floats(0.02, 0.9),
    sizing=st.sampled_from(["equal", "power_law"]),
    exponent=st.floats(0.0, 1.5),
)
def test_target_l0_is_met_exactly_whenever_it_is_possible(
    d_sae: int, n_groups: int, highest: float, share: float, sizing: GroupSizing, exponent: float
) -> None:
    target = d_sae * highest * share
    try:
        spectrum = build_spectrum(d_sae, n_groups, highest, 0.1, sizing, exponent, target)
    except ValueError as error:
        assert named_value(error) != pytest.approx(target, rel=1e-6)
        return
    assert spectrum.l0 == pytest.approx(target, rel=1e-6)
    assert sum(spectrum.sizes) == d_sae
    assert min(spectrum.sizes) >= 1
    assert all(a >= b for a, b in itertools.pairwise(spectrum.frequencies))


def test_one_group_gets_target_l0_over_d_sae() -> None:
    assert build_spectrum(100, 1, 0.2, 0.1, target_l0=4.0).frequencies == (0.04,)


@pytest.mark.parametrize("target", [30.0, 1e-6])
def test_an_unreachable_target_l0_names_the_nearest_possible_value(target: float) -> None:
    with pytest.raises(ValueError, match="nearest possible value is") as caught:
        build_spectrum(100, 5, 0.2, 0.1, target_l0=target)
    nearest = named_value(caught.value)
    # what the message proposes works, up to its six printed digits
    nudge = 1 - 1e-5 if target > nearest else 1 + 1e-5
    assert build_spectrum(100, 5, 0.2, 0.1, target_l0=nearest * nudge).l0 == pytest.approx(
        nearest, rel=1e-4
    )


def test_neurons_are_listed_group_by_group() -> None:
    spectrum = build_spectrum(7, 3, 0.4, 0.1)
    assert spectrum.sizes == (1, 2, 4)
    assert spectrum.group_of_latent().tolist() == [0, 1, 1, 2, 2, 2, 2]
    torch.testing.assert_close(
        spectrum.target_of_latent(), torch.tensor([0.4, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1])
    )


@pytest.mark.parametrize("target_l0", [0.21, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("d_sae", [16, 64, 1024])
def test_no_group_is_too_rare_to_be_measured(target_l0: float, d_sae: int) -> None:
    spectrum = build_spectrum(d_sae, 10, 0.2, 1e-3, "power_law", 1.0, target_l0, 1e-7)
    assert spectrum.l0 == pytest.approx(target_l0)
    assert spectrum.n_groups > 1
    rarest = min(s * p for s, p in zip(spectrum.sizes, spectrum.frequencies, strict=True))
    assert rarest * 32_768 > 30


@pytest.mark.parametrize(("d_sae", "target_l0"), [(768, 12.0), (256, 4.0), (24_576, 320.0)])
def test_equal_groups_stay_where_fewer_could_not_have_the_l0(d_sae: int, target_l0: float) -> None:
    spectrum = build_spectrum(d_sae, 10, 0.1, 1e-3, "equal", 1.0, target_l0, 1e-7)
    assert spectrum.n_groups == 10
    assert spectrum.l0 == pytest.approx(target_l0)


def test_a_group_in_the_middle_may_be_the_rarest() -> None:
    spectrum = build_spectrum(200, 10, 0.2, 1e-3, "power_law", 1.0, 0.308, 1e-7)
    assert min(s * p for s, p in zip(spectrum.sizes, spectrum.frequencies, strict=True)) >= 1e-3
