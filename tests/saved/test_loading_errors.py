"""How `load` and `list_published` fail: each fault its own error, in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from local_hub import Fault, LocalHub
from safetensors.torch import load_file, save_file
from tiny_training import REPO, activations, edit

from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.errors import (
    AccessError,
    ConnectionFailedError,
    DamagedFileError,
    GBAError,
    InvalidPublicationError,
    MissingFileError,
    NewerFormatError,
    NotAGBASAEError,
    WrongShapeError,
)
from sae_lens_gba.saved.loading import list_published, load

WEIGHTS = "sae_weights.safetensors"
GROUPS = "gba_groups.safetensors"


def _damaged(tensors: dict[str, torch.Tensor], path: Path, version: str = "1") -> bytes:
    save_file(tensors, path, metadata={"format_version": version})
    return path.read_bytes()


@pytest.mark.parametrize("name", [WEIGHTS, GROUPS, "sparsity.safetensors"])
def test_a_truncated_safetensors_file_is_named(published: LocalHub, name: str) -> None:
    hub = published
    content = hub.repos[REPO].files()[f"a/jumprelu/{name}"]
    edit(hub, **{name: content[:-9]})
    with pytest.raises(DamagedFileError, match=f"{name} is corrupt or truncated"):
        load(REPO, "a/jumprelu", endpoint=hub.endpoint)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_cfg_that_is_no_json_object_is_named(published: LocalHub, content: bytes) -> None:
    edit(published, **{"cfg.json": content})
    with pytest.raises(DamagedFileError, match=r"cfg\.json"):
        load(REPO, "a/jumprelu", endpoint=published.endpoint)


def test_a_missing_weights_file_is_named(published: LocalHub) -> None:
    edit(published, **{WEIGHTS: None})
    with pytest.raises(MissingFileError, match=f"{WEIGHTS} is missing"):
        load(REPO, "a/jumprelu", endpoint=published.endpoint)


def test_an_sae_without_groups_is_not_a_gba_sae(published: LocalHub) -> None:
    edit(published, **{GROUPS: None})
    with pytest.raises(NotAGBASAEError, match="SAELens itself loads it"):
        load(REPO, "a/jumprelu", endpoint=published.endpoint)


def test_a_newer_groups_format_asks_for_an_upgrade(published: LocalHub, tmp_path: Path) -> None:
    groups = load(REPO, "a/jumprelu", endpoint=published.endpoint).groups
    newer = _damaged({"shares": groups.target_frequency}, tmp_path / "g", version="2")
    edit(published, **{GROUPS: newer})
    with pytest.raises(NewerFormatError, match=r"format version 2, .* --upgrade"):
        load(REPO, "a/jumprelu", endpoint=published.endpoint)


def test_a_newer_training_config_asks_for_an_upgrade(sae_folder: Path) -> None:
    cfg = json.loads((sae_folder / "cfg.json").read_text())
    cfg["metadata"]["training_architecture_details"]["resonance"] = 3
    (sae_folder / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(NewerFormatError, match=r"\['resonance'\]: pip install --upgrade"):
        load(sae_folder)


def test_groups_of_another_sae_do_not_fit(published: LocalHub, tmp_path: Path) -> None:
    half = {
        "group": torch.zeros(16, dtype=torch.long),
        "target_frequency": torch.full((16,), 0.1),
        "measured_frequency": torch.full((16,), 0.1),
    }
    edit(published, **{GROUPS: _damaged(half, tmp_path / "g")})
    with pytest.raises(WrongShapeError, match=r"group of shape \(16,\), .* \(32,\)"):
        load(REPO, "a/jumprelu", endpoint=published.endpoint)


def test_weights_of_another_shape_do_not_fit(sae_folder: Path) -> None:
    weights = load_file(sae_folder / WEIGHTS)
    save_file({**weights, "b_dec": torch.zeros(3)}, sae_folder / WEIGHTS)
    with pytest.raises(WrongShapeError, match=r"b_dec of shape \(3,\), .* \(16,\)"):
        load(sae_folder)


def test_another_architecture_is_left_to_saelens(sae_folder: Path) -> None:
    cfg = json.loads((sae_folder / "cfg.json").read_text())
    (sae_folder / "cfg.json").write_text(json.dumps({**cfg, "architecture": "topk"}))
    with pytest.raises(NotAGBASAEError, match="architecture='topk'"):
        load(sae_folder)


def test_a_folder_or_repo_that_does_not_exist_is_named(hub: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="does not exist: pass a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="does not exist: pass a folder"):
        load("./nowhere")
    with pytest.raises(MissingFileError, match="there is no SAE in it"):
        load(tmp_path)
    with pytest.raises(MissingFileError, match="user/nothing does not exist on the Hub"):
        load("user/nothing", endpoint=hub.endpoint)
    with pytest.raises(InvalidPublicationError, match="repo_id"):
        load("user/not possible", endpoint=hub.endpoint)


def test_a_revision_that_does_not_exist_is_named(published: LocalHub) -> None:
    with pytest.raises(MissingFileError, match="no revision 'v9'"):
        load(REPO, "a/jumprelu", revision="v9", endpoint=published.endpoint)
    with pytest.raises(MissingFileError, match="no revision 'v9'"):
        list_published(REPO, revision="v9", endpoint=published.endpoint)


def test_a_private_repo_needs_a_token(published: LocalHub) -> None:
    published.repos[REPO].private = True
    with pytest.raises(AccessError, match="log in with 'hf auth login'"):
        load(REPO, "a/jumprelu", endpoint=published.endpoint)
    load(REPO, "a/jumprelu", endpoint=published.endpoint, token=published.token)


# --- a bad network ---


def test_a_download_that_breaks_off_is_resumed(
    published: LocalHub, jumprelu_sae: GBATrainingSAE
) -> None:
    published.faults = [Fault(f"GET .*/{WEIGHTS}", kind="truncate", times=2)]
    loaded = load(REPO, "a/jumprelu", endpoint=published.endpoint)
    x = activations(8)
    torch.testing.assert_close(loaded.sae(x), jumprelu_sae(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("drop", ConnectionFailedError), ("shorten", DamagedFileError), ("status", GBAError)],
)
def test_a_download_that_never_works_leaves_a_cache_that_a_second_try_can_use(
    published: LocalHub, kind: str, error: type[Exception]
) -> None:
    published.faults = [Fault(f"GET .*/{WEIGHTS}", kind=kind, times=99)]
    with pytest.raises(error, match=REPO) as caught:
        load(REPO, "a/jumprelu", endpoint=published.endpoint)
    assert "\n" not in str(caught.value)
    published.faults.clear()
    assert load(REPO, "a/jumprelu", endpoint=published.endpoint).sae_id == "a/jumprelu"


def test_a_hub_out_of_order_is_one_sentence_unless_the_cache_helps(published: LocalHub) -> None:
    published.faults = [Fault("GET /api/", status=503, times=99)]
    with pytest.raises(ConnectionFailedError, match="answered with 503"):
        load(REPO, "a/jumprelu", endpoint=published.endpoint)
    published.faults.clear()
    load(REPO, "a/jumprelu", endpoint=published.endpoint)
    published.faults = [Fault("GET /api/", status=503, times=99)]
    assert load(REPO, "a/jumprelu", endpoint=published.endpoint).sae_id == "a/jumprelu"


def test_a_hub_that_is_not_there_is_one_sentence() -> None:
    with LocalHub() as gone:
        pass
    with pytest.raises(ConnectionFailedError, match="check the network"):
        load(REPO, "a/jumprelu", endpoint=gone.endpoint)


def test_a_repo_deleted_after_the_look_at_it_is_named(published: LocalHub) -> None:
    def delete(hub: LocalHub) -> None:
        hub.repos.clear()

    published.faults = [Fault("HEAD ", kind="call", action=delete)]
    with pytest.raises(MissingFileError, match="does not exist on the Hub"):
        load(REPO, "a/jumprelu", endpoint=published.endpoint)


def test_offline_without_a_cache_says_so(
    published: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionFailedError, match="HF_HUB_OFFLINE"):
        load(REPO, "a/jumprelu", endpoint=published.endpoint)


def test_a_cache_folder_of_ones_own_is_used(published: LocalHub, tmp_path: Path) -> None:
    load(REPO, "a/jumprelu", endpoint=published.endpoint, cache_dir=tmp_path / "mine")
    assert list((tmp_path / "mine").rglob(WEIGHTS))
