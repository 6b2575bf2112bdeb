"""What `publish` refuses to send, before the first request."""

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from sae_lens_gba import GBATrainingSAE, list_published, load, publish
from sae_lens_gba.checksums import write_checksums
from sae_lens_gba.errors import InvalidPublicationError, MissingFileError, NotAGBASAEError
from sae_lens_gba.hub import validation
from tests.hub_fixtures import REPO, WEIGHTS, MakeSAE, publish_to
from tests.local_hub import LocalHub

SECRET = "hf_" + "a" * 30
# put together here, so that no scanner takes them for real ones
KEYS = [
    "AIza" + "Sy" * 17 + "x",
    "xoxb-" + "1234567890-abcdef",
    "AKIA" + "ABCDEFGH" * 2,
    "ASIA" + "ABCDEFGH" * 2,
    "aws_secret_access_key = " + "aB3/" * 10,
    ".".join(["eyJ" + "hbGciOiJI", "eyJ" + "zdWIiOiIx", "dozjgNryP4J3"]),
    "0123456789abcdef" * 2 + "01234567",
    "https://me:" + "pass@hub.example",
    "glpat-" + "a1" * 10,
]


@pytest.mark.parametrize("repo_id", ["no-owner", "a/b/c", "user/..", "user/has space", ""])
def test_a_repo_name_that_the_hub_would_not_take_is_refused(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, repo_id: str
) -> None:
    with pytest.raises(InvalidPublicationError, match="repo_id"):
        publish_to(hub, jumprelu_sae, repo_id)
    assert hub.requests == []


@pytest.mark.parametrize("sae_id", ["", "/a", "a/", "a//b", "../a", "a b", ".a", "a/.b", "x" * 201])
def test_an_id_that_is_no_clean_path_is_refused(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, sae_id: str
) -> None:
    with pytest.raises(InvalidPublicationError, match=r"SAE id .* is not possible"):
        publish_to(hub, {sae_id: jumprelu_sae})
    assert hub.requests == []


def test_two_saes_with_one_default_id_need_ids_of_their_own(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE
) -> None:
    with pytest.raises(InvalidPublicationError, match=r"same id .* ids of your own"):
        publish_to(hub, [jumprelu_sae, jumprelu_sae])
    assert hub.requests == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model_name": None}, "has no model_name"),
        ({"hook_name": None}, "has no hook_name"),
        ({"model_name": "/data/models/llama"}, "model_name='/data/models/llama', which is a local"),
        ({"model_name": "./llama"}, "local path"),
        ({"dataset_path": "/home/me/pile"}, "path of this machine, metadata.dataset_path="),
        ({"dataset_path": "~/pile"}, "path of this machine"),
        ({"note": "see C:\\Users\\me"}, "path of this machine"),
        ({"note": f"token {SECRET}"}, r"looks like a secret in metadata\.note"),
        ({"extra": {"wandb_api_key": "0123"}}, r"secret in metadata\.extra\.wandb_api_key"),
        *(({"note": f"it is {key}"}, r"looks like a secret in metadata\.note") for key in KEYS),
        ({"wandb_api_key": "x"}, "looks like a secret"),
        ({"note": "see (/data/team/run_3)"}, "path of this machine"),
        ({"note": "from /work/run_3/out"}, "path of this machine"),
        ({"note": "from ~/run_3"}, "path of this machine"),
        ({"note": r"from \\server\share"}, "path of this machine"),
        ({"note": "in $HOME"}, "path of this machine"),
        ({"/data/team": 3}, "path of this machine"),
        ({"note": "a\ud800b"}, "half a character"),
        ({"normalize": None, "sae_lens_version": "senseless"}, "could not be loaded by anyone"),
        ({"l0": float("nan")}, r"metadata\.l0=nan, which is not valid JSON"),
        ({"neuronpedia_id": "12-res"}, "Neuronpedia's ids look like"),
    ],
)
def test_metadata_that_must_not_be_published_is_refused(
    hub: LocalHub, sae_folder: Path, metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidPublicationError, match=message) as caught:
        publish_to(hub, {"sae": sae_folder}, metadata=metadata)
    assert SECRET not in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["model_name", "dataset_path"])
def test_a_model_or_dataset_that_is_a_folder_here_is_refused(
    hub: LocalHub, sae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "my" / "own").mkdir(parents=True)
    (tmp_path / "my" / "own" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidPublicationError, match=f"{name}='my/own'"):
        publish_to(hub, {"sae": sae_folder}, metadata={name: "my/own"})


@pytest.mark.parametrize(
    "changes",
    [{"dtype": None}, {"dtype": "int3"}, {"normalize_activations": "unheard-of"}, {"d_in": True}],
)
def test_what_nobody_could_load_is_refused(
    hub: LocalHub, sae_folder: Path, changes: dict[str, Any]
) -> None:
    path = sae_folder / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InvalidPublicationError, match=r"can't be published|loaded by anyone"):
        publish_to(hub, {"sae": sae_folder})
    assert hub.requests == []


@pytest.mark.parametrize("name", ["runner_cfg.json", "sae_weights.safetensors"])
def test_a_file_elsewhere_that_a_link_leads_to_is_not_published(
    hub: LocalHub, sae_folder: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / name
    target.write_bytes((sae_folder / name).read_bytes() if "sae" in name else b'{"mine": 1}')
    (sae_folder / name).unlink(missing_ok=True)
    (sae_folder / name).symlink_to(target)
    with pytest.raises(InvalidPublicationError, match=rf"{name} is a link that leads out"):
        publish_to(hub, {"sae": sae_folder})
    # a folder that is itself linked, and a link inside it, are the user's own
    (sae_folder / name).unlink()
    (sae_folder / "own").write_bytes(target.read_bytes())
    (sae_folder / name).symlink_to(sae_folder / "own")
    (tmp_path / "linked").symlink_to(sae_folder)
    publish_to(hub, {"sae": tmp_path / "linked"})


def test_a_password_in_the_endpoint_is_refused_and_not_shown(
    sae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = "https://me:hunter2@hub.example"
    for call in (
        lambda: publish(sae_folder, REPO, endpoint=endpoint),
        lambda: load(REPO, endpoint=endpoint),
        lambda: list_published(REPO, endpoint=endpoint),
    ):
        with pytest.raises(InvalidPublicationError, match="pass token=") as caught:
            call()
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(InvalidPublicationError, match="HF_ENDPOINT"):
        publish(sae_folder, REPO)


@pytest.mark.parametrize(
    ("license", "hint"),
    [("MIT", "did you mean 'mit'"), ("apache2", "apache-2.0"), ("mit\n# Mine", "other"), ("", "")],
)
def test_a_license_that_the_hub_does_not_know_is_refused(
    hub: LocalHub, sae_folder: Path, license: str, hint: str
) -> None:
    with pytest.raises(InvalidPublicationError, match=f"none that the Hub knows .*{hint}"):
        publish_to(hub, {"sae": sae_folder}, license=license)
    assert hub.requests == []


def test_what_only_looks_like_a_secret_or_a_path_is_published(
    hub: LocalHub, sae_folder: Path
) -> None:
    metadata = {
        "dataset_revision": "0123456789abcdef" * 2 + "01234567",
        "note": "and/or 1/2, see https://huggingface.co/datasets/user/text (blocks.8/hook_z)",
    }
    publish_to(hub, {"sae": sae_folder}, metadata=metadata)


def test_special_tokens_are_no_secrets(hub: LocalHub, sae_folder: Path) -> None:
    tokens = {"bos_token": "<s>", "sequence_separator_token": "bos", "token": None}
    publish_to(hub, {"sae": sae_folder}, metadata={"model_from_pretrained_kwargs": tokens})


def test_a_path_in_the_header_of_a_weights_file_is_not_sent(
    hub: LocalHub, sae_folder: Path
) -> None:
    path = sae_folder / WEIGHTS
    save_file(load_file(path), path, metadata={"trained_at": "/home/me/run"})
    write_checksums(sae_folder)
    publish_to(hub, {"sae": sae_folder})
    assert b"/home/me" not in hub.repos[REPO].files()[f"sae/{WEIGHTS}"]


def test_normalisation_that_is_not_folded_in_is_refused(make_sae: MakeSAE, hub: LocalHub) -> None:
    sae = make_sae(0, normalize_activations="expected_average_only_in")
    with pytest.raises(InvalidPublicationError, match="not folded into its weights"):
        publish_to(hub, sae)


def test_a_file_above_the_hubs_limit_is_refused(
    hub: LocalHub, sae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "MAX_FILE_BYTES", 1000)
    with pytest.raises(InvalidPublicationError, match="publish the SAE in a smaller dtype"):
        publish_to(hub, {"sae": sae_folder})


def test_sources_that_are_no_gba_sae_are_refused(
    hub: LocalHub, sae_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(MissingFileError, match="is not a folder"):
        publish_to(hub, tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"cfg.json is missing"):
        publish_to(hub, tmp_path)
    with pytest.raises(InvalidPublicationError, match="a int can't be published"):
        publish_to(hub, {"sae": 3})
    with pytest.raises(InvalidPublicationError, match="saes is empty"):
        publish_to(hub, [])
    (sae_folder / "gba_groups.safetensors").unlink()
    with pytest.raises(NotAGBASAEError, match="not trained with GBA"):
        publish_to(hub, sae_folder)
    (sae_folder / "cfg.json").write_text("{")
    with pytest.raises(InvalidPublicationError, match="not valid JSON"):
        publish_to(hub, sae_folder)
    assert hub.requests == []


def test_options_for_an_sae_that_is_not_there_are_refused(hub: LocalHub, sae_folder: Path) -> None:
    with pytest.raises(InvalidPublicationError, match=r"evaluations has \['seo'\]"):
        publish_to(hub, {"sae": sae_folder}, evaluations={"seo": {"l0": 3.0}})
    with pytest.raises(InvalidPublicationError, match=r"neuronpedia_ids has \['seo'\]"):
        publish_to(hub, {"sae": sae_folder}, neuronpedia_ids={"seo": "a/b"})
    with pytest.raises(InvalidPublicationError, match="leave out one of the two"):
        publish_to(hub, {"sae": sae_folder}, create_pr=True, revision="dev")
    with pytest.raises(InvalidPublicationError, match="is not empty: name a new one"):
        publish_to(hub, {"sae": sae_folder}, folder=sae_folder)
    assert hub.requests == []


@pytest.mark.parametrize(
    "options",
    [
        {"metadata": {"x": {1, 2}}},
        {"metadata": {"gba": True}},
        {"metadata": {"sae_lens_training_version": {}}},
        {"evaluations": {"sae": True}},
        {"evaluations": {"sae": {"l0": 10**400}}},
        {"evaluations": "x"},
        {"token": "valid\n"},
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_refused(
    hub: LocalHub, sae_folder: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidPublicationError) as caught:
        publish_to(hub, {"sae": sae_folder}, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert hub.requests == []
