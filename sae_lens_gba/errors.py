"""What can go wrong, each with its own class and one sentence."""

_LONGEST = 200  # characters of what a file says


def brief(text: str) -> str:
    """What a stranger's file says, on one line of a message, however long it is."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class GBAError(Exception):
    """Base of all errors of this package that are foreseen."""


class PublishError(GBAError):
    """An upload ended without a commit; the message says why, and what to do."""


class InvalidPublicationError(GBAError, ValueError):
    """What was to be published must not be, as it is; found before any network call."""


class StorageError(GBAError, OSError):
    """A file could not be written: the disk is full, or the folder can't be written."""


class RunFolderError(GBAError, ValueError):
    """The folder is another run's, or this run can't go on from what it holds."""


class DataEndedError(GBAError, RuntimeError):
    """The data ended before training did; what was trained is saved."""


class DivergedError(GBAError, RuntimeError):
    """The error of training is no number any more: weights are NaN or infinite."""


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
    """The Hub does not let this token (or no token) do that, or the system this user."""


class ConnectionFailedError(GBAError, ConnectionError):
    """The Hub can't be reached, or has a problem of its own, and the cache does not help."""


class RanksError(GBAError, RuntimeError):
    """Processes that train one SAE together can't go on; every one of them ends with this."""


class RanksDifferError(RanksError):
    """Ranks have other versions or settings, or what should be equal on all has come apart."""


class RankFailedError(RanksError):
    """A rank failed, was killed or ran out of data; the message says which one and why."""


class StoppedError(RanksError):
    """A rank was sent SIGTERM or SIGINT: all stopped, after a checkpoint if there is a folder."""


class LostContactError(GBAError, ConnectionError):
    """An operation with other ranks failed; `RankFailedError` says why, once that is known."""
