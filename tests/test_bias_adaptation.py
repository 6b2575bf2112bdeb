import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch

from sae_lens_gba.batch_statistics import followed_norm, quantile_bias, typical_norm
from sae_lens_gba.bias_adaptation import (
    UPDATE_RULES,
    AdaptationRates,
    Observation,
    Targets,
    next_band,
)
from sae_lens_gba.bias_adapter import BiasAdapter
from sae_lens_gba.frequency_spectrum import FrequencySpectrum, build_spectrum
from tests.reference_bias_adaptation import ReferenceBiasAdaptation

RATES = AdaptationRates(decrease=0.01, increase=0.01, dead_frequency=1e-3, frequency_cap=3.0)


def apply_rule(
    name: str,
    bias: list[float],
    frequency: list[float],
    peak: list[float],
    group: list[int],
    target: list[float],
    c: float = 1.0,
    rates: AdaptationRates = RATES,
    silent_samples: int = 10**6,
    near: float | list[float] = 0.0,
    band: float = 0.0,
) -> list[float]:
    tensors = [torch.tensor(v, dtype=torch.float64) for v in (bias, frequency, peak, target)]
    bias_, frequency_, peak_, target_ = tensors
    targets = Targets(torch.tensor(group), target_, max(group) + 1)
    c_ = torch.full_like(bias_, c)
    silent = torch.where(frequency_ > 0, 0, silent_samples)
    near_, band_ = (torch.as_tensor(v).double().expand_as(bias_) for v in (near, band))
    seen = Observation(frequency_, peak_, silent, near_, band_)
    return UPDATE_RULES[name](bias_, seen, targets, rates, c_).tolist()


def test_paper_rule_by_hand() -> None:
    # group 0: latent 0 fires too often: -0.5 - 0.01 * 2 = -0.52
    #          latent 1 on target: stays
    #          latent 2 dead: s_0 = mean of the peaks above 0 = (2 + 4) / 2 = 3; -0.5 + 0.03
    # group 1: latent 3 too often, but at the range's end: stays at -1
    #          latent 4 dead, bias near 0: s_1 = 5, -0.01 + 0.05 > 0: stops at 0
    new = apply_rule(
        "paper",
        bias=[-0.5, -0.5, -0.5, -1.0, -0.01],
        frequency=[0.3, 0.1, 0.0, 0.3, 0.0],
        peak=[2.0, 4.0, 0.0, 5.0, 0.0],
        group=[0, 0, 0, 1, 1],
        target=[0.1, 0.1, 0.1, 0.1, 0.1],
    )
    assert new == pytest.approx([-0.52, -0.5, -0.47, -1.0, 0.0])


def test_group_mean_rule_by_hand() -> None:
    # step unit: 0.3 * 0.01 * c, c = 2 -> 0.006
    # group 0: relative frequencies 1 and 3, mean 2: e = log 2; nobody above cap 3: u = 0
    # group 1: relative frequencies 12 and 0, mean 6: e = log 6;
    #          latent 2: u = log(12 / 3); latent 3 dead: + 0.01 * 2
    new = apply_rule(
        "group_mean",
        bias=[-0.5, -0.4, -0.3, -0.2],
        frequency=[0.1, 0.3, 0.12, 0.0],
        peak=[1.0, 1.0, 1.0, 0.0],
        group=[0, 0, 1, 1],
        target=[0.1, 0.1, 0.01, 0.01],
        c=2.0,
    )
    assert new == pytest.approx(
        [
            -0.5 - 0.006 * math.log(2),
            -0.4 - 0.006 * math.log(2),
            -0.3 - 0.006 * (math.log(6) + math.log(4)),
            -0.2 - 0.006 * math.log(6) + 0.02,
        ]
    )


def test_group_newton_rule_by_hand() -> None:
    # group 0: p = 0.1, 0.3 of 0.1 -> e = log 2. Of 0.4 (sum of p), 0.08 fire within 0.02 of their
    #          threshold, 0.01 c: relative slope h = 0.08 / (0.4 * 0.01) = 20 per c
    #          step log 2 / 20 = 0.0347 is limited to 2 * 0.01 (decrease): 0.02 c = 0.04
    # group 1: p = 0.01, 0.01 of 0.008 -> e = log 1.25; slope 0.01 / (0.02 * 0.01) = 50 per c
    #          step log 1.25 / 50 = 0.00446 c
    rule: dict[str, Any] = {
        "group": [0, 0, 1, 1],
        "target": [0.1, 0.1, 0.008, 0.008],
        "peak": [1.0] * 4,
        "c": 2.0,
    }
    new = apply_rule(
        "group_newton",
        bias=[-0.5, -0.4, -0.3, -0.2],
        frequency=[0.1, 0.3, 0.01, 0.01],
        near=[0.02, 0.06, 0.005, 0.005],
        band=0.02,
        **rule,
    )
    small = 2 * math.log(1.25) / 50
    assert new == pytest.approx([-0.54, -0.44, -0.3 - small, -0.2 - small])


@pytest.mark.parametrize("rule", ["group_mean", "group_newton"])
def test_a_group_far_off_its_target_is_moved_no_faster(rule: str) -> None:
    # group 0: p = 1000 times its target, e = 2 at most and u = 3; group 1: a thousandth, e = -2
    new = apply_rule(
        rule, [-0.5, -0.5], [0.9, 0.0005], [1.0, 1.0], [0, 1], [0.0009, 0.5],
        rates=replace(RATES, dead_frequency=1e-5),
    )  # fmt: skip
    assert new == pytest.approx([-0.5 - 0.003 * (2 + 3), -0.5 + 0.003 * 2])


def test_without_a_known_slope_group_newton_is_group_mean() -> None:
    args: dict[str, Any] = {"bias": [-0.5, -0.4], "frequency": [0.1, 0.3], "peak": [1.0, 1.0],
                            "group": [0, 0], "target": [0.1, 0.1]}  # fmt: skip
    assert apply_rule("group_newton", **args) == pytest.approx(apply_rule("group_mean", **args))


def test_a_neuron_without_an_encoder_leaves_newton_to_the_others_of_its_group() -> None:
    # of latent 1, c and band are 0. e = log 1.1; of 0.12 (p of latent 0), 0.06 fire within 0.01 c:
    # slope 0.06 / (0.12 * 0.01) = 50 per c
    targets = Targets(torch.tensor([0, 0]), torch.full((2,), 0.1), 1)
    frequency, band, near = (torch.tensor(v) for v in ([0.12, 0.1], [0.02, 0.0], [0.06, 0.0]))
    seen = Observation(frequency, torch.ones(2), torch.zeros(2), near, band)
    bias, c = torch.tensor([-0.5, 0.0]), torch.tensor([2.0, 0.0])
    new = UPDATE_RULES["group_newton"](bias, seen, targets, RATES, c)
    assert new.tolist() == pytest.approx([-0.5 - 2 * math.log(1.1) / 50, 0.0])
    # the mean width, 0.005 c, so that a quarter of 0.22 is in it where 0.06 were
    width = next_band(seen, targets, RATES, c)
    assert width.tolist() == pytest.approx([2 * 0.005 * 0.25 * 0.22 / 0.06, 0.0])


def test_the_band_is_no_wider_than_the_range() -> None:
    targets = Targets(torch.tensor([0]), torch.full((1,), 0.1), 1)
    frequency, band, near = (torch.tensor([v]) for v in (0.1, 1.6, 0.01))
    seen = Observation(frequency, torch.ones(1), torch.zeros(1), near, band)
    # 0.8 c would be doubled
    assert next_band(seen, targets, RATES, torch.tensor([2.0])).tolist() == [2.0]


def test_group_mean_takes_a_rare_neuron_for_dead_only_when_it_is_overdue() -> None:
    # target 0.01: five firings are expected in 500 samples
    args: dict[str, Any] = {"bias": [-0.5, -0.5], "frequency": [0.02, 0.0], "peak": [1.0, 0.0],
            "group": [0, 0], "target": [0.01, 0.01]}  # fmt: skip
    # the group's mean is on target, so only revival moves the second latent
    assert apply_rule("group_mean", **args, silent_samples=499) == pytest.approx([-0.5, -0.5])
    assert apply_rule("group_mean", **args, silent_samples=500) == pytest.approx([-0.5, -0.49])


def test_silence_is_counted_over_windows() -> None:
    adapter = BiasAdapter(build_spectrum(4, 1, 0.3, 0.3), "paper", RATES, 1)
    y = torch.tensor([[1.0, -1.0, -1.0, -1.0]] * 6)
    for _ in range(3):
        adapter.observe(y)
        adapter.adapt_if_due(torch.zeros(4), lambda: torch.tensor(1.0))
    assert adapter.silent_samples.tolist() == [0, 18, 18, 18]
    adapter.observe(-y)
    adapter.adapt_if_due(torch.zeros(4), lambda: torch.tensor(1.0))
    assert adapter.silent_samples.tolist() == [6, 0, 0, 0]


def test_log_rules_by_hand() -> None:
    args: dict[str, Any] = {
        "bias": [-0.5] * 5,
        "frequency": [0.2, 0.05, 0.0, 0.9, 0.002],
        "peak": [1.0, 3.0, 0.0, 2.0, 2.0],
        "group": [0] * 5,
        "target": [0.1, 0.1, 0.1, 0.009, 0.2],
    }
    # dead latent as in the paper: -0.5 + 0.01 * (1 + 3 + 2 + 2) / 4
    up, down, dead = -0.5 - 0.003 * math.log(2), -0.5 + 0.003 * math.log(2), -0.48
    # a hundred times the target, or a hundredth of it, counts as exp(2) or exp(-2) times
    far_up, far_down = -0.506, -0.494
    both_ways = [up, down, dead, far_up, far_down]
    assert apply_rule("log_proportional", **args) == pytest.approx(both_ways)
    one_sided = [up, -0.5, dead, far_up, -0.5]
    assert apply_rule("log_proportional_one_sided", **args) == pytest.approx(one_sided)


@pytest.mark.parametrize("name", ["paper", "log_proportional_one_sided"])
def test_a_neuron_outside_every_rule_is_left_alone(name: str) -> None:
    new = apply_rule(name, [-0.123], [0.05], [1.0], [0], [0.1])
    assert new == [-0.123]


@pytest.mark.parametrize("name", sorted(UPDATE_RULES))
def test_biases_stay_in_their_range(name: str) -> None:
    rates = AdaptationRates(decrease=100.0, increase=100.0, dead_frequency=1e-3, frequency_cap=3)
    new = apply_rule(
        name, [-0.5, -0.5], [0.9, 0.0], [1.0, 0.0], [0, 1], [0.1, 0.1], c=0.7, rates=rates
    )
    assert all(-0.7 <= b <= 0 for b in new)


@pytest.mark.parametrize("name", sorted(UPDATE_RULES))
def test_rules_do_not_depend_on_the_unit_of_the_activations(name: str) -> None:
    args: dict[str, Any] = {
        "frequency": [0.3, 0.02, 0.0],
        "group": [0, 0, 0],
        "target": [0.1, 0.1, 0.1],
    }
    small = apply_rule(name, [-0.5, -0.4, -0.3], peak=[1.0, 2.0, 0.0], c=1.0, **args)
    large = apply_rule(name, [-50.0, -40.0, -30.0], peak=[100.0, 200.0, 0.0], c=100.0, **args)
    assert large == pytest.approx([100 * b for b in small])


@pytest.mark.parametrize("rule", ["paper", "group_mean", "group_newton"])
def test_streaming_statistics_equal_the_buffered_reference_step_by_step(rule: str) -> None:
    torch.manual_seed(3)
    d_sae, period = 12, 4
    spectrum = build_spectrum(d_sae, 3, 0.4, 0.05, sizing="equal")
    rates = AdaptationRates(0.1, 0.05, dead_frequency=0.02, frequency_cap=3.0)
    adapter = BiasAdapter(spectrum, rule, rates, period, dtype=torch.float64)
    reference = ReferenceBiasAdaptation(
        rule,
        adapter.group.tolist(),
        adapter.target_frequency.tolist(),
        rates.decrease,
        rates.increase,
        rates.dead_frequency,
        period,
        rates.frequency_cap,
    )
    bias = torch.zeros(d_sae, dtype=torch.float64)
    expected = bias.tolist()
    offset = torch.linspace(-3, 1, d_sae, dtype=torch.float64)  # dead ones among them
    moved = 0
    for _ in range(120):
        y = torch.randn(7, d_sae, dtype=torch.float64) + offset + bias
        adapter.observe(y)
        window = torch.cat([*reference.buffer, y])
        assert adapter.fire_counts.tolist() == (window > 0).sum(dim=0).tolist()
        new = adapter.adapt_if_due(bias, lambda: torch.tensor(1.0))
        expected = reference.step(expected, y, c=1.0)
        if new is not None:
            moved += int((new != bias).sum())
            bias = new
            assert adapter.silent_samples.tolist() == reference.silent
            if rule == "group_newton":
                assert adapter.band.tolist() == pytest.approx(reference.band, rel=1e-12)
        rounding = (
            0.0 if rule == "paper" else 1e-13
        )  # of a mean whose terms add up in another order
        assert bias.tolist() == pytest.approx(expected, rel=0, abs=rounding)
    assert moved > 50


@pytest.mark.parametrize("is_sparse", [False, True])
def test_limits_and_unit_are_taken_off_what_is_observed(is_sparse: bool) -> None:
    spectrum = build_spectrum(10, 2, 0.4, 0.1)
    plain, limited = (BiasAdapter(spectrum, "paper", RATES, 10) for _ in range(2))
    limit, unit = torch.rand(10), torch.tensor(0.5)
    for adapter in (plain, limited):
        adapter.band.fill_(0.7)
    h = torch.randn(300, 10)
    plain.observe((h - limit) / unit)
    limited.observe((h * (h > limit)).to_sparse() if is_sparse else h, limit, unit)
    assert 0 < plain.near_counts.sum() < plain.fire_counts.sum()
    assert torch.equal(plain.fire_counts, limited.fire_counts)
    assert torch.equal(plain.near_counts, limited.near_counts)
    torch.testing.assert_close(plain.peak, limited.peak)


class GaussianPlant:
    """Latents with standard normal pre-activations: the frequency at bias b is Phi(b)."""

    def __init__(self, d_sae: int):
        self.generator = torch.Generator().manual_seed(0)
        self.d_sae = d_sae

    def batch(self, bias: torch.Tensor) -> torch.Tensor:
        return torch.randn(2000, self.d_sae, generator=self.generator) + bias


@pytest.mark.parametrize("rule", ["log_proportional", "group_mean", "group_newton"])
@pytest.mark.parametrize("start", [0.0, -4.0], ids=["from above", "from below"])
def test_the_closed_loop_reaches_its_targets(rule: str, start: float) -> None:
    spectrum = FrequencySpectrum((0.2, 0.02), (8, 24))
    rates = AdaptationRates(0.1, 0.05, dead_frequency=1e-5, frequency_cap=3.0)
    adapter = BiasAdapter(spectrum, rule, rates, adapt_every_n_steps=5)
    plant, bias = GaussianPlant(32), torch.full((32,), start)
    for _ in range(800):
        adapter.observe(plant.batch(bias))
        new = adapter.adapt_if_due(bias, lambda: torch.tensor(5.0))
        bias = bias if new is None else new
    wanted = [NormalDist().inv_cdf(p) for p in spectrum.frequencies]
    measured = adapter.targets.group_mean(bias).tolist()
    assert measured == pytest.approx(wanted, abs=0.1)


@pytest.mark.parametrize("rule", ["paper", "log_proportional_one_sided"])
def test_one_sided_rules_bring_frequencies_down_to_their_targets(rule: str) -> None:
    spectrum = FrequencySpectrum((0.2, 0.02), (8, 24))
    rates = AdaptationRates(0.02, 0.02, dead_frequency=1e-5, frequency_cap=3.0)
    adapter = BiasAdapter(spectrum, rule, rates, adapt_every_n_steps=2)
    plant, bias = GaussianPlant(32), torch.zeros(32)
    for _ in range(800):
        adapter.observe(plant.batch(bias))
        new = adapter.adapt_if_due(bias, lambda: torch.tensor(5.0))
        bias = bias if new is None else new
    assert (adapter.frequency <= adapter.target_frequency * 1.3).all()
    assert (adapter.frequency >= adapter.target_frequency * 0.4).all()


def test_quantile_start_puts_each_neuron_at_its_target_on_that_batch() -> None:
    x, W_enc = torch.randn(1000, 4).double(), torch.randn(4, 1500).double()
    target = torch.tensor([0.2, 0.05, 0.005]).double().repeat(500)
    bias = quantile_bias(x, W_enc, target, torch.full((1500,), 100.0).double())
    h = x @ W_enc
    assert (h + bias > 0).sum(dim=0).tolist() == [200, 50, 5] * 500
    # midway between two samples: as far from the one as from the other
    above, below = (
        torch.where(sign * (h + bias) > 0, (h + bias).abs(), torch.inf).amin(dim=0)
        for sign in (1, -1)
    )
    torch.testing.assert_close(above, below)


@pytest.mark.parametrize("samples_a_firing", [8, 32])
def test_quantile_start_expresses_targets_that_the_batch_has_no_sample_for(
    samples_a_firing: int,
) -> None:
    n, d_in = 512, 16
    torch.manual_seed(0)
    x, W_enc = torch.randn(n, d_in), torch.nn.functional.normalize(torch.randn(d_in, 4000), dim=0)
    target = torch.full((4000,), 1 / (samples_a_firing * n))
    bias = quantile_bias(x, W_enc, target, torch.full((4000,), 100.0))
    fresh = torch.randn(100_000, d_in)
    fired = sum(float((rows @ W_enc + bias > 0).sum()) for rows in fresh.split(1000))
    assert 0.5 < fired / (len(fresh) * float(target.sum())) < 2


def test_quantile_start_stays_in_the_biases_range() -> None:
    x, W_enc = torch.randn(1000, 4), torch.randn(4, 2)
    bias = quantile_bias(x, W_enc, torch.tensor([0.7, 0.01]), torch.tensor([0.1, 0.1]))
    assert bias.tolist() == pytest.approx([0.0, -0.1])


@pytest.mark.parametrize(
    ("norm", "is_first_window", "expected"),
    [
        (3.1, True, 3.1),
        (1.2, True, 1.2),
        (2.9, True, 2 * 1.45**0.01),
        (3.1, False, 2 * 1.55**0.01),
        (2e3, False, 2 * 4**0.01),
        (2e-3, False, 2 / 4**0.01),
        (0.0, True, 2.0),
        (0.0, False, 2.0),
    ],
)
def test_a_followed_norm_of_2_by_hand(norm: float, is_first_window: bool, expected: float) -> None:
    window = torch.tensor(is_first_window)
    found = followed_norm(torch.tensor(2.0).double(), torch.tensor(norm), window)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert float(followed_norm(torch.zeros(()), torch.tensor(norm), window)) == pytest.approx(norm)


def test_a_step_without_samples_adapts_nothing() -> None:
    adapter = BiasAdapter(build_spectrum(4, 1, 0.3, 0.3), "group_newton", RATES, 1)
    assert adapter.adapt_if_due(torch.zeros(4), lambda: torch.tensor(1.0)) is None
    assert int(adapter.n_steps) == 1
    assert not torch.isnan(adapter.frequency).any()


def test_state_keeps_its_precision_under_casts() -> None:
    adapter = BiasAdapter(build_spectrum(10, 2, 0.3, 0.123456), "paper", RATES, 10)
    exact = adapter.target_frequency.clone()
    adapter.to(torch.bfloat16)
    assert adapter.target_frequency.dtype == torch.float32
    assert torch.equal(adapter.target_frequency, exact)
    assert adapter.fire_counts.dtype == torch.long
    assert adapter.to(torch.float64).peak.dtype == torch.float64


def test_typical_norm_ignores_a_few_massive_activations() -> None:
    x = torch.nn.functional.normalize(torch.randn(100, 8), dim=1) * 3
    x[:5] *= 1000
    assert float(typical_norm(x, x)) == pytest.approx(3.0, rel=1e-5)
