"""``sae-lens-gba``: train, demo."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

Command = tuple[
    str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]
]


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; the exit code. Foreseeable failures end in one sentence."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments[:1] == ["train"]:
        # SAELens parses these itself: its flags change with --architecture
        return _report_failure(lambda: train(arguments[1:]))
    namespace = _parser().parse_args(arguments)
    return _report_failure(lambda: namespace.run(namespace))


def train(args: Sequence[str]) -> None:
    """SAELens' command line, with "gba" among (and the default of) its architectures."""
    import sae_lens.llm_sae_training_runner as runner

    import sae_lens_gba  # noqa: F401  (registers "gba")

    named = any(a.split("=")[0] in ("--architecture", "--sae") for a in args)
    runner._run_cli([*args] if named or not args else ["--architecture", "gba", *args])


def _parser() -> argparse.ArgumentParser:
    from sae_lens_gba.demo import run as demo

    parser = argparse.ArgumentParser(prog="sae-lens-gba", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser("train", help="train an SAE: SAELens' own flags and ours", add_help=False)
    for name, text, module in (
        ("demo", "train, save, reload and show a GBA SAE of a small language model", demo),
    ):
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run_from_arguments)
    return parser


def _report_failure(run: Callable[[], None]) -> int:
    try:
        run()
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).error("sae-lens-gba: %s", error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
