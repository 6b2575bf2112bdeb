"""What ``sae-lens-gba`` does once its arguments are known to be possible.

The command itself is in `sae_lens_gba_command`, which needs neither SAELens nor torch.
"""

import argparse
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import sae_lens.llm_sae_training_runner as saelens
import torch

from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.errors import GBAError
from sae_lens_gba.sources import best_device
from sae_lens_gba_command import COMMANDS, train_flags
from sae_lens_gba_command.parsers import is_given

_log = logging.getLogger(__name__)


def run(command: str, arguments: list[str], flags: argparse.Namespace) -> int:
    """Run a command; the exit code.

    Args:
        command: one of `COMMANDS`.
        arguments: its flags as they are declared, which `train` hands on to SAELens.
        flags: the same, parsed.
    """
    with _messages_on_the_console():
        if command == "train":
            return _report_failure(lambda: train(arguments))
        module = COMMANDS[command].module
        assert module is not None
        run_from_arguments = import_module(module).run_from_arguments
        return _report_failure(lambda: run_from_arguments(flags))


def train(arguments: Sequence[str]) -> None:
    """SAELens' command line, with ours among its architectures, and "gba" the default.

    See `sae_lens_gba.train` for what is added to a run, `train_flags` for the flags. Started by
    torchrun, it trains on all of its processes together.
    """
    from sae_lens_gba.runs.training import commands_for, train_on_ranks
    from sae_lens_gba.runs.training import train as train_by

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    train_flags.add_own_arguments(own)
    options, rest = own.parse_known_args(list(arguments))
    cfg = _config(rest, train_flags.is_ours(train_flags.architecture_of(rest)))
    shared = {**vars(options), "d_in_of_model": not is_given(rest, "--d_in")}
    charts = shared.pop("report")
    after = commands_for(cfg.output_path, isinstance(cfg.sae, GBATrainingSAEConfig))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by torchrun
        if charts:
            raise ValueError("--report is not possible on several ranks: leave it out.")
        train_on_ranks(cfg, **shared)
        if os.environ.get("RANK") == "0":
            _log.info(after)
        return
    again = [a for a in arguments if a not in ("--resume", "--overwrite")]
    train_by(
        cfg,
        **shared,
        charts=charts,
        how_to_resume=f"run\n    {shlex.join(['sae-lens-gba', 'train', *again, '--resume'])}",
    )
    _log.info(after)


def _config(arguments: list[str], is_ours: bool) -> Any:
    defaults: dict[str, str] = {}
    if is_ours:
        defaults = {
            name: value
            for name, value in train_flags.DEFAULTS.items()
            if not is_given(arguments, f"--{name}")
        }
        if not any(is_given(arguments, flag) for flag in ("--architecture", "--sae")):
            arguments = ["--architecture", "gba", *arguments]
    follow_length = {name for name in train_flags.OF_ALL_STEPS if defaults.pop(name, None)}
    if "device" in defaults:
        defaults["device"] = best_device()
    ours = [part for name, value in defaults.items() for part in (f"--{name}", value)]
    try:
        cfg = saelens._parse_cfg_args([*arguments, *ours])
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    except ZeroDivisionError as error:  # SAELens counts batches
        raise ValueError(
            "a size of 0 is not possible: train_batch_size_tokens, context_size and the like must "
            "be above 0."
        ) from error
    if cfg.lr_end == 0 and cfg.lr_scheduler_name.lower() != "constant":
        follow_length -= {"lr_decay_steps"}  # the schedule itself falls to 0
    if cfg.from_pretrained_path is not None:
        follow_length -= {"l0_warm_up_steps"}  # the SAE has its own
    for name in follow_length:
        owner = cfg.sae if name == "l0_warm_up_steps" else cfg
        n_steps = cfg.training_tokens // max(1, cfg.train_batch_size_tokens)  # 0 is refused later
        setattr(owner, name, int(n_steps * train_flags.OF_ALL_STEPS[name]))
    return cfg


@contextmanager
def _messages_on_the_console() -> Iterator[None]:
    """Ours and SAELens'; other libraries have handlers of their own, and would speak twice."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in ("sae_lens_gba", "sae_lens")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def _report_failure(run: Callable[[], object]) -> int:
    try:
        run()
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        _log.error(
            "sae-lens-gba: %s Give smaller batches or contexts, or another --device.", reason
        )
        return 1
    except (ImportError, OSError, ValueError, GBAError) as error:
        _log.error("sae-lens-gba: %s", error)
        return 1
    return 0
