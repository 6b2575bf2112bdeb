"""SAELens' progress bar, with what one wants to know of a run: L0, explained variance, dead."""

import math
import sys
import time
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba.errors import DivergedError
from sae_lens_gba.training_sae import GBATrainingSAE

SECONDS = 1.0
SECONDS_IN_A_LOG = 10.0  # where lines stay


class Progress:
    """Has the bar of ``trainer.fit()`` say where training is, every second.

    SAELens moves it every 100 steps, so that short runs end at 0 %.
    """

    def __init__(self, trainer: SAETrainer[Any, Any]):
        self.trainer = trainer
        self.pending = 0
        self.shown_at = 0.0
        self.bar: Any = None
        trainer._update_pbar = self  # type: ignore[method-assign]

    def close(self) -> None:
        """End the line, so that what is said next has one of its own."""
        if self.bar is not None:
            self.bar.update(min(self.pending, max(self.bar.total - self.bar.n, 0)))
            self.pending = 0
            self.bar.close()

    def __call__(self, step_output: TrainStepOutput, pbar: Any, update_interval: int = 1) -> None:
        trainer = self.trainer
        self.pending += trainer.cfg.train_batch_size_samples
        if self.bar is None:
            self.bar = pbar
            pbar.unit, pbar.unit_scale, pbar.mininterval, pbar.miniters = " samples", True, 0, 0
        interval = SECONDS if sys.stderr.isatty() else SECONDS_IN_A_LOG
        is_last = trainer.n_training_samples >= trainer.cfg.total_training_samples
        if is_last or time.monotonic() - self.shown_at >= interval:
            try:
                state = state_of_training(trainer, step_output)
            except DivergedError:
                self.close()
                raise
            pbar.set_postfix_str(state, refresh=False)
            pbar.update(min(self.pending, max(pbar.total - pbar.n, 0)))
            self.pending, self.shown_at = 0, time.monotonic()


@torch.no_grad()
def state_of_training(trainer: SAETrainer[Any, Any], step: TrainStepOutput) -> str:
    """Such as ``L0 31.8 of 32, expl. var. 0.871, dead 0``.

    L0 of a GBA SAE is that since the last adaptation, of the target of the moment; explained
    variance is the last batch's.

    Raises:
        DivergedError: it is no number.
    """
    l0 = f"L0 {float(step.feature_acts.bool().sum()) / len(step.sae_in):.3g}"
    if isinstance(trainer.sae, GBATrainingSAE):
        adapter = trainer.sae.adapter
        if bool(adapter.frequency.any()):
            l0 = f"L0 {float(adapter.frequency.sum()):.3g}"
        l0 = f"{l0} of {float(adapter.targets.frequency.sum()):.3g}"
        if adapter.warm_up > 1:
            l0 = f"{l0} (falling to {float(adapter.target_frequency.sum()):.3g})"
    x = step.sae_in.float()
    error = (step.sae_out.float() - x).square().sum(dim=1).mean()
    if not math.isfinite(error):
        raise DivergedError(
            f"training diverged: after {trainer.n_training_steps} steps the squared error is "
            f"{float(error)}. Take a lower lr than {trainer.cfg.lr:g}, and see that activations "
            "are finite."
        )
    variance = (x - x.mean(dim=0)).square().sum(dim=1).mean()
    dead = int(trainer.dead_neurons.sum())
    return f"{l0}, expl. var. {float(1 - error / variance):.3f}, dead {dead}"
