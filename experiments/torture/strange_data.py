"""Data that end, fail, or hold what can't be learnt from, at the first step and later.

The run goes on, or ends in one sentence; either way the SAE has no NaN. All else is lost.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import TrainingSAE

from experiments.torture.training import BATCH, config, in_short, row, work_folder
from sae_lens_gba import BiasAdaptationHook, GBATrainingSAE, resumable_run
from tests.toolbox import make_trainer, mixture

STEPS, LATER = 20, 7
Change = Callable[[torch.Tensor], torch.Tensor]


def _one_value(value: float) -> Change:
    def change(batch: torch.Tensor) -> torch.Tensor:
        batch[3 % len(batch), 5] = value
        return batch

    return change


def _everywhere(value: float) -> Change:
    return lambda batch: torch.full_like(batch, value)


def _scaled(by: float) -> Change:
    return lambda batch: batch * by


def _fails(_batch: torch.Tensor) -> torch.Tensor:
    raise OSError("the source of the data is gone.")


def _ends(_batch: torch.Tensor) -> torch.Tensor:
    raise EOFError


FAULTS: dict[str, Change] = {
    "end": _ends,
    "fail": _fails,
    "hold a NaN": _one_value(math.nan),
    "hold an Inf": _one_value(math.inf),
    "hold a value of 1e20": _one_value(1e20),
    "hold a value of -1e38": _one_value(-1e38),
    "are all 1e38": _everywhere(1e38),
    "are scaled by 1e10": _scaled(1e10),
    "are scaled by 1e17": _scaled(1e17),
    "are scaled by 1e20": _scaled(1e20),
    "are scaled by 1e-30": _scaled(1e-30),
    "are zero": _everywhere(0.0),
    "are constant": _everywhere(3.0),
    "are of one row": lambda batch: batch[:1],
    "are of no row": lambda batch: batch[:0],
}
SAES: dict[str, Callable[[], TrainingSAE[Any]]] = {
    "default": lambda: GBATrainingSAE(config()),
    "relu, tied": lambda: GBATrainingSAE(config(activation="relu", tied=True)),
    "paper": lambda: GBATrainingSAE(config(bias_update="paper", bias_init="zero")),
    "scaled inputs": lambda: GBATrainingSAE(
        config(normalize_activations="expected_average_only_in")
    ),
    "bfloat16": lambda: GBATrainingSAE(config(dtype="bfloat16")),
    "hook on jumprelu": lambda: _with_hook(),
}


def _with_hook() -> TrainingSAE[Any]:
    sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(16, 64, l0_coefficient=0.0))
    BiasAdaptationHook.attach(sae, target_l0=4.0, n_groups=4)
    return sae


def data(change: Change, steps: range, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """A mixture of features, with ``change`` made to the batches of these steps."""
    for i, batch in enumerate(mixture(1, BATCH)):
        try:
            yield (change(batch) if i in steps else batch).to(dtype)
        except EOFError:
            return


def loss_of(sae: TrainingSAE[Any], batches: Iterator[torch.Tensor]) -> str | None:
    """What is wrong after a run with these data; None if nothing."""
    said = None
    with work_folder() as work:
        try:
            with resumable_run(work):
                make_trainer(sae, STEPS, batches, BATCH).fit()
        except Exception as error:
            if not str(error) or "\n" in str(error):
                said = in_short(error)
    bad = [name for name, value in sae.state_dict().items() if value.isnan().any()]
    return f"NaN in {', '.join(bad)}" if bad else said


def rows(scale: float) -> list[dict[str, Any]]:
    """A row a fault; see `experiments.torture.run`."""
    saes = dict(list(SAES.items())[: max(1, round(len(SAES) * min(1.0, 3 * scale)))])
    when = {"at first": range(1), "once": range(LATER, LATER + 1), "from then on": range(LATER, 99)}
    table = []
    for fault, change in FAULTS.items():
        lost = []
        for name, make in saes.items():
            for moment, steps in when.items():
                torch.manual_seed(0)
                sae = make()
                if loss := loss_of(sae, data(change, steps, sae.dtype)):
                    lost.append(f"{name}, {moment}: {loss}")
        table.append(row(f"data {fault}", len(saes) * len(when), lost))
    return table
