"""How `load` and `list_published` fail: each fault its own error, in one sentence."""

import errno
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

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
    StorageError,
    WrongShapeError,
)
from sae_lens_gba.saved.loading import list_published, load
from tests.hub_fixtures import (
    D_SAE,
    GROUPS,
    HUB_BEFORE_1,
    REPO,
    WEIGHTS,
    activations,
    room_for,
)
from tests.local_hub import Fault, LocalHub

Damage = Callable[[Path], object]

SPARSITY = "sparsity.safetensors"
SCALER = "activation_scaler.json"
NESTED = b'{"a":' * 100_000


def content(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def truncated(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def missing(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def cfg(**changes: Any) -> Damage:
    def write(folder: Path) -> None:
        path = folder / "cfg.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return write


def tensors(name: str, version: str = "1", **changes: torch.Tensor | None) -> Damage:
    """Other tensors in a safetensors file; None leaves one out, _ stands for a dot."""

    def write(folder: Path) -> None:
        new = {key.replace("adapter_", "adapter."): value for key, value in changes.items()}
        kept = {**load_file(folder / name), **new}
        save = {key: value for key, value in kept.items() if value is not None}
        save_file(save, folder / name, metadata={"format_version": version})

    return write


def full(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((D_SAE,), value).to(dtype)


NEWER_SETTING = {
    "metadata": {"training_architecture": "gba", "training_architecture_details": {"resonance": 3}}
}


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        # cfg.json
        (content("cfg.json", b"{"), DamagedFileError, r"cfg\.json is not valid JSON"),
        (content("cfg.json", b"[]"), DamagedFileError, r"cfg\.json holds a list"),
        (content("cfg.json", b"\xff\xfe"), DamagedFileError, r"cfg\.json is not valid JSON"),
        (content("cfg.json", NESTED), DamagedFileError, r"cfg\.json is not valid JSON"),
        (cfg(note="\ud800"), DamagedFileError, r"cfg\.json is not valid JSON"),
        (cfg(metadata="GBA"), DamagedFileError, "metadata='GBA', not an object"),
        (cfg(metadata={"gba": "yes"}), DamagedFileError, r"metadata\.gba='yes', not an object"),
        (cfg(**NEWER_SETTING), NewerFormatError, r"\['resonance'\]: pip install --upgrade"),
        (cfg(architecture="topk"), NotAGBASAEError, "architecture='topk'"),
        (cfg(d_in="16"), DamagedFileError, "d_in='16': a positive integer is needed"),
        (cfg(d_sae=10**12), WrongShapeError, r"by cfg.json it should be \(1000000000000,\)"),
        (cfg(normalize_activations=3), DamagedFileError, "can't be loaded"),
        # weights
        (missing(WEIGHTS), MissingFileError, f"{WEIGHTS} is missing"),
        (truncated(WEIGHTS), DamagedFileError, f"{WEIGHTS} is corrupt or truncated"),
        (tensors(WEIGHTS, b_dec=torch.zeros(3)), WrongShapeError, r"b_dec of shape \(3,\), .*16"),
        (tensors(WEIGHTS, W_enc=full(0.0)), WrongShapeError, r"W_enc of shape \(32,\)"),
        (tensors(WEIGHTS, threshold=None), WrongShapeError, "lacks threshold"),
        (tensors(WEIGHTS, extra=full(0.0)), WrongShapeError, "extra of .* should be absent"),
        (tensors(WEIGHTS, b_enc=full(torch.nan)), DamagedFileError, "NaN or Inf in b_enc"),
        (tensors(WEIGHTS, b_enc=full(0, torch.int32)), DamagedFileError, "int32 in b_enc"),
        (
            tensors(WEIGHTS, b_enc=full(0, torch.float8_e4m3fn)),
            DamagedFileError,
            "float8.* in b_enc",
        ),
        # groups
        (missing(GROUPS), NotAGBASAEError, "SAELens itself loads it"),
        (truncated(GROUPS), DamagedFileError, f"{GROUPS} is corrupt or truncated"),
        (tensors(GROUPS, "2", group=None), NewerFormatError, "format version 2, .* --upgrade"),
        (tensors(GROUPS, "abc"), DamagedFileError, "format_version='abc', not a number"),
        (tensors(GROUPS, group=torch.arange(16)), WrongShapeError, r"group .* \(16,\), .* \(32,\)"),
        (tensors(GROUPS, group=torch.arange(D_SAE) + 1), DamagedFileError, "without a gap"),
        (tensors(GROUPS, group=torch.arange(D_SAE) - 1), DamagedFileError, "without a gap"),
        (tensors(GROUPS, target_frequency=full(0.0)), DamagedFileError, "shares of samples"),
        (tensors(GROUPS, target_frequency=full(1.5)), DamagedFileError, "shares of samples"),
        (tensors(GROUPS, measured_frequency=full(torch.nan)), DamagedFileError, "of samples"),
        # what else may be there
        (content(SPARSITY, b"12345678"), DamagedFileError, f"{SPARSITY} is corrupt or truncated"),
        (content("runner_cfg.json", NESTED), DamagedFileError, "runner_cfg.json is not valid"),
        (content(SCALER, b"[]"), DamagedFileError, "can't be loaded"),
        (content(SCALER, b'{"scaling_factor": 0}'), DamagedFileError, "scaling_factor=0"),
    ],
)
def test_a_damaged_folder_is_one_sentence(
    sae_folder: Path, damage: Damage, error: type[Exception], message: str
) -> None:
    damage(sae_folder)
    with pytest.raises(error, match=message) as caught:
        load(sae_folder)
    assert isinstance(caught.value, GBAError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (missing(WEIGHTS), MissingFileError, f"{WEIGHTS} is missing"),
        (truncated(WEIGHTS), DamagedFileError, "corrupt or truncated"),
        (cfg(d_sae=10**12), WrongShapeError, r"W_dec of shape \(32, 16\)"),
        (cfg(n_groups="many"), DamagedFileError, "n_groups='many'"),
        (cfg(**NEWER_SETTING), NewerFormatError, r"\['resonance'\]: pip install --upgrade"),
        (cfg(n_grups=3), DamagedFileError, "n_grups=3 .* did you mean 'n_groups'"),
        (tensors(WEIGHTS, adapter_group=None), DamagedFileError, r"adapter\.group"),
        (tensors(WEIGHTS, adapter_group=torch.arange(32) - 9), DamagedFileError, "can't be load"),
        (tensors(WEIGHTS, b_dec=torch.full((16,), torch.inf)), DamagedFileError, "Inf in b_dec"),
        (content(SCALER, b"{"), DamagedFileError, "can't be loaded"),
        (content(SCALER, b'{"scaling_factor": NaN}'), DamagedFileError, "scaling_factor=nan"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(
    mid_run_checkpoint: Path, damage: Damage, error: type[Exception], message: str
) -> None:
    damage(mid_run_checkpoint)
    with pytest.raises(error, match=message) as caught:
        load(mid_run_checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        '{"metadata": 3}',
        '{"metadata": {"gba": {"groups": [{"size": 3}]}}}',
        f'{{"metadata": {{"l0": 1{"0" * 400}}}}}',
        '{"architecture": {"a": 1}}',
        '{"metadata": {"sae_lens_training_version": {}}}',
    ],
)
def test_a_broken_entry_does_not_hide_the_others(
    sae_folder: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    (sae_folder / "other").mkdir()
    (sae_folder / "other" / "cfg.json").write_text(broken)
    assert [listed.sae_id for listed in list_published(sae_folder)] == ["."]
    assert "other is left out of the list" in caplog.text


def test_a_folder_or_repo_that_does_not_exist_is_named(hub: LocalHub, tmp_path: Path) -> None:
    for nowhere in (tmp_path / "nowhere", "./nowhere"):
        with pytest.raises(MissingFileError, match="does not exist: pass a folder"):
            load(nowhere)
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


@pytest.mark.skipif(HUB_BEFORE_1, reason="it is huggingface_hub 1 that resumes")
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
    with pytest.raises(ConnectionFailedError, match="check the name, the network"):
        load(REPO, "a/jumprelu", endpoint=gone.endpoint)


def test_a_repo_deleted_after_the_look_at_it_is_named(published: LocalHub) -> None:
    published.faults = [Fault("HEAD ", kind="call", action=lambda hub: hub.repos.clear())]
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


@pytest.mark.parametrize("read", [partial(load, sae_id="a/jumprelu"), list_published])
def test_a_full_cache_is_no_failure_of_the_connection(
    published: LocalHub, tmp_path: Path, read: Callable[..., Any]
) -> None:
    read = partial(read, REPO, endpoint=published.endpoint, cache_dir=tmp_path / "mine")
    with (
        room_for(500),
        pytest.raises(StorageError, match=r"free some space.*\(cache_dir") as caught,
    ):
        read()
    assert "\n" not in str(caught.value)
    assert read()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_cache_that_may_not_be_written_is_no_failure_of_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "no", str(tmp_path / "mine" / "models--user--repo"))

    monkeypatch.setattr("sae_lens_gba.saved.downloading.snapshot_download", refuse)
    with pytest.raises(StorageError, match=r"read-only or not yours.*HF_HOME"):
        load(REPO, cache_dir=tmp_path / "mine")


def test_a_message_is_short_whatever_the_file_says(sae_folder: Path) -> None:
    cfg(architecture="x" * 10**6)(sae_folder)
    with pytest.raises(NotAGBASAEError) as caught:
        load(sae_folder)
    assert len(str(caught.value)) < 1000


def test_a_json_file_larger_than_any_is_not_read(sae_folder: Path) -> None:
    os.truncate(sae_folder / "cfg.json", 10**12)  # has holes: takes no room
    with pytest.raises(DamagedFileError, match="more than 64 MiB"):
        load(sae_folder)
    assert list_published(sae_folder) == []


@pytest.mark.parametrize("source", ["a" * 300 + "/b", "./" + "a" * 300])
def test_a_name_that_no_file_can_have_is_one_sentence(source: str) -> None:
    for read in (load, list_published):
        with pytest.raises(GBAError) as caught:
            read(source)
        assert "\n" not in str(caught.value)


def test_a_folder_of_somebody_else_is_an_access_error(
    sae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(sae_folder))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(AccessError, match="you have no permission"):
        load(sae_folder)


@pytest.mark.parametrize("token", ["valid\n", " valid", "vali\N{LATIN SMALL LETTER D WITH CARON}"])
def test_a_token_that_can_be_none_is_not_shown(published: LocalHub, token: str) -> None:
    published.requests.clear()
    with pytest.raises(InvalidPublicationError, match="token has a line break") as caught:
        load(REPO, endpoint=published.endpoint, token=token)
    assert "vali" not in str(caught.value)
    assert published.requests == []
