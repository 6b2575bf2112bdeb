"""The network part of publishing: one commit, or none."""

import logging
import time
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

from sae_lens_gba.errors import GBAError, PublishError
from sae_lens_gba.hub.remote_errors import GONE, PERHAPS_OPENED, explain, retry_after
from sae_lens_gba.saved.files import read_cfg
from sae_lens_gba.saved.hub_errors import http_status, is_connection_failure

MAX_ATTEMPTS = 5

Operation = CommitOperationAdd | CommitOperationDelete

logger = logging.getLogger(__name__)


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


@dataclass
class Remote:
    """Where to commit; repo and branch are made where they do not exist.

    Attributes:
        repo_id: user/name.
        revision: a branch, created from main when new, or refs/pr/<n>; None is main.
        create_pr: open a pull request instead of committing to the branch.
        private: visibility of a repo that is created; None is the owner's default.
        state: what the last attempt to commit was built on.
        first_sha: last commit of the branch when it was first looked at.
        made: "repo" or "branch ..." where it had to be made.
    """

    api: HfApi
    repo_id: str
    revision: str | None = None
    create_pr: bool = False
    private: bool | None = None
    state: RemoteState = field(default_factory=lambda: RemoteState(""), init=False)
    first_sha: str | None = field(default=None, init=False)
    made: str | None = field(default=None, init=False)

    def commit(
        self, operations: Callable[[RemoteState], list[Operation]], message: str
    ) -> CommitInfo:
        """Commit ``operations(state of the remote)`` in one piece.

        Rate limits, server errors, dropped connections and other people's commits in between
        are met by reading the remote's state again and trying again, at most MAX_ATTEMPTS
        times. When it ends in an error, a repo or branch made for it stays, and the message
        says so.

        Returns:
            As of `HfApi.create_commit`; its ``oid`` is ``first_sha`` where the remote held
            identical files already.

        Raises:
            AccessError: the token is refused, or may not write there.
            PublishError: all else; in one sentence what to do.
        """
        try:
            return self._commit_patiently(operations, message)
        except Exception as error:
            explained = error if isinstance(error, GBAError) else explain(error, self.repo_id)
            # after a 404 it is gone, and what was made here with it
            left = self.made if http_status(error) != 404 else None
            if explained is None or (explained is error and left is None):
                raise
            note = "" if left is None else f" The {left} that was made for it stays."
            raise type(explained)(f"{explained}{note}") from error

    def _commit_patiently(
        self, operations: Callable[[RemoteState], list[Operation]], message: str
    ) -> CommitInfo:
        for attempt in range(MAX_ATTEMPTS - 1):
            try:
                return self._commit_once(operations, message)
            except Exception as error:
                if not _is_worth_retrying(error):
                    raise
                wanted = retry_after(error)
                seconds = 2.0**attempt if wanted is None else wanted
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                logger.warning("publishing: %s; trying again in %.0f s", reason, seconds)
                time.sleep(seconds)
        return self._commit_once(operations, message)

    def _commit_once(
        self, operations: Callable[[RemoteState], list[Operation]], message: str
    ) -> CommitInfo:
        self.state = self._state_to_build_on()
        self.first_sha = self.first_sha or self.state.sha
        try:
            return self.api.create_commit(
                self.repo_id,
                operations(self.state),
                commit_message=message,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=self.state.sha,
            )
        except Exception as error:
            # after a lost answer, the same files make no second commit; but a second pull request
            status = http_status(error)
            lost = is_connection_failure(error) if status is None else status >= 500
            if self.create_pr and lost:
                raise PublishError(PERHAPS_OPENED.format(repo_id=self.repo_id)) from error
            raise

    def _state_to_build_on(self) -> RemoteState:
        try:
            info = self.api.repo_info(self.repo_id, revision=self.revision)
        except RevisionNotFoundError:
            self._create_branch()
            info = self.api.repo_info(self.repo_id, revision=self.revision)
        except RepositoryNotFoundError as error:
            if self.first_sha is not None or self.made:
                raise PublishError(GONE.format(repo_id=self.repo_id)) from error
            self._create_repo()
            return self._state_to_build_on()
        if self.made != "repo" and self.private and not info.private:
            raise PublishError(
                f"{self.repo_id} exists and is public, but private=True: make it private in its "
                "settings on the Hub, or choose another repo_id."
            )
        return read_state(self.api, self.repo_id, str(info.sha))

    def _create_repo(self) -> None:
        if self.create_pr:
            raise PublishError(
                f"{self.repo_id} does not exist (or this token can't see it), so there is "
                "nothing to open a pull request against: publish without create_pr."
            )
        try:
            self.api.create_repo(self.repo_id, private=self.private)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            return  # another publisher was faster
        self.made = "repo"

    def _create_branch(self) -> None:
        revision = str(self.revision)
        if revision.startswith("refs/"):
            raise PublishError(
                f"{self.repo_id} has no {revision}: open a pull request with create_pr."
            )
        self.api.create_branch(self.repo_id, branch=revision, exist_ok=True)
        self.made = self.made or f"branch {revision}"


def read_state(api: HfApi, repo_id: str, sha: str) -> RemoteState:
    """Files, card and SAE configurations of one commit; no weights are downloaded."""
    files = frozenset(api.list_repo_files(repo_id, revision=sha))
    wanted = ["README.md", "cfg.json", "*/cfg.json"]
    folder = Path(api.snapshot_download(repo_id, revision=sha, allow_patterns=wanted))
    configs = {}
    for name in sorted(name for name in files if name.endswith("/cfg.json")):
        try:
            configs[name.removesuffix("/cfg.json")] = read_cfg((folder / name).parent)
        except GBAError as error:  # of others, perhaps
            logger.warning("publishing: the card leaves out %s (%s)", name, error)
    card = (folder / "README.md").read_text(encoding="utf-8") if "README.md" in files else None
    return RemoteState(sha, files, card, configs)


def _is_worth_retrying(error: Exception) -> bool:
    if isinstance(error, GBAError):
        return False
    status = http_status(error)
    if status is not None:
        # 409 and 412: somebody committed between our reading and our commit
        return status in (409, 412, 429) or status >= 500
    return is_connection_failure(error)
