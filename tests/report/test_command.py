"""`sae-lens-gba report`, from its arguments."""

import argparse
import json
from pathlib import Path

import pytest

import sae_lens_gba
from sae_lens_gba.report import Report
from sae_lens_gba.report.command import add_arguments, run_from_arguments
from sae_lens_gba.sources import load_text
from tests.one_latent_a_word import CONTEXT_SIZE, save_sae, text_rows


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
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
    assert sorted(p.name for p in path.parent.iterdir()) == ["page.html", "page.json"]
    report = Report.load(path.with_suffix(".json"))
    assert [sae.label for sae in report.saes] == ["first<b>", "second"]
    assert {3, 5} <= {detail.latent for detail in report.saes[0].details}
    assert report.provenance.n_tokens == 640 // CONTEXT_SIZE * (CONTEXT_SIZE - 1)
    assert report.provenance.dataset == "my text.txt"
    assert report.provenance.versions["sae-lens-gba"] == sae_lens_gba.__version__
    for file in path.parent.iterdir():
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


def test_text_is_read_from_files_and_saved_data_sets(tmp_path: Path, text_file: Path) -> None:
    texts = text_rows()
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    dataset, name = load_text(str(tmp_path / "rows.jsonl"))
    assert ([row["text"] for row in dataset], name) == (texts, "rows.jsonl")
    dataset.save_to_disk(tmp_path / "saved")
    assert [row["text"] for row in load_text(str(tmp_path / "saved"))[0]] == texts
    assert [row["text"] for row in load_text(str(text_file))[0]] == texts


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.docx").write_text("text")
    with pytest.raises(ValueError, match=r"text.docx is of a kind .*\.jsonl"):
        load_text(str(tmp_path / "text.docx"))
