"""A training run that no interrupt loses, whatever runner of SAELens drives it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba.errors import DataEndedError, RunFolderError
from sae_lens_gba.runs.checkpoints import AnyTrainer, Checkpoints, parts_of
from sae_lens_gba.runs.folder import CHECKPOINTS, remove_replaced_run, run_folder
from sae_lens_gba.runs.interruption import Interruption, TrainingInterrupted
from sae_lens_gba.runs.progress import Progress

_log = logging.getLogger(__name__)

CHECKPOINT_MINUTES = 10.0


@contextmanager
def resumable_run(
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    how_to_resume: str = "run the same with resume=True",
) -> Iterator[Path | None]:
    """Keep a training run of SAELens, in the thread of the block, from being lost.

    Every ``checkpoint_minutes``, and on SIGINT (Ctrl-C) and SIGTERM, a whole checkpoint is
    written into ``folder/resume`` between two steps; the newest two stay. A signal then ends the
    process with 130 or 143, as `TrainingInterrupted`. The progress bar says where training is.

    A run that goes on is bit-equal to one that was never stopped (on a GPU, where sums are made in
    any order, but for rounding), with synthetic or cached activations and any iterator that gives
    the same batches again (it is drawn from its beginning). With live activations SAELens' buffer
    is filled anew: the order of the data, and so the weights, differ as they do between seeds; so
    with ``prefetch_llm_batches``.

    Args:
        folder: for the checkpoints; the run's output folder, best. Made if need be.
        resume: go on from the newest whole checkpoint. Where there is none, the run begins, so
            that a scheduler may start the same script again and again.
        overwrite: remove an earlier run's SAE, its report and checkpoints before the first step.
        checkpoint_minutes: between two checkpoints, 10 by default; 0 writes them on signals only.
        how_to_resume: for the message to whoever interrupts.

    Examples:
        >>> with resumable_run("my_sae", resume=True):  # doctest: +SKIP
        ...     runner.run()  # of any runner, or the fit() of a SAETrainer

    Raises:
        RunFolderError: ``folder`` is another run's, or the settings are not those of the
            checkpoint; before anything is trained.
        StorageError: ``folder`` can't be written.
        TrainingInterrupted: a signal came.
        DataEndedError: the data ended before training did.
    """
    require_minutes(checkpoint_minutes)
    interruption = Interruption()
    with run_folder(Path(folder), resume, overwrite) as resume_from:
        keeper = _Keeper(
            Checkpoints(Path(folder) / CHECKPOINTS),
            resume_from,
            60 * checkpoint_minutes,
            interruption,
            how_to_resume,
        )
        with interruption.handlers_restored(), _every_fit_is_kept_by(keeper):
            try:
                yield resume_from
            finally:
                keeper.release()
        if interruption.received is not None:  # in the last step, or after it
            _log.warning("training was over: nothing is lost.")
            raise TrainingInterrupted(interruption.received)


def require_minutes(checkpoint_minutes: float) -> None:
    """Raise ValueError for what is no time between two checkpoints."""
    if not checkpoint_minutes >= 0:  # NaN as well
        raise ValueError(
            f"checkpoint_minutes={checkpoint_minutes} is not possible: it must be at least 0."
        )


class _Keeper:
    def __init__(
        self,
        checkpoints: Checkpoints,
        resume_from: Path | None,
        seconds: float,
        interruption: Interruption,
        how_to_resume: str,
    ):
        self.checkpoints = checkpoints
        self.resume_from = resume_from
        self.seconds = seconds
        self.interruption = interruption
        self.how_to_resume = how_to_resume
        self.has_begun = False
        self.trainer: AnyTrainer | None = None
        self.progress: Progress | None = None
        self.saved_at = 0.0

    def begin(self, trainer: AnyTrainer) -> None:
        if self.trainer is not None:
            raise RunFolderError(
                f"{self.checkpoints.folder.parent} is the folder of one training: put each fit() "
                "into a resumable_run of its own."
            )
        self.trainer = trainer
        self.checkpoints.begin(trainer, self.resume_from)
        if self.resume_from is not None:
            _log.info("going on from %s", self.resume_from)
        if isinstance(trainer, SAETrainer):
            self.progress = Progress(trainer)
        # a public seam of SAELens' trainers, at the beginning of each step
        first = next(iter(parts_of(trainer).values()))
        first.maybe_reset_sparsity = self._before(first.maybe_reset_sparsity)  # type: ignore[method-assign]
        self.saved_at = monotonic()
        self.interruption.install()

    def release(self) -> None:
        """Leave the trainer as SAELens made it: it may be trained on, in a block or without."""
        if self.trainer is not None:
            first = next(iter(parts_of(self.trainer).values()))
            for name in ("maybe_reset_sparsity", "_update_pbar"):
                vars(first).pop(name, None)

    def _before(self, step: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        def between_steps() -> dict[str, Any]:
            if not self.has_begun:  # now that model, data and settings have proved possible
                remove_replaced_run(self.checkpoints.folder.parent)
                self.has_begun = True
            self.look()
            self.interruption.can_save = True
            return step()

        return between_steps

    def look(self) -> None:
        """Save if it is time, or if a signal came; then end."""
        if self.interruption.received is not None:
            self._end(self.interruption.received)
        elif self.seconds and monotonic() - self.saved_at >= self.seconds:
            try:
                self._save()
            except OSError as error:  # better a run without checkpoints than none
                _log.warning("no checkpoint this time: %s", error)
            self.saved_at = monotonic()

    def data_ended(self, trainer: AnyTrainer) -> DataEndedError:
        """The error to raise for it; what was trained is saved first."""
        if self.progress is not None:
            self.progress.close()
        samples, total = trainer.n_training_samples, trainer.cfg.total_training_samples
        saved = ""
        if self.interruption.can_save:
            try:
                saved = f"; saved in {self._save()}"
            except OSError as error:
                saved = f", and what was trained is lost ({error})"
        return DataEndedError(
            f"the data ended after {samples} of {total} training samples{saved}: provide more, or "
            "train on fewer samples."
        )

    def _save(self) -> Path:
        assert self.trainer is not None
        return self.checkpoints.save(self.trainer)

    def _end(self, signal_number: int) -> None:
        if self.progress is not None:
            self.progress.close()
        try:
            checkpoint = self._save()
        except OSError as error:
            _log.error("interrupted, and the checkpoint is lost: %s", error)
            raise TrainingInterrupted(signal_number) from error
        assert self.trainer is not None
        _log.warning(
            "interrupted after %d steps; saved in %s; to go on, %s",
            self.trainer.n_training_steps,
            checkpoint,
            self.how_to_resume,
        )
        raise TrainingInterrupted(signal_number, checkpoint)


# of the block that this thread is in
_keeper: ContextVar[_Keeper | None] = ContextVar("keeper", default=None)
_blocks = 0  # of all threads
_lock = Lock()


@contextmanager
def _every_fit_is_kept_by(keeper: _Keeper) -> Iterator[None]:
    """Hand to ``keeper`` each of SAELens' trainers whose fit() begins in the block.

    Its runners make their trainers themselves, and not all of them let one be handed in.
    """
    _count_blocks(1)
    token = _keeper.set(keeper)
    try:
        yield
    finally:
        _keeper.reset(token)
        _count_blocks(-1)


def _count_blocks(change: int) -> None:
    """fit() is watched from the first to the last; blocks of several threads may overlap."""
    global _blocks
    classes: tuple[Any, ...] = (SAETrainer, MultiSAETrainer)
    with _lock:
        before, _blocks = _blocks, _blocks + change
        for cls in classes:
            if before == 0:
                cls.fit = _watched(cls.fit)
            elif _blocks == 0:
                cls.fit = cls.fit.__wrapped__


def _watched(fit: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @wraps(fit)
    def watched(trainer: AnyTrainer) -> Any:
        keeper = _keeper.get()
        if keeper is None:
            return fit(trainer)
        try:
            keeper.begin(trainer)  # may draw data as well
            return fit(trainer)
        except StopIteration as error:
            raise keeper.data_ended(trainer) from error

    return watched
