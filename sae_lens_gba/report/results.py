"""What a report holds, as data: everything that is drawn is drawn from this alone.

The JSON beside the HTML file is a `Report`, field by field as documented here; lists that
describe latents as a whole have one entry per latent, in the SAE's order. `SaeResult.details` are
in a folder beside it, where the page finds them too (see `latent_files`). Frequencies are shares
of tokens (special tokens left out), activations and norms are in the SAE's own units. A value
that could not be measured is null, and `SaeResult.notes` says why. `json_schema` gives the same
as a JSON Schema, `Report.load` reads a file back and checks it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.report.latent_files import read_details, write_details
from sae_lens_gba.saved.evaluation import Metrics, Provenance

SCHEMA_VERSION = 2


def significant(value: float) -> float:
    """Four significant digits: half the size of the JSON, and all that can be seen."""
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class Context:
    """A piece of text around a token on which a latent is active.

    Attributes:
        tokens: the tokens' text; of those that are a character together, the first has it.
        activations: activation of the latent on each of them, 0 on special tokens.
        focus: index into tokens of the token that the piece was chosen for.
        special: indices into tokens of the tokenizer's special tokens, such as its BOS.
    """

    tokens: list[str]
    activations: list[float]
    focus: int
    special: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Interval:
    """Examples from one part of a latent's activations, not only the strongest.

    Attributes:
        low: lower end, as a quantile of the latent's activations above 0.
        high: upper end.
        contexts: at most a few, drawn at random.
    """

    low: float
    high: float
    contexts: list[Context]


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width.

    Attributes:
        start: lower edge of the first bin.
        width: of a bin.
        counts: one a bin.
    """

    start: float
    width: float
    counts: list[int]


@dataclass(frozen=True)
class TokenWeight:
    """How much a latent's decoder row raises the logit of a token, per unit of activation."""

    token: str
    weight: float


@dataclass(frozen=True)
class CoFiring:
    """A latent that fires with another.

    Attributes:
        latent: its index.
        correlation: of the two being active (phi coefficient), so that a latent that is always
            active does not come first.
        share: of the tokens of the first latent on which this one is active too.
    """

    latent: int
    correlation: float
    share: float


@dataclass(frozen=True)
class LatentDetail:
    """What is shown when a latent is opened.

    Attributes:
        latent: its index.
        histogram: of its activations above 0.
        top: contexts of its strongest activations, one a sequence, strongest first.
        intervals: contexts by quantile of its activations, highest first.
        promoted: tokens its decoder row promotes most (logit lens).
        demoted: tokens it demotes most.
        co_firing: latents that fire with it.
    """

    latent: int
    histogram: Histogram
    top: list[Context]
    intervals: list[Interval]
    promoted: list[TokenWeight]
    demoted: list[TokenWeight]
    co_firing: list[CoFiring]


@dataclass(frozen=True)
class LatentTable:
    """One entry a latent in every list.

    Attributes:
        group: group index, 0 is the most active; null if the SAE has no groups.
        target_frequency: share of tokens that its group's target says; null without groups.
        frequency: share of tokens it was active on here.
        z_score: how many standard deviations the mean pre-activation of the tokens it fires on
            lies above its mean over all tokens, see `sae_lens_gba.metrics.selectivity`.
        max_activation: largest activation.
        decoder_norm: of its decoder row.
        threshold: pre-activation it must exceed (a GBA bias with its sign changed); null if the
            architecture has none.
        nearest: the other latent whose decoder row has the highest cosine with its own.
        nearest_cosine: that cosine.
        best_match: for each compared SAE, by label, the living latent with the highest decoder
            cosine.
        best_match_cosine: that cosine (the MCS), by label.
    """

    group: list[int] | None
    target_frequency: list[float] | None
    frequency: list[float]
    z_score: list[float]
    max_activation: list[float]
    decoder_norm: list[float]
    threshold: list[float] | None
    nearest: list[int]
    nearest_cosine: list[float]
    best_match: dict[str, list[int]] = field(default_factory=dict)
    best_match_cosine: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SaeResult:
    """One SAE.

    Attributes:
        label: short name, unique in the report: its folder's.
        architecture: as trained, where the config says so, else as saved.
        config: its cfg.json.
        details: of all latents or of a sample, by index.
        notes: sentences on what could not be measured.
        explanations: what latents stand for, by index, as a person or a model wrote it.
    """

    label: str
    architecture: str
    model_name: str
    hook_name: str
    d_in: int
    d_sae: int
    metrics: Metrics
    latents: LatentTable
    details: list[LatentDetail]
    config: dict[str, Any]
    notes: list[str]
    explanations: dict[int, str] = field(default_factory=dict)

    def detail(self, latent: int) -> LatentDetail | None:
        """Of one latent, None if it is not in the sample."""
        return next((d for d in self.details if d.latent == latent), None)


@dataclass(frozen=True)
class MatchedPair:
    """A latent of the first SAE, the latent of the other nearest to it, and their cosine."""

    latent: int
    other_latent: int
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """The first SAE of a report against another, by the decoder rows of living latents.

    Attributes:
        other: label of the other SAE.
        mean_cosine: mean over the first SAE's living latents of the best cosine.
        share_above: share of those whose best cosine exceeds ``threshold``.
        threshold: above it two latents count as the same feature.
        pairs: a sample of matched pairs, over the whole range of frequencies.
        only_first: latents of the first whose best cosine is below 0.5; a random sample.
        only_other: the same of the other.
        n_only_first: how many there are.
        n_only_other: the same of the other.
    """

    other: str
    mean_cosine: float
    share_above: float
    threshold: float
    pairs: list[MatchedPair]
    only_first: list[int]
    only_other: list[int]
    n_only_first: int
    n_only_other: int

    def latents(self) -> set[int]:
        """Those of the first SAE that are shown."""
        return {pair.latent for pair in self.pairs}.union(self.only_first)

    def other_latents(self) -> set[int]:
        """Those of the other."""
        return {pair.other_latent for pair in self.pairs}.union(self.only_other)


@dataclass(frozen=True)
class Report:
    """All of a report. The first SAE is the one it is about."""

    schema_version: int
    provenance: Provenance
    saes: list[SaeResult]
    comparisons: list[Comparison]

    def save(self, path: Path) -> None:
        """Write as JSON, and the details of latents into a folder beside it.

        Raises:
            FileExistsError: that folder holds other files.
        """
        content = TypeAdapter(Report).dump_python(self, mode="json")
        write_details([sae.pop("details") for sae in content["saes"]], path)
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read a report's JSON, and the details of its latents.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a report, or one of another schema version, or damaged.
        """
        remedy = "make the report again with `sae-lens-gba report`"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.get("schema_version")
            if version != SCHEMA_VERSION:
                raise ValueError(
                    f"{path} has schema_version={version}, this sae_lens_gba reads "
                    f"{SCHEMA_VERSION}: {remedy}."
                )
            for index, sae in enumerate(content.get("saes", [])):
                sae["details"] = read_details(path, index)
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "the file"
            raise ValueError(
                f"{path} is not the JSON of a report: {where}: {problem['msg']}; {remedy}."
            ) from error
        except (json.JSONDecodeError, AttributeError) as error:
            raise ValueError(f"{path} is not the JSON of a report ({error}): {remedy}.") from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of a report's JSON file."""
    return TypeAdapter(Report).json_schema()
