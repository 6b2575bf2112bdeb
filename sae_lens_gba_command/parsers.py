"""An argument parser that shows defaults, takes - for _ and suggests the nearest flag."""

import argparse
import re
import sys
from difflib import get_close_matches
from typing import Any, NoReturn


def flags_as_declared(arguments: list[str]) -> list[str]:
    """``--target-l0`` is ``--target_l0``: train has SAELens' underscores, the others dashes."""
    old, new = ("-", "_") if arguments[:1] == ["train"] else ("_", "-")

    def declared(argument: str) -> str:
        if not argument.startswith("--"):
            return argument
        flag, equals, value = argument.partition("=")
        return f"--{flag[2:].replace(old, new)}{equals}{value}"

    return [declared(argument) for argument in arguments]


def is_given(arguments: list[str], flag: str) -> bool:
    return any(argument.split("=")[0] == flag for argument in arguments)


class _ShowDefaults(argparse.ArgumentDefaultsHelpFormatter):
    def __init__(self, prog: str, **settings: Any):
        super().__init__(prog, max_help_position=34, **settings)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, False, "", "None", [], (), argparse.SUPPRESS)
        if not shown or isinstance(action, argparse._HelpAction | argparse._VersionAction):
            return action.help
        return f"{action.help or ''} (default: %(default)s)".strip()


class Parser(argparse.ArgumentParser):
    """As its base, for commands and their flags."""

    def __init__(self, **settings: Any):
        super().__init__(**{"formatter_class": _ShowDefaults, "allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and what was meant, in one line instead of a usage of hundred."""
        wrong = re.findall(r"--[\w.-]+|(?<=invalid choice: ')[\w-]+", message)
        known = self._known()
        near = [m for w in wrong if w not in known for m in get_close_matches(w, known, n=1)]
        hint = f"; did you mean {' and '.join(near)}?" if near else f"; see {self.prog} --help."
        sys.stderr.write(f"{self.prog}: {message}{hint}\n")
        raise SystemExit(2)

    def _known(self) -> list[str]:
        """Flags and commands, those of commands included."""
        known = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known += action.choices
                known += [f for p in action.choices.values() for f in p._option_string_actions]
        return known
