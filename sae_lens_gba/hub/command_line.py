"""``sae-lens-gba publish``."""

import argparse
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_lens_gba.errors import InvalidPublicationError
from sae_lens_gba.hub.publishing import Publication, publish
from sae_lens_gba.saved.files import read_json

# fields of SAELens' metadata that are no text
_EXAMPLES: dict[str, tuple[int | bool | list[int] | dict[str, Any], ...]] = {
    "context_size": (64,),
    "disable_concat_sequences": (False,),
    "exclude_special_tokens": (False, [0, 2]),
    "hook_head_index": (2,),
    "model_from_pretrained_kwargs": ({"revision": "main"},),
    "prepend_bos": (False,),
    "seqpos_slice": ([5, -5],),
}

logger = logging.getLogger(__name__)


def run_from_arguments(args: argparse.Namespace) -> Publication:
    """Run ``sae-lens-gba publish``; what it did is logged and returned.

    Raises:
        GBAError: see `publish`.
    """
    sources = [_pair(text) for text in args.saes]
    named = {sae_id: Path(path) for sae_id, path in sources if sae_id is not None}
    if named and len(named) != len(sources):
        raise InvalidPublicationError(
            "give every folder an id of its own (ID=FOLDER, each ID once), or none of them."
        )
    options = {name: value for name, value in vars(args).items() if name != "saes"}
    options["metadata"] = dict(_metadata(text) for text in args.metadata)
    options["evaluations"] = read_json(args.evaluations) if args.evaluations else None
    options["neuronpedia_ids"] = dict(
        _assignment(text, "--neuronpedia") for text in args.neuronpedia_ids
    )
    publication = publish(named or [Path(path) for _, path in sources], **options)
    logger.info("%s", publication.summary())
    if publication.release_entry:
        logger.info("entry for SAELens' pretrained_saes.yaml:\n%s", publication.release_entry)
    return publication


def _pair(text: str) -> tuple[str | None, str]:
    # a folder that exists may have = in its name
    if "=" not in text or Path(text).is_dir():
        return None, text
    sae_id, _, folder = text.partition("=")
    return sae_id, folder


def _metadata(text: str) -> tuple[str, Any]:
    name, value = _assignment(text, "--metadata")
    examples = _EXAMPLES.get(name)
    if examples is None:
        return name, value
    found: Any = value
    with suppress(json.JSONDecodeError):
        found = json.loads({"True": "true", "False": "false"}.get(value, value))
    if type(found) not in map(type, examples):  # True is an int
        shown = " or ".join(json.dumps(example) for example in examples)
        raise InvalidPublicationError(
            f"--metadata {text!r} is not possible: write a value such as {shown}."
        )
    return name, found


def _assignment(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidPublicationError(f"{option} {text!r} is not possible: write NAME=VALUE.")
    return name, value
