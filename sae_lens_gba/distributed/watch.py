"""Ranks that fail or fall silent are named to the others, which end instead of waiting."""

import logging
import os
import threading
import time
from typing import Any

from sae_lens_gba.errors import RanksError

logger = logging.getLogger(__name__)

_FAILURE = "watch/failure"
_BEAT_S = 1.0
_GRACE_S = 5.0  # for a rank to end by itself, once it is known that another failed
_SILENCE_AFTER_LOST_CONTACT_S = 5.0


class Watch:
    """A thread that gives signs of life, looks for those of others, and ends the process.

    All of it goes through the store where the ranks met, so that it works while a rank waits in
    an operation that will never complete, as one of NCCL does when another rank has died.

    Args:
        store: of torch.distributed, with a prefix of its own.
        rank: of this process.
        world: number of processes.
        silence_s: a rank without a sign of life for so long has failed.
    """

    def __init__(self, store: Any, rank: int, world: int, silence_s: float):
        self._store, self._rank, self._silence_s = store, rank, silence_s
        self._keys = [f"watch/alive/{r}" for r in range(world)]
        self._seen = [(b"", time.monotonic())] * world
        self._n_beats = 0
        self._failure: str | None = None
        self._ended = threading.Event()
        self._found = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._store.set(self._keys[rank], "0")

    def start(self) -> None:
        self._seen = [(b"", time.monotonic())] * len(self._keys)
        self._thread.start()

    def stop(self) -> None:
        """This rank is done, and so are the others."""
        self._ended.set()
        self._thread.join()

    def tell(self, error: BaseException) -> None:
        """Have the others know why this rank ends; the first one to tell is the one that counts."""
        if isinstance(error, RanksError):  # the others have it, too
            return
        cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        self._say(f"rank {self._rank} failed ({cause})")

    def reason(self) -> str:
        """Which rank failed, and why; waits until that is known."""
        self._silence_s = min(self._silence_s, _SILENCE_AFTER_LOST_CONTACT_S)
        self._found.wait(2 * self._silence_s)
        return (
            self._failure or "contact with another rank was lost, and none is known to have failed"
        )

    def _run(self) -> None:
        while not self._ended.wait(_BEAT_S):
            try:
                self._beat()
            except Exception as error:  # the store is gone, and with it the process that holds it
                self._failure = f"the process where the ranks meet is gone ({error})"
            if self._failure is not None:
                self._found.set()
                if not self._ended.wait(_GRACE_S):
                    logger.error("sae-lens-gba: %s; rank %d ends", self._failure, self._rank)
                    os._exit(1)
                return

    def _beat(self) -> None:
        self._n_beats += 1
        self._store.set(self._keys[self._rank], str(self._n_beats))
        if self._store.check([_FAILURE]):
            self._failure = self._store.get(_FAILURE).decode()
            return
        now = time.monotonic()
        for rank, sign in enumerate(self._store.multi_get(self._keys)):
            if sign != self._seen[rank][0]:
                self._seen[rank] = (sign, now)
            elif now - self._seen[rank][1] > self._silence_s:
                self._say(f"rank {rank} gave no sign of life for {self._silence_s:.0f} s (killed?)")

    def _say(self, sentence: str) -> None:
        self._failure = self._store.compare_set(_FAILURE, "", sentence).decode()
        self._found.set()
