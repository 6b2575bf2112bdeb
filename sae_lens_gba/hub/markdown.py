"""What others wrote, put into Markdown so that it stays what it is: text on one line."""

import html
import json
import re
from collections.abc import Iterable
from urllib.parse import quote

from markupsafe import Markup

_LONGEST = 300  # characters of one value
_SPECIAL = re.compile(r"[\\`*\[\]|]")


def one_line(value: object) -> str:
    """``value`` as text without line breaks, control characters and lone surrogates.

    Nor with HTML comments, which are what a card's generated section is found by.
    """
    text = "".join(c for c in " ".join(str(value).split()) if c.isprintable())
    text = text.replace("<!--", "<! --")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\N{HORIZONTAL ELLIPSIS}"


def as_text(value: object) -> Markup:
    """Plain text: nothing in it is markup. What is marked up already stays so."""
    if isinstance(value, Markup):
        return value
    escaped = html.escape(one_line(value), quote=False)
    return Markup(_SPECIAL.sub(lambda match: f"\\{match[0]}", escaped))


def code(value: object) -> Markup:
    """A code span, in a table as well."""
    text = one_line(value).replace("|", "\\|") or "?"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}")


def codes(values: Iterable[object], separator: str = " and ") -> Markup:
    """Code spans, one for each of ``values``."""
    return Markup(separator.join(code(value) for value in values))


def literal(value: object) -> Markup:
    """A string of Python, on one line."""
    return Markup(json.dumps(one_line(value)))


def url(path: object) -> Markup:
    """A path below a given address."""
    return Markup(quote(one_line(path)))


def in_html(value: object) -> Markup:
    """Text inside an HTML element."""
    return Markup(html.escape(one_line(value)))


FILTERS = {"code": code, "codes": codes, "literal": literal, "url": url, "html": in_html}
