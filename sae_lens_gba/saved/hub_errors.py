"""What lies behind an error of huggingface_hub."""

from collections.abc import Iterator

from huggingface_hub.errors import HfHubHTTPError

# of httpx or httpx2, as the version of huggingface_hub has it
HTTP_LIBRARY_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


def http_status(error: BaseException | None) -> int | None:
    """Status of the HTTP answer that an error came from, directly or as its cause."""
    for cause in _with_causes(error):
        if isinstance(cause, HfHubHTTPError):
            return int(cause.response.status_code)
    return None


def arrived_truncated(error: BaseException) -> bool:
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def is_connection_failure(error: BaseException | None) -> bool:
    """Whether an error came from a connection that failed before there was a whole answer."""
    failures = HTTP_LIBRARY_ERROR | ConnectionError | TimeoutError
    return any(
        arrived_truncated(cause)
        or (isinstance(cause, failures) and not isinstance(cause, HfHubHTTPError))
        for cause in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
