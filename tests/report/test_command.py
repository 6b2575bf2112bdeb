"""`sae-lens-gba report`, from its arguments."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from datasets import Dataset, DatasetDict
from sae_lens import TemporalSAE, TemporalSAEConfig
from sae_lens.saes.sae import SAEMetadata

import sae_lens_gba
from sae_lens_gba import sources
from sae_lens_gba.demo.text import DATASET_NAME, demo_texts
from sae_lens_gba.errors import DamagedFileError, StorageError
from sae_lens_gba.report import Report, look
from sae_lens_gba.report import command as report_command
from sae_lens_gba.report.command import run_from_arguments
from sae_lens_gba.report.sae_result import ce_batches
from sae_lens_gba.saved.evaluation import EVALUATION_FILENAME, json_schema, read_evaluation
from sae_lens_gba.sources import load_saes, load_text
from sae_lens_gba_command import main
from sae_lens_gba_command.flags import add_report
from tests.one_latent_a_word import CONTEXT_SIZE, save_sae, text_rows


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_report(parser)
    run_from_arguments(parser.parse_args(arguments))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "my text.txt"
    path.write_text("\n".join(text_rows()))
    return path


def test_a_report_is_one_page_with_its_data_beside_it(
    sae_folders: tuple[Path, Path], model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "page.html"
    run(
        str(sae_folders[0]), "--compare", str(sae_folders[1]), "--model", str(model_folder),
        "--dataset", str(text_file), "--output", str(path),
        "--tokens", "640", "--ce-tokens", "64", "--sample", "8", "--latents", "3", "5",
    )  # fmt: skip
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "page.html", "page.json", "page_latents"
    ]  # fmt: skip
    report = Report.load(path.with_suffix(".json"))
    assert [sae.label for sae in report.saes] == ["first<b>", "second"]
    assert {3, 5} <= {detail.latent for detail in report.saes[0].details}
    assert report.provenance.n_tokens == 640 // CONTEXT_SIZE * (CONTEXT_SIZE - 1)
    assert report.provenance.dataset == "my text.txt"
    assert report.provenance.created.endswith("+00:00")
    assert report.provenance.versions["sae-lens-gba"] == sae_lens_gba.__version__
    for file in path.parent.rglob("*.*"):
        assert str(tmp_path.parent) not in file.read_text(), "a path of this machine"


def test_the_page_lands_beside_the_sae_if_not_told_otherwise(
    model: object, model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    folder = save_sae(tmp_path / "sae", model.W_E.detach().float())  # type: ignore[attr-defined]
    run(
        str(folder), "--model", str(model_folder), "--dataset", str(text_file),
        "--tokens", "64", "--ce-tokens", "0",
    )  # fmt: skip
    assert (folder / "report.html").is_file()
    assert (folder / "report.json").is_file()


def test_an_output_that_is_no_page_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output=report.pdf .*\.html"):
        run(str(tmp_path), "--output", "report.pdf")


def test_an_output_that_can_not_be_written_is_refused_before_anything_is_measured(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sae(tmp_path / "sae", model.W_E.detach().float())
    (tmp_path / "file").touch()
    monkeypatch.setattr(report_command, "load_text", lambda *_: pytest.fail("it went on"))
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        run(str(tmp_path / "sae"), "--output", str(tmp_path / "file" / "page.html"))
    with pytest.raises(FileNotFoundError, match=r"explanations=.*nothing.json is not there"):
        run(str(tmp_path / "sae"), "--explanations", str(tmp_path / "nothing.json"))


def test_text_is_read_from_files_and_saved_data_sets(tmp_path: Path, text_file: Path) -> None:
    texts = text_rows()
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    found = load_text(str(tmp_path / "rows.jsonl"), SAE)
    assert ([row["text"] for row in found.dataset], found.name) == (texts, "rows.jsonl")
    assert found.held_out is None
    found.dataset.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "saved", text_file):
        assert [row["text"] for row in load_text(str(path), SAE).dataset] == texts


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.docx").write_text("text")
    with pytest.raises(ValueError, match=r"text.docx is of a kind .*\.jsonl"):
        load_text(str(tmp_path / "text.docx"), SAE)
    (tmp_path / "empty.json").touch()
    with pytest.raises(FileNotFoundError, match=r"empty.json can't be loaded .* --dataset"):
        load_text(str(tmp_path / "empty.json"), SAE)
    with pytest.raises(FileNotFoundError, match=r"nowhere.txt can't be loaded \(there is no such"):
        load_text("nowhere.txt", SAE)


def own_text(path: object) -> Any:
    return SimpleNamespace(cfg=SimpleNamespace(metadata=SimpleNamespace(dataset_path=path)))


SAE = own_text("user/nowhere")


def test_text_is_by_default_what_the_sae_was_trained_on_its_held_out_split_if_there_is_one(
    tmp_path: Path,
) -> None:
    train, test = (Dataset.from_dict({"text": [name]}) for name in ("seen", "unseen"))
    train.save_to_disk(tmp_path / "whole")
    whole = load_text(None, own_text(str(tmp_path / "whole")))
    assert (list(whole.dataset["text"]), whole.held_out) == (["seen"], False)
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "splits")
    splits = load_text(None, own_text(str(tmp_path / "splits")))
    assert list(splits.dataset["text"]) == ["unseen"]
    assert (splits.name, splits.held_out) == ("splits, split test", True)
    assert load_text(str(tmp_path / "splits"), SAE).held_out is None  # of another text than its own


def test_the_demos_text_is_its_held_out_tenth() -> None:
    found = load_text(None, own_text(DATASET_NAME))
    assert found.held_out
    assert found.dataset["text"][:5] == demo_texts(held_out=True)["text"][:5]


def test_text_that_can_not_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"does not name its text: .*--dataset"):
        load_text(None, own_text(None))
    offline = Mock(side_effect=ConnectionError("offline mode is enabled"))
    monkeypatch.setattr("sae_lens_gba.sources.load_dataset", offline)
    with pytest.raises(FileNotFoundError, match=r"own text dataset=user/nowhere .*--dataset"):
        load_text(None, SAE)


def test_the_measurement_lies_beside_the_sae_and_is_what_publish_takes(
    model: object, model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    folder = save_sae(tmp_path / "sae", model.W_E.detach().float())  # type: ignore[attr-defined]
    command = (
        str(folder), "--model", str(model_folder), "--dataset", str(text_file),
        "--output", str(tmp_path / "page.html"), "--tokens", "640", "--ce-tokens", "64",
    )  # fmt: skip
    run(*command)
    report = Report.load(tmp_path / "page.json")
    found = read_evaluation(folder)
    assert found is not None
    assert found.metrics == report.saes[0].metrics
    assert found.provenance == report.provenance
    for less in (("--tokens", "320"), ("--ce-tokens", "0")):  # of a quick look
        run(*command, *less)
        assert read_evaluation(folder) == found
    run(*command, "--seed", "1")
    found = read_evaluation(folder)
    assert found is not None and found.provenance.seed == 1
    run(*command, "--tokens", "800", "--ce-tokens", "0")  # neither more nor less
    longer = read_evaluation(folder)
    assert longer is not None and longer.provenance.n_tokens > found.provenance.n_tokens
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text())
    run(*command, "--tokens", "320", "--dataset", str(other))  # asked for, whatever its size
    found = read_evaluation(folder)
    assert found is not None and found.provenance.dataset == "other.txt"
    assert set(json.loads((folder / EVALUATION_FILENAME).read_text())) == set(
        json_schema()["properties"]
    )
    save_sae(folder, 2 * model.W_E.detach().float())  # type: ignore[attr-defined]
    with pytest.raises(DamagedFileError, match=r"measured on other weights.*sae-lens-gba report"):
        read_evaluation(folder)
    run(*command)
    assert read_evaluation(folder) is not None
    (folder / EVALUATION_FILENAME).write_text('{"schema_version": 1}')
    with pytest.raises(DamagedFileError, match="metrics: Field required"):
        read_evaluation(folder)


def test_files_that_lie_where_the_details_would_go_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "page_latents").mkdir()
    mine = tmp_path / "page_latents" / "thesis.tex"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=r"page_latents.* holds other files.*--output"):
        run(str(tmp_path), "--output", str(tmp_path / "page.html"))
    assert mine.read_text() == "mine"


def test_a_file_in_the_home_folder_and_a_name_that_may_be_the_hubs(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(text_file.parent))
    assert load_text(f"~/{text_file.name}").name == text_file.name
    asked: list[str] = []

    def load_dataset(name: str, **_: Any) -> Any:
        asked.append(name)
        raise ConnectionError("no Hub")

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match="no Hub"):
        load_text("owner/texts.json")
    assert asked == ["owner/texts.json"]


@pytest.mark.parametrize("command", ["report", "look"])
@pytest.mark.parametrize("has_gpu", [True, False])
def test_the_commands_take_a_gpu_if_there_is_one_and_say_when_it_is_too_small(
    command: str, has_gpu: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    devices: list[str] = []

    def too_small(*args: Any, **named: Any) -> None:
        devices.append(named.get("device") or args[2])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(report_command, "write_report", too_small)
    monkeypatch.setattr(look, "make_server", too_small)
    assert main([command, "my_sae"]) == 1
    assert main([command, "my_sae", "--device", "mps"]) == 1
    assert devices == ["cuda" if has_gpu else "cpu", "mps"]
    said = capsys.readouterr().err.splitlines()
    assert said == 2 * [
        "sae-lens-gba: CUDA out of memory. Tried to allocate 2.00 GiB. "
        "Give smaller batches or contexts, or another --device."
    ]


def test_why_a_file_is_not_text_is_said(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("caf\u00e9 ".encode("latin-1") * 100)
    with pytest.raises(FileNotFoundError, match="utf-8"):
        load_text(str(path))


def test_a_model_has_several_names(model: Any, tmp_path: Path) -> None:
    rows = model.W_E.detach().float()
    names = {"a": "gpt2", "b": "openai-community/gpt2", "c": "gpt2-small", "d": None}
    folders = [save_sae(tmp_path / k, rows, model_name=name) for k, name in names.items()]
    assert len(load_saes(folders)) == 4
    other = save_sae(tmp_path / "other", rows, model_name="gpt2-medium")
    with pytest.raises(ValueError, match="belong to different models"):
        load_saes([folders[0], other])


def test_a_temporal_sae_is_refused(tmp_path: Path) -> None:
    metadata = SAEMetadata(model_name="tiny", hook_name="blocks.0.hook_resid_pre")
    cfg = TemporalSAEConfig(48, 64, bottleneck_factor=1, n_heads=4, metadata=metadata)
    TemporalSAE(cfg).save_model(tmp_path / "sae")
    with pytest.raises(ValueError, match="is a temporal SAE"):
        load_saes([tmp_path / "sae"])


def test_ce_loss_is_measured_on_no_more_than_the_text() -> None:
    assert ce_batches(2048, 128, 100) == (2, 8)
    assert ce_batches(2048, 128, 5) == (1, 5)
    assert ce_batches(2048, 4096, 3) == (1, 1)  # one sequence, however long
    assert ce_batches(0, 128, 100) == (0, 0)
