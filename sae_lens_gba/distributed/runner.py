"""SAELens' runners on one rank of several."""

import os
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import Any, TypeVar, cast

import sae_lens.synthetic.synthetic_sae_runner as synthetic_sae_runner
import torch
from datasets import Dataset
from datasets.distributed import split_dataset_by_node
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from sae_lens.synthetic import SyntheticSAERunner, SyntheticSAERunnerConfig
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.training.sae_trainer import Evaluator, SAETrainer, SaveCheckpointFn
from sae_lens.training.types import DataProvider
from safetensors.torch import load_file, save_file
from typing_extensions import override

from sae_lens_gba.distributed.latent_slice import LatentSlice, require_gba
from sae_lens_gba.distributed.ranks import Ranks, join
from sae_lens_gba.distributed.trainer import LatentParallelTrainer, replaced
from sae_lens_gba.provenance import package_versions
from sae_lens_gba.registration import CLASSES
from sae_lens_gba.training_sae import GBATrainingSAE

_C = TypeVar("_C")

# of a runner's settings, what each rank may have for itself
_ONES_OWN = ("device", "llm_device", "act_store_device", "checkpoint_path", "output_path", "logger")


def train_synthetic_sae(
    cfg: SyntheticSAERunnerConfig[Any],
) -> synthetic_sae_runner.SyntheticSAERunnerResult:
    """What SyntheticSAERunner does, as one of the ranks that torchrun started.

    The result is rank 0's.
    """
    with join() as ranks:
        require_gba(cfg.sae)
        _be_quiet_beside_rank_0(ranks)
        seed = ranks.from_rank(0, torch.initial_seed())
        torch.manual_seed(seed)  # the same data model on all ranks
        is_first = ranks.rank == 0
        own = {} if is_first else {"output_path": None, "run_final_eval": False}
        runner = SyntheticSAERunner(_changed(cfg, device=str(ranks.device), **own))
        runner.sae = LatentSlice.of(cast(Any, runner.sae) if is_first else None, ranks)
        torch.manual_seed(seed + ranks.rank)  # and data of its own on each
        with replaced(synthetic_sae_runner, SAETrainer=_TrainerOnSyntheticData):
            return runner.run()


class LatentParallelRunner(LanguageModelSAETrainingRunner):
    """LanguageModelSAETrainingRunner with a part of the latents and of the data.

    Args:
        cfg: as for one process, the same on all ranks.
        ranks: all that take part.
        overrides: model and dataset, as LanguageModelSAETrainingRunner takes them.

    Attributes:
        checkpoint_minutes: between checkpoints; 0 saves none in time.
        resume_folder: for these; None is ``resume`` in ``cfg.checkpoint_path``.
    """

    checkpoint_minutes: float = 0.0
    resume_folder: Path | None = None

    def __init__(self, cfg: LanguageModelSAERunnerConfig[Any], ranks: Ranks, **overrides: Any):
        self.ranks = ranks
        require_gba(cfg.sae)
        _be_quiet_beside_rank_0(ranks)
        settings = {**cfg.to_dict(), **cfg.sae.to_dict()}
        ranks.require_same(
            {**package_versions(), **{k: v for k, v in settings.items() if k not in _ONES_OWN}}
        )
        device = str(ranks.device)
        own = {} if ranks.rank == 0 else {"output_path": None}
        # to resume is ours: SAELens would give each rank all latents
        self._resume_from = cfg.resume_from_checkpoint
        cfg = _changed(
            cfg,
            device=device,
            llm_device=device,
            act_store_device=device,
            resume_from_checkpoint=None,
            **own,
        )
        torch.manual_seed(cfg.seed)
        sae = LatentSlice.of(_first_sae(cfg) if ranks.rank == 0 else None, ranks)
        torch.manual_seed(cfg.seed + ranks.rank)
        super().__init__(cfg, override_sae=sae, **overrides)
        for store in self.stores():
            store.dataset = part_of_dataset(store.dataset, ranks)
            cached = part_of_dataset(store.cached_activation_dataset, ranks)
            if cached is not None and len(cached) < store.store_batch_size_prompts:
                raise ValueError(
                    f"store_batch_size_prompts={store.store_batch_size_prompts} is not possible: "
                    f"a rank has {len(cached)} of the cached contexts; give at most that, or start "
                    "fewer ranks."
                )
            store.cached_activation_dataset = cached
        self.activations_store.train_batch_size_tokens = ranks.part_of(cfg.train_batch_size_tokens)

    def stores(self) -> list[ActivationsStore]:
        """Those whose rows are divided among the ranks."""
        return [self.activations_store]

    @override
    def run(self) -> Any:
        if self._resume_from is not None:  # now, before a thread prefetches
            self._skip_data_seen_before(Path(self._resume_from))
        return super().run()

    @override
    def run_trainer_with_interruption_handling(self, trainer: SAETrainer[Any, Any]) -> Any:
        together = LatentParallelTrainer(
            trainer.cfg,
            cast(LatentSlice, trainer.sae),
            trainer.data_provider,
            self._evaluate,
            trainer.save_checkpoint_fn,
        )
        if self._resume_from is not None:
            together.load_trainer_state(self._resume_from)
            together.sae.load_weights_from_checkpoint(self._resume_from)
        together.checkpoint_every(self.checkpoint_minutes, self.resume_folder)
        sae = together.fit()
        # run() asks this one for what it saves along
        trainer.act_freq_scores = together.act_freq_scores
        trainer.n_frac_active_samples = together.n_frac_active_samples
        return sae

    def _evaluate(
        self, sae: TrainingSAE[Any], data_provider: DataProvider, scaler: ActivationScaler
    ) -> dict[str, Any]:
        """By all ranks on the same tokens: what an SAE gives out is the sum of all parts."""
        store = self.activations_store
        draw = store.get_batch_tokens
        prefetched = data_provider if isinstance(data_provider, PrefetchingIterator) else None

        def tokens_of_rank_0(*args: Any, **kwargs: Any) -> torch.Tensor:
            tokens = draw(*args, **kwargs).cpu() if self.ranks.rank == 0 else None
            return self.ranks.from_rank(0, tokens).to(self.ranks.device)

        with prefetched.paused() if prefetched else nullcontext():
            vars(store)["get_batch_tokens"] = tokens_of_rank_0
            try:
                found = self.evaluator(sae, store, scaler)
            finally:
                del vars(store)["get_batch_tokens"]
        of_own_latents = found.get("sparsity", {})
        for name in {"l0", "l1"} & set(of_own_latents):
            value = torch.tensor(of_own_latents[name], device=self.ranks.device)
            of_own_latents[name] = float(self.ranks.sum_(value))
        return found

    @override
    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        """As SAELens', called on rank 0; the rows read are those of all ranks together."""
        super().save_checkpoint(checkpoint_path)
        if checkpoint_path is not None:
            n_rows = self.activations_store.n_dataset_processed * self.ranks.world
            state = {"n_dataset_processed": torch.tensor(n_rows)}
            save_file(state, checkpoint_path / ACTIVATIONS_STORE_STATE_FILENAME)

    def _skip_data_seen_before(self, checkpoint: Path) -> None:
        store = self.activations_store
        n_rows = None
        if self.ranks.rank == 0:
            state = load_file(checkpoint / ACTIVATIONS_STORE_STATE_FILENAME)
            n_rows = int(state["n_dataset_processed"])
        own = self.ranks.from_rank(0, n_rows) // self.ranks.world
        while store.n_dataset_processed < own:
            try:
                next(store.iterable_sequences)
            except StopIteration:
                store.iterable_sequences = store._iterate_tokenized_sequences()


class _TrainerOnSyntheticData(LatentParallelTrainer):
    """What SyntheticSAERunner makes instead of its SAETrainer."""

    def __init__(
        self,
        cfg: SAETrainerConfig,
        sae: LatentSlice,
        data_provider: Any,
        evaluator: Evaluator[Any] | None = None,
        save_checkpoint_fn: SaveCheckpointFn | None = None,
    ):
        ranks = sae.share.ranks
        data_provider.batch_size = ranks.part_of(cfg.train_batch_size_samples)

        def evaluate(sae: LatentSlice, provider: DataProvider, scaler: ActivationScaler) -> Any:
            whole = sae.whole()  # what is measured there needs all latents
            if whole is None or evaluator is None:
                return {}
            return evaluator(whole.to(ranks.device), provider, scaler)

        super().__init__(cfg, sae, data_provider, evaluator and evaluate, save_checkpoint_fn)

    @override
    def fit(self) -> GBATrainingSAE | LatentSlice:
        return super().fit().to(self.ranks.device)


def _be_quiet_beside_rank_0(ranks: Ranks) -> None:
    """Log steps and evaluations must come at the same time on all ranks, and be told once."""
    if ranks.rank != 0:
        os.environ["WANDB_MODE"] = "disabled"


def _changed(cfg: _C, **settings: Any) -> _C:
    """A copy; dataclasses.replace would add another random id to checkpoint_path."""
    cfg = copy(cfg)
    for name, value in settings.items():
        setattr(cfg, name, value)
    return cfg


def _first_sae(cfg: LanguageModelSAERunnerConfig[Any]) -> GBATrainingSAE:
    if cfg.from_pretrained_path is not None:
        return cast(GBATrainingSAE, TrainingSAE.load_from_disk(cfg.from_pretrained_path))
    cls, _ = CLASSES[cfg.sae.architecture()]
    return cls(_changed(cfg.sae, device="cpu"))


def part_of_dataset(dataset: Any, ranks: Ranks) -> Any:
    """Every world-th row, so that ranks together are where one process would be."""
    if isinstance(dataset, Dataset):
        if len(dataset) < ranks.world:
            raise ValueError(
                f"a dataset of {len(dataset)} rows is not enough for {ranks.world} ranks: start "
                "fewer."
            )
        return dataset.shard(ranks.world, ranks.rank, contiguous=False)
    return dataset and split_dataset_by_node(dataset, ranks.rank, ranks.world)
