"""What is said of one SAE: figures, and its table of latents."""

from collections.abc import Mapping
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_gba.at_target import at_its_target
from sae_lens_gba.metrics import BestMatch, best_match
from sae_lens_gba.report.reading import Reading
from sae_lens_gba.report.results import LatentDetail, LatentTable, SaeResult, significant
from sae_lens_gba.saved.evaluation import Metrics
from sae_lens_gba.saved.saved_sae import SavedSAE

CE_BATCH_SEQUENCES = 8


def build_result(
    reading: Reading,
    matches: Mapping[str, BestMatch],
    details: list[LatentDetail],
    notes: list[str],
    ce_loss: Mapping[str, float],
) -> SaeResult:
    """All that is said of an SAE.

    Args:
        matches: of its latents with those of compared SAEs, by label.
        notes: on what could not be had.
        ce_loss: see `measure_ce_loss`; empty if it was not measured.
    """
    saved = reading.saved
    if not ce_loss:
        notes = [*notes, "CE loss was not measured (ce_tokens=0)."]
    return SaeResult(
        label=saved.label,
        architecture=trained_architecture(saved.sae),
        model_name=str(saved.sae.cfg.metadata.model_name),
        hook_name=" to ".join(saved.widths),
        d_in=int(saved.sae.cfg.d_in),
        d_sae=saved.d_sae,
        metrics=_metrics(reading, ce_loss),
        latents=_table(reading, matches),
        details=details,
        config=saved.sae.cfg.to_dict(),
        notes=notes,
    )


def ce_batches(ce_tokens: int, context_size: int, n_sequences: int) -> tuple[int, int]:
    """How many batches the CE loss is measured on, of how many sequences each.

    At least one sequence, however long, and no more than the ``n_sequences`` that the report reads:
    of a shorter text SAELens would read the same once more. None if no tokens are asked for.
    """
    if ce_tokens == 0:
        return 0, 0
    n_sequences = min(max(1, ce_tokens // context_size), n_sequences)
    size = min(CE_BATCH_SEQUENCES, n_sequences)
    return n_sequences // size, size


def measure_ce_loss(
    saved: SavedSAE, model: Any, store: ActivationsStore, batches: tuple[int, int]
) -> dict[str, float]:
    """By SAELens' own evaluation, on the text's beginning: the same for every SAE."""
    n_batches, size = batches
    if n_batches == 0:
        return {}
    cfg = EvalConfig(
        batch_size_prompts=size, n_eval_reconstruction_batches=n_batches, compute_ce_loss=True
    )
    with at_its_target(saved.sae, model) as sae:
        found, _ = run_evals(sae, store, model, ActivationScaler(), cfg)
    values = found["model_performance_preservation"]
    return {name: significant(float(value)) for name, value in values.items()}


def _metrics(reading: Reading, ce_loss: Mapping[str, float]) -> Metrics:
    frequency, variance = reading.frequency, reading.variance
    squared_error = variance.sum_squared_residual / max(variance.num_samples, 1)
    return Metrics(
        explained_variance=significant(variance.compute()),
        mean_squared_error=significant(squared_error),
        l0=significant(float(frequency.double().sum())),
        l0_asked=l0_asked(reading.saved),
        dead=int((frequency == 0).sum()),
        ce_loss_recovered=ce_loss.get("ce_loss_score"),
        ce_loss_with_sae=ce_loss.get("ce_loss_with_sae"),
        ce_loss_without_sae=ce_loss.get("ce_loss_without_sae"),
        ce_loss_with_ablation=ce_loss.get("ce_loss_with_ablation"),
    )


def l0_asked(saved: SavedSAE) -> float | None:
    """Active latents a token the SAE was trained towards, where its config says."""
    if saved.groups is not None:
        return significant(float(saved.groups.target_frequency.sum()))
    cfg = saved.sae.cfg
    details = cfg.metadata.training_architecture_details or {}
    for source in (details, cfg.to_dict()):
        for name in ("k", "target_l0"):
            if isinstance(source.get(name), int | float):
                return float(source[name])
    return None


def trained_architecture(sae: SAE[Any]) -> str:
    """As trained, with what it is saved as if that differs."""
    saved = str(sae.cfg.architecture())
    trained = sae.cfg.metadata.training_architecture
    return saved if trained in (None, saved) else f"{trained} (saved as {saved})"


def _table(reading: Reading, matches: Mapping[str, BestMatch]) -> LatentTable:
    saved, latents = reading.saved, reading.selectivity.compute()
    rows = saved.decoder_rows
    nearest = best_match(rows, rows, signed=True, exclude_same=True)
    groups, threshold = saved.groups, saved.threshold
    return LatentTable(
        group=None if groups is None else groups.group.tolist(),
        target_frequency=None if groups is None else _numbers(groups.target_frequency),
        frequency=_numbers(latents.frequency),
        z_score=_numbers(latents.z_score),
        max_activation=_numbers(reading.max_activation),
        decoder_norm=_numbers(rows.norm(dim=1)),
        threshold=None if threshold is None else _numbers(threshold),
        nearest=nearest.candidate.tolist(),
        nearest_cosine=_numbers(nearest.similarity.clamp(-1, 1)),
        best_match={label: match.candidate.tolist() for label, match in matches.items()},
        best_match_cosine={label: _numbers(match.similarity) for label, match in matches.items()},
    )


def _numbers(values: torch.Tensor) -> list[float]:
    return [significant(value) for value in values.cpu().double().tolist()]
