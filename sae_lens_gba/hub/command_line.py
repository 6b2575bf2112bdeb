"""``sae-lens-gba publish``."""

import argparse
import logging
from pathlib import Path

from sae_lens_gba.errors import InvalidPublicationError
from sae_lens_gba.hub.publishing import Publication, publish
from sae_lens_gba.saved.files import read_json

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sae-lens-gba publish``."""
    add = parser.add_argument
    add("repo_id", help="user-or-organisation/name on the Hub")
    add(
        "saes",
        nargs="+",
        metavar="[ID=]FOLDER",
        help="output folder of a run or training checkpoint; the default id is "
        "{hook_name}/l0_{L0 asked for}/width_{d_sae}",
    )
    add(
        "--metadata",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="fields to set in the SAEs' metadata, such as model_name=gpt2",
    )
    add(
        "--evaluations",
        type=Path,
        metavar="JSON",
        help="file with an object per id, each like the evaluation.json that the report leaves "
        "beside an SAE; without it, those are taken",
    )
    add(
        "--neuronpedia",
        dest="neuronpedia_ids",
        nargs="+",
        default=[],
        metavar="ID=NEURONPEDIA_ID",
    )
    add("--license", help="of the SAEs, such as mit")
    add("--base-model", help="Hub name of the model, where the metadata has another one")
    add("--private", action="store_true", default=None, help="if the repo is created")
    add("--revision", help="branch to commit to; created if need be")
    add("--create-pr", action="store_true", help="open a pull request against main")
    add("--commit-message")
    add("--token", help="default: the one of 'hf auth login'")
    add("--endpoint", help="of the Hub; default: HF_ENDPOINT, or the public one")
    add("--dry-run", action="store_true", help="write the files, show them, send nothing")
    add("--folder", type=Path, help="keep the published files here")


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
    options = {name: value for name, value in vars(args).items() if name not in ("saes", "run")}
    options["metadata"] = dict(_assignment(text, "--metadata") for text in args.metadata)
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


def _assignment(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidPublicationError(f"{option} {text!r} is not possible: write NAME=VALUE.")
    return name, value
