"""The network part of publishing: one commit, or the remote as it was."""

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

from sae_lens_gba.errors import HubError, PublishError
from sae_lens_gba.hub.remote_errors import (
    GONE,
    HTTP_LIBRARY_ERROR,
    PERHAPS_OPENED,
    explain,
    http_status,
    is_connection_failure,
    retry_after,
)
from sae_lens_gba.saved.files import read_json

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
    When it ends in an error, a repo or branch created here is removed again.

    Raises:
        AccessError: the token is refused, or may not write there.
        PublishError: all else; in one sentence what to do.
    """
    created = _Created(api, target)
    try:
        for attempt in Retrying(
            retry=retry_if_exception(_is_worth_retrying),
            stop=stop_after_attempt(MAX_ATTEMPTS),
            wait=_wait,
            before_sleep=_log_retry,
            reraise=True,
        ):
            with attempt:
                state = created.state_to_build_on()
                info = _commit(api, target, operations(state), message, state.sha)
        return CommitOutcome(info, changed=info.oid != created.first_sha)
    except BaseException as error:  # an interrupt leaves nothing half-made either
        left_behind = created.undo()
        if isinstance(error, HubError) or not isinstance(error, Exception):
            raise
        explained = explain(error, target.repo_id)
        if explained is None:
            raise
        raise type(explained)(f"{explained}{left_behind}") from error


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


class _Created:
    """Makes sure that repo and branch exist, and removes what it made if need be."""

    def __init__(self, api: HfApi, target: Target):
        self.api, self.target = api, target
        self.first_sha: str | None = None
        self._made_repo = False
        self._branch_at: str | None = None

    def state_to_build_on(self) -> RemoteState:
        target = self.target
        try:
            info = self.api.repo_info(target.repo_id, revision=target.revision)
        except RevisionNotFoundError:
            self._branch_at = self._create_branch()
            info = self.api.repo_info(target.repo_id, revision=target.revision)
        except RepositoryNotFoundError as error:
            if self.first_sha is not None or self._made_repo:
                raise PublishError(GONE.format(repo_id=target.repo_id)) from error
            self._create_repo()
            return self.state_to_build_on()
        if not self._made_repo and target.private and not info.private:
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
        self._made_repo = True

    def _create_branch(self) -> str | None:
        revision = str(self.target.revision)
        if revision.startswith("refs/"):
            raise PublishError(
                f"{self.target.repo_id} has no {revision}: open a pull request with create_pr."
            )
        self.api.create_branch(self.target.repo_id, branch=revision, exist_ok=True)
        return self.api.repo_info(self.target.repo_id, revision=revision).sha

    def undo(self) -> str:
        """Remove a repo or branch made here, if nobody has committed to it since.

        Returns what to add to the error message when that did not work.
        """
        repo_id, revision = self.target.repo_id, self.target.revision
        try:
            if self._made_repo:
                self._delete_repo_unless_used(repo_id)
            elif self._branch_at is not None and revision is not None:
                self._delete_branch_unless_used(repo_id, revision, self._branch_at)
        except RepositoryNotFoundError:
            return ""  # gone already
        except (HfHubHTTPError, HTTP_LIBRARY_ERROR, OSError):
            made = "repo" if self._made_repo else f"branch {revision}"
            return f" The empty {made} made for it could not be removed; it does no harm."
        return ""

    def _delete_repo_unless_used(self, repo_id: str) -> None:
        if self._is_empty("main") and self._is_empty(self.target.revision or "main"):
            self.api.delete_repo(repo_id, missing_ok=True)

    def _is_empty(self, revision: str) -> bool:
        """Whether a branch holds no more than what the Hub puts into a new repo."""
        try:
            files = self.api.list_repo_files(self.target.repo_id, revision=revision)
        except RevisionNotFoundError:
            return True
        return set(files) <= {".gitattributes"}

    def _delete_branch_unless_used(self, repo_id: str, branch: str, first_sha: str) -> None:
        if self.api.repo_info(repo_id, revision=branch).sha == first_sha:
            self.api.delete_branch(repo_id, branch=branch)


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
    if isinstance(error, HubError):
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
