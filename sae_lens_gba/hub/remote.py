"""The network part of publishing: one commit, or none."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_exponential

from sae_lens_gba.errors import GBAError, PublishError
from sae_lens_gba.hub.remote_errors import GONE, PERHAPS_OPENED, explain, retry_after
from sae_lens_gba.saved.files import read_json
from sae_lens_gba.saved.hub_errors import http_status, is_connection_failure

MAX_ATTEMPTS = 5

Operation = CommitOperationAdd | CommitOperationDelete

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """Where to commit.

    Attributes:
        repo_id: user/name.
        revision: a branch, created from main when new, or refs/pr/<n>; None is main.
        create_pr: open a pull request instead of committing to the branch.
        private: visibility of a repo that is created; None is the owner's default.
    """

    repo_id: str
    revision: str | None = None
    create_pr: bool = False
    private: bool | None = None


@dataclass(frozen=True)
class RemoteState:
    """What a branch holds.

    Attributes:
        sha: its last commit.
        files: paths of all its files.
        card: text of README.md, None without one.
        configs: content of each cfg.json, by the id of its SAE.
    """

    sha: str
    files: frozenset[str] = frozenset()
    card: str | None = None
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class CommitOutcome:
    """The commit that now holds the files.

    Attributes:
        info: as `HfApi.create_commit` gives it.
        changed: False when the remote held identical files already.
    """

    info: CommitInfo
    changed: bool


def commit_all(
    api: HfApi,
    target: Target,
    operations: Callable[[RemoteState], list[Operation]],
    message: str,
) -> CommitOutcome:
    """Commit ``operations(state of the remote)`` in one piece.

    Rate limits, server errors, dropped connections and other people's commits in between are
    met by reading the remote's state again and trying again, at most MAX_ATTEMPTS times.
    When it ends in an error, a repo or branch made for it stays, and the message says so.

    Raises:
        AccessError: the token is refused, or may not write there.
        PublishError: all else; in one sentence what to do.
    """
    place = _Place(api, target)
    try:
        for attempt in Retrying(
            retry=retry_if_exception(_is_worth_retrying),
            stop=stop_after_attempt(MAX_ATTEMPTS),
            wait=_wait,
            before_sleep=_log_retry,
            reraise=True,
        ):
            with attempt:
                state = place.state_to_build_on()
                info = _commit(api, target, operations(state), message, state.sha)
        return CommitOutcome(info, changed=info.oid != place.first_sha)
    except Exception as error:
        explained = error if isinstance(error, GBAError) else explain(error, target.repo_id)
        # after a 404 it is gone, and what was made here with it
        left = place.made if http_status(error) != 404 else None
        if explained is None or (explained is error and left is None):
            raise
        note = "" if left is None else f" The {left} that was made for it stays."
        raise type(explained)(f"{explained}{note}") from error


def _commit(
    api: HfApi, target: Target, operations: list[Operation], message: str, parent: str
) -> CommitInfo:
    try:
        return api.create_commit(
            target.repo_id,
            operations,
            commit_message=message,
            revision=target.revision,
            create_pr=target.create_pr,
            parent_commit=parent,
        )
    except Exception as error:
        # after a lost answer, the same files make no second commit; but a second pull request
        status = http_status(error)
        lost = is_connection_failure(error) if status is None else status >= 500
        if target.create_pr and lost:
            raise PublishError(PERHAPS_OPENED.format(repo_id=target.repo_id)) from error
        raise


class _Place:
    """Repo and branch of a target, made where they do not exist.

    Attributes:
        first_sha: last commit of the branch when it was first looked at.
        made: "repo" or "branch ..." where it had to be made.
    """

    def __init__(self, api: HfApi, target: Target):
        self.api, self.target = api, target
        self.first_sha: str | None = None
        self.made: str | None = None

    def state_to_build_on(self) -> RemoteState:
        target = self.target
        try:
            info = self.api.repo_info(target.repo_id, revision=target.revision)
        except RevisionNotFoundError:
            self._create_branch()
            info = self.api.repo_info(target.repo_id, revision=target.revision)
        except RepositoryNotFoundError as error:
            if self.first_sha is not None or self.made:
                raise PublishError(GONE.format(repo_id=target.repo_id)) from error
            self._create_repo()
            return self.state_to_build_on()
        if self.made != "repo" and target.private and not info.private:
            raise PublishError(
                f"{target.repo_id} exists and is public, but private=True: make it private in its "
                "settings on the Hub, or choose another repo_id."
            )
        state = read_state(self.api, target.repo_id, str(info.sha))
        self.first_sha = self.first_sha or state.sha
        return state

    def _create_repo(self) -> None:
        target = self.target
        if target.create_pr:
            raise PublishError(
                f"{target.repo_id} does not exist (or this token can't see it), so there is "
                "nothing to open a pull request against: publish without create_pr."
            )
        try:
            self.api.create_repo(target.repo_id, private=target.private)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            return  # another publisher was faster
        self.made = "repo"

    def _create_branch(self) -> None:
        revision = str(self.target.revision)
        if revision.startswith("refs/"):
            raise PublishError(
                f"{self.target.repo_id} has no {revision}: open a pull request with create_pr."
            )
        self.api.create_branch(self.target.repo_id, branch=revision, exist_ok=True)
        self.made = self.made or f"branch {revision}"


def read_state(api: HfApi, repo_id: str, sha: str) -> RemoteState:
    """Files, card and SAE configurations of one commit; no weights are downloaded."""
    files = frozenset(api.list_repo_files(repo_id, revision=sha))
    wanted = ["README.md", "cfg.json", "*/cfg.json"]
    card, configs = None, {}
    if "README.md" in files or any(name.endswith("/cfg.json") for name in files):
        folder = Path(api.snapshot_download(repo_id, revision=sha, allow_patterns=wanted))
        if "README.md" in files:
            card = (folder / "README.md").read_text(encoding="utf-8")
        for name in sorted(files):
            if name.endswith("/cfg.json"):
                configs[name.removesuffix("/cfg.json")] = read_json(folder / name)
    return RemoteState(sha, files, card, configs)


def _is_worth_retrying(error: BaseException) -> bool:
    if isinstance(error, GBAError):
        return False
    status = http_status(error)
    if status is not None:
        # 409 and 412: somebody committed between our reading and our commit
        return status in (409, 412, 429) or status >= 500
    return is_connection_failure(error)


_exponential = wait_exponential(multiplier=1, max=30)


def _wait(retry_state: RetryCallState) -> float:
    error = retry_state.outcome.exception() if retry_state.outcome else None
    wanted = retry_after(error)
    return _exponential(retry_state) if wanted is None else wanted


def _log_retry(retry_state: RetryCallState) -> None:
    error = retry_state.outcome.exception() if retry_state.outcome else None
    logger.warning(
        "publishing: %s; trying again in %.0f s",
        str(error).strip().splitlines()[0] if error else "failed",
        retry_state.upcoming_sleep,
    )
