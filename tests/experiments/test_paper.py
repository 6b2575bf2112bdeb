"""The scripts of experiments/paper at a size of seconds; the language model's is a fake."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sae_lens import SAE

from experiments.lab.results import RESULTS
from experiments.lab.training import TrainingSettings
from experiments.paper import group_ablation, imbalanced_set, language_model, neuron_resonance
from experiments.paper.plots import PLOTS
from sae_lens_gba.synthetic import FeatureMixtureConfig
from tests.experiments.plotting import assert_plotted

TINY = TrainingSettings(steps=20, batch_size=32)


def test_the_imbalanced_set_runs_every_method_on_every_seed(tmp_path: Path) -> None:
    data = FeatureMixtureConfig(n_features=64, d_in=8, sparsities=(1, 3))
    config = replace(
        imbalanced_set.Config(),
        mixture=data,
        training=TINY,
        at_steps=(5, 20),
        d_sae=80,
        seeds=(0, 1),
        n_samples=64,
    )
    rows = imbalanced_set.run(config)["rows"]
    assert [(row["seed"], row["steps"], row["method"]) for row in rows] == [
        (seed, step, method)
        for seed in (0, 1)
        for step in (5, 20)
        for method in imbalanced_set.architectures(config)
    ]
    assert_plotted(PLOTS, "01_imbalanced_set", config, {"rows": rows}, tmp_path)


def test_resonance_has_a_row_for_every_cell(tmp_path: Path) -> None:
    config = replace(
        neuron_resonance.Config(),
        dimensions=(4, 8),
        frequencies=(0.5, 1.0, 4.0),
        d_sae=16,
        training=TINY,
        seeds=(0,),
        n_samples=64,
    )
    rows = neuron_resonance.run(config)["rows"]
    f = 3 / 128
    assert {(row["d"], row["p"] / f) for row in rows} == {
        (d, multiple) for d in (4, 8) for multiple in (0.5, 1.0, 4.0)
    }
    assert_plotted(PLOTS, "02_neuron_resonance", config, {"rows": rows}, tmp_path)


def test_the_ablation_varies_groups_frequencies_and_sizes(tmp_path: Path) -> None:
    config = replace(
        group_ablation.Config(), n_groups=(1, 3), d_sae=32, training=TINY, seeds=(0,), n_samples=64
    )
    rows = group_ablation.run(config)["rows"]
    # one group has but one size: 3 frequencies, and 2 sizes times 3 frequencies of 3 groups
    assert len(rows) == 3 + 6
    power_law = [r for r in rows if r["group_sizing"] == "power_law"]
    equal = [r for r in rows if r["group_sizing"] == "equal" and r["n_groups"] == 3]
    for one, other in zip(equal, power_law, strict=True):
        assert other["target_l0"] < one["target_l0"]
    assert_plotted(PLOTS, "03_group_ablation", config, {"rows": rows}, tmp_path)


def test_the_language_model_experiment_has_four_points_a_curve_and_all_methods() -> None:
    curves = language_model.curves(language_model.Config())
    saelens = {"l1", "topk", "batchtopk", "jumprelu", "matryoshka"}
    assert set(curves) == {*saelens, "ba", "gba_paper", "gba_ours"}
    assert {len(points) for points in curves.values()} == {4}


def test_the_language_model_experiment_from_text_to_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_demo: Path
) -> None:
    config = replace(
        language_model.Config(),
        hook_names=("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"),
        train_tokens=400,
        held_out_tokens=100,
        ce_contexts=2,
        context=12,
        d_in=16,
        d_sae=48,
        training=replace(TINY, autocast=True),
        l0=(2, 4, 6, 8),
        seeds=(0, 1),
    )
    tables = language_model.run(config)
    # 8 methods at 2 hook points: 4 points of one seed, and one of them with another seed
    assert len(tables["rows"]) == 8 * 2 * (4 + 1)
    assert len(tables["consistency"]) == 8 * 2
    for row in tables["consistency"]:
        assert 0 < row["pw_mcc"] <= 1
    reloaded = SAE.load_from_disk(
        tiny_demo / "paper" / "saes" / "gba_ours_seed_1" / config.hook_names[0]
    )
    assert reloaded.cfg.metadata.hook_name == config.hook_names[0]
    for row in tables["rows"]:
        if row["method"] == "topk":
            assert row["l0"] <= config.l0[row["setting"]]
        assert row["loss"] > 0
        assert row["ce_loss_recovered"] == row["ce_loss_recovered"]  # not NaN
    # everything is there already: nothing is trained again
    monkeypatch.setattr(language_model, "train_together", None)
    assert language_model.run(config) == tables
    assert_plotted(PLOTS, "04_language_model", config, tables, tmp_path)


def test_committed_results_are_of_the_experiments_that_can_be_plotted() -> None:
    for path in RESULTS.glob("0*.json"):
        result = json.loads(path.read_text())
        assert result["experiment"] in PLOTS
        assert result["config"]["seeds"]
        assert path.with_suffix(".png").is_file()
