"""``sae-lens-gba``: help, versions and mistakes at once; the work is done by `sae_lens_gba.cli`.

A package of its own, because importing `sae_lens_gba` imports SAELens and torch, which takes ten
seconds. Nothing here imports more than the standard library.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

from sae_lens_gba_command import flags, train_flags
from sae_lens_gba_command.parsers import Parser, flags_as_declared

__all__ = ["COMMANDS", "main"]


class Command(NamedTuple):
    """A command: what it is for, its flags, and the module whose run_from_arguments does it."""

    help: str
    add_arguments: Callable[[Parser], None]
    module: str | None = None


def _add_shell(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


COMMANDS = {
    "train": Command("train an SAE of a language model", train_flags.add_arguments),
    "publish": Command(
        "put trained SAEs on the Hugging Face Hub",
        flags.add_publish,
        "sae_lens_gba.hub.command_line",
    ),
    "report": Command(
        "make a page that shows what an SAE learned",
        flags.add_report,
        "sae_lens_gba.report.command",
    ),
    "look": Command(
        "try your own text on an SAE, in the browser",
        flags.add_look,
        "sae_lens_gba.report.look",
    ),
    "plan": Command(
        "what training on several devices takes",
        flags.add_plan,
        "sae_lens_gba.distributed.plan",
    ),
    "demo": Command(
        "train, save, reload and show an SAE of a small model",
        flags.add_demo,
        "sae_lens_gba.demo.run",
    ),
    "completion": Command(
        "print a script that completes this command's flags in your shell", _add_shell
    ),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; the exit code. Foreseeable failures end in one sentence."""
    arguments = flags_as_declared(list(sys.argv[1:] if args is None else args))
    if arguments in ([], ["train"]):
        arguments.append("--help")
    command, *rest = arguments
    if command not in COMMANDS:  # help, version or a mistake
        _parser().parse_args([command])
    # flags of other architectures are known to SAELens alone
    architecture = train_flags.architecture_of(rest)
    is_theirs = command == "train" and not train_flags.is_ours(architecture)
    given = Namespace() if is_theirs else _command_parser(command, architecture).parse_args(rest)
    if command == "completion":
        return _completion(given.shell)
    if command == "train" and not is_theirs:
        train_flags.check(rest)
    try:
        from sae_lens_gba.cli import run

        return run(command, rest, given)
    except KeyboardInterrupt:  # while all that is imported
        return 130


def _parser(with_flags: bool = False) -> Parser:
    parser = Parser(
        prog="sae-lens-gba",
        description="Sparse autoencoders by Group Bias Adaptation, for SAELens.",
    )
    shown = f"sae-lens-gba {version('sae-lens-gba')}"
    parser.add_argument("--version", action="version", version=shown)
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=Parser)
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, help=command.help, description=command.help)
        if with_flags:
            command.add_arguments(added)
    return parser


def _command_parser(name: str, architecture: str) -> Parser:
    command = COMMANDS[name]
    parser = Parser(prog=f"sae-lens-gba {name}", description=command.help)
    if name == "train":
        train_flags.add_arguments(parser, architecture)
    else:
        command.add_arguments(parser)
    return parser


def _completion(shell: str) -> int:
    try:
        import shtab
    except ImportError:
        sys.stderr.write(
            "sae-lens-gba: completion needs shtab: install it with "
            "pip install 'sae-lens-gba[completion]'.\n"
        )
        return 1
    sys.stdout.write(shtab.complete(_parser(with_flags=True), shell) + "\n")
    return 0
