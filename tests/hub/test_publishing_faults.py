"""After every fault the remote has its files as before or as wanted, and a second run works."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from sae_lens_gba.errors import (
    AccessError,
    InvalidPublicationError,
    PublishError,
    StorageError,
)
from sae_lens_gba.hub.publishing import Publication, publish
from tests.hub_fixtures import REPO, contents, room_for
from tests.hub_fixtures import publish_to as publish_any
from tests.local_hub import Fault, LocalHub

COMMIT = "POST .*/commit/"
FOR_EVER = 99


@pytest.fixture(params=["into a new repo", "into a repo in use"])
def used_hub(hub: LocalHub, request: pytest.FixtureRequest) -> LocalHub:
    if request.param == "into a repo in use":
        repo = hub.create(REPO)
        repo.commit("main", {"README.md": b"# Mine\n", "notes.txt": b"keep"}, "mine")
    return hub


def publish_to(hub: LocalHub, folder: Path, **options: Any) -> Publication:
    return publish_any(hub, {"sae": folder}, **options)


def is_published(hub: LocalHub) -> bool:
    files = hub.repos[REPO].files() if REPO in hub.repos else {}
    return {"README.md", "sae/cfg.json", "sae/sae_weights.safetensors"} <= set(files)


def fails_cleanly(
    hub: LocalHub, folder: Path, error: type[Exception], message: str, **options: Any
) -> None:
    """Publishing fails, leaves the files of both sides as they were, and then works.

    All that may be new is an empty repo, which the message then mentions.
    """
    remote, local = hub.snapshot(), contents(folder)
    with pytest.raises(error, match=message) as caught:
        publish_to(hub, folder, **options)
    assert "\n" not in str(caught.value)
    made = [name for name in hub.repos if name not in remote]
    assert {name: state for name, state in hub.snapshot().items() if name not in made} == remote
    assert all(set(hub.repos[name].files()) == {".gitattributes"} for name in made)
    assert ("repo that was made for it stays" in str(caught.value)) == bool(made)
    assert contents(folder) == local
    hub.faults.clear()
    publish_to(hub, folder)
    assert is_published(hub)


@pytest.mark.parametrize(
    ("fault", "waited"),
    [
        # 409, 412: somebody committed in between
        ({"path": COMMIT, "status": 409}, [1.0]),
        ({"path": COMMIT, "status": 412}, [1.0]),
        # the Hub says how long to wait
        ({"path": COMMIT, "status": 429, "headers": {"Retry-After": "17"}}, [17.0]),
        ({"path": COMMIT, "status": 500, "times": 2}, [1.0, 2.0]),
        ({"path": COMMIT, "kind": "drop"}, [1.0]),
    ],
)
def test_a_commit_that_fails_for_a_while_is_tried_again(
    used_hub: LocalHub,
    sae_folder: Path,
    waits: list[float],
    fault: dict[str, Any],
    waited: list[float],
) -> None:
    used_hub.faults = [Fault(**fault)]
    publish_to(used_hub, sae_folder)
    assert is_published(used_hub)
    assert used_hub.n_requests(COMMIT) == 1 + len(waited)
    assert waits == waited


@pytest.mark.parametrize(
    "request_path",
    ["GET /api/models/", "POST /api/validate-yaml", "POST .*/preupload/", "GET .*/tree/"],
)
def test_a_server_error_before_the_commit_is_tried_again(
    used_hub: LocalHub, sae_folder: Path, request_path: str
) -> None:
    used_hub.faults = [Fault(request_path, status=500, times=2)]
    publish_to(used_hub, sae_folder)
    assert is_published(used_hub)


@pytest.mark.parametrize("kind", ["truncate", "shorten", "drop"])
def test_a_card_that_arrives_truncated_is_read_again(
    hub: LocalHub, sae_folder: Path, kind: str
) -> None:
    hub.create(REPO).commit("main", {"README.md": b"# Mine, all of it\n"}, "mine")
    hub.faults = [Fault("GET .*/resolve/.*/README.md", kind=kind)]
    publish_to(hub, sae_folder)
    assert b"# Mine, all of it\n" in hub.repos[REPO].files()["README.md"]
    assert is_published(hub)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 409}, r"others kept committing .*\(409\)"),
        ({"status": 429, "headers": {"Retry-After": "17"}}, r"\(429\): .* again in 17 seconds"),
        ({"status": 502}, r"problem of its own \(502\).* again later"),
        ({"kind": "drop"}, "connection to the Hub failed"),
    ],
)
def test_a_commit_that_fails_without_end_leaves_the_files_as_they_were(
    used_hub: LocalHub, sae_folder: Path, fault: dict[str, Any], message: str
) -> None:
    used_hub.faults = [Fault(COMMIT, times=FOR_EVER, **fault)]
    fails_cleanly(used_hub, sae_folder, PublishError, message)


@pytest.mark.parametrize(
    ("statuses", "options", "message"),
    [
        ([401], {}, r"\(401\): log in"),
        ([403], {}, r"may not write to .*\(403\)"),
        ([], {"token": "wrong"}, r"refused the token .*\(401\): log in"),
    ],
)
def test_what_is_not_permitted_is_not_tried_again(
    used_hub: LocalHub,
    sae_folder: Path,
    statuses: list[int],
    options: dict[str, str],
    message: str,
    waits: list[float],
) -> None:
    used_hub.faults = [Fault(COMMIT, status=status, times=FOR_EVER) for status in statuses]
    fails_cleanly(used_hub, sae_folder, AccessError, message, **options)
    assert waits == []
    assert used_hub.n_requests(COMMIT) == len(statuses) + 1  # the second run's


def test_a_namespace_without_permission_is_an_access_error(
    hub: LocalHub, sae_folder: Path, waits: list[float]
) -> None:
    hub.faults = [Fault("POST /api/repos/create", status=403, times=FOR_EVER)]
    fails_cleanly(hub, sae_folder, AccessError, "may not write to user/tiny-gba-saes")
    assert waits == []


def test_a_repo_that_vanishes_before_the_commit_is_reported(
    used_hub: LocalHub, sae_folder: Path
) -> None:
    used_hub.faults = [Fault(COMMIT, kind="call", action=lambda hub: hub.repos.pop(REPO))]
    local = contents(sae_folder)
    with pytest.raises(PublishError, match="was deleted while it was being published to") as caught:
        publish_to(used_hub, sae_folder)
    assert "stays" not in str(caught.value)
    assert used_hub.repos == {}
    assert contents(sae_folder) == local
    publish_to(used_hub, sae_folder)
    assert is_published(used_hub)


def test_offline_nothing_is_tried_again(
    hub: LocalHub, sae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def refuse(*_: Any, **__: Any) -> None:
        tries.append("once")
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(PublishError):
        publish_to(hub, sae_folder)
    assert len(tries) == 1
    with pytest.raises(InvalidPublicationError, match="endpoint='notaurl' is no address"):
        publish(sae_folder, REPO, endpoint="notaurl", license="mit")


def test_a_repo_that_vanishes_between_two_attempts_is_not_made_again(
    hub: LocalHub, sae_folder: Path
) -> None:
    hub.create(REPO)
    # the first attempt ends in a drop; the next begins with a look at the repo
    hub.faults = [
        Fault(COMMIT, kind="drop"),
        Fault(f"GET /api/models/{REPO}$", kind="call", action=lambda _: None),
        Fault(f"GET /api/models/{REPO}$", kind="call", action=lambda hub: hub.repos.pop(REPO)),
    ]
    with pytest.raises(PublishError, match="was deleted while it was being published to"):
        publish_to(hub, sae_folder)
    assert hub.n_requests("POST /api/repos/create") == 0
    assert hub.repos == {}


def test_a_repo_that_another_publisher_has_just_made_is_used(
    hub: LocalHub, sae_folder: Path
) -> None:
    made = Fault("POST /api/repos/create", kind="call", action=lambda hub: hub.create(REPO))
    hub.faults = [made]
    publish_to(hub, sae_folder)
    assert is_published(hub)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    used_hub: LocalHub, sae_folder: Path
) -> None:
    used_hub.faults = [Fault(COMMIT, kind="drop_after")]
    result = publish_to(used_hub, sae_folder)
    assert is_published(used_hub)
    assert used_hub.repos[REPO].titles.count("Publish sae") == 1
    assert result.commit_oid == used_hub.repos[REPO].branches["main"]
    assert result.changed


def test_a_pull_request_whose_answer_was_lost_is_not_opened_twice(
    hub: LocalHub, sae_folder: Path
) -> None:
    hub.create(REPO)
    hub.faults = [Fault(COMMIT, kind="drop_after")]
    with pytest.raises(PublishError, match="look whether it is there"):
        publish_to(hub, sae_folder, create_pr=True)
    assert hub.repos[REPO].n_pull_requests == 1


def test_a_hub_that_is_not_there_is_one_clear_sentence(sae_folder: Path) -> None:
    with LocalHub() as gone:
        pass
    with pytest.raises(PublishError, match="check the network and publish again"):
        publish_to(gone, sae_folder)


def test_a_hub_that_fails_right_after_making_the_repo_makes_it_once(
    hub: LocalHub, sae_folder: Path
) -> None:
    def fail_from_now_on(hub: LocalHub) -> None:
        hub.faults = [
            Fault(f"GET /api/models/{REPO}$", status=500, times=FOR_EVER),
            Fault("POST ", status=500, times=FOR_EVER),
        ]

    hub.faults = [Fault("POST /api/repos/create", kind="call", action=fail_from_now_on)]
    fails_cleanly(hub, sae_folder, PublishError, "problem of its own")
    assert hub.n_requests("POST /api/repos/create") == 1


def test_a_branch_made_for_a_commit_that_fails_is_mentioned(
    hub: LocalHub, sae_folder: Path
) -> None:
    before = hub.create(REPO).files()
    hub.faults = [Fault(COMMIT, status=403)]
    with pytest.raises(AccessError, match="The branch v2 that was made for it stays"):
        publish_to(hub, sae_folder, revision="v2")
    assert hub.repos[REPO].files("main") == hub.repos[REPO].files("v2") == before


def test_two_publishers_at_once_both_get_their_sae_and_one_card_with_both(
    used_hub: LocalHub, sae_folder: Path
) -> None:
    # between our reading of the remote and our commit
    other = partial(publish_any, saes={"other": sae_folder})
    used_hub.faults = [Fault(COMMIT, kind="call", action=other)]
    publish_to(used_hub, sae_folder)
    files = used_hub.repos[REPO].files()
    assert {"sae/cfg.json", "other/cfg.json"} <= set(files)
    card = files["README.md"].decode()
    assert "| `sae` |" in card
    assert "| `other` |" in card


@pytest.mark.parametrize("place", ["temporary", "kept"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_full_disk_here_is_one_sentence_before_anything_is_sent(
    hub: LocalHub, sae_folder: Path, tmp_path: Path, place: str, dry_run: bool
) -> None:
    before = contents(tmp_path)
    options: dict[str, Any] = {"dry_run": dry_run}
    if place == "kept":
        options["folder"] = tmp_path / "out"
    advice = r"free some space, or name a folder on another disk( \(TMPDIR\))?\.$"
    with room_for(2000), pytest.raises(StorageError, match=advice) as caught:
        publish_any(hub, {"sae": sae_folder}, **options)
    assert ("TMPDIR" in str(caught.value)) == (place == "temporary")
    assert "\n" not in str(caught.value)
    assert hub.requests == []
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob("sae-lens-gba-*")) and not (tmp_path / "out").exists()
    publish_any(hub, {"sae": sae_folder}, **options)
    assert is_published(hub) != dry_run


def test_a_cache_without_room_for_the_card_leaves_the_files_as_they_were(
    hub: LocalHub, sae_folder: Path, waits: list[float]
) -> None:
    hub.create(REPO).commit("main", {"README.md": b"# Mine\n" * 5000}, "mine")
    remote = hub.snapshot()
    with room_for(20_000), pytest.raises(StorageError, match=r"free some space.*HF_HOME"):
        publish_to(hub, sae_folder)
    assert (hub.snapshot(), waits) == (remote, [])
    publish_to(hub, sae_folder)
    assert is_published(hub)


def test_no_place_for_temporary_files_is_one_sentence(
    hub: LocalHub, sae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    with pytest.raises(StorageError, match=r"TMPDIR"):
        publish_to(hub, sae_folder)
    publish_any(hub, {"sae": sae_folder}, folder=tmp_path / "out")
    assert is_published(hub)
