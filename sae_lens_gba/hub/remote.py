"""The network part of publishing: one commit, or none and a sentence that says what to do."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import (
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_gba.errors import AccessError, GBAError, PublishError
from sae_lens_gba.saved.downloading import (
    cache_errors,
    http_status,
    is_answer,
    is_connection_failure,
)

MAX_ATTEMPTS = 5

_GONE = (
    "{repo_id} was deleted while it was being published to: nothing is there now; publish again "
    "to create it anew, if that was not meant."
)
_CONFLICT = (
    "others kept committing to {repo_id} while it was being published to ({status}): nothing was "
    "published; try again when they are done."
)
_OF_STATUS = {
    401: "the Hub refused the token for {repo_id} (401): log in with 'hf auth login', or pass a "
    "valid token; nothing was published.",
    403: "this token may not write to {repo_id} (403): use one with write access to {owner}, "
    "or open a pull request with create_pr; nothing was published.",
    404: _GONE,
    409: _CONFLICT,
    412: _CONFLICT,
    429: "the Hub limits how often you may call it (429): publish to {repo_id} again {when}; "
    "nothing was published.",
    500: "the Hub has a problem of its own ({status}): publish to {repo_id} again later; nothing "
    "was published.",
}

Operation = CommitOperationAdd | CommitOperationDelete

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteState:
    """What a branch holds.

    Attributes:
        sha: its last commit.
        files: paths of all its files.
        folder: where README.md and each cfg.json lie, as they are there; no weights do.
    """

    sha: str | None = None
    files: frozenset[str] = frozenset()
    folder: Path = Path()


Operations = Callable[[RemoteState], list[Operation]]


@dataclass
class Remote:
    """Where to commit; repo and branch are made where they do not exist.

    Attributes:
        repo_id, revision, create_pr, private: as in `publish`; a revision may be refs/pr/<n>.
        first_sha: last commit of the branch when it was first looked at.
        made: "repo" or "branch ..." where it had to be made.
    """

    api: HfApi
    repo_id: str
    revision: str | None = None
    create_pr: bool = False
    private: bool | None = None
    first_sha: str | None = field(default=None, init=False)
    made: str | None = field(default=None, init=False)

    def commit(self, operations: Operations, message: str) -> CommitInfo:
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
            StorageError: the cache of huggingface_hub can't be written, or its disk is full.
            PublishError: all else; in one sentence what to do.
        """
        try:
            return self._commit_patiently(operations, message)
        except Exception as error:
            explained = error if isinstance(error, GBAError) else _explain(error, self.repo_id)
            # after a 404 it is gone, and what was made here with it
            left = self.made if http_status(error) != 404 else None
            if explained is None or (explained is error and left is None):
                raise
            note = "" if left is None else f" The {left} that was made for it stays."
            raise type(explained)(f"{explained}{note}") from error

    def _commit_patiently(self, operations: Operations, message: str) -> CommitInfo:
        for attempt in range(MAX_ATTEMPTS - 1):
            try:
                return self._commit_once(operations, message)
            except Exception as error:
                if not _is_worth_retrying(error):
                    raise
                wanted = _retry_after(error)
                seconds = 2.0**attempt if wanted is None else wanted
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                logger.warning("publishing: %s; trying again in %.0f s", reason, seconds)
                time.sleep(seconds)
        return self._commit_once(operations, message)

    def _commit_once(self, operations: Operations, message: str) -> CommitInfo:
        state = self._state_to_build_on()
        self.first_sha = self.first_sha or state.sha
        try:
            return self.api.create_commit(
                self.repo_id,
                operations(state),
                commit_message=message,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=state.sha,
            )
        except Exception as error:
            # after a lost answer, the same files make no second commit; but a second pull request
            status = http_status(error)
            lost = is_connection_failure(error) if status is None else status >= 500
            if self.create_pr and lost:
                raise PublishError(
                    f"the answer to the pull request for {self.repo_id} was lost: look whether it "
                    "is there, under Community, before you publish again."
                ) from error
            raise

    def _state_to_build_on(self) -> RemoteState:
        try:
            info = self.api.model_info(self.repo_id, revision=self.revision)
        except RevisionNotFoundError:
            self._create_branch()
            info = self.api.model_info(self.repo_id, revision=self.revision)
        except RepositoryNotFoundError as error:
            if self.first_sha is not None or self.made:
                raise PublishError(_GONE.format(repo_id=self.repo_id)) from error
            self._create_repo()
            return self._state_to_build_on()
        if self.private and not info.private:
            raise PublishError(
                f"{self.repo_id} exists and is public, but private=True: make it private in its "
                "settings on the Hub, or choose another repo_id."
            )
        wanted = [REPOCARD_NAME, SAE_CFG_FILENAME, f"*/{SAE_CFG_FILENAME}"]
        with cache_errors():
            folder = self.api.snapshot_download(
                self.repo_id, revision=info.sha, allow_patterns=wanted
            )
        files = frozenset(sibling.rfilename for sibling in info.siblings or [])
        return RemoteState(info.sha, files, Path(folder))

    def _create_repo(self) -> None:
        if self.create_pr:
            raise PublishError(
                f"{self.repo_id} does not exist (or this token can't see it), so there is "
                "nothing to open a pull request against: publish without create_pr."
            )
        # exist_ok: another publisher may be faster
        self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
        self.made = "repo"

    def _create_branch(self) -> None:
        revision = str(self.revision)
        if revision.startswith("refs/"):
            raise PublishError(
                f"{self.repo_id} has no {revision}: open a pull request with create_pr."
            )
        self.api.create_branch(self.repo_id, branch=revision, exist_ok=True)
        self.made = self.made or f"branch {revision}"


def _is_worth_retrying(error: Exception) -> bool:
    if isinstance(error, GBAError | OfflineModeIsEnabled):
        return False
    status = http_status(error)
    if status is not None:
        # 409 and 412: somebody committed between our reading and our commit
        return status in (409, 412, 429) or status >= 500
    return is_connection_failure(error)


def _retry_after(error: BaseException | None) -> float | None:
    """Seconds that the Hub asks to wait, None where it does not."""
    if is_answer(error):
        seconds = error.response.headers.get("Retry-After", "")
        if seconds.isdecimal():
            return float(seconds)
    return None


def _explain(error: Exception, repo_id: str) -> GBAError | None:
    """An error of huggingface_hub as one sentence that says what to do; None if it is none."""
    status = http_status(error)
    sentence = _OF_STATUS.get(min(status or 0, 500))
    reason = " ".join(str(error).split()) or type(error).__name__
    if sentence is not None:
        wait = _retry_after(error)
        when = "later" if wait is None else f"in {wait:.0f} seconds"
        kind = AccessError if status in (401, 403) else PublishError
        owner = repo_id.split("/")[0]
        return kind(sentence.format(repo_id=repo_id, owner=owner, status=status, when=when))
    if status is not None:
        return PublishError(f"the Hub rejected the commit to {repo_id}: {reason}")
    if is_connection_failure(error):
        return PublishError(
            f"the connection to the Hub failed while publishing to {repo_id} ({reason}): check the "
            f"network and publish again; {repo_id} holds either all of it or nothing."
        )
    if isinstance(error, ValueError):  # huggingface_hub's, when the Hub finds fault with the card
        return PublishError(f"the model card for {repo_id} was not accepted: {reason}")
    return None
