"""One pass over text with a model and some SAEs: what a report is made of."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.util import get_special_token_ids

from sae_lens_gba.report.compare import ComparisonPlan, plan_comparisons
from sae_lens_gba.report.decoder_matching import Match
from sae_lens_gba.report.details import build_details
from sae_lens_gba.report.latent_sample import choose_candidates, thin_out
from sae_lens_gba.report.loading import LoadedSae, TextDataset
from sae_lens_gba.report.metrics import build_metrics, build_table, trained_architecture
from sae_lens_gba.report.results import (
    SCHEMA_VERSION,
    Comparison,
    Provenance,
    Report,
    SaeResult,
)
from sae_lens_gba.report.sae_observer import SaeObserver
from sae_lens_gba.report.text_stream import activations_on, open_text, token_batches

_PACKAGES = ("sae-lens-gba", "sae-lens", "transformer-lens", "transformers", "torch")


@dataclass(frozen=True)
class ReportConfig:
    """Settings of a report.

    Attributes:
        n_tokens: tokens of text to look at, special tokens included.
        n_latents: latents of the first SAE to show in detail, about as many of each group.
        latents: latents of the first SAE to show in detail whatever happens.
        ce_tokens: tokens for the CE loss, which needs three full passes of the model; 0 leaves
            it out.
        context_size: tokens a sequence; None is the SAE's own.
        seed: of the choice of latents and examples.
        autocast: whether the model runs in bfloat16: faster on processors with units for it (AMX,
            GPUs), many times slower on others.
    """

    n_tokens: int = 100_000
    n_latents: int = 60
    latents: tuple[int, ...] = ()
    ce_tokens: int = 2048
    context_size: int | None = None
    seed: int = 0
    autocast: bool = False

    def __post_init__(self) -> None:
        for name, least in (("n_tokens", 1), ("n_latents", 1), ("ce_tokens", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}={getattr(self, name)} is not possible: it must be at least {least}."
                )
        if self.context_size is not None and self.context_size < 2:
            raise ValueError(
                f"context_size={self.context_size} is not possible: it must be at least 2."
            )


def collect_report(
    saes: Sequence[LoadedSae],
    model: Any,
    dataset: TextDataset,
    dataset_name: str,
    cfg: ReportConfig | None = None,
) -> Report:
    """Run the text through the model once, and every SAE on its hook.

    Args:
        saes: the SAE the report is about, then those it is compared with.
        model: a TransformerLens (bridge) model with a tokenizer.
        dataset: with a column SAELens knows (``text``, ``tokens``, ...).
        dataset_name: for the report.
        cfg: settings.

    Raises:
        ValueError: the SAEs do not fit the model, or a setting is not possible.
    """
    cfg = cfg or ReportConfig()
    _require_latents(cfg, saes[0].d_sae)
    generator = torch.Generator().manual_seed(cfg.seed)
    plans = plan_comparisons(saes, generator)
    candidates = choose_candidates(saes[0].d_sae, saes[0].groups, cfg.n_latents, generator)
    observers = []
    for i, sae in enumerate(saes):
        watched = [latent for plan in plans for latent in plan.watched(i)]
        if i == 0:
            watched += [*candidates, *cfg.latents]
        observers.append(SaeObserver(sae, watched, generator))
    started = time.perf_counter()
    _run(observers, model, dataset, cfg)
    seconds = time.perf_counter() - started
    frequency = observers[0].statistics.frequency()
    sample = thin_out(candidates, saes[0].groups, frequency, cfg.n_latents)
    finished = [plan.finish(observers) for plan in plans]
    comparisons = [comparison for comparison, _ in finished]
    matches = {comparison.other: match for comparison, match in finished}
    results = []
    for i, observer in enumerate(observers):
        shown = _shown(i, plans, comparisons) + ([*sample, *cfg.latents] if i == 0 else [])
        results.append(_sae_result(observer, model, dataset, shown, matches if i == 0 else {}, cfg))
    provenance = _provenance(dataset_name, observers[0], cfg, seconds)
    return Report(SCHEMA_VERSION, provenance, results, comparisons)


def _shown(
    index: int, plans: Sequence[ComparisonPlan], comparisons: Sequence[Comparison]
) -> list[int]:
    return [
        latent
        for plan, comparison in zip(plans, comparisons, strict=True)
        for latent in plan.shown(index, comparison)
    ]


def _sae_result(
    observer: SaeObserver,
    model: Any,
    dataset: TextDataset,
    shown: Sequence[int],
    matches: Mapping[str, Match],
    cfg: ReportConfig,
) -> SaeResult:
    loaded = observer.loaded
    details, notes = build_details(observer, shown, model)
    store = open_text(model, loaded, dataset, cfg.context_size, cfg.autocast)
    metrics, metric_notes = build_metrics(observer, model, store, cfg.ce_tokens)
    return SaeResult(
        label=loaded.label,
        architecture=trained_architecture(loaded.sae),
        model_name=str(loaded.sae.cfg.metadata.model_name),
        hook_name=loaded.hook_name,
        d_in=int(loaded.sae.cfg.d_in),
        d_sae=loaded.d_sae,
        metrics=metrics,
        latents=build_table(observer, matches),
        details=details,
        config=loaded.sae.cfg.to_dict(),
        notes=notes + metric_notes,
    )


def _run(
    observers: Sequence[SaeObserver], model: Any, dataset: TextDataset, cfg: ReportConfig
) -> None:
    """The pass over the text: SAEs of the same hook share the model's activations."""
    stores: dict[str, ActivationsStore] = {}
    for observer in observers:
        if observer.loaded.hook_name not in stores:
            store = open_text(model, observer.loaded, dataset, cfg.context_size, cfg.autocast)
            # tokens and positions are the first SAE's, whatever the others were trained on
            store.seqpos_slice = next(iter(stores.values()), store).seqpos_slice
            stores[observer.loaded.hook_name] = store
    first = stores[observers[0].loaded.hook_name]
    special = torch.tensor(get_special_token_ids(model.tokenizer))
    d_sae = max(observer.loaded.d_sae for observer in observers)
    for tokens in token_batches(first, cfg.n_tokens, d_sae):
        inputs = {hook: activations_on(store, tokens) for hook, store in stores.items()}
        shown = tokens[:, slice(*first.seqpos_slice)]
        counts = torch.isin(shown, special.to(shown.device), invert=True)
        for observer in observers:
            observer.update(inputs[observer.loaded.hook_name], shown, counts)
    if observers[0].statistics.n_tokens == 0:
        raise ValueError(
            f"the text is shorter than one sequence of {first.context_size} tokens: give more, "
            "or a smaller --context-size."
        )


def _require_latents(cfg: ReportConfig, d_sae: int) -> None:
    for latent in cfg.latents:
        if not 0 <= latent < d_sae:
            raise ValueError(
                f"latents={latent} is not possible: the SAE has {d_sae}, numbered from 0."
            )


def _provenance(dataset: str, first: SaeObserver, cfg: ReportConfig, seconds: float) -> Provenance:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions,
        dataset=dataset,
        n_tokens=first.statistics.n_tokens,
        context_size=int(cfg.context_size or first.loaded.sae.cfg.metadata.context_size),
        seed=cfg.seed,
        seconds=round(seconds, 1),
    )
