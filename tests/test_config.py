import dataclasses
import json
from typing import Any

import pytest
from sae_lens import JumpReLUSAEConfig, StandardSAEConfig, TrainingSAE
from sae_lens.llm_sae_training_runner import _parse_cfg_args

from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig
from sae_lens_gba.adaptation_settings import AdaptationSettings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("highest_target_frequency", 0.0),
        ("highest_target_frequency", 1.0),
        ("highest_target_frequency", float("nan")),
        ("lowest_target_frequency", -0.1),
        ("lowest_target_frequency", 0.3),
        ("lowest_target_frequency", float("nan")),
        ("n_groups", 0),
        ("n_groups", 2.5),
        ("target_l0", 0.0),
        ("target_l0", -3.0),
        ("target_l0", float("nan")),
        ("target_l0", float("inf")),
        ("target_l0", 1000.0),
        ("target_l0", 1e-5),
        ("bias_decrease_rate", 0.0),
        ("bias_decrease_rate", float("nan")),
        ("bias_increase_rate", -0.01),
        ("output_scale_init", 0.0),
        ("nested_weight", 0.0),
        ("error_exponent", 0.0),
        ("error_exponent", 3.0),
        ("l0_warm_up_steps", -1),
        ("l0_warm_up_steps", 2.5),
        ("l0_warm_up_start", 0.5),
        ("l0_warm_up_start", float("nan")),
        ("l0_warm_up_end", 0.9),
        ("l0_warm_up_end", 1.6),
        ("encoder_correction_rate", 0.0),
        ("target_l0", "4"),
        ("output_scale_init", float("nan")),
        ("adapt_every_n_steps", 0),
        ("dead_frequency", 0.0),
        ("dead_frequency", 0.5),
        ("dead_frequency", 0.001),
        ("frequency_cap", 0.5),
        ("frequency_cap", float("nan")),
        ("group_size_exponent", -1.0),
        ("group_size_exponent", float("nan")),
        ("group_sizing", "zipf"),
        ("activation", "gelu"),
        ("bias_update", "sgd"),
        ("bias_init", "random"),
        ("sparse_below_density", 1.5),
        ("decoder_init_norm", 0.1),
        ("normalize_activations", "batch_norm"),
        ("d_sae", 0),
        ("group_size_exponent", 100),
        ("group_size_exponent", "1"),
        ("highest_target_frequency", "0.2"),
        ("frequency_cap", "3"),
        ("frequency_cap", True),
        ("sparse_below_density", "0.1"),
        ("calibration_samples", True),
        ("n_groups", True),
        ("tied", "no"),
        ("tied", 1),
        ("learn_output_scale", "false"),
        ("bias_update", ["paper"]),
    ],
)
def test_impossible_settings_name_the_field_and_the_value(field: str, value: object) -> None:
    settings: dict[str, Any] = {"d_in": 512, "d_sae": 1024, field: value}
    with pytest.raises(ValueError, match=field) as caught:
        GBATrainingSAEConfig(**settings)
    assert f"{value}" in str(caught.value)


def test_a_dictionary_with_a_name_that_nobody_knows_is_refused() -> None:
    settings = GBATrainingSAEConfig(16, 64, n_groups=4).to_dict()
    among_a_run = {**settings, "lr": 1e-3, "hook_name": "blocks.0.hook_resid_post"}
    assert GBATrainingSAEConfig.from_dict(among_a_run).n_groups == 4
    with pytest.raises(ValueError, match=r"target_10=4 is no setting .* mean 'target_l0'\?"):
        GBATrainingSAEConfig.from_dict({**settings, "target_10": 4})
    with pytest.raises(ValueError, match="zzz='' is no setting of a GBA SAE: leave it out"):
        TrainingSAE.from_dict({**settings, "zzz": ""})


def test_defaults_are_valid_where_the_command_line_builds_them() -> None:
    GBATrainingSAEConfig(d_in=512, d_sae=1024)


def test_replace_is_idempotent_and_mutates_nothing() -> None:
    cfg = GBATrainingSAEConfig(16, 64, n_groups=4, target_l0=4.0)
    before = dataclasses.asdict(cfg)
    again = dataclasses.replace(dataclasses.replace(cfg))
    assert dataclasses.asdict(again) == before == dataclasses.asdict(cfg)


def test_every_field_is_json_native_and_documented() -> None:
    cfg = GBATrainingSAEConfig(16, 64, n_groups=4)
    assert json.loads(json.dumps(cfg.to_dict())) == cfg.to_dict()
    for cls in (GBATrainingSAEConfig, AdaptationSettings):
        lines = (cls.__doc__ or "").splitlines()
        documented = {line.split(" (")[0].strip() for line in lines if "):" in line}
        assert set(cls.__annotations__) <= documented


def test_the_command_lines_help_explains_the_settings_of_both_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        _parse_cfg_args(["--architecture", "gba", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Active latents a sample to train towards" in shown
    assert "Whether the encoder is the transposed decoder" in shown


def test_training_settings_travel_in_the_metadata() -> None:
    details = GBATrainingSAEConfig(16, 64, n_groups=4, target_l0=4.0).to_dict()["metadata"]
    assert details["training_architecture"] == "gba"
    assert details["training_architecture_details"]["target_l0"] == 4.0


def test_default_rates_shrink_with_the_spread_of_pre_activations() -> None:
    # a random direction's pre-activations spread by norm / sqrt(d_in)
    spectrum = AdaptationSettings().spectrum_of(1024)
    narrow, wide = (AdaptationSettings().rates_for(d, spectrum) for d in (128, 512))
    assert narrow.decrease == pytest.approx(2 * wide.decrease) == pytest.approx(0.1008, abs=1e-4)
    assert narrow.increase == pytest.approx(2 * wide.increase) == pytest.approx(0.0203, abs=1e-4)
    given = AdaptationSettings(bias_decrease_rate=0.3).rates_for(512, spectrum)
    assert given.decrease == 0.3


@pytest.mark.parametrize(("d_sae", "target_l0"), [(4, 0.5), (1_048_576, 64.0), (256, 0.01)])
def test_any_width_takes_as_many_groups_as_fit(d_sae: int, target_l0: float) -> None:
    cfg = GBATrainingSAEConfig(16, d_sae, target_l0=target_l0)
    spectrum = cfg.spectrum()
    assert spectrum.l0 == pytest.approx(target_l0)
    assert sum(spectrum.sizes) == d_sae
    assert len(cfg.nested_set_of_group()) == spectrum.n_groups <= 10
    dead = cfg.rates_for(16, spectrum).dead_frequency
    assert dead <= min(1e-5, spectrum.frequencies[-1] / 10)


def test_nested_sets_end_where_groups_end() -> None:
    cfg = GBATrainingSAEConfig(512, 1000, group_sizing="equal", n_nested_reconstructions=5)
    assert cfg.nested_set_of_group() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert GBATrainingSAEConfig(512, 1000, n_groups=1).nested_set_of_group() == [0]


def test_an_l0_that_nothing_would_bring_down_is_refused() -> None:
    with pytest.raises(ValueError, match=r"l0_warm_up_end=1\.3 with calibration_samples=0"):
        GBATrainingSAEConfig(16, 64, target_l0=4, l0_warm_up_end=1.3, calibration_samples=0)


def test_the_stock_architecture_follows_the_activation() -> None:
    cfg = GBATrainingSAEConfig(512, 1024)
    assert cfg.get_inference_config_class() is JumpReLUSAEConfig
    relu = GBATrainingSAEConfig(512, 1024, activation="relu")
    assert relu.get_inference_config_class() is StandardSAEConfig


def test_paper_settings_are_the_papers() -> None:
    v1 = GBATrainingSAEConfig.paper_v1(512, 1000)
    spectrum = v1.spectrum()
    papers = {
        "n_groups": 10,
        "highest_target_frequency": 0.1,
        "group_sizing": "equal",
        "tied": True,
        "error_exponent": 2.0,
        "n_nested_reconstructions": 1,
        "bias_update": "paper",
        "adapt_every_n_steps": 50,
        "bias_decrease_rate": 0.01,
        "bias_increase_rate": 0.01,
        "bias_init": "zero",
        "calibration_samples": 0,
    }
    assert {name: getattr(v1, name) for name in papers} == papers
    assert spectrum.sizes == (100,) * 10
    assert (spectrum.frequencies[0], spectrum.frequencies[-1]) == pytest.approx((0.1, 0.001))
    iclr = GBATrainingSAEConfig.paper_iclr(512, 1000, n_groups=20)
    assert iclr.spectrum().frequencies[0] == 0.5
    assert iclr.n_groups == 20


def test_an_sae_whose_config_says_nothing_of_l0_warns_of_the_one_it_will_have(
    caplog: pytest.LogCaptureFixture,
) -> None:
    GBATrainingSAE(GBATrainingSAEConfig(d_in=16, d_sae=1152))
    l0 = GBATrainingSAEConfig(d_in=16, d_sae=1152).spectrum().l0
    assert f"{l0:.3g} of d_sae=1152 latents will be active" in caplog.text
    caplog.clear()
    GBATrainingSAE(GBATrainingSAEConfig(d_in=16, d_sae=1152, target_l0=8))
    GBATrainingSAE(GBATrainingSAEConfig.paper_v1(d_in=16, d_sae=64))
    assert caplog.text == ""
