"""Files of a repo on the Hub, through the cache of huggingface_hub, and what its errors mean."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeGuard

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from sae_lens_gba.atomic_write import storage_errors
from sae_lens_gba.errors import (
    AccessError,
    ConnectionFailedError,
    DamagedFileError,
    GBAError,
    InvalidPublicationError,
    MissingFileError,
    StorageError,
)

# of httpx or httpx2, as the version of huggingface_hub has it; before 1 of requests, whose
# HTTPError has a base that it shares with failures of the connection
_BASE = HfHubHTTPError.__bases__[0]
HTTP_LIBRARY_ERROR: type[Exception] = (
    _BASE.__bases__[0] if _BASE.__module__.startswith("requests") else _BASE
)
_REPO_ID = re.compile(
    r"(?!.*(--|\.\.|\.git$))\b[\w.-]+\b/\b[\w.-]{1,96}\b", re.ASCII
)  # the rules of huggingface_hub, with an owner

_TOKEN = re.compile(r"[!-~]+")  # what may stand in a header


def check_repo_id(repo_id: str) -> None:
    """Raise InvalidPublicationError unless it is of the form user/name, as the Hub takes it."""
    if not _REPO_ID.fullmatch(repo_id):
        raise InvalidPublicationError(
            f"repo_id={repo_id!r} is not possible: write it as 'user-or-organisation/name', in "
            "letters, digits and single - _ . between them, the name with at most 96."
        )


def check_endpoint(endpoint: str | None) -> None:
    """Raise InvalidPublicationError for what is no address, or one with a password.

    Tracebacks would show that.
    """
    if "@" in (endpoint or constants.ENDPOINT).split("?")[0]:
        raise InvalidPublicationError(
            "endpoint (or HF_ENDPOINT) has a user or password in it, which every error message "
            "would show: take it out and pass token=..., or use 'hf auth login'."
        )
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise InvalidPublicationError(
            f"endpoint={endpoint!r} is no address: give one such as 'https://huggingface.co'."
        )


def check_token(token: str | bool | None) -> None:
    """Raise InvalidPublicationError for what is no token: the connection's error would show it."""
    if isinstance(token, str) and not _TOKEN.fullmatch(token):
        raise InvalidPublicationError(
            "token has a line break, a space or another character that tokens don't have: take it "
            "out, or leave token out and use 'hf auth login'."
        )


def download(repo_id: str, patterns: list[str], **options: Any) -> Path:
    """The folder of the cached snapshot, with the files that match ``patterns`` in it.

    Args:
        options: of `huggingface_hub.snapshot_download`, such as endpoint and token.

    Raises:
        MissingFileError: the repo or revision does not exist.
        AccessError: the repo is private or gated, and the token not good for it.
        DamagedFileError: a file arrived truncated.
        ConnectionFailedError: the Hub can't be reached, and the cache does not have it all.
        StorageError: the cache can't be written, or its disk is full.
    """
    check_repo_id(repo_id)
    check_endpoint(options.get("endpoint"))
    check_token(options.get("token"))
    try:
        options["library_name"] = "sae-lens-gba"
        with cache_errors(options.get("cache_dir")):
            return Path(snapshot_download(repo_id, allow_patterns=patterns, **options))
    except StorageError:
        raise
    except Exception as error:
        explained = _explain(error, repo_id, options.get("revision"))
        if explained is None:
            raise
        raise explained from error


def cache_errors(cache_dir: str | Path | None = None) -> AbstractContextManager[None]:
    """`storage_errors` of the cache of huggingface_hub; None is its own."""
    return storage_errors(Path(cache_dir or constants.HF_HUB_CACHE), "cache_dir or HF_HOME")


def _explain(error: Exception, repo_id: str, revision: str | None) -> GBAError | None:
    status = http_status(error)
    if isinstance(error, RevisionNotFoundError):
        return MissingFileError(f"{repo_id} has no revision {revision!r}: look at its branches.")
    if status in (401, 403):
        return AccessError(
            f"{repo_id} can't be read ({status}): it does not exist, or is private or gated; log "
            "in with 'hf auth login', or pass a token that may read it."
        )
    if isinstance(error, RepositoryNotFoundError):
        return MissingFileError(f"{repo_id} does not exist on the Hub: check the name.")
    if arrived_truncated(error):
        return DamagedFileError(f"a file of {repo_id} arrived truncated: load it again.")
    if status is None and not isinstance(error, OSError | HTTP_LIBRARY_ERROR):
        return None
    reason = f"it answered with {status}" if status else type(error.__cause__ or error).__name__
    return ConnectionFailedError(
        f"{repo_id} is no folder here, not available from the Hub ({reason}) and not completely "
        "in the cache: check the name, the network and HF_HUB_OFFLINE, then load it again."
    )


def http_status(error: BaseException | None) -> int | None:
    """Status of the HTTP answer that an error came from, directly or as its cause."""
    for cause in _with_causes(error):
        if is_answer(cause):
            return int(cause.response.status_code)
    return None


def is_answer(error: BaseException | None) -> TypeGuard[HfHubHTTPError]:
    """Whether an error has an answer of the Hub; before huggingface_hub 1 not all of them do."""
    return isinstance(error, HfHubHTTPError) and getattr(error, "response", None) is not None


def arrived_truncated(error: BaseException) -> bool:
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def is_connection_failure(error: BaseException | None) -> bool:
    """Whether an error came from a connection that failed before there was a whole answer."""
    failures = HTTP_LIBRARY_ERROR | ConnectionError | TimeoutError
    return any(
        arrived_truncated(cause) or (isinstance(cause, failures) and not is_answer(cause))
        for cause in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
