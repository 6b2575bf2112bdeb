"""The benchmarks of architectures at a size of seconds."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from toolbox import load_script

from experiments.lab.results import provenance, write_result
from sae_lens_gba.evaluation.probing import ProbeScore

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script(BENCHMARKS / f"{name}.py", monkeypatch)


def plot(
    name: str, config: Any, tables: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_result(folder / f"{name}.json", name, config, tables, provenance())
    monkeypatch.setattr("sys.argv", ["plots.py", "--results", str(folder)])
    load("plots", monkeypatch).main()
    assert (folder / f"{name}.png").stat().st_size > 5000


def test_features_recovered_from_samples_to_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("architecture_comparison", monkeypatch)
    monkeypatch.setattr(module, "default_cache_dir", lambda: tmp_path / "cache")
    config = replace(
        module.Config(),
        n_features=128,
        n_roots=2,
        d_in=16,
        d_sae=64,
        l0=4.0,
        batch_size=64,
        pool_steps=10,
        tune_steps=4,
        steps=6,
        long_steps=12,
        at_steps=(6, 12),
        learning_rates=(1e-3, 1e-2),
        seeds=(0, 1),
        held_out=2048,
        l0_tolerance=10.0,
    )
    tables = module.run(config)
    chosen = {row["method"]: row["learning_rate"] for row in tables["chosen"]}
    assert set(chosen) == set(module.architectures(config))
    for name, rate in chosen.items():
        tried = {r["learning_rate"]: r["mcc"] for r in tables["tuning"] if r["method"] == name}
        assert rate == max(tried, key=lambda r: tried[r])
        rows = [row for row in tables["rows"] if row["method"] == name]
        steps = (6, 12) if name in config.long_methods else (6,)
        assert [(r["seed"], r["steps"]) for r in rows] == [(s, n) for s in (0, 1) for n in steps]
        assert {row["learning_rate"] for row in rows} == {rate}
    # everything is there already: nothing is trained again
    monkeypatch.setattr(module, "train_together", None)
    assert module.run(config) == tables
    plot("architecture_comparison", config, tables, tmp_path, monkeypatch)


def test_a_language_model_from_text_to_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bridge: Any, tiny_texts: Any
) -> None:
    module = load("language_model_comparison", monkeypatch)
    probed: list[Path] = []

    def probe(folder: Path, datasets: Any, ks: Any, **_: Any) -> list[ProbeScore]:
        assert (folder / "cfg.json").is_file()
        probed.append(folder)
        return [ProbeScore(d, k, 0.5 + k / 40, 0.7, 0.6, [1]) for d in datasets for k in ks]

    monkeypatch.setattr(module, "load_demo_model", lambda: tiny_bridge)
    monkeypatch.setattr(module, "demo_texts", lambda **_: tiny_texts)
    monkeypatch.setattr(module, "default_cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(module, "probe", probe)
    config = replace(
        module.Config(),
        hook_name="blocks.1.hook_mlp_out",
        methods=("gba", "batchtopk", "matryoshka", "jumprelu"),
        train_tokens=400,
        held_out_tokens=100,
        ce_contexts=2,
        context=12,
        d_sae=48,
        l0=4.0,
        other_l0=(2.0, 6.0),
        batch_size=32,
        tune_steps=4,
        steps=8,
        learning_rates=(1e-3, 1e-2),
        l0_tolerance=10.0,
        seeds=(0, 1),
        probing_datasets=("one", "two"),
    )
    tables = module.run(config)
    methods = config.methods
    for name in methods:
        of = {table: [r for r in rows if r["method"] == name] for table, rows in tables.items()}
        (chosen,) = of["chosen"]
        tried = {r["learning_rate"]: r["explained_variance"] for r in of["tuning"]}
        assert chosen["learning_rate"] == max(tried, key=lambda r: tried[r])
        others = [] if name == "jumprelu" else [(2.0, 0), (6.0, 0)]
        points = [(r["asked_l0"], r["seed"]) for r in of["rows"]]
        assert points == [(4.0, 0), (4.0, 1), *others]
        assert len(of["probing"]) == 2 * 2 * 2  # seeds, data sets, ks
        (consistency,) = of["consistency"]
        assert 0 < consistency["pw_mcc"] <= 1
    assert len(set(probed)) == len(probed) == len(methods) * 2
    for row in tables["rows"]:
        assert row["ce_loss_recovered"] == row["ce_loss_recovered"]  # not NaN
    monkeypatch.setattr(module, "train_together", None)
    monkeypatch.setattr(module, "probe", None)
    assert module.run(config) == json.loads(json.dumps(tables))
    plot("language_model_comparison", config, tables, tmp_path, monkeypatch)
    fewer = replace(config, methods=("gba", "batchtopk"), other_l0=(), probing_datasets=())
    tables = module.run(fewer)
    assert {row["method"] for row in tables["rows"]} == {"gba", "batchtopk"}
    plot("language_model_comparison_mlp", fewer, tables, tmp_path, monkeypatch)
