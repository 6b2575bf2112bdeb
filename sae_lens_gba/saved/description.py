"""What an SAE's cfg.json says of it: what it is, its groups, and how well it does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_lens_gba.registration import CLASSES

# the same figure under the names of SAELens' evaluations
_ALIASES = {"ce_recovered": ("ce_recovered", "ce_loss_recovered", "ce_loss_score")}

_TEXTS = (
    "model_name", "hook_name", "hook_name_out", "dataset_path", "neuronpedia_id",
    "sae_lens_training_version",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedSAE:
    """What `list_published` says of one SAE.

    Attributes:
        sae_id: its id in the repo.
        hook_name: where it reads and writes, or, of a transcoder, reads.
        hook_name_out: where a transcoder writes; None of an SAE.
        l0: mean number of active latents a token, as measured; None if not measured.
        is_gba: whether `load` loads it; SAELens loads the others.
    """

    sae_id: str
    architecture: str
    model_name: str | None
    hook_name: str | None
    hook_name_out: str | None
    d_in: int
    d_sae: int
    l0: float | None
    is_gba: bool


def describe(sae_id: str, cfg: Mapping[str, Any]) -> PublishedSAE:
    """The SAE whose cfg.json has the content ``cfg``.

    Raises:
        TypeError, OverflowError: a name is no text, a size no integer, a number too large.
    """
    metadata = cfg.get("metadata") or {}
    for name, value, kind in (
        *((name, metadata.get(name), str) for name in _TEXTS),
        *((name, cfg.get(name), str) for name in ("architecture", "dtype")),
        *((name, cfg.get(name), int) for name in ("d_in", "d_sae")),
        ("version", (metadata.get("gba") or {}).get("version"), str),
    ):
        if not isinstance(value, kind | None):
            raise TypeError(f"{name} is a {type(value).__name__}")
    return PublishedSAE(
        sae_id=sae_id,
        architecture=cfg.get("architecture", "standard"),
        model_name=metadata.get("model_name"),
        hook_name=metadata.get("hook_name"),
        hook_name_out=metadata.get("hook_name_out"),
        d_in=cfg.get("d_in", 0),
        d_sae=cfg.get("d_sae", 0),
        l0=measured_l0(metadata),
        is_gba=group_rows(metadata) is not None or cfg.get("architecture") in CLASSES,
    )


def group_rows(metadata: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """As `NeuronGroups.summary` gives them, None of an SAE without groups.

    Zeros of an SAE whose biases were never adapted are no measurement: None.

    Raises:
        TypeError, OverflowError: they hold something else than numbers, or too large ones.
    """
    rows = (metadata.get("gba") or {}).get("groups")
    for row in rows or []:
        for name in ("group", "size", "target_frequency", "measured_frequency"):
            if not isinstance(row[name], int | float):
                raise TypeError(f"{name} of a group is a {type(row[name]).__name__}")
            float(row[name])  # of an integer of hundreds of digits there is none
    if rows is None or any(row["measured_frequency"] > 0 for row in rows):
        return None if rows is None else [dict(row) for row in rows]
    return [{**row, "measured_frequency": None} for row in rows]


def measured_l0(metadata: Mapping[str, Any]) -> float | None:
    """Active latents a token: of the evaluation, else of the groups, else of SAELens' trainer."""
    evaluated = find_metric((metadata.get("gba") or {}).get("evaluation") or {}, "l0")
    if evaluated is not None:
        return evaluated
    rows = group_rows(metadata)
    if rows is not None and all(row["measured_frequency"] is not None for row in rows):
        return float(sum(row["size"] * row["measured_frequency"] for row in rows))
    # of SAELens' trainer: over a window that may reach back to the beginning of training
    return None if metadata.get("l0") is None else float(metadata["l0"])


def find_metric(evaluation: Mapping[str, Any], name: str) -> float | None:
    """A figure under its own or SAELens' name, at any depth ("metrics/l0", sparsity.l0, ...)."""
    wanted = _ALIASES.get(name, (name,))
    for path, value in flat_numbers(evaluation).items():
        if path.rsplit("/", 1)[-1] in wanted:
            return value
    return None


def flat_numbers(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number in nested mappings, by its path with slashes.

    Raises:
        OverflowError: an integer is too large for a float.
    """
    numbers: dict[str, float] = {}
    for key, value in content.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            numbers.update(flat_numbers(value, f"{path}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            float(value)
            numbers[path] = value
    return numbers
