"""``sae-lens-gba``: help, versions and mistakes at once; the work is done by `sae_lens_gba.cli`.

A package of its own, because importing `sae_lens_gba` imports SAELens and torch, which takes ten
seconds. Nothing here imports more than the standard library.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version

from sae_lens_gba_command import train_flags
from sae_lens_gba_command.parsers import COMMANDS, Parser, flags_as_declared

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; the exit code. Foreseeable failures end in one sentence."""
    arguments = flags_as_declared(list(sys.argv[1:] if args is None else args))
    command = arguments[0] if arguments else "--help"
    if command == "train":
        if arguments[1:] == []:
            arguments.append("--help")
        if train_flags.architecture_of(arguments) == "gba":
            _parser(with_train_flags=True).parse_args(arguments)
            train_flags.check(arguments)
    elif command not in COMMANDS or command == "completion":
        namespace = _parser().parse_args(arguments or ["--help"])
        return _completion(namespace.shell)
    from sae_lens_gba.cli import run

    return run(arguments)


def _parser(with_train_flags: bool = False) -> Parser:
    parser = Parser(
        prog="sae-lens-gba",
        description="Sparse autoencoders by Group Bias Adaptation, for SAELens.",
    )
    shown = f"sae-lens-gba {version('sae-lens-gba')}"
    parser.add_argument("--version", action="version", version=shown)
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=Parser)
    for name, (text, _) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "train" and with_train_flags:
            train_flags.add_arguments(command)
        if name == "completion":
            command.add_argument("shell", choices=("bash", "zsh", "tcsh"))
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
    sys.stdout.write(shtab.complete(_parser(with_train_flags=True), shell) + "\n")
    return 0
