"""The JSON is the report: nothing is lost on the way, and figures need nothing else."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from sae_lens_gba.report import Report, json_schema
from sae_lens_gba.report.plots import all_figures
from sae_lens_gba.report.results import LatentTable
from sae_lens_gba.saved.evaluation import Metrics


@pytest.fixture
def saved(report: Report, tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    report.save(path)
    return path


def test_a_saved_report_comes_back_the_same(report: Report, saved: Path) -> None:
    assert Report.load(saved) == report


def test_figures_are_made_from_the_json_alone(saved: Path) -> None:
    assert set(all_figures(Report.load(saved))) == {
        "frequencies", "targets", "thresholds", "frontier", "frontier-ce", "frequencies-compared",
        "matches",
    }  # fmt: skip


def test_the_frequency_histogram_holds_every_living_latent_once(report: Report) -> None:
    sae = report.saes[0]
    bars = [trace for trace in all_figures(report)["frequencies"].data if trace.type == "bar"]
    assert len(bars) == 4
    assert sum(sum(bar.y) for bar in bars) == sae.d_sae - sae.metrics.dead


def test_every_latent_has_an_entry_in_every_list(report: Report) -> None:
    sae = report.saes[0]
    for field in fields(LatentTable):
        values: Any = getattr(sae.latents, field.name)
        for column in values.values() if isinstance(values, dict) else [values]:
            assert len(column) == sae.d_sae, field.name


def test_the_schema_names_every_field_and_the_json_has_no_other(saved: Path) -> None:
    schema = json_schema()
    content = json.loads(saved.read_text())
    assert set(content) == set(schema["properties"])
    assert "details" not in content["saes"][0]  # in the folder beside it
    metrics = content["saes"][0]["metrics"]
    assert set(metrics) == set(schema["$defs"]["Metrics"]["properties"])
    assert set(metrics) == {field.name for field in fields(Metrics)}


def test_a_damaged_foreign_or_newer_file_is_named(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"schema_version": 2, "saes": []}')
    with pytest.raises(ValueError, match=r"report.json is not the JSON of a report: provenance"):
        Report.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"not the JSON of a report.*sae-lens-gba report"):
        Report.load(path)
    replace(report, schema_version=99).save(path)
    with pytest.raises(ValueError, match="schema_version=99"):
        Report.load(path)


def test_a_failed_save_leaves_the_old_file(
    report: Report, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr(Path, "write_text", Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.save(saved)
    assert saved.read_bytes() == before
    assert sorted(p.name for p in saved.parent.iterdir()) == ["report.json", "report_latents"]
    assert Report.load(saved) == report
