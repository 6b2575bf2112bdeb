"""``sae-lens-gba publish``."""

import argparse
import json
import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sae_lens_gba.checksums import write_checksums
from sae_lens_gba.errors import InvalidPublicationError
from sae_lens_gba.hub.command_line import run_from_arguments
from sae_lens_gba.hub.publishing import Publication
from sae_lens_gba.saved.evaluation import Evaluation, Metrics, Provenance, weights_sha256
from sae_lens_gba_command.flags import add_publish
from tests.hub_fixtures import D_SAE, HOOK, REPO, WEIGHTS
from tests.local_hub import LocalHub


def run(*arguments: str | Path) -> Publication:
    parser = argparse.ArgumentParser()
    add_publish(parser)
    return run_from_arguments(parser.parse_args([str(argument) for argument in arguments]))


def test_folders_are_published_under_the_ids_given(
    hub: LocalHub, sae_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "figures.json").write_text(json.dumps({"a": {"explained_variance": 0.5}}))
    result = run(
        REPO, f"a={sae_folder}", f"b/c={sae_folder}",
        "--endpoint", hub.endpoint, "--token", hub.token, "--private", "--license", "mit",
        "--metadata", "model_name=user/renamed", "dataset_path=user/text",
        "--evaluations", tmp_path / "figures.json", "--neuronpedia", "a=gpt2-small/1-gba",
    )  # fmt: skip
    assert result.sae_ids == ("a", "b/c")
    repo = hub.repos[REPO]
    assert repo.private
    metadata = json.loads(repo.files()["a/cfg.json"])["metadata"]
    assert metadata["model_name"] == "user/renamed"
    assert metadata["neuronpedia_id"] == "gpt2-small/1-gba"
    assert metadata["gba"]["evaluation"] == {"explained_variance": 0.5}
    assert f"published to {result.commit_url}" in caplog.text
    assert "conversion_func: null" in caplog.text


def test_a_dry_run_needs_no_hub_and_shows_every_file(
    sae_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = run(REPO, sae_folder, "--dry-run", "--folder", tmp_path / "out")
    assert result.sae_ids == (f"{HOOK}/l0_3/width_{D_SAE}",)
    assert (tmp_path / "out" / result.sae_ids[0] / "sae_weights.safetensors").is_file()
    assert all(name in caplog.text for name in result.files)


def test_a_pull_request_and_a_message_are_passed_on(hub: LocalHub, sae_folder: Path) -> None:
    hub.create(REPO)
    run(REPO, sae_folder, "--endpoint", hub.endpoint, "--token", hub.token, "--create-pr",
        "--commit-message", "Layer 1")  # fmt: skip
    assert hub.repos[REPO].titles == ["initial commit", "Layer 1"]
    assert hub.repos[REPO].n_pull_requests == 1


def test_a_folder_with_an_equals_sign_is_still_a_folder(sae_folder: Path, tmp_path: Path) -> None:
    odd = sae_folder.rename(tmp_path / "l0=3")
    assert run(REPO, odd, "--dry-run").sae_ids == (f"{HOOK}/l0_3/width_{D_SAE}",)


def test_ids_for_some_folders_only_are_refused(sae_folder: Path) -> None:
    with pytest.raises(InvalidPublicationError, match="an id of its own"):
        run(REPO, f"a={sae_folder}", sae_folder)
    with pytest.raises(InvalidPublicationError, match="an id of its own"):
        run(REPO, f"a={sae_folder}", f"a={sae_folder}")
    with pytest.raises(InvalidPublicationError, match="write NAME=VALUE"):
        run(REPO, sae_folder, "--metadata", "model_name")


def test_settings_that_are_no_text_are_published_as_what_they_are(
    hub: LocalHub, sae_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = [
        "prepend_bos=False", "context_size=64", "hook_head_index=2", "seqpos_slice=[1, 5]",
        "exclude_special_tokens=[0]", 'model_from_pretrained_kwargs={"revision": "Main"}',
    ]  # fmt: skip
    run(
        REPO, f"a={sae_folder}", "--endpoint", hub.endpoint, "--token", hub.token,
        "--license", "mit", "--metadata", *given,
    )  # fmt: skip
    metadata = json.loads(hub.repos[REPO].files()["a/cfg.json"])["metadata"]
    names = [text.partition("=")[0] for text in given]
    expected = [False, 64, 2, [1, 5], [0], {"revision": "Main"}]
    assert [metadata[name] for name in names] == expected
    for wrong in ("prepend_bos=perhaps", "context_size=true", "context_size=1.5"):
        with pytest.raises(InvalidPublicationError, match=f"--metadata '{wrong}' is not possible"):
            run(REPO, sae_folder, "--metadata", wrong)
    with pytest.raises(InvalidPublicationError, match="'d_sae', which is a setting of the SAE"):
        run(REPO, sae_folder, "--metadata", "model_nam=x/y", "d_sae=7")
    assert "'model_nam', a field of its own: did you mean 'model_name'?" in caplog.text


def measured(folder: Path, tmp_path: Path, dataset: str = "news") -> Path:
    """A copy of an SAE with a measurement beside it."""
    copy = Path(shutil.copytree(folder, tmp_path / "measured"))
    metrics = Metrics(0.7, 3.0, 2.9, 3.0, 1, None, None, None, None)
    provenance = Provenance("now", {}, dataset, True, 1000, 0, 16, 0, 1.0)
    Evaluation(1, metrics, [0.1, 0.1, 0.1, 0.1], provenance, weights_sha256(copy)).save(copy)
    return copy


def test_what_was_measured_of_an_sae_is_published_with_it(
    hub: LocalHub, sae_folder: Path, tmp_path: Path
) -> None:
    folder = measured(sae_folder, tmp_path)
    arguments = (REPO, f"a={folder}", "--endpoint", hub.endpoint, "--token", hub.token)
    card = run(*arguments).card
    assert "`a` was measured on 1,000 tokens of news." in card
    assert "| 3 | 2.9 | 0.7 |" in card
    # what the user gives goes before it
    (tmp_path / "figures.json").write_text(json.dumps({"a": {"l0": 2.5}}))
    assert "| 3 | 2.5 |" in run(*arguments, "--evaluations", tmp_path / "figures.json").card


def test_a_measurement_of_other_weights_is_not_published(
    hub: LocalHub, sae_folder: Path, tmp_path: Path
) -> None:
    folder = measured(sae_folder, tmp_path)
    weights = load_file(folder / WEIGHTS)
    save_file({**weights, "b_dec": weights["b_dec"] + 1}, folder / WEIGHTS)
    write_checksums(folder)
    with pytest.raises(InvalidPublicationError, match=r"measured on other weights.*report"):
        run(REPO, f"a={folder}", "--endpoint", hub.endpoint, "--dry-run")


def test_a_path_in_a_measurement_is_named_with_a_remedy_that_helps(
    sae_folder: Path, tmp_path: Path
) -> None:
    folder = measured(sae_folder, tmp_path, dataset="/data/my texts/held_out")
    with pytest.raises(InvalidPublicationError, match=r"edit evaluation.json .* evaluations="):
        run(REPO, folder, "--license", "mit", "--dry-run")
