"""What an error of huggingface_hub means for the one who publishes."""

from huggingface_hub.errors import HfHubHTTPError

from sae_lens_gba.errors import AccessError, GBAError, PublishError
from sae_lens_gba.saved.hub_errors import http_status, is_connection_failure


def retry_after(error: BaseException | None) -> float | None:
    """Seconds that the Hub asks to wait, None where it does not."""
    if isinstance(error, HfHubHTTPError):
        seconds = error.response.headers.get("Retry-After", "")
        if seconds.isdecimal():
            return float(seconds)
    return None


PERHAPS_OPENED = (
    "the answer to the pull request for {repo_id} was lost: look whether it is there, under "
    "Community, before you publish again."
)

GONE = (
    "{repo_id} was deleted while it was being published to: nothing is there now; publish again "
    "to create it anew, if that was not meant."
)


def explain(error: Exception, repo_id: str) -> GBAError | None:
    """An error of huggingface_hub as one sentence that says what to do; None if it is none."""
    status = http_status(error)
    if status is not None:
        return _explain_status(status, error, repo_id)
    if is_connection_failure(error):
        return PublishError(
            f"the connection to the Hub failed while publishing to {repo_id} "
            f"({_one_line(error)}): check the network and publish again; {repo_id} holds either "
            "all of it or nothing."
        )
    if isinstance(error, ValueError):  # huggingface_hub's, when the Hub finds fault with the card
        return PublishError(f"the model card for {repo_id} was not accepted: {_one_line(error)}")
    return None


def _explain_status(status: int, error: Exception, repo_id: str) -> GBAError:
    if status == 401:
        return AccessError(
            f"the Hub refused the token for {repo_id} (401): log in with 'hf auth login', or pass "
            "a valid token; nothing was published."
        )
    if status == 403:
        return AccessError(
            f"this token may not write to {repo_id} (403): use one with write access to "
            f"{repo_id.split('/')[0]}, or open a pull request with create_pr; nothing was "
            "published."
        )
    if status == 404:
        return PublishError(GONE.format(repo_id=repo_id))
    if status in (409, 412):
        return PublishError(
            f"others kept committing to {repo_id} while it was being published to ({status}): "
            "nothing was published; try again when they are done."
        )
    if status == 429:
        wait = retry_after(error)
        when = f"in {wait:.0f} seconds" if wait is not None else "later"
        return PublishError(
            f"the Hub limits how often you may call it (429): publish to {repo_id} again {when}; "
            "nothing was published."
        )
    if status >= 500:
        return PublishError(
            f"the Hub has a problem of its own ({status}): publish to {repo_id} again later; "
            "nothing was published."
        )
    return PublishError(f"the Hub rejected the commit to {repo_id}: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
