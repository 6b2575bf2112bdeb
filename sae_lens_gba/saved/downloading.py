"""Files of a repo on the Hub, through the cache of huggingface_hub."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from sae_lens_gba.errors import (
    AccessError,
    ConnectionFailedError,
    DamagedFileError,
    HubError,
    MissingFileError,
)
from sae_lens_gba.hub.remote_errors import HTTP_LIBRARY_ERROR, http_status
from sae_lens_gba.hub.validation import check_repo_id


def download(api: HfApi, repo_id: str, patterns: list[str], **options: Any) -> Path:
    """The folder of the cached snapshot, with the files that match ``patterns`` in it.

    Args:
        options: of `huggingface_hub.snapshot_download`.

    Raises:
        MissingFileError: the repo or revision does not exist.
        AccessError: the repo is private or gated, and the token not good for it.
        DamagedFileError: a file arrived truncated.
        ConnectionFailedError: the Hub can't be reached, and the cache does not have it all.
    """
    check_repo_id(repo_id)
    try:
        return Path(api.snapshot_download(repo_id, allow_patterns=patterns, **options))
    except Exception as error:
        explained = _explain(error, repo_id, options.get("revision"))
        if explained is None:
            raise
        raise explained from error


def _explain(error: Exception, repo_id: str, revision: str | None) -> HubError | None:
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
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return DamagedFileError(f"a file of {repo_id} arrived truncated: load it again.")
    if status is None and not isinstance(error, OSError | HTTP_LIBRARY_ERROR):
        return None
    reason = f"it answered with {status}" if status else type(error.__cause__ or error).__name__
    return ConnectionFailedError(
        f"{repo_id} can't be had from the Hub ({reason}) and is not in the cache in whole: check "
        "the network and HF_HUB_OFFLINE, then load it again."
    )
