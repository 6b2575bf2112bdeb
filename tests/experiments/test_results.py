import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from experiments.lab.command_line import run_experiments
from experiments.lab.results import (
    Tables,
    mean_and_deviation,
    once,
    provenance,
    result_folder,
    update_result,
    write_result,
)
from sae_lens_gba.provenance import PACKAGES


@dataclass(frozen=True)
class Config:
    steps: int = 100
    seeds: tuple[int, ...] = field(default=(0, 1))


@dataclass(frozen=True)
class Methods:
    methods: tuple[str, ...] = ("a", "b")


def run(config: Config) -> Tables:
    return {"rows": [{"steps": config.steps, "seed": seed} for seed in config.seeds]}


def experiment(folder: Path, *argv: str, do: Callable[[Config], Tables] = run) -> Path:
    argv = ("--results", str(folder), *argv)
    (path,) = run_experiments("text", {"name": Config()}, do, {"steps": 1}, list(argv))
    return path


def test_a_result_holds_config_rows_and_where_they_come_from(tmp_path: Path) -> None:
    path = experiment(tmp_path / "new" / "folder")
    result = json.loads(path.read_text())
    assert result["experiment"] == "name"
    assert result["config"] == {"steps": 100, "seeds": [0, 1]}
    assert result["rows"] == [{"steps": 100, "seed": 0}, {"steps": 100, "seed": 1}]
    origin = result["provenance"]
    assert set(origin["versions"]) == set(PACKAGES)
    assert origin["date"].endswith("+00:00")


def test_a_quick_result_never_replaces_a_full_one(tmp_path: Path) -> None:
    full, quick = experiment(tmp_path), experiment(tmp_path, "--quick")
    assert full != quick
    assert json.loads(full.read_text())["rows"][0]["steps"] == 100
    assert json.loads(quick.read_text())["rows"][0]["steps"] == 1


def test_no_path_of_the_machine_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/home/someone/secret/run.py", "--quick"])
    assert provenance()["command"] == "python run.py --quick"
    assert "someone" not in json.dumps(provenance())


def test_the_commit_is_the_one_git_names() -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert provenance()["git_commit"] == (head.stdout.strip() if head.returncode == 0 else None)


def test_without_git_there_is_no_commit_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance()["git_commit"] is None


def test_a_result_that_fails_to_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = experiment(tmp_path)
    old = path.read_text()
    with pytest.raises(TypeError):
        write_result(path, "name", Config(), {"rows": [{"not plain": object()}]}, {})
    assert path.read_text() == old
    assert list(tmp_path.iterdir()) == [path]


def test_deviation_is_over_runs() -> None:
    assert mean_and_deviation([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))
    assert mean_and_deviation(iter([5.0])) == (5.0, 0.0)


def test_where_a_result_comes_from_is_noted_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_and_move_on(config: Config) -> Tables:
        monkeypatch.setattr("sys.argv", ["another.py"])
        return run(config)

    monkeypatch.setattr("sys.argv", ["run.py"])
    path = experiment(tmp_path, do=run_and_move_on)
    assert json.loads(path.read_text())["provenance"]["command"] == "python run.py"


def test_experiments_of_one_script_have_one_origin(tmp_path: Path) -> None:
    configs = {"one": Config(), "two": Config(steps=7)}
    argv = ["--quick", "--results", str(tmp_path)]
    paths = run_experiments("text", configs, run, {"seeds": (4,)}, argv)
    assert [path.name for path in paths] == ["one_quick.json", "two_quick.json"]
    one, two = (json.loads(path.read_text()) for path in paths)
    assert (one["rows"], two["rows"]) == ([{"steps": 100, "seed": 4}], [{"steps": 7, "seed": 4}])
    assert one["provenance"] == two["provenance"]


def test_rows_of_other_methods_stay_with_where_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "name.json"

    def measured(methods: list[str], origin: str, value: int) -> Any:
        tables = {"rows": [{"method": m, "value": value} for m in methods], "tuning": []}
        update_result(path, "name", Config(), methods, tables, {"git_commit": origin})
        return json.loads(path.read_text())

    first = measured(["ours", "theirs", "third"], "one", 1)
    assert "earlier" not in first
    second = measured(["ours"], "two", 2)
    assert second["provenance"] == {"git_commit": "two"}
    assert second["earlier"] == {m: {"git_commit": "one"} for m in ("theirs", "third")}
    assert {row["method"]: row["value"] for row in second["rows"]} == {
        "ours": 2, "theirs": 1, "third": 1
    }  # fmt: skip
    third = measured(["third"], "three", 3)
    assert {name: one["git_commit"] for name, one in third["earlier"].items()} == {
        "ours": "two", "theirs": "one"
    }  # fmt: skip


def test_one_method_can_be_measured_anew(tmp_path: Path) -> None:
    def of_methods(config: Methods) -> Tables:
        return {"rows": [{"method": name} for name in config.methods]}

    def run_with(*argv: str) -> Any:
        argv = ("--results", str(tmp_path), *argv)
        configs = {"one": Methods(), "other": Methods()}
        run_experiments("text", configs, of_methods, {}, list(argv), by_method=True)
        return json.loads((tmp_path / "one.json").read_text())

    run_with("--only", "one")
    assert not (tmp_path / "other.json").exists()
    result = run_with("--only", "one", "--methods", "b")
    assert [row["method"] for row in result["rows"]] == ["a", "b"]
    assert result["config"]["methods"] == ["a", "b"]
    assert set(result["earlier"]) == {"a"}


def test_when_rows_were_computed_is_said_where_they_were_kept(tmp_path: Path) -> None:
    once(tmp_path / "cache", {"a": 1}, lambda: [3])
    of_before = result_folder(tmp_path / "cache", {"a": 2}).with_suffix(".json")
    of_before.write_text('{"key": {"a": 2}, "value": [4]}')
    os.utime(of_before, (1e9, 1e9))  # without a word on where it comes from
    path = tmp_path / "name.json"
    rows = [{"kept": once(tmp_path / "cache", {"a": n}, lambda: [0])[0]} for n in (1, 2)]
    write_result(path, "name", Config(), {"rows": rows}, provenance())
    content = json.loads(path.read_text())
    assert content["rows"] == [{"kept": 3}, {"kept": 4}]
    computed = content["provenance"]["rows_computed"]
    assert computed["from"] == "2001-09-09T01:46:40+00:00"
    assert computed["to"] >= computed["from"]
    assert set(computed["git_commits"]) == {str(provenance()["git_commit"]), "None"}
    write_result(path, "name", Config(), {"rows": []}, provenance())
    assert "rows_computed" not in json.loads(path.read_text())["provenance"]
