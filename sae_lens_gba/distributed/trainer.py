"""SAELens' trainer on one rank of several, each with a part of the latents."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training import sae_trainer
from sae_lens.training.sae_trainer import Evaluator, SAETrainer, SaveCheckpointFn
from sae_lens.training.types import DataProvider
from torch import nn
from tqdm.auto import tqdm
from typing_extensions import override

from sae_lens_gba.atomic_write import folder_written_whole, remove_older
from sae_lens_gba.calibration import RecentSamples
from sae_lens_gba.checksums import write_checksums
from sae_lens_gba.distributed.batches import GatheredBatches, checksum_of
from sae_lens_gba.distributed.latent_slice import LatentSlice
from sae_lens_gba.errors import RankFailedError, StoppedError
from sae_lens_gba.provenance import package_versions
from sae_lens_gba.training_sae import GBATrainingSAE

logger = logging.getLogger(__name__)

# of the settings, what each rank may have for itself
_ONES_OWN = ("device", "checkpoint_path", "logger")
_OF_LOGGER = ("log_to_wandb", "wandb_log_frequency", "eval_every_n_wandb_logs")
# what SAELens' trainer counts and checkpoints, besides tensors
_COUNTERS = (
    "n_training_samples",
    "n_training_steps",
    "n_frac_active_samples",
    "started_fine_tuning",
)
_BY_LATENT = ("act_freq_scores", "n_forward_passes_since_fired")


class LatentParallelTrainer(SAETrainer[Any, Any]):
    """As SAETrainer, on a `LatentSlice` and batches that are put together from all ranks'.

    A checkpoint is one of the whole SAE, the same files as a single process', written by rank 0;
    any number of ranks can go on from it, one as well. All ranks must call every method.

    Args:
        cfg: with numbers of the whole run: samples of all ranks, and their batches together.
        sae: this rank's part.
        data_provider: this rank's share of each batch.
        evaluator: called on all ranks, with this rank's part and data.
        save_checkpoint_fn: called on rank 0.

    Raises:
        RanksDifferError: ranks have other versions or settings.
    """

    def __init__(
        self,
        cfg: SAETrainerConfig,
        sae: LatentSlice,
        data_provider: DataProvider,
        evaluator: Evaluator[Any] | None = None,
        save_checkpoint_fn: SaveCheckpointFn | None = None,
    ):
        self.ranks = sae.share.ranks
        settings = {k: v for k, v in asdict(cfg).items() if k not in _ONES_OWN}
        logger = {name: getattr(cfg.logger, name) for name in _OF_LOGGER}
        self.ranks.require_same({**package_versions(), **settings, **logger})
        cfg = replace(cfg, device=str(self.ranks.device))
        super().__init__(cfg, sae, data_provider, evaluator, save_checkpoint_fn)
        shapes = sae.whole_shapes()
        self._parameter_shapes = [shapes[name] for name, _ in sae.named_parameters()]
        self.batches = GatheredBatches(data_provider, self.ranks, self._checksum)
        self.data_provider = self.batches
        self._folder = None if cfg.checkpoint_path is None else Path(cfg.checkpoint_path, "resume")
        if evaluator is not None:
            self.evaluator = lambda sae, _, scaler: evaluator(sae, self.batches.own, scaler)

    def checkpoint_every(self, minutes: float, folder: Path | None = None) -> None:
        """Save as time passes, as `resumable_run` does; the newest two stay.

        Args:
            minutes: 0 saves none in time.
            folder: for these, and for the one that a signal leaves; None is ``resume`` in
                ``cfg.checkpoint_path``.
        """
        self._folder = folder or self._folder
        self.batches.save_every(60 * minutes, self._save_in_time)

    def _save_in_time(self) -> None:
        if self.n_training_steps == 0:  # the scale of activations is being estimated
            return
        try:
            self._save_to_resume()
        except OSError as error:  # better a run without checkpoints than none
            logger.warning("no checkpoint this time: %s", error)
        self.ranks.wait_for_all()

    def _save_to_resume(self) -> None:
        whole = self.whole()
        if whole is not None and self._folder is not None:
            # not uploaded to wandb each time
            whole.cfg = replace(whole.cfg, logger=replace(whole.cfg.logger, log_to_wandb=False))
            path = self._folder / str(self.n_training_samples)
            _write(whole, path, samples=self.sae.recent_samples)
            remove_older(path, keep=2)

    def fit(self) -> GBATrainingSAE | LatentSlice:
        """Train to the end.

        Returns:
            On rank 0 the whole SAE, on the CPU, with biases set; on the others, their part.

        Raises:
            StoppedError: a rank was sent SIGTERM or SIGINT. All have stopped, after a checkpoint
                if there is a folder for it.
            RankFailedError: a rank has no more data, or an unusable batch.
        """
        bars = partial(tqdm, disable=self.ranks.rank != 0)
        with self.batches.stopped_by_signals(), replaced(sae_trainer, tqdm=bars):
            try:
                super().fit()
            except StoppedError as error:
                if self._folder is None:
                    raise
                self._save_to_resume()
                path = self._folder / str(self.n_training_samples)
                where = self.ranks.from_rank(0, str(path))
                raise StoppedError(f"{error}. Go on from the checkpoint {where}.") from error
        self.sae.settle()
        whole = self.whole()
        if whole is None:
            return self.sae
        for name in _BY_LATENT:
            setattr(self, name, getattr(whole, name))
        return whole.sae

    @override
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        try:
            return super().step(batch)
        except ValueError as error:  # as all ranks see the same batch, all find it unusable
            largest = batch.detach().abs().nan_to_num(torch.inf).flatten(1).amax(dim=1)
            rank = self.batches.rank_of(int(largest.argmax()))
            raise RankFailedError(f"rank {rank}: {error}") from error

    @override
    def _train_step(self, sae: LatentSlice, sae_in: torch.Tensor) -> TrainStepOutput:
        # SAELens would clip each rank's gradients by their own norm
        with replaced(torch.nn.utils, clip_grad_norm_=self._clip_together):
            return super()._train_step(sae, sae_in)

    @torch.no_grad()
    def _clip_together(self, parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
        """torch.nn.utils.clip_grad_norm_ of the whole SAE's gradients."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        shared = [p.grad for p in self.sae.shared() if p.grad is not None]
        for gradient in shared:  # all ranks' are the same, but for kernels that each has chosen
            self.ranks.share_(gradient)
        is_shared = {id(g) for g in shared}
        own = torch.stack([g.norm() for g in gradients if id(g) not in is_shared])
        everyones = torch.stack([g.norm() for g in shared])
        norm = (self.ranks.sum_(own.square().sum()) + everyones.square().sum()).sqrt()
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
        return norm

    def whole(self) -> SAETrainer[Any, Any] | None:
        """What one process would have, on the CPU of rank 0; None on the others."""
        sae, share = self.sae.whole(), self.sae.share
        by_latent = {
            name: share.to_rank_0(getattr(self, name), torch.Size([share.d_sae]))
            for name in _BY_LATENT
        }
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            index: {
                name: share.to_rank_0(
                    value, self._parameter_shapes[index] if value.ndim else value.shape
                )
                for name, value in state.items()
            }
            for index, state in optimizer["state"].items()
        }
        if sae is None:
            return None
        whole = self._stock_trainer(sae)
        whole.optimizer.load_state_dict(optimizer)
        whole.lr_scheduler.load_state_dict(self.lr_scheduler.state_dict())
        for name, scheduler in self.coefficient_schedulers.items():
            whole.coefficient_schedulers[name].load_state_dict(scheduler.state_dict())
        whole.activation_scaler = self.activation_scaler
        for name in _COUNTERS:
            setattr(whole, name, getattr(self, name))
        for name, tensor in by_latent.items():
            setattr(whole, name, tensor)
        return whole

    def _stock_trainer(self, sae: GBATrainingSAE) -> SAETrainer[Any, Any]:
        """Holds the whole, to write or read checkpoints with; it does not train."""
        cfg = replace(self.cfg, device="cpu")
        trainer: SAETrainer[Any, Any] = SAETrainer(
            cfg, sae, iter(()), None, self.save_checkpoint_fn
        )
        vars(trainer)["optimizer"] = _OptimizerState()
        return trainer

    @override
    def save_checkpoint(
        self,
        checkpoint_name: str,
        base_path: Path | str | None = None,
        wandb_aliases: list[str] | None = None,
    ) -> None:
        whole = self.whole()
        base = base_path if base_path is not None else self.cfg.checkpoint_path
        if whole is not None and base is None:
            whole.save_checkpoint(checkpoint_name, None, wandb_aliases)
        elif whole is not None:
            _write(whole, Path(str(base)) / checkpoint_name, wandb_aliases)
        self.ranks.wait_for_all()

    @override
    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        """Take one's part of a checkpoint that any number of ranks saved, or one process.

        Only rank 0 reads it.
        """
        said = optimizer = whole = None
        if self.ranks.rank == 0:
            whole = self._stock_trainer(self.sae.empty_whole())
            whole.load_trainer_state(checkpoint_path)
            optimizer = whole.optimizer.state_dict()
            said = (
                {name: getattr(whole, name) for name in _COUNTERS},
                whole.lr_scheduler.state_dict(),
                {name: s.state_dict() for name, s in whole.coefficient_schedulers.items()},
                whole.activation_scaler,
                optimizer["param_groups"],
                {
                    index: {name: (value.shape, value.dtype) for name, value in state.items()}
                    for index, state in optimizer["state"].items()
                },
            )
        counters, lr, coefficients, self.activation_scaler, groups, layout = self.ranks.from_rank(
            0, said
        )
        for name, value in counters.items():
            setattr(self, name, value)
        # those of before are there
        self.checkpoint_thresholds = [
            t for t in self.checkpoint_thresholds if t >= self.n_training_samples
        ]
        self.lr_scheduler.load_state_dict(lr)
        for name, state in coefficients.items():
            self.coefficient_schedulers[name].load_state_dict(state)
        share = self.sae.share
        for name in _BY_LATENT:
            theirs = None if whole is None else getattr(whole, name)
            share.from_rank_0(getattr(self, name), theirs, torch.Size([share.d_sae]))
        adam: dict[int, dict[str, torch.Tensor]] = {}
        parameters = self.optimizer.param_groups[0]["params"]
        for index, tensors in layout.items():
            adam[index] = {}
            for name, (shape, dtype) in tensors.items():
                like = parameters[index] if len(shape) else torch.empty(())
                into = adam[index][name] = torch.empty_like(like, dtype=dtype)
                theirs = None if optimizer is None else optimizer["state"][index][name]
                share.from_rank_0(into, theirs, shape)
        self.optimizer.load_state_dict({"state": adam, "param_groups": groups})
        self._load_recent_samples(Path(checkpoint_path))

    def _load_recent_samples(self, checkpoint: Path) -> None:
        recent = self.sae.recent_samples
        if self.ranks.rank == 0:
            recent.load(checkpoint, torch.device("cpu"))
        of_rank_0 = list(recent.batches) if self.ranks.rank == 0 else None
        layout = of_rank_0 and [(batch.shape, batch.dtype) for batch in of_rank_0]
        recent.batches.clear()
        for i, (shape, dtype) in enumerate(self.ranks.from_rank(0, layout) or []):
            into = torch.empty(shape, dtype=dtype, device=self.ranks.device)
            self.sae.share.from_rank_0(into, of_rank_0 and of_rank_0[i], shape)
            recent.batches.append(into)

    # --- what SAELens tells wandb and the metadata is of all latents, not of this rank's ---

    @property
    @override
    def feature_sparsity(self) -> torch.Tensor:
        share, scores = self.sae.share, self.act_freq_scores
        is_whole = len(scores) == share.d_sae
        return (scores if is_whole else share.whole(scores)) / self.n_frac_active_samples

    @override
    @torch.no_grad()
    def set_final_sae_metadata(self) -> None:
        super().set_final_sae_metadata()
        n_dead = self.ranks.sum_(self.dead_neurons.sum())
        if self.n_frac_active_samples > 0:
            self.sae.cfg.metadata.num_dead_features = int(n_dead)

    @override
    @torch.no_grad()
    def build_train_step_log_dict(
        self, output: TrainStepOutput, n_training_samples: int
    ) -> dict[str, Any]:
        log = super().build_train_step_log_dict(output, n_training_samples)
        n = {"sparsity/mean_passes_since_fired": len(self.sae.share) / self.sae.share.d_sae}
        names = ["metrics/l0", "sparsity/dead_features", "sparsity/mean_passes_since_fired"]
        own = torch.tensor([log[name] * n.get(name, 1) for name in names], dtype=torch.float64)
        return {**log, **dict(zip(names, self.ranks.sum_(own).tolist(), strict=True))}

    def _checksum(self) -> int:
        sae = self.sae
        state = [self.optimizer.state.get(parameter, {}) for parameter in sae.shared()]
        adapter = sae.adapter
        shared = [*sae.shared(), adapter.input_norm, adapter.n_steps, adapter.n_samples]
        return checksum_of([*shared, *(adam[name] for adam in state for name in sorted(adam))])


@contextmanager
def replaced(module: ModuleType, **names: Any) -> Iterator[None]:
    """These names of a module have other values, for as long as it takes."""
    before = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(before)


class _OptimizerState:
    """A state dict in the place of the optimizer that would copy it."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state


def _write(
    whole: SAETrainer[Any, Any],
    path: Path,
    wandb_aliases: list[str] | None = None,
    samples: RecentSamples | None = None,
) -> None:
    with folder_written_whole(path, replace=True) as partial_folder:
        whole.save_checkpoint(partial_folder.name, path.parent, wandb_aliases)
        if samples is not None:
            samples.save(partial_folder)
        write_checksums(partial_folder)
