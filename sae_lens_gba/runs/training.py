"""Training an SAE of a language model, from SAELens' own configuration to the saved folder."""

import logging
import math
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetNotFoundError
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.config import HfDataset
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_gba.atomic_write import files_written_whole
from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.distributed import join
from sae_lens_gba.distributed.latent_slice import require_gba
from sae_lens_gba.distributed.runner import LatentParallelRunner
from sae_lens_gba.errors import brief
from sae_lens_gba.plain_values import make_plain, plain, require_json
from sae_lens_gba.runs.checkpoints import (
    require_ended_run_of,
    require_run_of,
    require_settings_of,
)
from sae_lens_gba.runs.folder import (
    CHECKPOINTS,
    has_ended,
    remove_checkpoints,
    remove_replaced_run,
    run_folder,
)
from sae_lens_gba.runs.models import model_for
from sae_lens_gba.runs.resumable import CHECKPOINT_MINUTES, require_minutes, resumable_run
from sae_lens_gba.runs.transcoders import (
    LatentParallelTranscoderRunner,
    TranscoderTrainingRunner,
    require_target,
)
from sae_lens_gba.saved.files import read_json
from sae_lens_gba.sources import require_context, require_device
from sae_lens_gba.training_sae import GBATrainingSAE
from sae_lens_gba.transcoder_config import GBATrainingTranscoderConfig

# not every model takes the names of dtypes: they become plain once it is loaded
_OF_MODEL = "model_from_pretrained_kwargs"
_OF_SAVE_TO_DISK = ("state.json", "dataset_dict.json")
_ABOVE_0 = (
    "context_size", "feature_sampling_window", "lr", "store_batch_size_prompts",
    "train_batch_size_tokens",
)  # fmt: skip
_AT_LEAST_0 = ("lr_decay_steps", "lr_warm_up_steps", "n_checkpoints")
_SCHEDULERS = ("constant", "cosineannealing", "cosineannealingwarmrestarts")  # of SAELens
_log = logging.getLogger(__name__)


def train(
    cfg: LanguageModelSAERunnerConfig[Any],
    *,
    model: Any = None,
    dataset: HfDataset | None = None,
    d_in_of_model: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    charts: bool = False,
    how_to_resume: str = "run the same with resume=True",
) -> TrainingSAE[Any] | None:
    """Train by SAELens' runner, into ``cfg.output_path``, so that no interrupt loses it.

    A transcoder is trained on pairs of activations, by `TranscoderTrainingRunner`. See
    `resumable_run` for checkpoints, signals and the folder. ``cfg.seed`` is that of the SAE's
    weights as well.

    Args:
        cfg: of any architecture. Cached activations of a transcoder are of both its hooks, see
            `join_cached_activations`.
        model: of TransformerLens; None loads the one that ``cfg`` names.
        dataset: with a column ``text`` or ``tokens``; None loads the one that ``cfg`` names.
        d_in_of_model: take the SAE's d_in, and a transcoder's d_out, from the model, whatever
            ``cfg`` says.
        charts: leave a record of the run and charts in the folder (GBA only).

    Returns:
        The trained SAE; None if ``resume`` found that the run has ended already.

    Raises:
        ValueError: a setting is not possible, or does not fit the model.
        RunFolderError, StorageError, TrainingInterrupted: see `resumable_run`.
    """
    folder = _output_folder(cfg)
    if _is_over(folder, resume, cfg):
        return None
    _check(cfg, charts, has_dataset=dataset is not None)
    for device in (cfg.device, cfg.llm_device):
        require_device(str(device))
    with resumable_run(
        folder,
        resume=resume,
        overwrite=overwrite,
        checkpoint_minutes=checkpoint_minutes,
        how_to_resume=how_to_resume,
    ) as resume_from:
        if resume_from is not None:  # before anything is loaded
            require_run_of(resume_from, cfg)
        torch.manual_seed(cfg.seed)
        is_sae = _target_of(cfg) is None
        runner_class = LanguageModelSAETrainingRunner if is_sae else TranscoderTrainingRunner
        with model_for(cfg, _hooks_of(cfg), model) as model, _data_found(cfg):
            cfg = _fitted_to(model, cfg, d_in_of_model)
            runner = runner_class(cfg, override_model=model, override_dataset=dataset)
        if cfg.from_pretrained_path is not None:
            cfg.sae = runner.sae.cfg  # with this run's metadata
        if resume_from is not None and not cfg.use_cached_activations:
            # now, before a thread prefetches
            runner.activations_store.load_from_checkpoint(resume_from)
        sae = _run(runner, folder, charts)
        remove_checkpoints(folder)  # whatever signal came since: the run has ended
    _log.info("%s", _ending(sae, folder))
    return sae


def train_on_ranks(
    cfg: LanguageModelSAERunnerConfig[Any],
    *,
    d_in_of_model: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> None:
    """`train`, as one of the processes that torchrun started, which train one SAE together.

    Checkpoints are written as `train` writes them, and any number of processes, one as well, can
    go on from them; ``cfg.n_checkpoints`` more, if asked for, and one when any process is sent
    SIGTERM.

    Raises:
        ValueError: a setting is not possible, or does not fit the model.
        RunFolderError, StorageError: see `resumable_run`.
        RanksError: ranks can't go on together; see its subclasses.
    """
    folder = _output_folder(cfg)
    require_gba(cfg.sae)
    _check(cfg)
    require_minutes(checkpoint_minutes)
    with join() as ranks:
        is_first = ranks.rank == 0
        if ranks.from_rank(0, is_first and _is_over(folder, resume, cfg)):
            return
        with run_folder(folder, resume, overwrite) if is_first else nullcontext() as found:
            found = ranks.from_rank(0, found)
            cfg = copy(cfg)  # the caller's may be that of another run
            if found is not None:
                cfg.resume_from_checkpoint = str(found)
            cfg.llm_device = str(ranks.device)
            with model_for(cfg, _hooks_of(cfg)) as model:
                cfg = _fitted_to(model, cfg, d_in_of_model)
                if is_first and found is not None:
                    require_settings_of(found, cfg)
                is_sae = _target_of(cfg) is None
                runner = LatentParallelRunner if is_sae else LatentParallelTranscoderRunner
                with _data_found(cfg):
                    together = runner(cfg, ranks, override_model=model)
                together.checkpoint_minutes = checkpoint_minutes
                together.resume_folder = folder / CHECKPOINTS
                if is_first:
                    remove_replaced_run(folder)
                sae = together.run()
            if is_first:
                remove_checkpoints(folder)
                _log.info("%s", _ending(sae, folder))


def _output_folder(cfg: LanguageModelSAERunnerConfig[Any]) -> Path:
    """Of a configuration that can be written there as JSON when the run ends."""
    if cfg.output_path is None:
        raise ValueError("output_path=None is not possible: name a folder for the SAE.")
    make_plain(cfg, {field.name for field in fields(cfg)} - {_OF_MODEL})
    require_json(plain(cfg.to_dict()))
    return Path(cfg.output_path)


def _is_over(folder: Path, resume: bool, cfg: LanguageModelSAERunnerConfig[Any]) -> bool:
    over = resume and has_ended(folder)
    if over:
        require_ended_run_of(folder, cfg)
        _log.info("the run in %s has ended: there is nothing to go on with.", folder)
    return over


def _run(runner: Any, folder: Path, charts: bool) -> Any:
    runner.save_final_sae = partial(_save_whole, runner.save_final_sae)
    if not charts:
        return runner.run()
    from sae_lens_gba.training_record.charts import train_with_charts

    return train_with_charts(runner, folder)


def _save_whole(save: Callable[..., None], *, output_path: str, **saved: Any) -> None:
    """The files that SAELens' runner adds to an SAE's appear with them, or none do."""
    with files_written_whole(Path(output_path)) as new:
        save(output_path=str(new), **saved)


def _check(
    cfg: LanguageModelSAERunnerConfig[Any], charts: bool = False, has_dataset: bool = False
) -> None:
    """What else would fail late, or in many lines."""
    if isinstance(cfg.sae, GBATrainingTranscoderConfig):
        require_target(cfg.sae, cfg.hook_head_index)
    if charts and not isinstance(cfg.sae, GBATrainingSAEConfig):
        raise ValueError(
            f"architecture={cfg.sae.architecture()!r} is not possible with --report, which charts "
            "the groups of a GBA SAE: leave --report out."
        )
    if charts:
        import sae_lens_gba.training_record.charts  # noqa: F401  # asks for matplotlib
    for name in _ABOVE_0:
        if not 0 < getattr(cfg, name) < math.inf:
            raise ValueError(
                f"{name}={getattr(cfg, name)} is not possible: it must be above 0, and finite."
            )
    for name in _AT_LEAST_0:
        if not getattr(cfg, name) >= 0:
            raise ValueError(f"{name}={getattr(cfg, name)} is not possible: it must be 0 or more.")
    if cfg.lr_scheduler_name.lower() not in _SCHEDULERS:
        raise ValueError(
            f"lr_scheduler_name={cfg.lr_scheduler_name!r} is not possible: it must be one of "
            f"{', '.join(_SCHEDULERS)}."
        )
    if cfg.lr_end == 0 < cfg.lr_decay_steps and cfg.lr_scheduler_name.lower() != "constant":
        raise ValueError(
            f"lr_decay_steps={cfg.lr_decay_steps} is not possible with lr_end=0, below which "
            "nothing falls: leave one of them out."
        )
    per_context = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    buffer = cfg.n_batches_in_buffer * per_context
    if buffer < cfg.train_batch_size_tokens:
        needed = -(-cfg.train_batch_size_tokens // per_context)
        raise ValueError(
            f"n_batches_in_buffer={cfg.n_batches_in_buffer} is not possible: with {per_context} "
            f"tokens a context the buffer holds {buffer}, fewer than a batch of "
            f"train_batch_size_tokens={cfg.train_batch_size_tokens}; it must be at least {needed}."
        )
    if cfg.training_tokens < cfg.train_batch_size_tokens:
        raise ValueError(
            f"training_tokens={cfg.training_tokens} is not possible: it must be at least a batch, "
            f"train_batch_size_tokens={cfg.train_batch_size_tokens}."
        )
    if not has_dataset and cfg.dataset_path and Path(cfg.dataset_path).is_file():
        raise ValueError(
            f"dataset_path={cfg.dataset_path} is a file: put it into a folder of its own, and name "
            "that."
        )
    saved_as = Path(cfg.dataset_path or "")
    if not has_dataset and any((saved_as / name).is_file() for name in _OF_SAVE_TO_DISK):
        raise ValueError(
            f"dataset_path={cfg.dataset_path} was written by save_to_disk, which SAELens does not "
            "read: write it with to_parquet into a folder, and name that; or pass "
            "dataset=datasets.load_from_disk(...) to sae_lens_gba.train."
        )
    if cfg.from_pretrained_path is not None:
        pretrained = Path(cfg.from_pretrained_path)
        _require_pretrained(pretrained, cfg.sae)
        source, new = pretrained.resolve(), Path(cfg.output_path or "").resolve()
        if source == new or new / CHECKPOINTS in source.parents:
            raise ValueError(
                f"output_path={cfg.output_path} holds from_pretrained_path={pretrained}, which "
                "this run would replace: name another folder for the new SAE."
            )
    if cfg.logger.log_to_wandb and not _wandb_can_log():
        raise ValueError(
            "log_to_wandb=True is not possible: nobody is logged in to Weights & Biases; run "
            "'wandb login', set WANDB_MODE=offline, or pass --log_to_wandb false."
        )


def _require_pretrained(folder: Path, cfg: TrainingSAEConfig) -> None:
    """That SAELens takes from ``folder`` the SAE that was asked for: it looks at nothing else.

    Raises:
        ValueError: it would train another architecture, width or L0, or a setting that was given
            would be left out.
    """
    if not (folder / SAE_CFG_FILENAME).is_file():
        raise ValueError(f"from_pretrained_path={folder} is not possible: it has no cfg.json.")
    saved, wanted = read_json(folder / SAE_CFG_FILENAME), cfg.to_dict()
    fixed = {"architecture", "d_sae", "target_l0"}
    defaults = {field.name: field.default for field in fields(cfg)}
    for name in sorted(set(wanted) - {"d_in", "d_out", "device", "metadata"}):
        given = name in fixed or wanted[name] != defaults.get(name, wanted[name])
        if given and saved.get(name) != wanted[name]:
            raise ValueError(
                f"from_pretrained_path={folder} has {name}={saved.get(name)!r}, and keeps it: give "
                f"that instead of {wanted.get(name)!r}, or the folder of sae_lens_gba."
                f"to_training_sae(...).save_model(...), which makes a GBA training SAE of any."
            )


@contextmanager
def _data_found(cfg: LanguageModelSAERunnerConfig[Any]) -> Iterator[None]:
    """ValueError for a data set that is not there, or for which code would have to run."""
    try:
        yield
    except RuntimeError as error:
        if "Dataset scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"dataset_path={cfg.dataset_path!r} is a script, which datasets no longer runs: give "
            "one of files, such as Parquet or JSON."
        ) from error
    except (ConnectionError, DatasetNotFoundError) as error:
        raise ValueError(
            f"dataset_path={cfg.dataset_path!r} is no folder here, and can't be had from the Hub "
            f"({brief(str(error))}): give another name, or the path of a folder."
        ) from error


def _wandb_can_log() -> bool:
    import wandb

    return "WANDB_MODE" in os.environ or wandb.api.api_key is not None


def _target_of(cfg: LanguageModelSAERunnerConfig[Any]) -> str | None:
    """Hook of a transcoder's target; None of an SAE."""
    return cfg.sae.hook_name_out if isinstance(cfg.sae, GBATrainingTranscoderConfig) else None


def _hooks_of(cfg: LanguageModelSAERunnerConfig[Any]) -> list[str]:
    return [cfg.hook_name, *filter(None, [_target_of(cfg)])]


def _fitted_to(
    model: Any, cfg: LanguageModelSAERunnerConfig[Any], d_in_of_model: bool
) -> LanguageModelSAERunnerConfig[Any]:
    make_plain(cfg, [_OF_MODEL])
    require_context(model, cfg.context_size)
    found = {"d_in": (cfg.hook_name, width_at(model, cfg.hook_name, cfg.hook_head_index))}
    target = _target_of(cfg)
    if target is not None:
        found["d_out"] = (target, width_at(model, target))
    if cfg.from_pretrained_path is not None:
        saved = read_json(Path(cfg.from_pretrained_path) / SAE_CFG_FILENAME)
        for name, (hook, width) in found.items():
            if saved.get(name) != width:
                raise ValueError(
                    f"from_pretrained_path={cfg.from_pretrained_path} has {name}="
                    f"{saved.get(name)}, and activations at {hook} of {cfg.model_name} have "
                    f"{width} dimensions: name the hook that it was trained on."
                )
        # it has settings of its own, which are written with the rest
        cfg.sae = TrainingSAEConfig.from_dict({**saved, "device": cfg.sae.device})
    other = {name: at for name, at in found.items() if getattr(cfg.sae, name) != at[1]}
    for name, (hook, width) in other.items():
        # a d_out that nobody gave is d_in
        given = name == "d_out" and cfg.sae.d_out != cfg.sae.d_in
        if given or not d_in_of_model:
            raise ValueError(
                f"{name}={getattr(cfg.sae, name)} is not possible: activations at {hook} of "
                f"{cfg.model_name} have {width} dimensions; leave --{name} out, or pass {width}."
            )
    if other:
        cfg.sae = replace(cfg.sae, **{name: width for name, (_, width) in other.items()})
    return cfg


@torch.no_grad()
def width_at(model: Any, hook_name: str, head: int | None = None) -> int:
    """Dimensions of a model's activations at a hook point, those of all heads together.

    Raises:
        ValueError: the model has no such hook point, and the nearest is named; or what is there
            has no row for each token, or no such head.
    """
    known = list(getattr(model, "hook_dict", {}))
    if known and hook_name not in known:
        near = get_close_matches(hook_name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "look at model.hook_dict."
        raise ValueError(f"hook_name={hook_name!r} is not a hook point of the model: {hint}")
    tokens = torch.zeros(1, 3, dtype=torch.long, device=next(model.parameters()).device)
    _, cache = model.run_with_cache(tokens, names_filter=[hook_name], prepend_bos=False)
    shape = cache[hook_name].shape
    if shape[:2] != tokens.shape:
        raise ValueError(
            f"hook_name={hook_name!r} is not possible: what is there has no row for each token, "
            f"its shape is {tuple(shape)} on {tuple(tokens.shape)} tokens."
        )
    if head is not None and not (len(shape) == 4 and 0 <= head < shape[2]):
        has = f"has heads 0 to {shape[2] - 1}" if len(shape) == 4 else "is of no single heads"
        raise ValueError(f"hook_head_index={head} is not possible: {hook_name} {has}.")
    return int(shape[-1] if head is not None else prod(shape[2:]))


def _ending(sae: TrainingSAE[Any], folder: Path) -> str:
    lines = [f"saved in {folder.resolve()}"]
    if isinstance(sae, GBATrainingSAE):
        l0: dict[str, Any] = sae.stock_metadata().to_dict()["gba"]["l0"]
        samples = f" on {l0['n_samples']} samples" if l0["n_samples"] else ""
        lines.append(f"L0 asked {l0['target']:.4g}, got {l0['measured']:.4g}{samples}")
    return "\n".join(lines)


def commands_for(folder: str | Path, is_gba: bool = True) -> str:
    """What may be done with the SAE in a folder."""
    name = shlex.quote(str(folder))
    commands = ["next:", f"sae-lens-gba report {name}"]
    if is_gba:
        commands.append(f"sae-lens-gba publish USER/REPO {name} --dry-run")
    return "\n    ".join(commands)
