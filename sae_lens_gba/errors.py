"""What can go wrong with published SAEs, each with its own class and one sentence."""


class HubError(Exception):
    """Base of all errors of `publish`, `load` and `list_published`."""


class PublishError(HubError):
    """An upload ended without a commit; the message says why, and what to do."""


class InvalidPublicationError(HubError, ValueError):
    """What was to be published must not be, as it is; found before any network call."""


class NotAGBASAEError(HubError, ValueError):
    """The SAE has no groups: it was not trained with GBA, or not saved by this package."""


class MissingFileError(HubError, FileNotFoundError):
    """A repo, revision, SAE or file that is needed does not exist."""


class DamagedFileError(HubError, ValueError):
    """A file is corrupt or truncated, or not what its name promises."""


class WrongShapeError(HubError, ValueError):
    """Weights or groups do not fit the d_in and d_sae of the SAE's own configuration."""


class NewerFormatError(HubError, ValueError):
    """Written by a newer version of this package than the one that reads it."""


class AccessError(HubError, PermissionError):
    """The Hub does not let this token (or no token) do that."""


class ConnectionFailedError(HubError, ConnectionError):
    """The Hub can't be reached, or has a problem of its own, and the cache does not help."""
