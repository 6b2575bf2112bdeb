"""How well a saved SAE does on text: ``evaluation.json`` beside it, and in its model card.

``sae-lens-gba report`` measures and writes it; `publish` puts it into the card, or takes figures
of the same form with ``evaluations``. `json_schema` describes every field.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sae_lens.constants import SAE_WEIGHTS_FILENAME

from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.checksums import file_digest
from sae_lens_gba.errors import DamagedFileError

EVALUATION_FILENAME = "evaluation.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Metrics:
    """How good an SAE is on a text.

    Attributes:
        explained_variance: 1 - squared error / variance, over all tokens read. SAELens calls it
            explained_variance.
        mean_squared_error: squared error per token, summed over dimensions.
        l0: mean number of active latents per token.
        l0_asked: what it was trained towards; null if its config does not say.
        dead: latents never active here.
        ce_loss_recovered: (ablated - with the SAE) / (ablated - without it) of the three losses
            below. SAELens calls it ce_loss_score.
        ce_loss_with_sae: cross-entropy per token, nats, with the reconstruction in place.
        ce_loss_without_sae: of the untouched model.
        ce_loss_with_ablation: with the hook's activations set to 0.
    """

    explained_variance: float
    mean_squared_error: float
    l0: float
    l0_asked: float | None
    dead: int
    ce_loss_recovered: float | None
    ce_loss_with_sae: float | None
    ce_loss_without_sae: float | None
    ce_loss_with_ablation: float | None


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from.

    Attributes:
        created: UTC, ISO 8601.
        versions: of the packages that took part.
        dataset: as given, and which part of it.
        held_out: whether training did not see that part; null if that is not known.
        n_tokens: tokens that were looked at, without special tokens.
        ce_tokens: tokens from the text's beginning that the CE loss was measured on; 0 if it was
            not.
        context_size: tokens per sequence.
        seed: of the choice of latents and examples.
        seconds: for the pass over the text.
    """

    created: str
    versions: dict[str, str]
    dataset: str
    held_out: bool | None
    n_tokens: int
    ce_tokens: int
    context_size: int
    seed: int
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """One measurement of one SAE.

    Attributes:
        schema_version: of this file.
        metrics: how good it is.
        group_frequency: mean share of tokens that a group's latents are active on, by group;
            null if the SAE has no groups.
        provenance: on which text, when, with what.
        weights_sha256: of the ``sae_weights.safetensors`` that was measured.
    """

    schema_version: int
    metrics: Metrics
    group_frequency: list[float] | None
    provenance: Provenance
    weights_sha256: str

    def save(self, folder: Path) -> Path:
        """Write ``evaluation.json`` into the SAE's folder, all or nothing."""
        path = folder / EVALUATION_FILENAME
        content = TypeAdapter(Evaluation).dump_json(self, indent=2)
        write_atomically(path, lambda partial: partial.write_bytes(content + b"\n"))
        return path


def read_evaluation(folder: str | Path) -> Evaluation | None:
    """The measurement beside an SAE, None without one.

    Raises:
        DamagedFileError: the file is not of this form, or the weights are others than those
            measured.
    """
    folder = Path(folder)
    path = folder / EVALUATION_FILENAME
    if not path.is_file():
        return None
    remedy = f"make it again with `sae-lens-gba report {folder}`, or remove it"
    try:
        found = TypeAdapter(Evaluation).validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise DamagedFileError(
            f"{path} is not an SAE's evaluation: {where}: {problem['msg']}; {remedy}."
        ) from error
    if found.schema_version != SCHEMA_VERSION:
        raise DamagedFileError(
            f"{path} has schema_version={found.schema_version}, this version reads "
            f"{SCHEMA_VERSION}: {remedy}."
        )
    if found.weights_sha256 != weights_sha256(folder):
        raise DamagedFileError(
            f"{path} was measured on other weights than {SAE_WEIGHTS_FILENAME} has now: {remedy}."
        )
    return found


def weights_sha256(folder: Path) -> str:
    """Of the weights in an SAE's folder, hexadecimal.

    Raises:
        OSError: there are none.
    """
    return file_digest(folder / SAE_WEIGHTS_FILENAME)


def json_schema() -> dict[str, Any]:
    """JSON Schema of ``evaluation.json``."""
    return TypeAdapter(Evaluation).json_schema()
