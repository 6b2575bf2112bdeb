"""What happens to the groups while an SAE trains, as data; needs neither wandb nor a callback."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.metrics import share_on_target
from sae_lens_gba.training_sae import GBATrainingSAE

RECORD_NAME = "training_record.json"
CHARTS_NAME = "training_charts.png"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# log10 of activation frequency, by tenths; what lies outside is counted in the first or last
DENSITY_START, DENSITY_STOP, DENSITY_BINS = -6.0, 0.0, 60


@dataclass(frozen=True)
class TrainingRecord:
    """One entry an adaptation of the biases in each list but the first.

    Attributes:
        group_size: latents of each group.
        step: optimizer steps done.
        target_frequency: of each group at that time, share of samples.
        target_l0: sum of all latents' targets at that time.
        l0: sum of the latents' frequencies since the adaptation before.
        dead: latents below the config's dead_frequency.
        on_target: share of latents within a factor of 2 of their target at that time.
        group_frequency: mean frequency of each group.
        bias_quantiles: of the biases, at QUANTILES.
        density: latents by log10 of frequency, DENSITY_BINS bins from DENSITY_START to
            DENSITY_STOP.
    """

    group_size: list[int]
    step: list[int] = field(default_factory=list)
    target_frequency: list[list[float]] = field(default_factory=list)
    target_l0: list[float] = field(default_factory=list)
    l0: list[float] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)
    on_target: list[float] = field(default_factory=list)
    group_frequency: list[list[float]] = field(default_factory=list)
    bias_quantiles: list[list[float]] = field(default_factory=list)
    density: list[list[int]] = field(default_factory=list)

    def go_on_from(self, earlier: "TrainingRecord") -> None:
        """Begin with what an earlier part of the same run left."""
        if self.step and earlier.group_size == self.group_size:
            n = sum(step < self.step[0] for step in earlier.step)
            for name in (f.name for f in fields(self) if f.name != "group_size"):
                getattr(self, name)[:0] = getattr(earlier, name)[:n]

    def save(self, folder: str | Path) -> Path:
        """Write ``training_record.json`` into an existing folder, all or nothing."""
        path = Path(folder) / RECORD_NAME
        content = TypeAdapter(TrainingRecord).dump_json(self)
        write_atomically(path, lambda partial: partial.write_bytes(content))
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "TrainingRecord":
        """Read it back.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: the file is damaged.
        """
        path = Path(folder) / RECORD_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: train with --report to have one.")
        return TypeAdapter(cls).validate_json(path.read_bytes())


@contextmanager
def record_training(
    sae: GBATrainingSAE, folder: str | Path | None = None
) -> Iterator[TrainingRecord]:
    """Watch a GBA SAE while it is trained, by whatever trainer.

    >>> with record_training(sae, folder) as record:  # doctest: +SKIP
    ...     trainer.fit()

    It looks at the SAE at the beginning of each step, and takes down what the adapter measured
    when an adaptation has taken place: O(d_sae) work every T steps, nothing is changed. The
    record is complete when the block ends, but for an adaptation in the very last step of a run
    that saves its SAE, which is calibrated then.

    Args:
        sae: the SAE to watch.
        folder: where the record is saved then, even if training fails; made if need be. That of
            a run which was interrupted there is gone on with.

    Raises:
        TypeError: the SAE is of another architecture: it has no groups to watch.
    """
    if not isinstance(sae, GBATrainingSAE):
        raise TypeError(
            f"sae is a {type(sae).__name__}, which has no groups to watch: train with a "
            "GBATrainingSAEConfig, or without charts."
        )
    adapter = sae.adapter
    started_at = int(adapter.n_steps)
    record = TrainingRecord(group_size=[row["size"] for row in adapter.groups().summary()])

    def look(*_: Any) -> None:
        if sae.is_calibrated:  # it is evaluated, or over: in training it was otherwise
            return
        period = adapter.adapt_every_n_steps
        step = adapter.steps_taken // period * period
        if step > (record.step[-1] if record.step else started_at):
            _take_down(record, sae, step)

    handle = sae.hook_sae_input.register_forward_pre_hook(look)
    try:
        yield record
    finally:
        handle.remove()
        look()
        earlier = None  # of the same run: another's was removed when this one began
        if folder is not None:
            with suppress(FileNotFoundError, ValueError):
                earlier = TrainingRecord.load(folder)
        if earlier is not None:
            record.go_on_from(earlier)
        # one that ended before an adaptation leaves what an earlier part of the run has
        if folder is not None and (record.step or earlier is None):
            Path(folder).mkdir(parents=True, exist_ok=True)
            record.save(folder)


@torch.no_grad()
def _take_down(record: TrainingRecord, sae: GBATrainingSAE, step: int) -> None:
    adapter = sae.adapter
    frequency, targets = adapter.frequency.float().cpu(), adapter.targets
    target = targets.frequency.float().cpu()
    record.step.append(step)
    record.target_frequency.append(targets.group_mean(targets.frequency).tolist())
    record.target_l0.append(float(target.sum()))
    record.l0.append(float(frequency.sum()))
    record.dead.append(int((frequency < adapter.rates.dead_frequency).sum()))
    record.on_target.append(float(share_on_target(frequency, target)))
    record.group_frequency.append(targets.group_mean(adapter.frequency).tolist())
    quantiles = sae.bias.float().cpu().quantile(torch.tensor(QUANTILES))
    record.bias_quantiles.append(quantiles.tolist())
    # of living latents
    log10 = frequency[frequency > 0].log10().clamp(DENSITY_START, DENSITY_STOP)
    density = torch.histc(log10, bins=DENSITY_BINS, min=DENSITY_START, max=DENSITY_STOP)
    record.density.append(density.int().tolist())
