"""``sae-lens-gba``: train, publish, report, plan, demo."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from sae_lens_gba.errors import GBAError

# name -> (help, module with add_arguments and run_from_arguments)
COMMANDS = {
    "publish": ("put trained SAEs on the Hugging Face Hub", "sae_lens_gba.hub.command_line"),
    "report": ("make a page that shows what an SAE learned", "sae_lens_gba.report.command"),
    "plan": ("what training on several devices takes", "sae_lens_gba.distributed.plan"),
    "demo": ("train, save, reload and show an SAE of a small model", "sae_lens_gba.demo.run"),
}
TRAIN_HELP = "train an SAE: SAELens' own flags and ours (see train --help)"


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; the exit code. Foreseeable failures end in one sentence."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments[:1] == ["train"]:
        # SAELens parses these itself: its flags change with --architecture
        return _report_failure(lambda: train(arguments[1:]))
    namespace = _parser(arguments[:1]).parse_args(arguments)
    return _report_failure(lambda: namespace.run(namespace))


def train(args: Sequence[str]) -> None:
    """SAELens' command line, with "gba" among (and the default of) its architectures.

    Of our own it has one flag more: ``--report`` writes charts of the training run as PNG.
    Started by torchrun, it trains on all of its processes together.
    """
    import sae_lens.llm_sae_training_runner as runner

    rest = [a for a in args if a != "--report"]
    named = any(a.split("=")[0] in ("--architecture", "--sae") for a in rest)
    if rest and not named:
        rest = ["--architecture", "gba", *rest]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by torchrun
        if "--report" in args:
            raise ValueError("--report is not possible on several ranks: leave it out.")
        from sae_lens_gba.distributed.runner import train_language_model_sae

        return train_language_model_sae(runner._parse_cfg_args(rest))
    if "--report" not in args:
        return runner._run_cli(rest)
    from sae_lens_gba.training_record.charts import train_with_charts

    cfg = runner._parse_cfg_args(rest)
    if cfg.sae.architecture() != "gba":
        raise ValueError(
            f"architecture={cfg.sae.architecture()!r} is not possible with --report, which charts "
            "the groups of a GBA SAE: leave --report out."
        )
    if cfg.output_path is None:
        raise ValueError("output_path=None is not possible with --report: name a folder for it.")
    train_with_charts(runner.LanguageModelSAETrainingRunner(cfg=cfg), cfg.output_path)
    return None


def _parser(chosen: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sae-lens-gba", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser("train", help=TRAIN_HELP, add_help=False)
    for name, (text, module_name) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in chosen:  # no other command's module need be imported
            module = import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(run=module.run_from_arguments)
    return parser


def _report_failure(run: Callable[[], object]) -> int:
    try:
        run()
    except (ImportError, OSError, ValueError, GBAError) as error:
        logging.getLogger(__name__).error("sae-lens-gba: %s", error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
