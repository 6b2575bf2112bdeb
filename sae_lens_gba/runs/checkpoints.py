"""Whole checkpoints of a SAELens trainer: all that a run needs to go on as if never stopped.

Each is a folder named by the number of training samples, and appears whole or not at all::

    cfg.json, sae_weights.safetensors, trainer_state.pt, ...   as SAELens writes them
    recent_samples.safetensors                                 of a GBA SAE, for its calibration
    run_state.pt                                               random generators, settings
    gba_checksums.json                                         written last

A checkpoint of a `MultiSAETrainer` has a folder for each SAE, as SAELens has it.
"""

import json
import logging
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import LanguageModelSAERunnerConfig, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.constants import (
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.synthetic.synthetic_sae_runner import RUNNER_CONFIG_FILENAME
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sae_lens_gba.atomic_write import folder_written_whole, numbered, remove_older
from sae_lens_gba.checksums import check_checksums, has_checksums, write_checksums
from sae_lens_gba.errors import DamagedFileError, RunFolderError
from sae_lens_gba.plain_values import plain
from sae_lens_gba.runs.random_state import draw_again, random_state, set_random_state
from sae_lens_gba.saved.files import read_json
from sae_lens_gba.training_sae import GBATrainingSAE

STATE_FILENAME = "run_state.pt"

# of a run that goes on, these may be other ones
_FREE_TO_CHANGE = {
    "calibrate_for", "checkpoint_path", "device", "dtype", "logger", "metadata", "n_checkpoints",
    "save_final_checkpoint",
}  # fmt: skip

# by their names at a trainer and a runner; the command derives others from them
_LENGTH = (
    "total_training_samples", "training_tokens", "train_batch_size_samples",
    "train_batch_size_tokens",
)  # fmt: skip

# settings of an SAE that make it another one to whoever asked for it
_OF_SAE = {"architecture", "d_sae", "target_l0"}

# settings of a runner that say on which activations it trains
_OF_DATA = {
    "context_size", "dataset_path", "disable_concat_sequences", "exclude_special_tokens",
    "hook_head_index", "hook_name", "hook_names", "model_class_name", "model_name", "prepend_bos",
    "seed", "seqpos_slice", "sequence_separator_token", "synthetic_model", "use_chat_formatting",
}  # fmt: skip

# what settings hold that come from numpy, such as a learning rate of np.geomspace
_OF_NUMPY: list[Any] = [np.float64(0).__reduce__()[0], np.dtype]
_OF_NUMPY += [type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64")]

AnyTrainer = SAETrainer[Any, Any] | MultiSAETrainer
_log = logging.getLogger(__name__)


@contextmanager
def _numbers_of_numpy() -> Iterator[None]:
    """In the block torch reads them, without whatever else a pickle may hold."""
    known = torch.serialization.get_safe_globals()  # torch forgets what it was told here
    with torch.serialization.safe_globals([kind for kind in _OF_NUMPY if kind not in known]):
        yield


def parts_of(trainer: AnyTrainer) -> dict[str, SAETrainer[Any, Any]]:
    """The trainer of each SAE, by its folder in a checkpoint."""
    return trainer.trainers if isinstance(trainer, MultiSAETrainer) else {".": trainer}


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint with most samples whose files are all there and as they were saved."""
    for path in reversed(numbered(folder)):
        try:
            check_checksums(path)
        except DamagedFileError as error:
            _log.warning("the checkpoint %s is left out: %s", path, error)
            continue
        if has_checksums(path):
            return path
    return None


class Checkpoints:
    """The checkpoints of one run in ``folder``, the newest ``keep`` of which stay."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep
        self._start: dict[str, Any] = {}

    def begin(self, trainer: AnyTrainer, resume_from: Path | None) -> None:
        """Bring ``trainer``, whose fit() is about to begin, to where the run is.

        Raises:
            RunFolderError: the checkpoint is of a run with other settings.
        """
        self._start = {
            "random_state": random_state(),
            "n_batches": _batches_before_training(trainer),
            "n_training_steps": trainer.n_training_steps,  # made before, on other data
            "settings": _settings(trainer.cfg),
        }
        if resume_from is None:
            return
        runner_cfg = getattr(getattr(trainer.save_checkpoint_fn, "__self__", None), "cfg", None)
        if hasattr(runner_cfg, "to_dict"):  # of a runner of SAELens', whose method that is
            require_data_of(resume_from, runner_cfg)
        if not (resume_from / STATE_FILENAME).is_file():  # saved by several processes together
            for name, part in parts_of(trainer).items():
                _require_same_schedule(part.cfg, resume_from / name)
                _restore_part(part, resume_from / name)
            _leave_out_past_checkpoints(trainer)
            return
        with _numbers_of_numpy():  # weights_only: tensors and values, nothing that could run
            state = torch.load(resume_from / STATE_FILENAME, map_location="cpu", weights_only=True)
        self._start = state["start"]
        both = self._start["settings"], _settings(trainer.cfg)
        if hasattr(runner_cfg, "training_tokens"):  # whose names these settings have as well
            both = _in_tokens(both[0]), _in_tokens(both[1])
        _require_same("trainer", *both, resume_from)
        for name, part in parts_of(trainer).items():
            _restore_part(part, resume_from / name)
        trainer.n_training_steps = state["n_training_steps"]
        trainer.n_training_samples = state["n_training_samples"]
        _leave_out_past_checkpoints(trainer)
        store = _live_store(trainer)
        prefetches = isinstance(trainer.data_provider, PrefetchingIterator)
        if store is None:
            if prefetches:  # its thread draws from the same generators, from the beginning
                _log.warning(
                    "with prefetch_llm_batches the order of the data is another one than without "
                    "an interruption."
                )
            made_here = trainer.n_training_steps - self._start.get("n_training_steps", 0)
            n_batches = self._start["n_batches"] + made_here
            draw_again(trainer.data_provider, n_batches, self._start["random_state"])
        elif not prefetches:
            store.load_from_checkpoint(resume_from)
        elif store.n_dataset_processed < _texts_read(resume_from):  # its thread reads already
            _log.warning(
                "with prefetch_llm_batches the data begin anew: resume without it, or by "
                "sae_lens_gba.train, and they go on with what was not read yet."
            )
        set_random_state(state["random_state"])

    def save(self, trainer: AnyTrainer) -> Path:
        """Write a checkpoint between two steps; older ones go once it is whole.

        Raises:
            StorageError: the disk is full, or the folder can't be written.
        """
        path = self.folder / str(trainer.n_training_samples)
        with folder_written_whole(path, replace=True) as partial:  # there may be a damaged one
            for name, part in parts_of(trainer).items():
                _save_part(part, partial / name)
            state = {
                "start": self._start,
                "random_state": random_state(),
                "n_training_steps": trainer.n_training_steps,
                "n_training_samples": trainer.n_training_samples,
            }
            torch.save(state, partial / STATE_FILENAME)
            if trainer.save_checkpoint_fn is not None:
                trainer.save_checkpoint_fn(checkpoint_path=partial)
            write_checksums(partial)
        remove_older(path, self.keep)
        return path


def require_settings_of(checkpoint: Path, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """That a run goes on with the settings of a checkpoint, of whatever number of processes.

    Raises:
        RunFolderError: a setting is another one.
    """
    require_run_of(checkpoint, cfg)
    saved = read_json(checkpoint / SAE_CFG_FILENAME)
    _require_same("SAE", saved, cfg.sae.to_dict(), checkpoint)


def require_run_of(checkpoint: Path, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """That a run goes on with the trainer's settings and the activations of a checkpoint.

    Raises:
        RunFolderError: a setting is another one.
    """
    require_data_of(checkpoint, cfg)
    _require_same_schedule(cfg.to_sae_trainer_config(), checkpoint)


def require_data_of(folder: Path, cfg: Any) -> None:
    """That a run goes on with the activations of a checkpoint, as far as its runner knows them.

    Args:
        folder: of the checkpoint, or of a run that has ended.
        cfg: of a runner of SAELens'.

    Raises:
        RunFolderError: a setting is another one.
    """
    for path in (folder / RUNNER_CFG_FILENAME, folder / RUNNER_CONFIG_FILENAME):
        if path.is_file():  # the latter of SAELens' synthetic runner
            saved, now = read_json(path), json.loads(json.dumps(plain(cfg.to_dict())))
            _require_same("run", saved, now, folder, _OF_DATA)


def require_ended_run_of(folder: Path, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """That the run which ended in ``folder`` is the one that was asked for.

    Raises:
        RunFolderError: a setting is another one.
    """
    path = folder / RUNNER_CFG_FILENAME
    if path.is_file():
        saved, now = read_json(path), cfg.to_dict()
        _require_same("SAE", saved.get("sae") or {}, now["sae"], folder, _OF_SAE)
        _require_same("run", saved, now, folder, {"training_tokens"})
    require_data_of(folder, cfg)


def _require_same_schedule(cfg: SAETrainerConfig, checkpoint: Path) -> None:
    """Of a checkpoint with its runner's settings."""
    path = checkpoint / RUNNER_CFG_FILENAME
    if path.is_file():
        _require_same("run", read_json(path), _in_tokens(_settings(cfg)), checkpoint)


def _save_part(part: SAETrainer[Any, Any], folder: Path) -> None:
    # not trainer.save_checkpoint, which uploads the weights to wandb each time
    part.sae.save_model(folder)
    if part.n_frac_active_samples > 0:
        save_file({"sparsity": part.log_feature_sparsity}, folder / SPARSITY_FILENAME)
    part.save_trainer_state(folder)
    if isinstance(part.sae, GBATrainingSAE):
        part.sae.recent_samples.save(folder)


def _restore_part(part: SAETrainer[Any, Any], folder: Path) -> None:
    saved = read_json(folder / SAE_CFG_FILENAME)
    _require_same("SAE", saved, part.sae.cfg.to_dict(), folder)
    _require_same_parameters(part.sae, folder)
    with _numbers_of_numpy():
        part.load_trainer_state(folder)
    part.sae.load_weights_from_checkpoint(folder)
    if isinstance(part.sae, GBATrainingSAE):
        part.sae.recent_samples.load(folder, part.sae.device)


def _require_same_parameters(sae: TrainingSAE[Any], folder: Path) -> None:
    """The optimizer's state is that of the parameters; folding makes W_enc one of its own."""
    with safe_open(folder / SAE_WEIGHTS_FILENAME, framework="pt") as weights:
        is_folded = "W_enc" in set(weights.keys())
    if isinstance(sae, GBATrainingSAE) and is_folded != ("W_enc" in sae.state_dict()):
        raise RunFolderError(
            f"the SAE is {'not ' * is_folded}folded (`fold_W_dec_norm` and the like), that of "
            f"{folder} {'was' if is_folded else 'was not'}: go on with one like it."
        )


def _leave_out_past_checkpoints(trainer: AnyTrainer) -> None:
    """Of those that `n_checkpoints` asks for, SAELens would save the past ones once more."""
    trainer.checkpoint_thresholds = [
        t for t in trainer.checkpoint_thresholds if t >= trainer.n_training_samples
    ]


def _batches_before_training(trainer: AnyTrainer) -> int:
    """How many batches fit() draws to estimate statistics of the activations."""
    estimated = any(
        (mode == "expected_average_only_in" and scaler.scaling_factor is None)
        or (mode == "covariance_whitening" and scaler.whitening is None)
        for mode, scaler in (
            (part.sae.cfg.normalize_activations, part.activation_scaler)
            for part in parts_of(trainer).values()
        )
    )
    return trainer.cfg.n_batches_for_norm_estimate if estimated else 0


def _settings(cfg: SAETrainerConfig) -> dict[str, Any]:
    settings = {k: v for k, v in asdict(cfg).items() if k not in _FREE_TO_CHANGE}
    if cfg.lr_scheduler_name == "constant" and cfg.lr_decay_steps == 0:
        del settings["total_training_samples"]  # nothing follows the run's length
    return settings


def _in_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """By the names that a runner has for a trainer's settings."""
    names = {
        "total_training_samples": "training_tokens",
        "train_batch_size_samples": "train_batch_size_tokens",
    }
    return {names.get(name, name): value for name, value in settings.items()}


def _require_same(
    whose: str,
    saved: dict[str, Any],
    now: dict[str, Any],
    checkpoint: Path,
    names: Set[str] | None = None,
) -> None:
    """All settings that both have, or those of ``names``: other versions may have others."""
    for name in sorted(set(saved) & set(now), key=lambda name: (name not in _LENGTH, name)):
        is_free = name in _FREE_TO_CHANGE or name.startswith("sae_lens")
        if is_free or saved[name] == now[name] or (names is not None and name not in names):
            continue
        raise RunFolderError(
            f"the {whose}'s {name}={now[name]!r} differs from {saved[name]!r}, with which "
            f"{checkpoint} was trained: give {name}={saved[name]!r}, or begin anew elsewhere."
        )


def _live_store(trainer: AnyTrainer) -> ActivationsStore | None:
    """The store whose model makes the batches as they are asked for, if any.

    It is the data provider itself, or the one that its runner wraps.
    """
    runner = getattr(trainer.save_checkpoint_fn, "__self__", None)
    for store in (trainer.data_provider, getattr(runner, "activations_store", None)):
        if isinstance(store, ActivationsStore) and store.cached_activation_dataset is None:
            return store
    return None


def _texts_read(checkpoint: Path) -> int:
    return int(load_file(checkpoint / ACTIVATIONS_STORE_STATE_FILENAME)["n_dataset_processed"])
