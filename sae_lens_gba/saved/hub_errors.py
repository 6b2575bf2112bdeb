"""What lies behind an error of huggingface_hub."""

from huggingface_hub.errors import HfHubHTTPError

# huggingface_hub has changed from requests to httpx to httpx2: the base class of all errors
# of the library below is the last of that library among the ancestors
_LIBRARY = HfHubHTTPError.__bases__[0].__module__.partition(".")[0]
HTTP_LIBRARY_ERROR: type[Exception] = [
    ancestor
    for ancestor in HfHubHTTPError.__mro__
    if ancestor.__module__.partition(".")[0] == _LIBRARY
][-1]


def http_status(error: BaseException | None) -> int | None:
    """Status of the HTTP answer that an error came from, directly or as its cause."""
    while error is not None:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return int(error.response.status_code)
        error = error.__cause__
    return None


def arrived_truncated(error: BaseException) -> bool:
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def is_connection_failure(error: BaseException | None) -> bool:
    """Whether an error came from a connection that failed before there was a whole answer."""
    while error is not None:
        if arrived_truncated(error):
            return True
        if not isinstance(error, HfHubHTTPError) and isinstance(
            error, HTTP_LIBRARY_ERROR | ConnectionError | TimeoutError
        ):
            return True
        error = error.__cause__
    return False
