"""Putting the generated card beside what a person wrote."""

import re
from collections.abc import Collection
from typing import Any

import yaml

from sae_lens_gba.errors import InvalidPublicationError, brief

BEGIN = "<!-- sae-lens-gba: begin of the generated section; write above or below it -->"
END = "<!-- sae-lens-gba: end of the generated section -->"

_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(?:(.*?)\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# what PyYAML raises besides its own errors, on "!!bool x", "!!timestamp x", 2024-13-45, [[[...
_OF_BROKEN_YAML = (
    yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError
)  # fmt: skip
_LISTS = ("tags", "datasets", "base_model")


def update_card(
    existing: str | None,
    metadata: dict[str, Any],
    body: str,
    explicit: Collection[str] = (),
) -> str:
    """The card to publish.

    What a person wrote stays: fields of the front matter that they set keep their values
    (lists of tags, datasets and base models are joined; model-index is always generated), and
    only the text between the two markers is replaced. A card without markers gets the
    generated section at its end.

    Args:
        existing: README.md as it is on the Hub, None without one.
        metadata: generated front matter.
        body: generated Markdown.
        explicit: fields of ``metadata`` that replace what is there.

    Raises:
        InvalidPublicationError: the existing card has broken front matter or markers.
    """
    section = f"{BEGIN}\n{body.strip()}\n{END}\n"
    if existing is None:
        return _join(metadata, section)
    known, text = split_front_matter(existing)
    replaced = {*explicit, "model-index"}
    known = {k: v for k, v in known.items() if v is not None and k not in replaced}
    return _join(_merge(known, metadata), _replace_section(text, section))


def split_front_matter(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card.

    Raises:
        InvalidPublicationError: the front matter is not a YAML mapping.
    """
    match = _FRONT_MATTER.match(card)
    if match is None:
        return {}, card
    try:
        known = yaml.safe_load(match.group(1) or "") or {}
    except _OF_BROKEN_YAML as error:
        first_line = brief((str(error) or type(error).__name__).splitlines()[0])
        raise InvalidPublicationError(
            f"the front matter of the README.md on the Hub is no valid YAML ({first_line}): "
            "fix it there, then publish again."
        ) from error
    if not isinstance(known, dict):
        raise InvalidPublicationError(
            "the front matter of the README.md on the Hub is no list of 'field: value' lines: "
            "fix it there, then publish again."
        )
    return known, card[match.end() :]


def _merge(known: dict[str, Any], generated: dict[str, Any]) -> dict[str, Any]:
    merged = {**generated, **known}
    for name in _LISTS:
        if known.get(name) and generated.get(name):
            own = _as_list(known[name])
            both = own + [value for value in _as_list(generated[name]) if value not in own]
            merged[name] = both[0] if len(both) == 1 and name == "base_model" else both
    return merged


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _replace_section(text: str, section: str) -> str:
    n_begin, n_end = text.count(BEGIN), text.count(END)
    if n_begin == n_end == 0:
        return f"{text.strip()}\n\n{section}" if text.strip() else section
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if n_begin != 1 or n_end != 1 or END not in rest:
        raise InvalidPublicationError(
            f"the README.md on the Hub has {n_begin} begin and {n_end} end markers of the "
            "generated section: keep one pair, in this order, or none, then publish again."
        )
    return f"{before}{section.rstrip()}{after}"


def _join(metadata: dict[str, Any], text: str) -> str:
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{head}---\n\n{text.lstrip()}"
