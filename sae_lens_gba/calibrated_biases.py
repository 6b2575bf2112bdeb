"""Biases of a training SAE that give exactly the L0 asked for, whenever it is used."""

import logging
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import SAEMetadata
from typing_extensions import override

from sae_lens_gba.atomic_write import files_written_whole
from sae_lens_gba.calibration import (
    LEAST_FIRINGS,
    Calibration,
    RecentSamples,
    calibrate_groups,
)
from sae_lens_gba.checksums import write_checksums
from sae_lens_gba.equal_gain import Pairs, equal_gain_thresholds, gains
from sae_lens_gba.gba_parameters import RUN_TIME_NORMALISATIONS, GBAParameters
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.plain_values import plain
from sae_lens_gba.sparse_autoencoder_ops import CHUNK_ROWS

logger = logging.getLogger(__name__)

# L0s for which thresholds are saved along, relative to the one trained for
OTHER_L0S = tuple(2 ** (i / 2) for i in range(-6, 5))
# pairs of sample and latent that are looked at when thresholds move, relative to those that fire
_MOST_PAIRS = 3
# the other L0s take more pairs of sample and latent than the one: fewer samples, to a percent or so
_SAMPLES_FOR_OTHERS = 8192


class CalibratedBiases(GBAParameters):
    """Keeps the last samples of training; sets the biases on them once training pauses or ends.

    While training, feedback moves the biases, so that L0 is right on average. An SAE that is
    used has weights that no longer move, and can have it exactly.
    """

    # in evaluation mode: what biases and frequencies go back to when training goes on
    _in_training: tuple[torch.Tensor, torch.Tensor] | None = None
    _calibration: Calibration | None = None
    _other_l0s: tuple[torch.Tensor, torch.Tensor] | None = None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.recent_samples = RecentSamples(self.cfg.calibration_samples)

    def _keep_for_calibration(self, batch: torch.Tensor) -> None:
        self._calibration = self._other_l0s = None
        if self.cfg.calibration_samples > 0:
            self.recent_samples.add(batch.detach())

    @override
    def train(self, mode: bool = True) -> "CalibratedBiases":
        """In evaluation mode biases are calibrated on the last ``calibration_samples``.

        Training goes on with the biases it had, whether or not it was evaluated in between.
        """
        if mode and self._in_training is not None:
            bias, frequency = self._in_training
            self.set_bias(bias)
            self.adapter.frequency = frequency.to(self.device)
            self._in_training = self._calibration = None
        elif not mode and self.training and self._calibration is None:
            state = self.bias.clone(), self.adapter.frequency
            if self._calibrate():
                self._in_training = state
        return super().train(mode)

    @property
    def is_calibrated(self) -> bool:
        """Whether biases and frequencies are those of a calibration, not of the last adaptation."""
        return self._calibration is not None

    def settle(self) -> None:
        """Make calibrated biases the SAE's own, as at the end of training.

        Saving it in its stock form does that: the SAE that was trained and the one that was
        saved are the same. Training that goes on after it starts from these biases.
        """
        if self._calibration is None:
            self._warn_of_few_samples()
            self._calibrate()
        self._in_training = None
        if self._other_l0s is None:
            self._other_l0s = self._thresholds_for_other_l0s()

    def _warn_of_few_samples(self) -> None:
        held, least = len(self.recent_samples), self._least_samples()
        has_trained = self._has_started() and int(self.adapter.n_steps) > 0
        if self.cfg.calibration_samples > 0 and has_trained and held < least:
            logger.warning(
                "L0 is as the last adaptation left it, not exactly target_l0: %d samples are held, "
                "calibration takes %d. Train on some more, give calibration_samples=%d or more, or "
                "use sae_lens_gba.calibrate on the saved SAE.", held, least, least
            )  # fmt: skip

    def _least_samples(self) -> int:
        """Of which the rarest group is expected to fire often enough to say anything."""
        group_frequency, sizes = self._group_frequency(), torch.tensor(self.adapter.spectrum.sizes)
        return math.ceil(LEAST_FIRINGS / float((group_frequency * sizes).min()))

    @torch.inference_mode(False)  # in which sae.eval() may be called; training may go on
    @torch.no_grad()
    def _calibrate(self) -> bool:
        """L0 on target on the recent samples; whether that could be done."""
        adapter, n_samples = self.adapter, len(self.recent_samples)
        target_l0, for_error = adapter.target_l0, self._calibrates_for_error()
        l0s = [target_l0, _MOST_PAIRS * target_l0] if for_error else [target_l0]
        calibrated = self._calibrated_for(l0s, n_samples)
        if not calibrated:
            return False
        found = calibrated[0]
        if found.possible_l0 < 0.99 * target_l0:
            logger.warning(
                "target_l0=%.4g can't be reached: with all biases at 0, %.4g latents are "
                "active a sample; the biases were not calibrated.", target_l0, found.possible_l0
            )  # fmt: skip
            return False
        highest = self._moved(calibrated[-1])
        self.set_bias(self._moved(found))
        if for_error:
            threshold, frequency = self._equal_gain(-highest, round(found.l0 * n_samples))
            self.set_bias(-threshold.to(self.bias))
            found = replace(found, frequency=frequency)
        adapter.frequency = adapter.share.own(found.frequency.to(adapter.frequency))
        self._calibration = found
        return True

    def _moved(self, found: Calibration) -> torch.Tensor:
        """The biases that it says, (d_sae,)."""
        there = found.offset.device
        moved_by = found.offset[self.adapter.group.to(there)] * self._margin_unit().to(there)
        return (self.bias.to(there) - moved_by).clamp(max=0).to(self.bias)

    def _calibrates_for_error(self) -> bool:
        """Whether the error of a sample can be told from what is kept of it."""
        return self._is_jumprelu and self.cfg.calibrate_for == "error"

    @torch.no_grad()
    def _equal_gain(self, lowest: torch.Tensor, n_active: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Thresholds of one's own latents, frequencies of all; see `sae_lens_gba.equal_gain`.

        Args:
            lowest: that thresholds may become, in units of `input_scale`, (d_sae,).
            n_active: of all pairs of recent sample and latent, how many are to fire.
        """
        share, threshold, precise = self.adapter.share, -self.bias, self.state_dtype
        W_enc, W_dec = self._encoder(), self._scaled_W_dec()
        parts: list[Pairs] = []
        for rows in self._recent_rows(len(self.recent_samples)):
            x = self._recent_inputs(rows)
            h = self._pre_activations(x, W_enc)
            fires, possible = h > threshold, h > lowest
            output = share.sum((h * fires).to(self.dtype) @ W_dec)
            residual = (x - self._stock_b_dec()) / self.input_scale - output
            gain = gains(h, fires, residual.to(precise), W_dec.to(precise))
            gain = gain * self._output_factor(rows).square()
            latent = possible.nonzero()[:, 1]
            parts.append(Pairs(h[possible], gain[possible], latent, fires[possible]))
        threshold, count = equal_gain_thresholds(
            Pairs.joined(parts), n_active, threshold, lowest, share
        )
        return threshold, share.whole(count).double() / len(self.recent_samples)

    @torch.no_grad()
    def _calibrated_for(
        self, l0s: list[float], n_samples: int, lowest: torch.Tensor | None = None
    ) -> list[Calibration]:
        """On the most recent samples; empty where they are too few to say anything.

        Args:
            l0s: active latents a sample.
            n_samples: how many of them to use.
            lowest: below which no threshold goes, in units of `input_scale`, (d_sae,); None
                means 0.
        """
        adapter = self.adapter
        if not self._has_started() or n_samples < self._least_samples():
            return []
        return calibrate_groups(
            lambda n: self._recent_pre_activations(min(n or n_samples, n_samples)),
            -self.bias,
            self._margin_unit(),
            adapter.group,
            self._group_frequency(),
            l0s,
            adapter.share,
            lowest,
        )

    def _output_factor(self, rows: torch.Tensor) -> torch.Tensor:
        """By what the output for each of these inputs is multiplied in the end, (n, 1) or ()."""
        if self.cfg.normalize_activations not in RUN_TIME_NORMALISATIONS:
            return self.input_scale.new_ones(())
        out = []
        for value in (1.0, 0.0):
            x = self._recent_inputs(rows)  # SAELens keeps what it divided by, until it is undone
            out.append(self.run_time_activation_norm_fn_out(torch.full_like(x, value)))
        return (out[0] - out[1])[:, :1].to(self.state_dtype)

    def _group_frequency(self) -> torch.Tensor:
        """Where each group's mean is put, share of samples, float64, on the CPU, (n_groups,)."""
        adapter, found = self.adapter, self._calibration
        target = adapter.targets.group_mean(adapter.target_frequency).cpu().double()
        if found is None or not self._calibrates_for_error():
            return target
        frequency = adapter.share.own(found.frequency.to(adapter.frequency))
        mean = adapter.targets.group_mean(frequency).cpu().double()
        return torch.where(mean > 0, mean, target)

    def _thresholds_for_other_l0s(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """L0s and offsets of `NeuronGroups`, the latter in units of `input_scale`; on the CPU."""
        target_l0, d_sae = self.adapter.target_l0, sum(self.adapter.spectrum.sizes)
        # beyond a quarter of the latents most thresholds would be 0
        wanted = [
            target_l0,
            *(f * target_l0 for f in OTHER_L0S if f * target_l0 < d_sae / 4),
        ]
        n_samples = min(len(self.recent_samples), _SAMPLES_FOR_OTHERS)
        found = self._calibrated_for(wanted, n_samples, self._shrunk_by().detach())
        if not found:
            return None
        # relative to the thresholds as they are, which more samples have told
        here, *others = found
        pairs = zip(others, wanted[1:], strict=True)
        others = [c for c, l0 in pairs if 0.99 * l0 < c.l0 < 1.01 * l0]
        l0s = torch.tensor([c.l0 / here.l0 * target_l0 for c in others])
        offsets = [c.offset - here.offset for c in others]
        return (l0s, torch.stack(offsets, dim=1).cpu()) if others else None

    def _margin_unit(self) -> torch.Tensor:
        return self._encoder().detach().norm(dim=0).to(self.state_dtype)

    @torch.no_grad()
    def _recent_pre_activations(self, n_samples: int) -> Iterator[torch.Tensor]:
        """Chunks of (n, d_sae), the last samples first."""
        W_enc = self._encoder()
        for rows in self._recent_rows(n_samples):
            yield self._pre_activations(self._recent_inputs(rows), W_enc)

    def _pre_activations(self, x: torch.Tensor, W_enc: torch.Tensor) -> torch.Tensor:
        """Adapted biases left out, in units of `input_scale`, (n, d_sae)."""
        h = (self._centred(x) @ W_enc).to(self.state_dtype) / self.input_scale
        # a ReLU's b_enc is what is adapted; a JumpReLU's is 0, unless it was fine-tuned from one
        return h + self.b_enc.detach() if self._is_jumprelu else h

    def _recent_inputs(self, rows: torch.Tensor) -> torch.Tensor:
        # past `reshape_fn_in`, which they have been through, and users' hooks
        return self.normalised(rows.to(self.dtype))

    def _recent_rows(self, n_samples: int) -> Iterator[torch.Tensor]:
        """The last samples of training, chunks of (n, d_in), the last batch first."""
        for batch in reversed(self.recent_samples.batches):
            # the SAE may have been moved since
            yield from batch[:n_samples].to(self.device).split(CHUNK_ROWS)
            n_samples -= min(n_samples, len(batch))
            if n_samples == 0:
                return

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Save as a stock SAE, with ``gba_groups.safetensors`` and checksums beside it."""
        self.settle()
        metadata = self.cfg.metadata
        self.cfg.metadata = self.stock_metadata()
        with files_written_whole(Path(path)) as new:
            try:
                weights, cfg = super().save_inference_model(new)
            finally:
                self.cfg.metadata = metadata
            self.groups().save(new)
            write_checksums(new)
        return Path(path) / weights.name, Path(path) / cfg.name

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """Save the training state, with checksums beside it.

        In evaluation mode that has the calibrated biases, so that the SAE loaded from it is used
        as this one is; feedback goes on from them.
        """
        with files_written_whole(Path(path)) as new:
            weights, cfg = super().save_model(new)
            write_checksums(new)
        return Path(path) / weights.name, Path(path) / cfg.name

    def stock_metadata(self) -> SAEMetadata:
        """The SAE's own, with groups, L0 and scale of the inputs as they are saved."""
        metadata, found = deepcopy(self.cfg.metadata), self._calibration
        kwargs = metadata.model_from_pretrained_kwargs  # may name a dtype, which is no JSON
        metadata.model_from_pretrained_kwargs = plain(kwargs)
        measured = float(self.adapter.frequency.sum()) if found is None else found.l0
        metadata.gba = {
            "groups": self.groups().summary(),
            "l0": {
                "target": self.adapter.target_l0,
                "measured": measured,
                "n_samples": None if found is None else found.n_samples,
            },
            # None before it is known: b_dec and biases are in units of the input then
            "input_scale": float(self.input_scale) if self._has_started() else None,
        }
        if measured > 0:  # of the saved biases; the trainer's is a mean over training
            metadata.l0 = measured
        return metadata

    def groups(self) -> NeuronGroups:
        """Groups, targets, and frequencies: as calibrated, or as at the last adaptation.

        A group's target is where its mean was put: with ``calibrate_for="error"`` not where it was
        while training. With thresholds for other L0s where the biases are `settled <settle>`.
        """
        groups = self.adapter.groups()
        if self._calibration is not None and self._calibrates_for_error():
            target = self._group_frequency()[self.adapter.group.cpu()]
            groups = replace(groups, target_frequency=target.to(groups.target_frequency.dtype))
        if self._other_l0s is None:
            return groups
        l0s, offsets = self._other_l0s
        return replace(groups, other_l0s=l0s, offsets=offsets * self.input_scale.cpu())

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        self.settle()
        super().process_state_dict_for_saving_inference(state_dict)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        self.recent_samples.batches.clear()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """As torch's; what was known of other weights is no longer true."""
        super()._load_from_state_dict(*args, **kwargs)
        self._started = False  # perhaps: from their counters it is known anew
        self._forget_calibration()

    def _forget_calibration(self) -> None:
        self._in_training = self._calibration = self._other_l0s = None

    @override
    def fold_and_get_W_dec_norm(self) -> torch.Tensor:
        norms = super().fold_and_get_W_dec_norm()
        if self._in_training is not None:
            bias, frequency = self._in_training
            self._in_training = bias.to(norms.device) * norms, frequency
        return norms

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        self.settle()
        self.recent_samples.batches.clear()  # their unit is that of before
        super().fold_activation_norm_scaling_factor(scaling_factor)

    @override
    def fold_activation_whitening(
        self,
        mean: torch.Tensor,
        whitening_matrix: torch.Tensor,
        unwhitening_matrix: torch.Tensor,
    ) -> None:
        self.settle()
        self.recent_samples.batches.clear()
        self._other_l0s = None  # a whitening changes each latent's unit
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
