"""What is said of a repo of GBA SAEs: pure functions of what their cfg.json files say.

The card's text is in model_card_template.md beside this file; what it is filled in with, and
the YAML front matter, is here. Nothing depends on the date or the machine, so that the same
SAEs always give the same card.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from sae_lens_gba.hub.markdown import FILTERS, as_text, one_line
from sae_lens_gba.hub.validation import is_hub_name
from sae_lens_gba.saved.description import (
    PublishedSAE,
    describe,
    find_metric,
    flat_numbers,
    group_rows,
)

TAGS = ("sparse-autoencoder", "saelens", "gba", "interpretability")

# of a run, beside the training SAE's own settings
_RUN_SETTINGS = (
    "model_name",
    "dataset_path",
    "context_size",
    "prepend_bos",
    "exclude_special_tokens",
    "seqpos_slice",
)
_METRIC_NAMES = {
    "l0": "L0",
    "explained_variance": "explained variance",
    "ce_recovered": "CE loss recovered",
}


@dataclass(frozen=True)
class CardEntry(PublishedSAE):
    """What the card says of one SAE.

    Attributes:
        l0_asked: sum of the target frequencies, active latents a token.
        explained_variance: share, at most 1; None if not measured.
        ce_recovered: CE loss recovered, see `Metrics`; None if not measured.
        dead: number of dead latents; None if not measured.
        groups: as `NeuronGroups.summary` gives them.
        training: setting -> value.
        evaluation: name -> number, as the report measured or the user gave them.
        measured_on: text that the evaluation was made on; None if it does not say.
        plot: path of the frequency plot in the repo, None without one.
        saelens_version, version: of SAELens and of this package, "?" where it does not say.
    """

    dtype: str
    dataset: str | None
    l0_asked: float
    explained_variance: float | None
    ce_recovered: float | None
    dead: int | None
    groups: Sequence[Mapping[str, Any]]
    training: Mapping[str, Any]
    evaluation: Mapping[str, float]
    measured_on: str | None
    neuronpedia_id: str | None
    plot: str | None
    saelens_version: str
    version: str

    @classmethod
    def from_cfg(cls, sae_id: str, cfg: Mapping[str, Any], plot: str | None) -> "CardEntry":
        """From a published cfg.json, whose ``metadata.gba`` has groups and evaluation."""
        metadata = cfg["metadata"]
        evaluation = metadata["gba"].get("evaluation") or {}
        groups = _measured_groups(group_rows(metadata) or [], evaluation.get("group_frequency"))
        dead = find_metric(evaluation, "dead")
        if dead is None:
            dead = metadata.get("num_dead_features")
        run = {
            name: metadata[name]
            for name in _RUN_SETTINGS
            if metadata.get(name) not in (None, [None], (None,))
        }
        return cls(
            **vars(describe(sae_id, cfg)),
            dtype=cfg["dtype"],
            dataset=metadata.get("dataset_path"),
            l0_asked=sum(g["size"] * g["target_frequency"] for g in groups),
            explained_variance=find_metric(evaluation, "explained_variance"),
            ce_recovered=find_metric(evaluation, "ce_recovered"),
            dead=None if dead is None else round(dead),
            groups=groups,
            training=_training(metadata, run),
            # of a whole evaluation.json the figures alone: how it was made is in cfg.json
            evaluation=flat_numbers(evaluation.get("metrics") or evaluation),
            measured_on=_measured_on(evaluation.get("provenance")),
            neuronpedia_id=metadata.get("neuronpedia_id"),
            plot=plot,
            saelens_version=metadata.get("sae_lens_training_version") or "?",
            version=metadata["gba"].get("version") or "?",
        )


def _training(metadata: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        **run,
        **(metadata["gba"].get("run") or {}),
        **(metadata.get("training_architecture_details") or {}),
    }
    if settings.get("target_l0") is not None:  # the lowest frequency follows from it
        settings.pop("lowest_target_frequency", None)
    return {name: value for name, value in settings.items() if value is not None}


def _measured_groups(
    groups: list[dict[str, Any]], frequencies: Sequence[float] | None
) -> list[dict[str, Any]]:
    """The groups with their frequencies on the evaluation's text, where it has them."""
    if frequencies is None or len(frequencies) != len(groups):
        return groups
    for frequency in [*frequencies]:
        if not isinstance(frequency, int | float):
            raise TypeError(f"a frequency of a group is a {type(frequency).__name__}")
    return [
        {**group, "measured_frequency": frequency}
        for group, frequency in zip(groups, frequencies, strict=True)
    ]


def _measured_on(provenance: Mapping[str, Any] | None) -> str | None:
    if not provenance:
        return None
    ce_tokens = provenance.get("ce_tokens")
    of_these = f" (CE on the first {ce_tokens:,})" if ce_tokens else ""
    return f"{provenance['n_tokens']:,} tokens{of_these} of {provenance['dataset']}"


def front_matter(
    repo_id: str,
    entries: Sequence[CardEntry],
    license: str | None = None,
    base_model: str | None = None,
) -> dict[str, Any]:
    """The card's YAML metadata, as the Hub validates it."""
    models = list(dict.fromkeys(e.model_name for e in entries if is_hub_name(e.model_name)))
    datasets = list(dict.fromkeys(e.dataset for e in entries if is_hub_name(e.dataset)))
    data: dict[str, Any] = ModelCardData(
        library_name="saelens",
        license=license,
        base_model=base_model or (models[0] if len(models) == 1 else models or None),
        datasets=datasets or None,
        tags=list(TAGS),
    ).to_dict()
    index = [result for entry in entries for result in _model_index(repo_id, entry)]
    return {**data, "model-index": index} if index else data


def _model_index(repo_id: str, entry: CardEntry) -> list[dict[str, Any]]:
    results = [
        EvalResult(
            task_type="feature-extraction",
            task_name="transcoder" if entry.hook_name_out else "sparse autoencoder",
            dataset_type=_dataset_type(entry),
            dataset_name=one_line(entry.measured_on or entry.dataset or "training data"),
            metric_type=name,
            metric_name=metric_name,
            metric_value=float(f"{value:.6g}"),
        )
        for name, metric_name in _METRIC_NAMES.items()
        if (value := getattr(entry, name)) is not None
    ]
    if not results:
        return []
    name = one_line(f"{repo_id.split('/')[-1]}/{entry.sae_id}")
    index: list[dict[str, Any]] = eval_results_to_model_index(name, results)
    return index


def _dataset_type(entry: CardEntry) -> str:
    """The data set's name on the Hub, if the figures are of it."""
    name = entry.dataset
    if not is_hub_name(name) or (entry.measured_on is not None and name not in entry.measured_on):
        return "unknown"
    return name


def card_body(repo_id: str, entries: Sequence[CardEntry], license: str | None = None) -> str:
    """The card's Markdown, without front matter.

    Args:
        entries: at least one, in the order they are to be shown.
        license: an id such as "mit"; None leaves it open.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sae_lens_gba", "hub"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        finalize=as_text,  # whatever no filter has marked up
    )
    environment.filters.update(FILTERS, number=number)
    template = environment.get_template("model_card_template.md")
    return template.render(repo_id=repo_id, entries=entries, license=license)


def number(value: float | None) -> str:
    """At most four significant digits; a dash for what was not measured."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return str(int(value))
    return f"{value:.4g}"


def release_entry(repo_id: str, entries: Sequence[CardEntry]) -> str | None:
    """YAML block that a user can contribute to SAELens, so that the release has a short name.

    A release is of one model: None for SAEs of several.
    """
    models = {entry.model_name for entry in entries}
    if len(models) > 1:
        return None
    saes = []
    for entry in entries:
        sae: dict[str, Any] = {"id": entry.sae_id, "path": entry.sae_id}
        measured = {"l0": entry.l0, "variance_explained": entry.explained_variance}
        sae |= {name: round(value, 4) for name, value in measured.items() if value is not None}
        if entry.neuronpedia_id:
            sae["neuronpedia"] = entry.neuronpedia_id
        saes.append(sae)
    release = {"conversion_func": None, "model": models.pop(), "repo_id": repo_id, "saes": saes}
    text: str = yaml.safe_dump({repo_id.split("/")[-1]: release}, sort_keys=False)
    return text
