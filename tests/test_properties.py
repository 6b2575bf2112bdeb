"""What holds whatever the settings are; `make torture` tries many more of them."""

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_lens_gba import BiasAdapter, FrequencySpectrum, GBATrainingSAE
from sae_lens_gba.bias_adaptation import UPDATE_RULES, AdaptationRates
from sae_lens_gba.saved.stock_form import stock_form
from tests.toolbox import make_trainer, mixture, randomise, take_steps, tiny_config

EXAMPLES = int(os.environ.get("SAE_LENS_GBA_EXAMPLES", "12"))

some = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
AN_SAE = st.fixed_dictionaries(
    {
        "activation": st.sampled_from(["jumprelu", "relu"]),
        "tied": st.booleans(),
        "learn_output_scale": st.booleans(),
        "bias_update": st.sampled_from(sorted(UPDATE_RULES)),
        "bias_init": st.sampled_from(["zero", "quantile"]),
        "n_groups": st.integers(1, 64),
        "n_nested_reconstructions": st.integers(1, 6),
        "group_sizing": st.sampled_from(["equal", "power_law"]),
        "group_size_exponent": st.floats(0, 10),
        "target_l0": st.floats(0.5, 15),
        "sparse_below_density": st.sampled_from([0.0, 0.1, 1.0]),
        "apply_b_dec_to_input": st.booleans(),
    }
)


@some
@given(
    of_the_sae=AN_SAE,
    dtype=st.sampled_from(["float32", "float64", "bfloat16"]),
    normalisation=st.sampled_from(
        ["none", "layer_norm", "constant_norm_rescale", "expected_average_only_in"]
    ),
    autocast=st.booleans(),
    batch=st.sampled_from([2, 3, 64, 257]),
)
def test_any_sae_trains_and_is_what_it_is_saved_as(
    of_the_sae: dict[str, Any], dtype: str, normalisation: str, autocast: bool, batch: int
) -> None:
    torch.manual_seed(0)
    cfg = tiny_config(**of_the_sae, dtype=dtype, normalize_activations=normalisation)
    sae = GBATrainingSAE(cfg)
    data = (rows.to(getattr(torch, dtype)) for rows in mixture(1, batch=batch))
    take_steps(make_trainer(sae, 12, data, batch=batch, autocast=autocast), 12)
    for name, value in sae.state_dict().items():
        assert bool(torch.isfinite(value).all()), name
    norms = sae.W_dec.detach().double().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=0.01)
    assert bool((sae.bias <= 0).all())
    assert int(sae.adapter.n_steps) == 12
    assert int(sae.adapter.n_samples) == 2 * batch  # since the adaptation at step 10
    assert bool((sae.adapter.fire_counts <= 2 * batch).all())
    assert bool(((sae.adapter.frequency >= 0) & (sae.adapter.frequency <= 1)).all())
    if normalisation == "expected_average_only_in":
        sae.fold_activation_norm_scaling_factor(0.7)
    x = next(mixture(2)).to(sae.dtype)
    assert torch.equal(stock_form(sae.eval()).encode(x), sae.encode(x))


@some
@given(of_the_sae=AN_SAE, unit=st.sampled_from([2.0**-20, 0.125, 4.0, 2.0**20]))
def test_training_does_not_depend_on_the_unit_of_the_inputs(
    of_the_sae: dict[str, Any], unit: float
) -> None:
    saes = []
    for scale in (1.0, unit):
        torch.manual_seed(0)
        sae = GBATrainingSAE(tiny_config(**of_the_sae, dtype="float64"))
        data = (rows.double() * scale for rows in mixture(1, batch=64))
        take_steps(make_trainer(sae, 12, data, batch=64), 12)
        saes.append(sae)
    here, there = saes
    for name in ("W_dec", "b_dec", "b_enc", "output_scale"):
        torch.testing.assert_close(there.get_parameter(name), here.get_parameter(name))
    torch.testing.assert_close(there.bias, here.bias)
    torch.testing.assert_close(there.input_scale, here.input_scale * unit)


@some
@given(
    of_the_sae=AN_SAE,
    factor=st.floats(1e-3, 1e3),
    order=st.permutations(["norms", "scale"]),
)
def test_folds_in_any_order_keep_what_it_computes(
    of_the_sae: dict[str, Any], factor: float, order: list[str]
) -> None:
    torch.manual_seed(0)
    sae = randomise(GBATrainingSAE(tiny_config(**of_the_sae, dtype="float64"))).eval()
    x = next(mixture(0)).double()
    acts, out, norms = sae.encode(x), sae(x), sae.get_W_dec_norm()
    raw = x / factor
    for fold in order:
        if fold == "norms":
            sae.fold_W_dec_norm()
        else:
            sae.fold_activation_norm_scaling_factor(factor)
    total = norms if order[0] == "norms" else norms / factor
    torch.testing.assert_close(sae.encode(raw), acts * total, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sae(raw) * factor, out, rtol=1e-6, atol=1e-9)


@some
@given(before=st.integers(2**31, 2**52), fired=st.integers(0, 7), rule=st.sampled_from(
    sorted(UPDATE_RULES)))  # fmt: skip
def test_counters_hold_more_than_32_bits(before: int, fired: int, rule: str) -> None:
    spectrum = FrequencySpectrum((0.5, 0.1), (2, 2))
    rates = AdaptationRates(decrease=0.1, increase=0.1, dead_frequency=1e-6, frequency_cap=3.0)
    adapter = BiasAdapter(spectrum, rule, rates, adapt_every_n_steps=1, dtype=torch.float64)
    adapter.n_samples.fill_(before)
    adapter.fire_counts.fill_(before // 4)
    adapter.silent_samples.fill_(before)
    adapter.n_steps.fill_(before)
    pre_activations = -torch.ones(7, 4, dtype=torch.float64)
    pre_activations[:fired, 0] = 1.0
    adapter.observe(pre_activations)
    assert int(adapter.n_samples) == before + 7
    assert int(adapter.fire_counts[0]) == before // 4 + fired
    bias = adapter.adapt_if_due(-torch.ones(4, dtype=torch.float64), lambda: torch.tensor(9.0))
    assert bias is not None and bool(torch.isfinite(bias).all())
    assert int(adapter.n_steps) == before + 1
    assert float(adapter.frequency[0]) == pytest.approx(0.25, abs=1e-6)
    assert math.isclose(float(adapter.frequency[3]), (before // 4) / (before + 7))
