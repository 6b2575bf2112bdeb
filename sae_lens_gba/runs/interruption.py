"""Signals that end a run between two steps, once its state is saved."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(SystemExit):
    """Training was stopped by a signal. Uncaught, it ends the process as shells expect: 130, 143.

    Attributes:
        signal: its number.
        checkpoint: what to go on from; None if nothing had been trained, or training was over.
    """

    def __init__(self, signal_number: int, checkpoint: Path | None = None):
        super().__init__(128 + signal_number)
        self.signal = signal_number
        self.checkpoint = checkpoint


class Interruption:
    """Takes SIGINT and SIGTERM down, for training to end where its state is whole.

    Attributes:
        received: number of the signal, None as long as there was none.
        can_save: whether there is a state worth saving; until then a signal ends the run at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.can_save = False

    @contextmanager
    def handlers_restored(self) -> Iterator[None]:
        """Leave the handlers as they were, whatever `install` or a runner of SAELens changes."""
        handlers: dict[signal.Signals, Any] = {s: signal.getsignal(s) for s in SIGNALS}
        try:
            yield
        finally:
            if _in_main_thread():
                for number, handler in handlers.items():
                    if handler is not None:  # that of a library in C can't be put back
                        signal.signal(number, handler)

    def install(self) -> None:
        """From here on the signals are taken down. Only the main thread of a process can."""
        if not _in_main_thread():
            _log.warning("not in the main thread: an interrupt will save no checkpoint.")
            return
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # schedulers repeat SIGTERM; who presses Ctrl-C twice means it
        if not self.can_save or (self.received is not None and number == signal.SIGINT):
            raise TrainingInterrupted(number)
        if self.received is None:
            self.received = number
            _log.warning(
                "\n%s: saving after this step; Ctrl-C again stops at once, without saving.",
                signal.Signals(number).name,
            )


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
