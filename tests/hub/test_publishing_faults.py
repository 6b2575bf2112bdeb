"""After every fault the remote is as before or as wanted, and a second run succeeds."""

import _thread
import signal
from pathlib import Path

import pytest
from local_hub import Fault, LocalHub
from tiny_training import REPO, contents
from tiny_training import publish_to as publish_any

from sae_lens_gba.errors import AccessError, PublishError
from sae_lens_gba.hub.publishing import Publication

COMMIT = "POST .*/commit/"


@pytest.fixture(params=["into a new repo", "into a repo in use"])
def used_hub(hub: LocalHub, request: pytest.FixtureRequest) -> LocalHub:
    if request.param == "into a repo in use":
        repo = hub.create(REPO)
        repo.commit("main", {"README.md": b"# Mine\n", "notes.txt": b"keep"}, "mine")
    return hub


def publish_to(hub: LocalHub, folder: Path, **options: object) -> Publication:
    return publish_any(hub, {"sae": folder}, **options)


def is_published(hub: LocalHub) -> bool:
    files = hub.repos[REPO].files() if REPO in hub.repos else {}
    return {"README.md", "sae/cfg.json", "sae/sae_weights.safetensors"} <= set(files)


def fails_cleanly(hub: LocalHub, folder: Path, error: type[Exception], message: str) -> None:
    """Publishing fails, leaves both sides as they were, and works once the fault is gone."""
    remote, local = hub.snapshot(), contents(folder)
    with pytest.raises(error, match=message) as caught:
        publish_to(hub, folder)
    assert "\n" not in str(caught.value)
    assert hub.snapshot() == remote
    assert contents(folder) == local
    hub.faults.clear()
    publish_to(hub, folder)
    assert is_published(hub)


def test_a_refused_token_is_not_tried_again(
    used_hub: LocalHub, sae_folder: Path, waits: list[float]
) -> None:
    before = used_hub.snapshot()
    with pytest.raises(AccessError, match=r"refused the token .*\(401\): log in"):
        publish_to(used_hub, sae_folder, token="wrong")
    assert used_hub.snapshot() == before
    assert waits == []
    publish_to(used_hub, sae_folder)
    assert is_published(used_hub)


@pytest.mark.parametrize(
    ("status", "message"), [(401, r"\(401\): log in"), (403, r"may not write to .*\(403\)")]
)
def test_a_commit_without_permission_is_not_tried_again(
    used_hub: LocalHub, sae_folder: Path, status: int, message: str, waits: list[float]
) -> None:
    used_hub.faults = [Fault(COMMIT, status=status, times=99)]
    fails_cleanly(used_hub, sae_folder, AccessError, message)
    assert waits == []
    assert used_hub.n_requests(COMMIT) == 2  # the refused one, and the second run's


def test_a_namespace_without_permission_is_an_access_error(
    hub: LocalHub, sae_folder: Path, waits: list[float]
) -> None:
    hub.faults = [Fault("POST /api/repos/create", status=403, times=99)]
    fails_cleanly(hub, sae_folder, AccessError, "may not write to user/tiny-gba-saes")
    assert waits == []


def test_a_repo_that_vanishes_before_the_commit_is_reported(
    used_hub: LocalHub, sae_folder: Path
) -> None:
    def delete(hub: LocalHub) -> None:
        del hub.repos[REPO]

    used_hub.faults = [Fault(COMMIT, kind="call", action=delete)]
    local = contents(sae_folder)
    with pytest.raises(PublishError, match="was deleted while it was being published to"):
        publish_to(used_hub, sae_folder)
    assert used_hub.repos == {}
    assert contents(sae_folder) == local
    publish_to(used_hub, sae_folder)
    assert is_published(used_hub)


def test_a_repo_that_vanishes_between_two_attempts_is_not_made_again(
    hub: LocalHub, sae_folder: Path
) -> None:
    hub.create(REPO)

    def delete(hub: LocalHub) -> None:
        del hub.repos[REPO]

    # the first attempt ends in a drop; the next begins with a look at the repo
    hub.faults = [
        Fault(COMMIT, kind="drop"),
        Fault(f"GET /api/models/{REPO}$", kind="call", action=lambda _: None),
        Fault(f"GET /api/models/{REPO}$", kind="call", action=delete),
    ]
    with pytest.raises(PublishError, match="was deleted while it was being published to"):
        publish_to(hub, sae_folder)
    assert hub.n_requests("POST /api/repos/create") == 0
    assert hub.repos == {}


def test_a_repo_that_another_publisher_has_just_made_is_used(
    hub: LocalHub, sae_folder: Path
) -> None:
    hub.faults = [
        Fault("POST /api/repos/create", kind="call", action=lambda hub: hub.create(REPO) and None)
    ]
    publish_to(hub, sae_folder)
    assert is_published(hub)


@pytest.mark.parametrize("status", [409, 412])
def test_a_conflict_is_met_by_reading_the_remote_again(
    used_hub: LocalHub, sae_folder: Path, status: int
) -> None:
    used_hub.faults = [Fault(COMMIT, status=status)]
    publish_to(used_hub, sae_folder)
    assert is_published(used_hub)
    assert used_hub.n_requests(COMMIT) == 2


def test_a_conflict_that_does_not_end_leaves_the_remote_as_it_was(
    used_hub: LocalHub, sae_folder: Path
) -> None:
    used_hub.faults = [Fault(COMMIT, status=409, times=99)]
    fails_cleanly(used_hub, sae_folder, PublishError, r"others kept committing .*\(409\)")


def test_a_rate_limit_is_waited_out_as_long_as_the_hub_asks(
    used_hub: LocalHub, sae_folder: Path, waits: list[float]
) -> None:
    used_hub.faults = [Fault(COMMIT, status=429, headers={"Retry-After": "17"})]
    publish_to(used_hub, sae_folder)
    assert is_published(used_hub)
    assert waits == [17.0]


def test_a_rate_limit_without_end_says_when_to_come_back(
    used_hub: LocalHub, sae_folder: Path
) -> None:
    used_hub.faults = [Fault(COMMIT, status=429, headers={"Retry-After": "17"}, times=99)]
    fails_cleanly(used_hub, sae_folder, PublishError, r"\(429\): .* again in 17 seconds")


def test_two_server_errors_are_tried_again_with_growing_waits(
    used_hub: LocalHub, sae_folder: Path, waits: list[float]
) -> None:
    used_hub.faults = [Fault(COMMIT, status=500, times=2)]
    publish_to(used_hub, sae_folder)
    assert is_published(used_hub)
    assert used_hub.n_requests(COMMIT) == 3
    assert waits == [1.0, 2.0]


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


def test_server_errors_without_end_leave_the_remote_as_it_was(
    used_hub: LocalHub, sae_folder: Path
) -> None:
    used_hub.faults = [Fault(COMMIT, status=502, times=99)]
    fails_cleanly(used_hub, sae_folder, PublishError, r"problem of its own \(502\).* again later")


def test_a_dropped_connection_is_tried_again(used_hub: LocalHub, sae_folder: Path) -> None:
    used_hub.faults = [Fault(COMMIT, kind="drop")]
    publish_to(used_hub, sae_folder)
    assert is_published(used_hub)


def test_a_connection_that_keeps_dropping_leaves_the_remote_as_it_was(
    used_hub: LocalHub, sae_folder: Path
) -> None:
    used_hub.faults = [Fault(COMMIT, kind="drop", times=99)]
    fails_cleanly(used_hub, sae_folder, PublishError, "connection to the Hub failed")


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


def test_a_repo_is_removed_again_when_the_hub_fails_right_after_making_it(
    hub: LocalHub, sae_folder: Path
) -> None:
    def fail_from_now_on(hub: LocalHub) -> None:
        hub.faults = [
            Fault(f"GET /api/models/{REPO}$", status=500, times=99),
            Fault("POST ", status=500, times=99),
        ]

    hub.faults = [Fault("POST /api/repos/create", kind="call", action=fail_from_now_on)]
    with pytest.raises(PublishError, match="problem of its own"):
        publish_to(hub, sae_folder)
    assert hub.n_requests("POST /api/repos/create") == 1
    assert hub.repos == {}


def test_a_branch_made_for_a_commit_that_fails_is_removed_again(
    hub: LocalHub, sae_folder: Path
) -> None:
    hub.create(REPO)
    before = hub.snapshot()
    hub.faults = [Fault(COMMIT, status=403)]
    with pytest.raises(AccessError):
        publish_to(hub, sae_folder, revision="v2")
    assert hub.snapshot() == before


def test_a_repo_that_could_not_be_removed_again_is_mentioned(
    hub: LocalHub, sae_folder: Path
) -> None:
    hub.faults = [
        Fault(COMMIT, status=403),
        Fault("DELETE /api/repos/delete", status=403),
    ]
    with pytest.raises(AccessError, match="The empty repo made for it could not be removed"):
        publish_to(hub, sae_folder)


def test_two_publishers_at_once_both_get_their_sae_and_one_card_with_both(
    used_hub: LocalHub, sae_folder: Path
) -> None:
    def other_publisher(hub: LocalHub) -> None:
        publish_any(hub, {"other": sae_folder})

    # between our reading of the remote and our commit
    used_hub.faults = [Fault(COMMIT, kind="call", action=other_publisher)]
    publish_to(used_hub, sae_folder)
    files = used_hub.repos[REPO].files()
    assert {"sae/cfg.json", "other/cfg.json"} <= set(files)
    card = files["README.md"].decode()
    assert "| `sae` |" in card
    assert "| `other` |" in card


def test_a_repo_that_others_commit_to_is_not_removed_when_our_commit_fails(
    hub: LocalHub, sae_folder: Path
) -> None:
    def other_commit(hub: LocalHub) -> None:
        hub.repos[REPO].commit("main", {"theirs.txt": b"theirs"}, "theirs")

    hub.faults = [
        Fault(COMMIT, kind="call", action=other_commit),
        Fault(COMMIT, status=403, times=99),
    ]
    with pytest.raises(AccessError):
        publish_to(hub, sae_folder)
    assert hub.repos[REPO].files() == {"theirs.txt": b"theirs"}


def test_an_interrupt_before_the_commit_leaves_no_empty_repo(
    hub: LocalHub, sae_folder: Path
) -> None:
    hub.faults = [
        Fault("POST .*/preupload/", kind="call", action=lambda _: _thread.interrupt_main())
    ]
    # a process started in the background may ignore the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            publish_to(hub, sae_folder)
    finally:
        signal.signal(signal.SIGINT, before)
    assert hub.n_requests("POST /api/repos/create") == 1
    assert hub.repos == {}
