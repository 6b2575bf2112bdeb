"""What can go wrong with saved and published SAEs, each with its own class and one sentence."""


class GBAError(Exception):
    """Base of all errors of `load`, `list_published`, `to_training_sae` and `publish`."""


class PublishError(GBAError):
    """An upload ended without a commit; the message says why, and what to do."""


class InvalidPublicationError(GBAError, ValueError):
    """What was to be published must not be, as it is; found before any network call."""


class StorageError(GBAError, OSError):
    """A file could not be written: the disk is full, or the folder can't be written."""


class RunFolderError(GBAError, ValueError):
    """The folder is another run's, or this run can't go on from what it holds."""


class NotTrainableError(GBAError, ValueError):
    """The SAE can't be trained with GBA, or not with these groups."""


class CalibrationError(GBAError, ValueError):
    """The SAE can't have that L0, or what it takes to find its thresholds is missing."""


class NotAGBASAEError(GBAError, ValueError):
    """The SAE has no groups: it was not trained with GBA, or not saved by this package."""


class MissingFileError(GBAError, FileNotFoundError):
    """A repo, revision, SAE or file that is needed does not exist."""


class DamagedFileError(GBAError, ValueError):
    """A file is corrupt or truncated, or not what its name promises."""


class WrongShapeError(GBAError, ValueError):
    """Weights or groups do not fit the d_in and d_sae of the SAE's own configuration."""


class NewerFormatError(GBAError, ValueError):
    """Written by a newer version of this package than the one that reads it."""


class AccessError(GBAError, PermissionError):
    """The Hub does not let this token (or no token) do that."""


class ConnectionFailedError(GBAError, ConnectionError):
    """The Hub can't be reached, or has a problem of its own, and the cache does not help."""
