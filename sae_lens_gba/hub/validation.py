"""What must hold before anything is sent to the Hub. Nothing here touches the network."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeGuard

from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME

from sae_lens_gba.errors import InvalidPublicationError, brief
from sae_lens_gba.saved.evaluation import EVALUATION_FILENAME
from sae_lens_gba.saved.saved_sae import SavedSAE

MAX_FILE_BYTES = 50 * 1000**3  # the Hub's own limit for one file

_ID_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NEURONPEDIA_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LOCAL_PATH = re.compile(
    r"""^(?:/[^/\s]|\.{1,2}[/\\])  # the whole value is a path
    |file://
    # somewhere in a text; not after the : or / of an address
    |(?:^|[\s"'`=:;,|<(\[{])(?:/[\w.-]+/[\w.-]|~[/\\]|[A-Za-z]:[/\\]\w|\\\\\w)
    |\$\{?HOME\b""",
    re.VERBOSE,
)
_SECRET = re.compile(
    r"""\bhf_[A-Za-z0-9]{20,}  # Hugging Face
    |\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20}  # GitHub, GitLab
    |\bsk-[\w-]{20,}|\bAIza[\w-]{35}|\bya29\.[\w-]{20,}  # OpenAI, Anthropic, Google
    |\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b  # AWS; the secret key that belongs to it:
    |(?i:aws.{0,20}(?:secret|key).{0,20}[=:]\W*)[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])
    |\bxox[abeoprs]-[\w-]{10,}|hooks\.slack\.com/services/\w  # Slack
    |\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}  # JSON web tokens
    |://[^/\s:@]+:[^/\s:@]+@  # user:password@ in an address
    |-----BEGIN\ [A-Z ]*PRIVATE\ KEY""",
    re.VERBOSE,
)
# keys of Weights & Biases and old tokens look so; so do commits, whose fields say what they are
_HEXADECIMAL = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])", re.I)
_COMMIT_FIELD = re.compile(r"commit|revision|sha|hash|oid|version", re.I)
# not bos_token, sequence_separator_token and their like
_SECRET_FIELD = re.compile(
    r"^token$|(^|_)((auth|hf|hub|access|api|bearer|wandb)_token|(api|access|secret)_?key"
    r"|passw(or)?d|secret)$",
    re.I,
)
# what the Hub takes in a card, https://huggingface.co/docs/hub/repositories-licenses
_LICENSES = frozenset(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research lgpl lgpl-2.1 lgpl-3.0
    isc lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0
    postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-
    research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma
    unknown other""".replace("-\n    ", "-").split()
)


def check_sae_id(sae_id: str) -> None:
    """Raise InvalidPublicationError for an id that can't be a folder in the repo."""
    parts = sae_id.split("/")
    if not all(_ID_PART.fullmatch(part) for part in parts) or len(sae_id) > 200:
        raise InvalidPublicationError(
            f"SAE id {brief(repr(sae_id))} is not possible: use letters, digits and . _ - (at most "
            "200), in parts separated by single slashes, each beginning with a letter or digit."
        )


def check_target(revision: str | None, create_pr: bool) -> None:
    """Raise InvalidPublicationError for a place to commit to that makes no sense."""
    if create_pr and revision not in (None, "main"):
        raise InvalidPublicationError(
            f"create_pr=True opens a pull request against main, but revision={revision!r}: leave "
            "out one of the two."
        )
    if revision is not None and not re.fullmatch(r"[\w][\w./-]*", revision):
        raise InvalidPublicationError(
            f"revision={revision!r} is not possible: give the name of a branch, or refs/pr/<n>."
        )


def check_license(license: str | None) -> None:
    """Raise InvalidPublicationError for a license that the Hub does not know by this name."""
    if license is None or license in _LICENSES:
        return
    meant = get_close_matches(str(license).lower(), _LICENSES, n=1)
    hint = f"did you mean {meant[0]!r}?" if meant else "'other' says that it is another one."
    raise InvalidPublicationError(
        f"license={brief(repr(license))} is none that the Hub knows by this name: {hint}"
    )


def is_hub_name(name: object) -> TypeGuard[str]:
    """Whether ``name`` can be the name of a model or data set on the Hub."""
    return isinstance(name, str) and _HUB_NAME.fullmatch(name) is not None


def in_metadata(field: str, value: str) -> str:
    """How a user sets a field of the metadata to ``value``, for an error's last words."""
    return f"pass metadata={{{field!r}: {value!r}}}, or --metadata {field}={value} to the command"


def check_publishable(saved: SavedSAE, sae_id: str) -> None:
    """Raise InvalidPublicationError for an SAE that must not be published as it is."""
    _check_metadata(saved.cfg, sae_id)
    check_no_private_values(saved.cfg, f"{sae_id}/{SAE_CFG_FILENAME}")
    check_no_private_values(saved.runner_cfg or {}, f"{sae_id}/{RUNNER_CFG_FILENAME}")
    size = sum(weight.nbytes for weight in saved.sae.state_dict().values())
    if size > MAX_FILE_BYTES:
        raise InvalidPublicationError(
            f"{sae_id}/{SAE_WEIGHTS_FILENAME} is {size / 1e9:.1f} GB, the Hub takes files up to "
            f"{MAX_FILE_BYTES / 1e9:.0f} GB: publish the SAE in a smaller dtype."
        )


def _check_metadata(cfg: dict[str, Any], sae_id: str) -> None:
    metadata = cfg.get("metadata") or {}
    needed = {"model_name": "google/gemma-2-2b", "hook_name": "blocks.8.hook_out"}
    if "d_out" in cfg:
        needed["hook_name_out"] = "blocks.8.hook_mlp_out"
    for name, example in needed.items():
        if not metadata.get(name):
            raise InvalidPublicationError(
                f"SAE {sae_id!r} has no {name} in its metadata, so nobody could use it: "
                f"{in_metadata(name, example)}."
            )
    model, dataset = metadata["model_name"], metadata.get("dataset_path")
    neuronpedia_id = metadata.get("neuronpedia_id")
    normalisation = cfg.get("normalize_activations")
    if not is_hub_name(model) or (Path(model) / "config.json").is_file():
        fault = (
            f"model_name={brief(repr(model))}, which is a local path or no name at all. Give its "
            f"name on the Hub: {in_metadata('model_name', 'user/model')}."
        )
    elif isinstance(dataset, str) and Path(dataset).exists():
        fault = (
            f"dataset_path={dataset!r}, which is a folder or file here. Give its name on the Hub, "
            f"or a description: {in_metadata('dataset_path', 'user/data')}."
        )
    elif normalisation in ("expected_average_only_in", "covariance_whitening"):
        fault = (
            f"normalize_activations={normalisation!r} that is not folded into its weights: publish "
            "a finished run, or a checkpoint with its activation_scaler.json."
        )
    elif not (neuronpedia_id is None or _NEURONPEDIA_ID.fullmatch(str(neuronpedia_id))):
        fault = (
            f"neuronpedia_id={brief(repr(neuronpedia_id))}: Neuronpedia's ids look like "
            "'gemma-2-2b/12-gemmascope-res-16k' (model/layer-source)."
        )
    else:
        return
    raise InvalidPublicationError(f"SAE {sae_id!r} has {fault}")


def check_plain(content: object, name: str) -> None:
    """Raise InvalidPublicationError for what is no JSON object, or can't be written as one."""
    try:
        json.dumps(content)
        fault = None if isinstance(content, Mapping) else f"is a {type(content).__name__}"
    except (RecursionError, TypeError, ValueError) as error:
        fault = f"can't be written as JSON ({brief(str(error))})"
    if fault is not None:
        raise InvalidPublicationError(
            f"{name} {fault}: pass a dict of texts, numbers, lists and dicts."
        )


def check_no_private_values(content: object, name: str) -> None:
    """Raise InvalidPublicationError for a secret, a path of this machine, or a NaN.

    It names the field; a secret's value is not repeated.
    """
    for field, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidPublicationError(
                f"{name} has {field}={value}, which is not valid JSON: remove the field or pass a "
                "number in its place."
            )
        if not isinstance(value, str):
            continue
        last = field.rsplit(".", 1)[-1]
        is_unicode = value.encode(errors="ignore").decode() == value
        if not is_unicode:
            raise InvalidPublicationError(
                f"{name} has half a character (a lone surrogate) in {field}: write it anew."
            )
        looks_like_a_key = _HEXADECIMAL.search(value) and not _COMMIT_FIELD.search(last)
        if _SECRET.search(value) or looks_like_a_key or (value and _SECRET_FIELD.search(last)):
            raise InvalidPublicationError(
                f"{name} has what looks like a secret in {field}: remove it there, and revoke it "
                "if the file was ever shared."
            )
        if _LOCAL_PATH.search(value):
            if field.startswith("metadata.gba.evaluation."):
                raise InvalidPublicationError(
                    f"{name} has a path of this machine from its evaluation, {field}={value!r}: "
                    f"edit {EVALUATION_FILENAME} beside the SAE, or pass evaluations={{...}}."
                )
            whole = re.split(r"[.\[]", field.removeprefix("metadata."))[0]
            is_whole = field.removeprefix("metadata.") == whole
            other = in_metadata(whole, "...") if is_whole else f"pass metadata={{{whole!r}: ...}}"
            raise InvalidPublicationError(
                f"{name} has a path of this machine, {field}={value!r}: {other}, or remove it from "
                "the file."
            )


def _leaves(content: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(content, Mapping | list | tuple):
        yield prefix, content
        return
    for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        if isinstance(key, str):
            yield "a name of a field", key
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
