"""The scripts of experiments/paper at a size of seconds; the language model's is a fake."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sae_lens import SAE
from toolbox import load_script

from experiments.lab.results import provenance, write_result
from experiments.lab.training import TrainingSettings
from sae_lens_gba.synthetic import FeatureMixtureConfig

PAPER = Path(__file__).parents[2] / "experiments" / "paper"
TINY = TrainingSettings(steps=20, batch_size=32)


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script(PAPER / f"{name}.py", monkeypatch)


def plot(
    name: str, config: Any, tables: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_result(folder / f"{name}_quick.json", name, config, tables, provenance())
    monkeypatch.setattr("sys.argv", ["plots.py", str(folder)])
    load("plots", monkeypatch).main()
    assert (folder / f"{name}_quick.png").stat().st_size > 5000


def test_the_imbalanced_set_runs_every_method_on_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("01_imbalanced_set", monkeypatch)
    data = FeatureMixtureConfig(n_features=64, d_in=8, sparsities=(1, 3))
    config = replace(
        module.Config(),
        mixture=data,
        training=TINY,
        at_steps=(5, 20),
        d_sae=80,
        seeds=(0, 1),
        n_samples=64,
    )
    rows = module.run(config)["rows"]
    assert [(row["seed"], row["steps"], row["method"]) for row in rows] == [
        (seed, step, method)
        for seed in (0, 1)
        for step in (5, 20)
        for method in module.architectures(config)
    ]
    plot("01_imbalanced_set", config, {"rows": rows}, tmp_path, monkeypatch)


def test_resonance_has_a_row_for_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("02_neuron_resonance", monkeypatch)
    config = replace(
        module.Config(),
        dimensions=(4, 8),
        frequencies=(0.5, 1.0, 4.0),
        d_sae=16,
        training=TINY,
        seeds=(0,),
        n_samples=64,
    )
    rows = module.run(config)["rows"]
    f = 3 / 128
    assert {(row["d"], row["p"] / f) for row in rows} == {
        (d, multiple) for d in (4, 8) for multiple in (0.5, 1.0, 4.0)
    }
    plot("02_neuron_resonance", config, {"rows": rows}, tmp_path, monkeypatch)


def test_the_ablation_varies_groups_frequencies_and_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("03_group_ablation", monkeypatch)
    config = replace(
        module.Config(), n_groups=(1, 3), d_sae=32, training=TINY, seeds=(0,), n_samples=64
    )
    rows = module.run(config)["rows"]
    # one group has but one size: 3 frequencies, and 2 sizes times 3 frequencies of 3 groups
    assert len(rows) == 3 + 6
    power_law = [r for r in rows if r["group_sizing"] == "power_law"]
    equal = [r for r in rows if r["group_sizing"] == "equal" and r["n_groups"] == 3]
    for one, other in zip(equal, power_law, strict=True):
        assert other["target_l0"] < one["target_l0"]
    plot("03_group_ablation", config, {"rows": rows}, tmp_path, monkeypatch)


def test_the_language_model_experiment_has_four_points_a_curve_and_all_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = load("04_language_model", monkeypatch)
    curves = module.curves(module.Config())
    saelens = {"l1", "topk", "batchtopk", "jumprelu", "matryoshka"}
    assert set(curves) == {*saelens, "ba", "gba_paper", "gba_ours"}
    assert {len(points) for points in curves.values()} == {4}


def test_the_language_model_experiment_from_text_to_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bridge: Any, tiny_texts: Any
) -> None:
    module = load("04_language_model", monkeypatch)
    monkeypatch.setattr(module, "load_demo_model", lambda: tiny_bridge)
    monkeypatch.setattr(module, "demo_texts", lambda **_: tiny_texts)
    monkeypatch.setattr(module, "default_cache_dir", lambda: tmp_path / "cache")
    config = replace(
        module.Config(),
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
    tables = module.run(config)
    # 8 methods at 2 hook points: 4 points of one seed, and one of them with another seed
    assert len(tables["rows"]) == 8 * 2 * (4 + 1)
    assert len(tables["consistency"]) == 8 * 2
    for row in tables["consistency"]:
        assert 0 < row["pw_mcc"] <= 1
    reloaded = SAE.load_from_disk(
        tmp_path / "cache" / "paper" / "saes" / "gba_ours_seed_1" / config.hook_names[0]
    )
    assert reloaded.cfg.metadata.hook_name == config.hook_names[0]
    for row in tables["rows"]:
        if row["method"] == "topk":
            assert row["l0"] <= config.l0[row["setting"]]
        assert row["loss"] > 0
        assert row["ce_loss_recovered"] == row["ce_loss_recovered"]  # not NaN
    # everything is there already: nothing is trained again
    monkeypatch.setattr(module, "train_together", None)
    assert module.run(config) == tables
    plot("04_language_model", config, tables, tmp_path, monkeypatch)


def test_committed_results_are_of_the_experiments_that_can_be_plotted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plots = load("plots", monkeypatch)
    for path in (PAPER.parent / "results").glob("0*.json"):
        result = json.loads(path.read_text())
        assert result["experiment"] in plots.PLOTS
        assert result["config"]["seeds"]
        assert path.with_suffix(".png").is_file()
