"""What happens to the groups while an SAE trains, as data; needs neither wandb nor a callback."""

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from pydantic import TypeAdapter

from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.metrics import share_on_target
from sae_lens_gba.training_sae import GBATrainingSAE

RECORD_NAME = "training_record.json"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# log10 of activation frequency, by tenths; what lies outside is counted in the first or last
DENSITY_START, DENSITY_STOP, DENSITY_BINS = -6.0, 0.0, 60


@dataclass(frozen=True)
class TrainingRecord:
    """One entry an adaptation of the biases in each list but the first three.

    Attributes:
        target_frequency: of each group, share of samples.
        group_size: latents of each group.
        target_l0: sum of all latents' targets.
        step: optimizer steps done.
        l0: sum of the latents' frequencies since the adaptation before.
        dead: latents below the config's dead_frequency.
        on_target: share of latents within a factor of 2 of their target.
        group_frequency: mean frequency of each group.
        bias_quantiles: of the biases, at QUANTILES.
        density: latents by log10 of frequency, DENSITY_BINS bins from DENSITY_START to
            DENSITY_STOP.
    """

    target_frequency: list[float]
    group_size: list[int]
    target_l0: float
    step: list[int] = field(default_factory=list)
    l0: list[float] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)
    on_target: list[float] = field(default_factory=list)
    group_frequency: list[list[float]] = field(default_factory=list)
    bias_quantiles: list[list[float]] = field(default_factory=list)
    density: list[list[int]] = field(default_factory=list)

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


class TrainingRecorder:
    """Watches a GBA SAE while it is trained, by whatever trainer.

    >>> with TrainingRecorder(sae) as recorder:  # doctest: +SKIP
    ...     trainer.fit()
    >>> recorder.record.save(folder)  # doctest: +SKIP

    It looks at the SAE at the beginning of each step, and takes down what the adapter measured
    when an adaptation has taken place: O(d_sae) work every T steps, nothing is changed.

    Args:
        sae: the SAE to watch.

    Attributes:
        record: what was seen; complete when the block ends.

    Raises:
        TypeError: the SAE is of another architecture: it has no groups to watch.
    """

    def __init__(self, sae: GBATrainingSAE) -> None:
        if not isinstance(sae, GBATrainingSAE):
            raise TypeError(
                f"sae is a {type(sae).__name__}, which has no groups to watch: train with a "
                "GBATrainingSAEConfig, or without charts."
            )
        self._sae = sae
        self._handle: Any = None
        self._last_step = int(sae.adapter.n_steps)
        groups = sae.groups().summary()
        self.record = TrainingRecord(
            target_frequency=[row["target_frequency"] for row in groups],
            group_size=[row["size"] for row in groups],
            target_l0=float(sae.adapter.target_frequency.sum()),
        )

    def __enter__(self) -> "TrainingRecorder":
        self._handle = self._sae.hook_sae_input.register_forward_pre_hook(self._look)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handle.remove()
        self._look()

    @torch.no_grad()
    def _look(self, *_: Any) -> None:
        adapter = self._sae.adapter
        period = adapter.adapt_every_n_steps
        step = int(adapter.n_steps) // period * period
        if step <= self._last_step:
            return
        self._last_step = step
        frequency = adapter.frequency.float().cpu()
        on_target = share_on_target(frequency, adapter.target_frequency.float().cpu())
        by_group = adapter.targets.group_mean(adapter.frequency)
        levels = torch.tensor(QUANTILES)
        self.record.step.append(step)
        self.record.l0.append(float(frequency.sum()))
        self.record.dead.append(int((frequency < self._sae.adapter.rates.dead_frequency).sum()))
        self.record.on_target.append(float(on_target))
        self.record.group_frequency.append(by_group.tolist())
        self.record.bias_quantiles.append(self._sae.bias.float().cpu().quantile(levels).tolist())
        self.record.density.append(_density(frequency))


def _density(frequency: torch.Tensor) -> list[int]:
    """Living latents by log10 of frequency."""
    log10 = frequency[frequency > 0].log10().clamp(DENSITY_START, DENSITY_STOP)
    counts = torch.histc(log10, bins=DENSITY_BINS, min=DENSITY_START, max=DENSITY_STOP)
    return [int(count) for count in counts.tolist()]
