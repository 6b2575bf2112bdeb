"""A saved JumpReLU SAE at the L0 one wants: from activations, or from what was saved along."""

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUTranscoder

from sae_lens_gba.batch_statistics import typical_norm
from sae_lens_gba.calibration import (
    LEAST_FIRINGS,
    Calibration,
    calibrate_groups,
    expected_active,
)
from sae_lens_gba.errors import CalibrationError
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.precision import rounded_down
from sae_lens_gba.saved.loading import opened
from sae_lens_gba.saved.saved_sae import SavedSAE

logger = logging.getLogger(__name__)

ROWS = 512  # of activations that are encoded at a time
# the L0s that were saved are as measured, within a percent of those that were wanted
_NEAR = 1.01


@torch.no_grad()
def calibrate(
    sae: SAE[Any] | SavedSAE | str | Path,
    activations: torch.Tensor | Iterable[torch.Tensor],
    target_l0: float | None = None,
) -> SavedSAE:
    """A copy of a JumpReLU SAE whose thresholds give ``target_l0`` on these activations.

    Each group's thresholds move together, by a common multiple of the norms of the latents'
    encoder columns, to where the group's mean frequency is its target (times a factor common
    to all groups, when ``target_l0`` is not what the groups' targets add up to). Exact on
    these activations; on others of the same kind L0 differs by chance, about as its standard
    deviation over samples / sqrt(n). Any other SAE is one group.

    Args:
        sae: any stock jumprelu SAE or transcoder of SAELens, trained with GBA or not; what `load`
            returns; a folder; or a GBA training SAE.
        activations: what the SAE reads, shape (n, d_in), or several of them; of torch or NumPy.
        target_l0: active latents a sample; None is what the groups' targets add up to.

    Returns:
        The SAE with its groups, targets and frequencies as measured here. What was passed
        stays as it is.

    Raises:
        CalibrationError: no thresholds, no target, an L0 that can't be reached, or too few samples.
    """
    if target_l0 is not None:
        _require_number("target_l0", target_l0)
    saved = opened(sae)
    jumprelu = _jumprelu(saved)
    parts = [activations] if isinstance(activations, torch.Tensor | np.ndarray) else activations
    batches = [torch.as_tensor(part) for part in parts]
    _check_activations(batches, jumprelu)
    batches = [batch for batch in batches if len(batch) > 0]
    group, group_frequency, l0 = _groups_and_l0(saved, target_l0)
    sizes = torch.bincount(group).cpu().double()
    n_samples = sum(len(batch) for batch in batches)
    rarest = float((group_frequency * sizes).min()) * l0 / float((group_frequency * sizes).sum())
    if n_samples * rarest < LEAST_FIRINGS:
        raise CalibrationError(
            f"activations has {n_samples} samples: its rarest group fires {rarest:.3g} times a "
            f"sample, so pass at least {math.ceil(LEAST_FIRINGS / rarest)}."
        )
    unit = jumprelu.W_enc.norm(dim=0).float()

    def inputs(rows: torch.Tensor) -> torch.Tensor:
        return jumprelu.process_sae_in(rows.to(jumprelu.device))

    def pre_activations(n: int | None) -> Iterator[torch.Tensor]:
        every = 1 if n is None else max(1, n_samples // n)
        for batch in batches:
            for rows in batch[::every].split(ROWS):
                yield (inputs(rows) @ jumprelu.W_enc + jumprelu.b_enc).float()

    with _heads_joined(jumprelu):
        first = batches[0][:ROWS]
        scale = typical_norm(inputs(first), first.to(jumprelu.device)) / jumprelu.cfg.d_in**0.5
        unit = (unit * scale).clamp(min=1e-30)
        (found,) = calibrate_groups(
            pre_activations, jumprelu.threshold.float(), unit, group, group_frequency, [l0]
        )
    if found.possible_l0 < 0.99 * l0:
        raise CalibrationError(
            f"target_l0={l0:g} can't be reached on these activations: with all thresholds at 0, "
            f"{found.possible_l0:.4g} latents are active a sample; ask for that or less."
        )
    if abs(found.l0 - l0) > 0.01 * l0:
        logger.warning(
            "L0 is %.4g, not target_l0=%.4g: as many samples are equal, or nearly, that no "
            "thresholds are nearer; leave such samples out.", found.l0, l0
        )  # fmt: skip
    groups = _measured(saved, group, l0, found)
    moved_by = found.offset.cpu()[group.cpu()] * unit.cpu()
    return _moved(saved, moved_by, groups, found.l0, found.n_samples)


def at_l0(sae: SAE[Any] | SavedSAE | str | Path, l0: float) -> SavedSAE:
    """A copy of an SAE at another L0, without any activations.

    A GBA SAE is saved with the thresholds for a range of L0s around the one it was trained for,
    as measured on the last samples of its training; those in between are interpolated.

    Args:
        sae: an SAE trained with GBA: what `load` returns, a folder, or the training SAE.
        l0: active latents a sample.

    Returns:
        The SAE with its groups and their targets at that L0; frequencies are the targets.

    Raises:
        CalibrationError: the SAE has no thresholds for other L0s, or not for this one.
    """
    _require_number("l0", l0)
    saved = opened(sae)
    jumprelu = _jumprelu(saved)
    groups = saved.groups
    if groups is None or groups.other_l0s is None or groups.offsets is None:
        remedy = "pass activations to sae_lens_gba.calibrate"
        if groups is None and saved.sae.cfg.metadata.get("gba"):  # SAELens reads weights only
            remedy = f"pass its folder, or what sae_lens_gba.load gives; or {remedy}"
        raise CalibrationError(f"this SAE comes without thresholds for other L0s: {remedy}.")
    known = groups.other_l0s.double()
    lowest, highest = float(known[0]), float(known[-1])
    if not lowest / _NEAR <= l0 <= highest * _NEAR:
        nearest = lowest if not l0 > highest else highest
        raise CalibrationError(
            f"l0={l0:g} is not among those this SAE was saved with thresholds for: the nearest "
            f"possible value is {nearest:.4g}; for others, pass activations to "
            "sae_lens_gba.calibrate."
        )
    l0 = min(max(l0, lowest), highest)
    by_group = [np.interp(math.log(l0), known.log(), row) for row in groups.offsets.double()]
    offset = torch.tensor(by_group, dtype=torch.float64)
    moved_by = offset[groups.group] * jumprelu.W_enc.detach().norm(dim=0).cpu().double()
    target = _targets_at(groups, l0)
    groups = NeuronGroups(groups.group, target, target.clone())
    return _moved(saved, moved_by, groups, float(target.sum()))


def _jumprelu(saved: SavedSAE) -> JumpReLUSAE | JumpReLUTranscoder:
    if not isinstance(saved.sae, JumpReLUSAE | JumpReLUTranscoder):
        raise CalibrationError(
            f"an SAE of architecture {saved.sae.cfg.architecture()!r} has no thresholds to set: "
            "only 'jumprelu' and jumprelu transcoders have."
        )
    return saved.sae


@contextmanager
def _heads_joined(sae: SAE[Any]) -> Iterator[None]:
    """It reads (n, d_in), though it is of attention heads."""
    reshapes = sae.hook_z_reshaping_mode
    sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        if reshapes:
            sae.turn_on_forward_pass_hook_z_reshaping()


def _check_activations(batches: list[torch.Tensor], sae: SAE[Any]) -> None:
    for batch in batches:
        if batch.ndim != 2 or batch.shape[1] != sae.cfg.d_in:
            raise CalibrationError(
                f"activations has shape {tuple(batch.shape)}, the SAE reads (n, {sae.cfg.d_in})."
            )
        if not bool(torch.isfinite(batch).all()):
            raise CalibrationError("activations has NaN or Inf: leave out those samples.")
    if not any(len(batch) for batch in batches):
        raise CalibrationError("activations is empty: pass samples of what the SAE reads.")


def _groups_and_l0(
    saved: SavedSAE, target_l0: float | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Group of each latent, each group's frequency (shares of samples), L0 to have."""
    groups = saved.groups
    if target_l0 is None and groups is None:
        raise CalibrationError("target_l0 is needed: this SAE does not say what L0 it is to have.")
    if target_l0 is not None and not 0 < target_l0 < saved.d_sae:
        raise CalibrationError(
            f"target_l0={target_l0} is not possible: it must be above 0 and below "
            f"d_sae={saved.d_sae}."
        )
    device = saved.sae.W_dec.device
    if groups is None:
        assert target_l0 is not None
        one = torch.zeros(saved.d_sae, dtype=torch.long, device=device)
        return one, torch.tensor([target_l0 / saved.d_sae]).double(), target_l0
    group, target = groups.group, groups.target_frequency.double()
    sizes = torch.bincount(group)
    frequency = torch.zeros(len(sizes)).double().index_add_(0, group, target) / sizes
    l0 = float(target.sum()) if target_l0 is None else target_l0
    return group.to(device), frequency, l0


def _measured(
    saved: SavedSAE, group: torch.Tensor, l0: float, found: Calibration
) -> NeuronGroups | None:
    if saved.groups is None:
        return None
    target = _targets_at(saved.groups, l0)
    return NeuronGroups(group.cpu(), target, found.frequency.float().cpu())


def _targets_at(groups: NeuronGroups, l0: float) -> torch.Tensor:
    """Target frequencies whose odds are all multiplied alike, so that they add up to ``l0``."""
    target = groups.target_frequency.double()
    everywhere = torch.ones_like(target)
    return expected_active(target, everywhere, everywhere, l0).to(groups.target_frequency.dtype)


def _moved(
    saved: SavedSAE,
    moved_by: torch.Tensor,
    groups: NeuronGroups | None,
    l0: float,
    n_samples: int | None = None,
) -> SavedSAE:
    """A copy with thresholds ``moved_by`` higher, (d_sae,), that says what it is now."""
    sae = deepcopy(saved.sae)
    if sae.hook_z_reshaping_mode:  # SAELens' reshaping of heads is bound to the original still
        sae.turn_on_forward_pass_hook_z_reshaping()
    threshold = sae.get_parameter("threshold").data
    moved = (threshold.cpu().double() + moved_by.cpu().double()).clamp(min=0)
    threshold.copy_(rounded_down(moved, threshold.dtype))
    cfg = deepcopy(saved.cfg)
    sae.cfg.metadata.l0 = l0
    cfg.setdefault("metadata", {})["l0"] = l0
    if groups is not None:
        gba = {
            **(cfg["metadata"].get("gba") or {}),
            "groups": groups.summary(),
            "l0": {
                "target": float(groups.target_frequency.sum()),
                "measured": l0,
                "n_samples": n_samples,
            },
        }
        gba.pop("evaluation", None)  # of the SAE as it was
        sae.cfg.metadata.gba = cfg["metadata"]["gba"] = gba
    return replace(saved, sae=sae, cfg=cfg, groups=groups, log_sparsity=None)


def _require_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise CalibrationError(f"{name}={value!r} is not possible: give a number, such as 32.")
