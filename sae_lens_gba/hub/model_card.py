"""The model card of a repo of GBA SAEs: a pure function of what their cfg.json files say.

The text is in model_card_template.md beside this file; what it is filled with, and the YAML
front matter, is here. Nothing depends on the date or the machine, so that the same SAEs
always give the same card.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from sae_lens_gba.hub.validation import is_hub_name
from sae_lens_gba.saved.description import find_metric, flat_numbers, group_rows, measured_l0

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
    "ce_recovered": "CE recovered",
}


@dataclass(frozen=True)
class CardEntry:
    """What the card says of one SAE.

    Attributes:
        sae_id: its folder in the repo.
        model_name, hook_name: "?" where the SAE does not say.
        l0_asked: sum of the target frequencies, active latents a token.
        l0_measured: active latents a token; None was not measured.
        explained_variance: share, at most 1; None was not measured.
        ce_recovered: share of the cross-entropy loss; None was not measured.
        dead: number of dead latents; None was not measured.
        groups: as `NeuronGroups.summary` gives them.
        training: setting -> value.
        evaluation: name -> number, as the user gave them.
        plot: path of the frequency plot in the repo, None without one.
        versions: package -> version.
    """

    sae_id: str
    architecture: str
    d_in: int
    d_sae: int
    dtype: str
    model_name: str
    hook_name: str
    dataset: str | None
    l0_asked: float
    l0_measured: float | None
    explained_variance: float | None
    ce_recovered: float | None
    dead: int | None
    groups: Sequence[Mapping[str, Any]]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    neuronpedia_id: str | None = None
    plot: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_cfg(cls, sae_id: str, cfg: Mapping[str, Any], plot: str | None) -> "CardEntry":
        """From a published cfg.json, whose ``metadata.gba`` has groups and evaluation."""
        metadata = cfg["metadata"]
        gba = metadata["gba"]
        groups = group_rows(metadata) or []
        evaluation = gba.get("evaluation") or {}
        dead = find_metric(evaluation, "dead")
        if dead is None:
            dead = metadata.get("num_dead_features")
        run = {
            name: metadata[name]
            for name in _RUN_SETTINGS
            if metadata.get(name) not in (None, [None], (None,))
        }
        return cls(
            sae_id=sae_id,
            architecture=cfg["architecture"],
            d_in=cfg["d_in"],
            d_sae=cfg["d_sae"],
            dtype=cfg["dtype"],
            model_name=metadata.get("model_name") or "?",
            hook_name=metadata.get("hook_name") or "?",
            dataset=metadata.get("dataset_path"),
            l0_asked=sum(g["size"] * g["target_frequency"] for g in groups),
            l0_measured=measured_l0(metadata),
            explained_variance=find_metric(evaluation, "explained_variance"),
            ce_recovered=find_metric(evaluation, "ce_recovered"),
            dead=None if dead is None else round(dead),
            groups=groups,
            training={**run, **(metadata.get("training_architecture_details") or {})},
            evaluation=flat_numbers(evaluation),
            neuronpedia_id=metadata.get("neuronpedia_id"),
            plot=plot,
            versions={
                "sae-lens": metadata.get("sae_lens_training_version") or "?",
                "sae-lens-gba": gba.get("version") or "?",
            },
        )


def front_matter(
    repo_id: str,
    entries: Sequence[CardEntry],
    license: str | None = None,
    base_model: str | None = None,
) -> dict[str, Any]:
    """The card's YAML metadata, as the Hub validates it."""
    named = _unique(e.model_name for e in entries if is_hub_name(e.model_name))
    models = [base_model] if base_model else named
    datasets = _unique(e.dataset for e in entries if is_hub_name(e.dataset))
    data: dict[str, Any] = ModelCardData(
        library_name="saelens",
        license=license,
        base_model=models[0] if len(models) == 1 else models or None,
        datasets=datasets or None,
        tags=list(TAGS),
    ).to_dict()
    index = [result for entry in entries for result in _model_index(repo_id, entry)]
    return {**data, "model-index": index} if index else data


def _model_index(repo_id: str, entry: CardEntry) -> list[dict[str, Any]]:
    dataset = entry.dataset if is_hub_name(entry.dataset) else None
    values = {
        "l0": entry.l0_measured,
        "explained_variance": entry.explained_variance,
        "ce_recovered": entry.ce_recovered,
    }
    results = [
        EvalResult(
            task_type="feature-extraction",
            task_name="sparse autoencoder",
            dataset_type=dataset or "unknown",
            dataset_name=entry.dataset or "training data",
            metric_type=name,
            metric_name=_METRIC_NAMES[name],
            metric_value=_rounded(value),
        )
        for name, value in values.items()
        if value is not None
    ]
    if not results:
        return []
    name = f"{repo_id.split('/')[-1]}/{entry.sae_id}"
    index: list[dict[str, Any]] = eval_results_to_model_index(name, results)
    return index


def card_body(repo_id: str, entries: Sequence[CardEntry], license: str | None = None) -> str:
    """The card's Markdown, without front matter.

    Args:
        entries: at least one, in the order they are to be shown.
        license: an id such as "mit"; None leaves it open.
    """
    models = _unique(e.model_name for e in entries)
    datasets = _unique(e.dataset for e in entries if e.dataset)
    dtype = entries[0].dtype
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters["number"] = number
    template = files("sae_lens_gba.hub").joinpath("model_card_template.md").read_text("utf-8")
    return environment.from_string(template).render(
        title=f"{repo_id.split('/')[-1]}: GBA sparse autoencoders for {' and '.join(models)}",
        n_saes="One sparse autoencoder"
        if len(entries) == 1
        else f"{len(entries)} sparse autoencoders",
        models=" and ".join(f"`{name}`" for name in models),
        architectures=" and ".join(f"`{a}`" for a in _unique(e.architecture for e in entries)),
        repo_id=repo_id,
        entries=entries,
        dtype_argument="" if dtype == "float32" else f', dtype="{dtype}"',
        any_evaluation=any(e.evaluation for e in entries),
        training_data=f" ({', '.join(f'`{name}`' for name in datasets)})" if datasets else "",
        license_text=_license_text(license),
        versions=_versions_text(entries),
    )


def number(value: float | None) -> str:
    """At most four significant digits; a dash for what was not measured."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return str(int(value))
    return f"{value:.4g}"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _unique(names: Any) -> list[str]:
    return list(dict.fromkeys(names))


def _license_text(license: str | None) -> str:
    if license is None:
        return "None is stated yet: ask the authors before you build on these SAEs."
    return f"`{license}`. The license of the base model applies to the model itself."


def _versions_text(entries: Sequence[CardEntry]) -> str:
    versions: dict[str, list[str]] = {}
    for entry in entries:
        for package, version in entry.versions.items():
            versions.setdefault(package, []).append(version)
    return ", ".join(f"{name} {' and '.join(_unique(v))}" for name, v in versions.items()) + "."
