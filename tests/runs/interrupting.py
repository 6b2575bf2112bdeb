"""A signal at a chosen step of a training run, and where a run goes on."""

import signal
from typing import Any

import pytest
import torch
from sae_lens.training.sae_trainer import SAETrainer


def interrupt_at(
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    number: signal.Signals = signal.SIGINT,
    times: int = 1,
) -> None:
    """The process gets a signal in the middle of this step, in the first run that comes there."""
    original = SAETrainer._train_step
    sent: list[int] = []

    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.n_training_steps == step - 1 and not sent:
            sent.append(step)
            for _ in range(times):
                signal.raise_signal(number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SAETrainer, "_train_step", train_step)


def first_decoders(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Gets the decoder with which each run begins or goes on."""
    original = SAETrainer.fit
    decoders: list[torch.Tensor] = []

    def fit(self: Any) -> Any:
        decoders.append(self.sae.W_dec.detach().clone())
        return original(self)

    monkeypatch.setattr(SAETrainer, "fit", fit)
    return decoders
