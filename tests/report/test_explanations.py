"""What an explainer reads is what the latents did; what it says is read back."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sae_lens_gba.report import ReportConfig
from sae_lens_gba.report import explanations as module
from sae_lens_gba.report.explanations import read_explanations
from sae_lens_gba.report.page_data import latent_columns
from tests.one_latent_a_word import CONTEXT_SIZE, HOOK, N_LATENTS, Collect, model_folder
from tests.report.test_command import run

__all__ = ["model_folder"]


def test_delphis_cache_holds_every_firing_of_the_text(
    sae_folders: tuple[Path, Path], collect: Collect, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "LATENTS_PER_FILE", 20)
    report = collect(sae_folders[0], delphi=tmp_path / "new" / "latents")
    folder = tmp_path / "new" / "latents" / HOOK
    names = {"0_19.safetensors", "20_39.safetensors", "40_47.safetensors", "config.json"}
    assert {path.name for path in folder.iterdir()} == names
    config = json.loads((folder / "config.json").read_text())
    assert (config["ctx_len"], config["model_name"]) == (CONTEXT_SIZE, "tiny")
    n_firings = 0
    for path in folder.glob("*.safetensors"):
        first = int(path.stem.split("_")[0])
        tensors = load_file(path)
        sequence, token, latent = tensors["locations"].long().T
        # one latent a word: the latent that fires is the token's id
        assert torch.equal(tensors["tokens"][sequence, token].long(), latent + first)
        assert tensors["activations"].dtype == torch.float16
        torch.testing.assert_close(tensors["activations"], torch.ones(len(latent)).half())
        n_firings += len(latent)
    assert n_firings == report.provenance.n_tokens


def test_an_export_never_replaces_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"delphi=.* exists already: name a new folder"):
        ReportConfig(delphi=tmp_path)


def test_explanations_are_read_from_delphi_neuronpedia_and_a_file_of_ones_own(
    tmp_path: Path,
) -> None:
    delphi = tmp_path / "delphi"
    delphi.mkdir()
    (delphi / f"{HOOK}_latent3.txt").write_text('"months of the year"')
    (delphi / f"{HOOK}_latent12.txt").write_text('"numbers"')
    assert read_explanations(delphi, 48) == {3: "months of the year", 12: "numbers"}
    rows = [
        {"modelId": "gpt2-small", "layer": "8-res", "index": "3", "description": " months "},
        {"index": "3", "description": "another of the same"},
        {"index": "12", "description": "numbers"},
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    neuronpedia = tmp_path / "export"
    neuronpedia.mkdir()
    with gzip.open(neuronpedia / "batch-0.jsonl.gz", "wt") as file:
        file.write(lines)
    (tmp_path / "one.jsonl").write_text(lines)
    for path in (neuronpedia, tmp_path / "one.jsonl"):
        assert read_explanations(path, 48) == {3: "months", 12: "numbers"}
    (tmp_path / "own.json").write_text('{"12": "numbers"}')
    assert read_explanations(tmp_path / "own.json", 48) == {12: "numbers"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r"can't be read .*JSONDecodeError.* give delphi's"),
        ('["a"]', r"can't be read"),
        ("{}", r"has none"),
        ('{"48": "x"}', r"has latent 48, but the SAE has 48, numbered from 0"),
    ],
)
def test_explanations_that_do_not_fit_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_explanations(path, 48)
    with pytest.raises(FileNotFoundError):
        read_explanations(tmp_path / "nothing.json", 48)


def test_the_page_shows_explanations(
    sae_folders: tuple[Path, Path], model_folder: Path, texts: Any, tmp_path: Path
) -> None:
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps(row) for row in texts))
    (tmp_path / "own.json").write_text('{"5": "the third <b>word</b>"}')
    run(
        str(sae_folders[0]), "--model", str(model_folder), "--dataset",
        str(tmp_path / "text.jsonl"), "--output", str(tmp_path / "page.html"), "--tokens", "320",
        "--ce-tokens", "0", "--explanations", str(tmp_path / "own.json"),
    )  # fmt: skip
    from sae_lens_gba.report import Report

    sae = Report.load(tmp_path / "page.json").saes[0]
    assert sae.explanations == {5: "the third <b>word</b>"}
    columns = {c["title"]: c["values"] for c in latent_columns(sae, 0, range(N_LATENTS))}
    assert columns["explanation"][5] == "the third <b>word</b>"
    assert "<b>word</b>" not in (tmp_path / "page.html").read_text()


def test_of_explanations_of_several_hooks_the_saes_own_are_read(tmp_path: Path) -> None:
    for layer in (5, 6):
        (tmp_path / f"blocks.{layer}.hook_resid_post_latent3.txt").write_text(f'"of {layer}"')
    for layer in (5, 6):
        found = read_explanations(tmp_path, 48, f"blocks.{layer}.hook_resid_post")
        assert found == {3: f"of {layer}"}
    with pytest.raises(ValueError, match=r"are of \['blocks.5.hook_resid_post', .* at h: give"):
        read_explanations(tmp_path, 48, "h")


@pytest.mark.parametrize("cut", [0, 20])
def test_an_export_that_arrived_damaged_is_named(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "batch-0.jsonl.gz"
    whole = gzip.compress(b'{"index": "3", "description": "months"}' * 10)
    path.write_bytes(whole[:cut] or b"no gzip at all")
    with pytest.raises(ValueError, match=r"batch-0.jsonl.gz can't be read"):
        read_explanations(path, 48)


def test_a_latent_of_which_nothing_is_said_has_no_explanation(tmp_path: Path) -> None:
    rows = [{"index": "3", "description": None}, {"index": "4", "description": "numbers"}]
    (tmp_path / "one.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert read_explanations(tmp_path / "one.jsonl", 48) == {4: "numbers"}
