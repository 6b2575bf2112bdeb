"""The benchmarks of architectures at a size of seconds."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmarks import (
    architecture_comparison,
    gpu_throughput,
    language_model_comparison,
    synthsaebench,
    training_throughput,
    transcoder,
)
from experiments.benchmarks.plots import PLOTS
from experiments.lab.training import FROZEN, RANDOM
from sae_lens_gba.evaluation.probing import ProbeScore
from tests.experiments.plotting import assert_plotted


def test_features_recovered_from_samples_to_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = replace(
        architecture_comparison.Config(),
        n_features=128,
        n_roots=2,
        d_in=16,
        d_sae=64,
        l0=4.0,
        batch_size=64,
        pool_steps=10,
        steps=6,
        learning_rates=(1e-3, 1e-2),
        seeds=(0, 1),
        held_out=2048,
    )
    tables = architecture_comparison.run(config)
    chosen = {row["method"]: row["learning_rate"] for row in tables["chosen"]}
    assert set(chosen) == set(architecture_comparison.architectures(config))
    assert set(config.methods) == {*chosen, RANDOM}
    for name, rate in chosen.items():
        tried = {r["learning_rate"]: r["mcc"] for r in tables["tuning"] if r["method"] == name}
        assert rate == max(tried, key=lambda r: tried[r])
        rows = [row for row in tables["rows"] if row["method"] == name]
        assert [(r["seed"], r["steps"]) for r in rows] == [(0, 6), (1, 6)]
        assert {row["learning_rate"] for row in rows} == {rate}
    untrained = [row for row in tables["rows"] if row["method"] == RANDOM]
    assert [(row["seed"], row["steps"]) for row in untrained] == [(0, 0), (1, 0)]
    # everything is there already: nothing is trained again
    monkeypatch.setattr(architecture_comparison, "train_together", None)
    assert architecture_comparison.run(config) == tables
    assert_plotted(PLOTS, "architecture_comparison", config, tables, tmp_path)


def test_the_boards_world_is_trained_on_saved_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = synthsaebench.Config(
        runs=(
            synthsaebench.Run("gba", 150, 1e-2, l0_asked=4.0, d_sae=64),
            synthsaebench.Run("matryoshka_batchtopk", 1, 1e-3, l0_asked=4.0, d_sae=64),
        ),
        n_features=128,
        n_roots=2,
        d_in=16,
        batch_size=256,
        held_out=2048,
    )
    tables = synthsaebench.run(config)
    gba, matryoshka = tables["rows"]
    assert gba["l0"] == pytest.approx(4.0, rel=0.1)
    assert gba["mcc"] > matryoshka["mcc"] > 0
    monkeypatch.setattr(synthsaebench, "SAETrainer", None)  # nothing is trained again
    assert synthsaebench.run(config) == tables


def test_a_language_model_from_text_to_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_demo: Path
) -> None:
    probed: list[Path] = []

    def probe(folder: Path, datasets: Any, ks: Any, **_: Any) -> list[ProbeScore]:
        assert (folder / "cfg.json").is_file()
        probed.append(folder)
        return [ProbeScore(d, k, 0.5 + k / 40, 0.7, 0.6, [1]) for d in datasets for k in ks]

    monkeypatch.setattr(language_model_comparison, "probe", probe)
    config = replace(
        language_model_comparison.Config(),
        hook_name="blocks.1.hook_mlp_out",
        methods=("gba", "batchtopk", "matryoshka", "jumprelu", FROZEN, RANDOM),
        train_tokens=400,
        held_out_tokens=100,
        ce_contexts=2,
        context=12,
        d_sae=48,
        l0=4.0,
        other_l0=(2.0, 6.0),
        batch_size=32,
        steps=8,
        learning_rates=(1e-3, 1e-2),
        other_learning_rates={"batchtopk": (3e-3,)},
        jumprelu_coefficient=0.5,
        seeds=(0, 1),
        probing_datasets=("one", "two"),
    )
    tables = language_model_comparison.run(config)
    methods = config.methods
    for name in methods:
        of = {table: [r for r in rows if r["method"] == name] for table, rows in tables.items()}
        (chosen,) = of["chosen"]
        tried = {r["learning_rate"]: r["explained_variance"] for r in of["tuning"]}
        rates = {RANDOM: (), "batchtopk": (3e-3,)}.get(name, config.learning_rates)
        assert tuple(tried) == rates
        assert chosen["learning_rate"] == max(tried, key=lambda r: tried[r], default=0.0)
        points = [(r["asked_l0"], r["seed"]) for r in of["rows"]]
        l0s = (4.0,) if name == "jumprelu" else (4.0, 2.0, 6.0)
        assert points == [(l0, seed) for l0 in l0s for seed in (0, 1)]
        assert len(of["probing"]) == 2 * 2 * 2  # seeds, data sets, ks
        (consistency,) = of["consistency"]
        assert 0 < consistency["pw_mcc"] <= 1
    assert len(set(probed)) == len(probed) == len(methods) * 2
    for row in tables["rows"]:
        assert row["ce_loss_recovered"] == row["ce_loss_recovered"]  # not NaN
    monkeypatch.setattr(language_model_comparison, "train_together", None)
    monkeypatch.setattr(language_model_comparison, "probe", None)
    assert language_model_comparison.run(config) == json.loads(json.dumps(tables))
    assert_plotted(PLOTS, "language_model_comparison", config, tables, tmp_path)
    fewer = replace(config, methods=("gba", "batchtopk"), other_l0=(), probing_datasets=())
    tables = language_model_comparison.run(fewer)
    assert {row["method"] for row in tables["rows"]} == {"gba", "batchtopk"}
    assert_plotted(PLOTS, "language_model_comparison_mlp", fewer, tables, tmp_path)


def test_step_times_and_memory_from_run_to_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def peak_memory(name: str, case: training_throughput.Case) -> float:
        asked.append(name)
        return 1e6

    # a process of its own imports everything anew: half a minute for each architecture
    monkeypatch.setattr(training_throughput, "peak_memory_in_own_process", peak_memory)
    monkeypatch.setattr(training_throughput, "supports_bfloat16", lambda d_in: False)
    config = training_throughput.Config(8, 32, (64, 128), (2, 4), 1)
    tables = training_throughput.run(config)
    assert [(case["d_sae"], case["l0"]) for case in tables["cases"]] == [
        (64, 2), (64, 4), (128, 2), (128, 4),
    ]  # fmt: skip
    for case in tables["cases"]:
        timed = case["architectures"]
        assert all(row["seconds"] > 0 for row in timed.values())
        assert ("peak_memory_bytes" in timed["gba"]) == (case["l0"] == 4)
    assert asked.count("gba") == 2
    assert [row["d_sae"] for row in tables["parts"]] == [64, 128]
    for row in tables["parts"]:
        assert {"encode, find active", "Adam", "row norm", "clip"} < set(row["seconds"])
        assert all(seconds > 0 for seconds in row["seconds"].values())
    assert_plotted(PLOTS, "training_throughput", config, tables, tmp_path)


def test_transcoders_of_an_mlp_are_compared_at_one_l0(
    tiny_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        transcoder.Config(),
        hook_name="blocks.1.mlp.hook_in",
        hook_name_out="blocks.1.hook_mlp_out",
        train_tokens=2000,
        held_out_tokens=600,
        ce_contexts=2,
        context=12,
        d_sae=48,
        l0=4,
        batch_size=128,
        steps=200,
        topk_learning_rates=(1e-4, 1e-2),
    )
    tables = transcoder.run(config)
    best = max(tables["tuning"], key=lambda row: row["explained_variance"])["learning_rate"]
    assert {r["learning_rate"] for r in tables["rows"] if r["method"] == "topk"} == {best}
    assert len(tables["rows"]) == 2 * 3
    for row in tables["rows"]:
        assert 0.3 < row["explained_variance"] < 1
        assert row["ce_recovered"] < 1.5
        assert row["l0"] == pytest.approx(4, rel=0.2)
    # everything is there already: nothing is trained again
    monkeypatch.setattr(transcoder, "train_together", None)
    assert transcoder.run(config) == tables


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_training() -> None:
    case = training_throughput.Case(d_in=64, batch=4096, d_sae=512, l0=4)
    # activations and their gradient alone: 2 * 4 bytes * 4096 * 512
    # in a process that has no memory left over from other tests
    assert training_throughput.peak_memory_in_own_process("gba dense", case) > 16e6


def test_the_gpu_benchmark_runs_where_it_is_told_to() -> None:
    config = gpu_throughput.Config(((8, 64, 32, 4),), ("float32",), steps=2, device="cpu")
    tables = gpu_throughput.run(config)
    (case,) = tables["cases"]
    assert {"standard", "topk", "batchtopk", "matryoshka", "jumprelu", "gba", "gba dense"} < set(
        case["architectures"]
    )
    assert all(row["seconds"] > 0 for row in case["architectures"].values())
    assert tables["device"] == [{"name": "cpu"}]


def test_the_roofline_is_that_of_a_step_counted_by_hand() -> None:
    case = training_throughput.Case(768, 4096, 24576, 64, autocast=True)
    bound = gpu_throughput.roofline(case, "bfloat16 autocast")
    # 2 * 4096 * 768 * 24576 operations at 989e12; 137 bytes a weight at 3.35e12 a second
    assert bound["encoder product"] == pytest.approx(0.156e-3, rel=0.01)
    weights = bound["weights: Adam, clipping, unit norm"]
    assert weights == pytest.approx(0.772e-3, rel=0.01)
    assert bound["step"] > bound["encoder product"] + weights


def test_without_a_gpu_its_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu_throughput.main([])
    assert capsys.readouterr().out.count("no GPU") == 1
