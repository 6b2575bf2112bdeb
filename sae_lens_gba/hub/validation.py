"""What must hold before anything is sent to the Hub. Nothing here touches the network."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME

from sae_lens_gba.errors import InvalidPublicationError
from sae_lens_gba.saved.saved_sae import SavedSAE

MAX_FILE_BYTES = 50 * 1000**3  # the Hub's own limit for one file

_ID_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NEURONPEDIA_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LOCAL_PATH = re.compile(
    r"""^(?:/[^/\s]|~[/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\)  # the whole value is a path
    |file://
    |(?:^|[\s"'=:,(])(?:/home/|/Users/|/root/|/tmp/|/mnt/|/scratch/|[A-Za-z]:\\)""",
    re.VERBOSE,
)
_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{20,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY"
)
# not bos_token, sequence_separator_token and their like
_SECRET_FIELD = re.compile(
    r"^token$|(^|_)((auth|hf|hub|access|api|bearer|wandb)_token|api_?key|passw(or)?d|secret)$", re.I
)


def check_sae_id(sae_id: str) -> None:
    """Raise InvalidPublicationError for an id that can't be a folder in the repo."""
    parts = sae_id.split("/")
    if not all(_ID_PART.fullmatch(part) for part in parts) or len(sae_id) > 200:
        raise InvalidPublicationError(
            f"SAE id {sae_id!r} is not possible: use letters, digits and . _ - (at most 200), in "
            "parts separated by single slashes, each beginning with a letter or digit."
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


def is_hub_name(name: object) -> TypeGuard[str]:
    """Whether ``name`` can be the name of a model or data set on the Hub."""
    return isinstance(name, str) and _HUB_NAME.fullmatch(name) is not None


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
    for name, example in (("model_name", "google/gemma-2-2b"), ("hook_name", "blocks.8.hook_out")):
        if not metadata.get(name):
            raise InvalidPublicationError(
                f"SAE {sae_id!r} has no {name} in its metadata, so nobody could use it: pass "
                f"metadata={{{name!r}: {example!r}}}."
            )
    model, dataset = metadata["model_name"], metadata.get("dataset_path")
    neuronpedia_id = metadata.get("neuronpedia_id")
    normalisation = cfg.get("normalize_activations")
    if not is_hub_name(model) or (Path(model) / "config.json").is_file():
        fault = (
            f"model_name={model!r}, which is a local path or no name at all: pass its name on the "
            "Hub, metadata={'model_name': 'user/model'}."
        )
    elif isinstance(dataset, str) and Path(dataset).exists():
        fault = (
            f"dataset_path={dataset!r}, which is a folder or file here: pass its name on the Hub, "
            "metadata={'dataset_path': 'user/data'}, or a description."
        )
    elif normalisation in ("expected_average_only_in", "covariance_whitening"):
        fault = (
            f"normalize_activations={normalisation!r} that is not folded into its weights: publish "
            "a finished run, or a checkpoint with its activation_scaler.json."
        )
    elif not (neuronpedia_id is None or _NEURONPEDIA_ID.fullmatch(str(neuronpedia_id))):
        fault = (
            f"neuronpedia_id={neuronpedia_id!r}: Neuronpedia's ids look like "
            "'gemma-2-2b/12-gemmascope-res-16k' (model/layer-source)."
        )
    else:
        return
    raise InvalidPublicationError(f"SAE {sae_id!r} has {fault}")


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
        if _SECRET.search(value) or (value and _SECRET_FIELD.search(last)):
            raise InvalidPublicationError(
                f"{name} has what looks like a secret in {field}: remove it there, and revoke it "
                "if the file was ever shared."
            )
        if _LOCAL_PATH.search(value):
            raise InvalidPublicationError(
                f"{name} has a path of this machine, {field}={value!r}: pass another value with "
                f"metadata={{{last!r}: ...}}, or remove it from the file."
            )


def _leaves(content: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(content, Mapping | list):
        yield prefix, content
        return
    for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
