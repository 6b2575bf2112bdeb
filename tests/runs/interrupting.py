"""A signal at a chosen step of a training run."""

import os
import signal
from typing import Any

import pytest
from sae_lens.training.sae_trainer import SAETrainer


def interrupt_at(
    monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals = signal.SIGINT
) -> None:
    """The process gets a signal in the middle of this step, once."""
    original = SAETrainer._train_step
    sent: list[int] = []

    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.n_training_steps == step - 1 and not sent:
            sent.append(step)
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SAETrainer, "_train_step", train_step)
