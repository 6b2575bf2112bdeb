"""Fields of a dataclass, read from its source: what importing it would take seconds to tell."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Field:
    """A field as its class declares it.

    Attributes:
        name: of the field.
        annotation: of its type, as written.
        default: as written; None where there is none, or a factory makes it.
        help: from the docstring's Args.
    """

    name: str
    annotation: str
    default: str | None
    help: str

    @property
    def choices(self) -> list[str] | None:
        if not self.annotation.startswith("Literal["):
            return None
        return list(ast.literal_eval(self.annotation.removeprefix("Literal")))


def fields_of(file: str, class_name: str) -> list[Field]:
    """Fields of a class, without those it inherits.

    Args:
        file: such as ``sae_lens/config.py``; its package is found, not imported.
        class_name: in that file.
    """
    cls = _class(file, class_name)
    helps = helps_of(file, class_name)
    return [
        Field(
            name=n.target.id,
            annotation=ast.unparse(n.annotation),
            default=_default(n.value),
            help=helps.get(n.target.id, ""),
        )
        for n in cls.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    ]


def helps_of(file: str, class_name: str) -> dict[str, str]:
    """What the class's docstring says of its fields, inherited ones included."""
    _, _, listed = (ast.get_docstring(_class(file, class_name)) or "").partition("Args:")
    parts = re.split(r"^ +(\w+) \([^\n]*?\): ", listed, flags=re.MULTILINE)
    return {n: " ".join(t.split()) for n, t in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def _class(file: str, class_name: str) -> ast.ClassDef:
    package, _, rest = file.partition("/")
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    module = ast.parse((Path(spec.submodule_search_locations[0]) / rest).read_text("utf-8"))
    (cls,) = [n for n in module.body if isinstance(n, ast.ClassDef) and n.name == class_name]
    return cls


def _default(value: ast.expr | None) -> str | None:
    if value is None:
        return None
    if isinstance(value, ast.Call):  # field(...) or one of SAELens' helpers
        given = {k.arg: k.value for k in value.keywords}
        return _default(given.get("default", value.args[0] if value.args else None))
    return str(value.value) if isinstance(value, ast.Constant) else ast.unparse(value)
