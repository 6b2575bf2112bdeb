"""What an error of huggingface_hub means for the one who publishes."""

from huggingface_hub.errors import HfHubHTTPError

from sae_lens_gba.errors import AccessError, GBAError, PublishError
from sae_lens_gba.saved.hub_errors import http_status, is_connection_failure

GONE = (
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
    404: GONE,
    409: _CONFLICT,
    412: _CONFLICT,
    429: "the Hub limits how often you may call it (429): publish to {repo_id} again {when}; "
    "nothing was published.",
    500: "the Hub has a problem of its own ({status}): publish to {repo_id} again later; nothing "
    "was published.",
}


def retry_after(error: BaseException | None) -> float | None:
    """Seconds that the Hub asks to wait, None where it does not."""
    if isinstance(error, HfHubHTTPError):
        seconds = error.response.headers.get("Retry-After", "")
        if seconds.isdecimal():
            return float(seconds)
    return None


def explain(error: Exception, repo_id: str) -> GBAError | None:
    """An error of huggingface_hub as one sentence that says what to do; None if it is none."""
    status = http_status(error)
    sentence = _OF_STATUS.get(min(status or 0, 500))
    reason = " ".join(str(error).split()) or type(error).__name__
    if sentence is not None:
        wait = retry_after(error)
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
