"""One pass over text with a model and some SAEs: what a report is made of."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.util import get_special_token_ids

from sae_lens_gba.at_target import is_transcoder
from sae_lens_gba.provenance import package_versions, utc_now
from sae_lens_gba.report.compare import compare
from sae_lens_gba.report.details import build_details
from sae_lens_gba.report.explanations import check_export_folder, export_for_delphi
from sae_lens_gba.report.latent_sample import sample_latents
from sae_lens_gba.report.random_baseline import N_SAMPLES, random_directions
from sae_lens_gba.report.reading import Reading
from sae_lens_gba.report.results import SCHEMA_VERSION, Report
from sae_lens_gba.report.sae_result import build_result, ce_batches, measure_ce_loss
from sae_lens_gba.report.text_stream import activations_on, open_text, token_batches
from sae_lens_gba.saved.evaluation import Provenance
from sae_lens_gba.saved.saved_sae import SavedSAE
from sae_lens_gba.sources import TextDataset


@dataclass(frozen=True)
class ReportConfig:
    """Settings of a report.

    Attributes:
        n_tokens: tokens of text to look at, special tokens included.
        n_latents: latents of the first SAE to show in detail, about as many of each group; None
            is all of them, at about 7 kB each on disk.
        latents: latents of the first SAE to show in detail whatever happens.
        random_baseline: whether to compare with random directions as well, see
            `random_baseline.random_directions`.
        delphi: folder, not there yet, for the first SAE's activations in the form that
            EleutherAI's delphi explains; None leaves it out.
        ce_tokens: tokens for the CE loss, which needs three full passes of the model, at most
            ``n_tokens``; 0 leaves it out.
        context_size: tokens per sequence; None is the SAE's own.
        seed: of the choice of latents and examples.
        autocast: whether the model runs in bfloat16: faster on processors with units for it (AMX,
            GPUs), many times slower on others.
    """

    n_tokens: int = 100_000
    n_latents: int | None = None
    latents: Sequence[int] = ()
    random_baseline: bool = False
    delphi: Path | None = None
    ce_tokens: int = 2048
    context_size: int | None = None
    seed: int = 0
    autocast: bool = False

    def __post_init__(self) -> None:
        if self.delphi is not None:
            check_export_folder(self.delphi)
        least = {"n_tokens": 1, "n_latents": 1, "ce_tokens": 0, "context_size": 2}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name}={value} is not possible: it must be at least {minimum}.")


def collect_report(
    saes: Sequence[SavedSAE],
    model: Any,
    dataset: TextDataset,
    dataset_name: str,
    cfg: ReportConfig | None = None,
    held_out: bool | None = None,
) -> Report:
    """Run the text through the model once, and every SAE on its hook.

    Args:
        saes: the SAE the report is about, then those it is compared with.
        model: a TransformerLens (bridge) model with a tokenizer.
        dataset: with a column SAELens knows (``text``, ``tokens``, ...).
        dataset_name: for the report.
        held_out: whether the SAE's training did not see this text; None if that is not known.

    Raises:
        ValueError: the SAEs do not fit the model, or a setting is not possible.
    """
    cfg = cfg or ReportConfig()
    _check(saes, cfg)
    generator = torch.Generator().manual_seed(cfg.seed)
    if cfg.random_baseline:
        saes = [*saes, _random_baseline(saes[0], model, dataset, cfg)]
    readings = [Reading(sae) for sae in saes]
    started = time.perf_counter()
    text = _read(readings, model, dataset, cfg)
    context_size = int(cfg.context_size or saes[0].sae.cfg.metadata.context_size)
    for_ce = ce_batches(cfg.ce_tokens, context_size, len(text))
    provenance = Provenance(
        created=utc_now(),
        versions=package_versions(),
        dataset=dataset_name,
        held_out=held_out,
        n_tokens=readings[0].selectivity.n_samples,
        ce_tokens=prod(for_ce) * context_size,
        context_size=context_size,
        seed=cfg.seed,
        seconds=round(time.perf_counter() - started, 1),
    )
    if cfg.delphi is not None:
        firings = readings[0].firings()
        export_for_delphi(saes[0], firings, text, dataset_name, cfg.delphi)
    if cfg.n_latents is None:
        sample = list(range(saes[0].d_sae))
    else:
        sample = sample_latents(readings[0].frequency, saes[0].groups, cfg.n_latents, generator)
    found = [compare(readings[0], other, generator) for other in readings[1:]]
    comparisons = [comparison for comparison, _ in found]
    shown = [{*sample, *cfg.latents}.union(*(c.latents() for c in comparisons))]
    shown += [c.other_latents() for c in comparisons]
    matches = {comparison.other: match for comparison, match in found}
    results = []
    for i, (reading, latents) in enumerate(zip(readings, shown, strict=True)):
        details, notes = build_details(reading, sorted(latents), text, model, generator)
        # the same tokens for all, whatever context they were trained on
        store = open_text(model, saes[0], dataset, cfg.context_size, cfg.autocast)
        ce_loss = measure_ce_loss(reading.saved, model, store, for_ce)
        results.append(build_result(reading, {} if i else matches, details, notes, ce_loss))
    return Report(SCHEMA_VERSION, provenance, results, comparisons)


def _read(
    readings: Sequence[Reading], model: Any, dataset: TextDataset, cfg: ReportConfig
) -> torch.Tensor:
    """The pass over the text; its token ids, shape (n_sequences, n_tokens).

    SAEs of the same hook and head share the model's activations.
    """
    stores: dict[tuple[str, int | None], ActivationsStore] = {}
    for reading in readings:
        head = reading.saved.sae.cfg.metadata.hook_head_index
        for hook, width in reading.saved.widths.items():
            if (hook, head) in stores:
                continue
            store = open_text(model, reading.saved, dataset, cfg.context_size, cfg.autocast)
            store.hook_name, store.d_in = hook, width
            # tokens and positions are the first SAE's, whatever the others were trained on
            store.seqpos_slice = next(iter(stores.values()), store).seqpos_slice
            stores[hook, head] = store
    first = next(iter(stores.values()))
    special = torch.tensor(get_special_token_ids(model.tokenizer))
    d_sae = max(reading.saved.d_sae for reading in readings)
    text: list[torch.Tensor] = []
    n_read = 0
    for tokens in token_batches(first, cfg.n_tokens, d_sae):
        seen = {place: activations_on(store, tokens) for place, store in stores.items()}
        text.append(tokens[:, slice(*first.seqpos_slice)].cpu())
        places = torch.isin(text[-1], special, invert=True).flatten().nonzero().squeeze(1)
        for reading in readings:
            saved = reading.saved
            head = saved.sae.cfg.metadata.hook_head_index
            of_both = (seen[hook, head] for hook in (saved.hook_name, saved.hook_name_out))
            x, target = (acts.flatten(0, 1)[places.to(acts.device)] for acts in of_both)
            reading.update(x, target, n_read + places)
        n_read += text[-1].numel()
    if readings[0].selectivity.n_samples == 0:
        raise ValueError(
            f"the text is shorter than one sequence of {first.context_size} tokens: give more, "
            "or a smaller --context-size."
        )
    return torch.cat(text)


def _random_baseline(
    saved: SavedSAE, model: Any, dataset: TextDataset, cfg: ReportConfig
) -> SavedSAE:
    """Fitted to the text's beginning, or to all of it if the report reads less."""
    store = open_text(model, saved, dataset, cfg.context_size, cfg.autocast)
    special = torch.tensor(get_special_token_ids(model.tokenizer))
    activations = []
    for tokens in token_batches(store, min(cfg.n_tokens, N_SAMPLES), saved.d_sae):
        usual = torch.isin(tokens[:, slice(*store.seqpos_slice)].cpu(), special, invert=True)
        activations.append(activations_on(store, tokens)[usual.to(store.device)])
    return random_directions(saved, torch.cat(activations), cfg.seed)


def _check(saes: Sequence[SavedSAE], cfg: ReportConfig) -> None:
    first, *others = saes
    if cfg.random_baseline and is_transcoder(first.sae):
        raise ValueError("random_baseline is not possible for a transcoder: leave it out.")
    for latent in cfg.latents:
        if not 0 <= latent < first.d_sae:
            raise ValueError(
                f"latents={latent} is not possible: the SAE has {first.d_sae}, numbered from 0."
            )
    for other in others:
        theirs, ours = tuple(other.widths.values()), tuple(first.widths.values())
        if theirs[0] != ours[0]:
            raise ValueError(
                f"{other.label} has d_in={theirs[0]}, {first.label} has {ours[0]}: compare SAEs "
                "whose inputs have the same dimension."
            )
        if theirs[-1] != ours[-1]:
            raise ValueError(
                f"{other.label} has d_out={theirs[-1]}, {first.label} has {ours[-1]}: compare "
                "those whose outputs have the same dimension."
            )
