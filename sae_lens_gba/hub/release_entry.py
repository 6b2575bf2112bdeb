"""The entry for SAELens' own directory of releases, pretrained_saes.yaml."""

from collections.abc import Sequence
from typing import Any

import yaml

from sae_lens_gba.hub.model_card import CardEntry


def release_entry(repo_id: str, entries: Sequence[CardEntry]) -> str | None:
    """YAML block that a user can contribute to SAELens, so that the release has a short name.

    A release is of one model: None for SAEs of several.
    """
    models = {entry.model_name for entry in entries}
    if len(models) > 1:
        return None
    block = {
        repo_id.split("/")[-1]: {
            "conversion_func": None,
            "model": models.pop(),
            "repo_id": repo_id,
            "saes": [_sae(entry) for entry in entries],
        }
    }
    text: str = yaml.safe_dump(block, sort_keys=False)
    return text


def _sae(entry: CardEntry) -> dict[str, Any]:
    sae: dict[str, Any] = {"id": entry.sae_id, "path": entry.sae_id}
    measured = {"l0": entry.l0, "variance_explained": entry.explained_variance}
    sae.update({name: round(value, 4) for name, value in measured.items() if value is not None})
    if entry.neuronpedia_id:
        sae["neuronpedia"] = entry.neuronpedia_id
    return sae
