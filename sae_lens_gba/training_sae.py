"""The GBA training SAE: glue between bias adaptation and SAELens."""

import logging
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import TrainingSAE
from sae_lens.saes.sae import (
    SAEMetadata,
    TrainCoefficientConfig,
    TrainStepInput,
    TrainStepOutput,
)
from torch import nn
from typing_extensions import override

from sae_lens_gba.bias_adaptation import quantile_bias, require_finite, typical_norm
from sae_lens_gba.bias_adapter import BiasAdapter
from sae_lens_gba.calibration import (
    LEAST_FIRINGS,
    Calibration,
    RecentSamples,
    calibrate_groups,
)
from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.precision import apply_keeping_float32
from sae_lens_gba.sparse_autoencoder_ops import (
    CHUNK_ROWS,
    ActiveSet,
    NestedSquaredError,
    SparseDecode,
    SparseEncode,
    find_active,
)
from sae_lens_gba.unit_norm_rows import keep_rows_at_unit_norm, normalise_rows

logger = logging.getLogger(__name__)

# L0s for which thresholds are saved along, relative to the one trained for
OTHER_L0S = tuple(2 ** (i / 2) for i in range(-6, 7))

_F = TypeVar("_F", bound=Callable[..., Any])


def outside_compilation(function: _F) -> _F:
    """torch.compile leaves ``function`` as it is."""
    compiled_around: _F = torch.compiler.disable(function)
    return compiled_around


@dataclass
class _SparseStep:
    """What a training step hands on from encode to decode to loss, where it runs sparsely.

    Attributes:
        feature_acts: the activations as SAELens passes them on, sparse, (batch, d_sae).
        active: which entries are active.
        acts: the activations there, (nnz,): values() would cost their gradient a detour.
        parts: what each band of latents adds to the output, (n_bands, batch, d_in).
    """

    feature_acts: torch.Tensor
    active: ActiveSet
    acts: torch.Tensor
    parts: torch.Tensor | None = None


class GBATrainingSAE(TrainingSAE[GBATrainingSAEConfig]):
    """
    Sparse autoencoder whose biases are moved by feedback, not by gradient.

        h = (x - b_dec) W_enc + b_enc,  W_enc = (W_dec + rate * encoder_correction)^T
        JumpReLU:  f = h * [h > threshold]          ReLU:  f = max(h, 0)
        x_hat = (f * output_scale) W_dec + b_dec
        loss = ||x_hat - x||^2, and nothing else but, with n_nested_reconstructions > 1, the
               mean of the same for the outputs of the first groups alone, times nested_weight

    Every ``adapt_every_n_steps`` steps the biases b (``-threshold``, or ``b_enc`` with
    ReLU) are moved until each neuron fires as often as its group should; see
    `sae_lens_gba.bias_adaptation`.

    ==========  ======================================  ================
    paper       attribute                               shape
    ==========  ======================================  ================
    w_m         ``W_dec[m]``, unit norm                 (d_sae, d_in)
    w_m         ``W_enc[:, m]`` (``W_dec.T`` if tied)   (d_in, d_sae)
    -           ``encoder_correction`` (not if tied)    (d_sae, d_in)
    a_m         ``output_scale``                        (d_sae,)
    b_m         ``-threshold``, or ``b_enc`` with ReLU  (d_sae,)
    b_pre       ``b_dec``                               (d_in,)
    p_m, r_m    ``adapter.frequency``, ``.peak``        (d_sae,)
    ==========  ======================================  ================

    Deviations from the paper, each with the test that pins it:

    - Groups are sized so that each carries the same share of L0, and feedback acts on each
      group's mean frequency; ``bias_update="paper"`` and ``group_sizing="equal"`` give the
      paper's (test_bias_adaptation.py).
    - The most active groups must reconstruct the input without the rarer ones as well;
      ``n_nested_reconstructions=1`` turns it off (test_training_sae.py).
    - The encoder is the transposed decoder plus a learnt correction that moves more slowly
      (``encoder_correction_rate``); ``tied=True`` gives the paper's tied weights
      (test_training_sae.py).
    - b_dec starts at the mean of the first batch, not at zero: SAEs of language models see
      inputs with a large mean (test_training_sae.py).
    - b_dec gets its gradient from the output alone. With the encoder's as well, a ReLU SAE
      moves b_dec until the biases' feedback is undone (test_training_sae.py).
    - The biases' range follows the norm of the inputs instead of presuming 1
      (test_bias_adaptation.py).
    - SAELens' loss has no factor 1/2: Adam does not see it.
    """

    run_time_activation_norm_fn_in: Callable[[torch.Tensor], torch.Tensor]
    run_time_activation_norm_fn_out: Callable[[torch.Tensor], torch.Tensor]
    encoder_correction: nn.Parameter  # unless tied, or folded: then W_enc is a parameter
    b_enc: nn.Parameter
    threshold: nn.Parameter  # with JumpReLU only
    output_scale: nn.Parameter
    adapter: BiasAdapter
    _encoder_follows_decoder = False  # W_enc is a parameter until the weights are there
    _step: "_SparseStep | None" = None
    _started = False
    # in evaluation mode: what biases and frequencies go back to when training goes on
    _in_training: tuple[torch.Tensor, torch.Tensor] | None = None
    _calibration: Calibration | None = None
    _other_l0s: tuple[torch.Tensor, torch.Tensor] | None = None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        cfg = self.cfg
        del self.W_enc
        self._encoder_follows_decoder = True
        if not cfg.tied:
            self.encoder_correction = nn.Parameter(torch.zeros_like(self.W_dec))
        self._nested_set_of_group = cfg.nested_set_of_group()
        self._n_nested_sets = self._nested_set_of_group[-1] + 1
        zeros = torch.zeros(cfg.d_sae, dtype=self.state_dtype, device=self.device)
        self.b_enc = nn.Parameter(zeros.clone(), requires_grad=False)
        if cfg.activation == "jumprelu":
            self.threshold = nn.Parameter(zeros.clone(), requires_grad=False)
        self.output_scale = nn.Parameter(
            zeros + cfg.output_scale_init, requires_grad=cfg.learn_output_scale
        )
        self._recent = RecentSamples(cfg.calibration_samples)
        self.adapter = BiasAdapter(
            cfg.spectrum(),
            cfg.bias_update,
            cfg.rates_for(cfg.d_in),
            cfg.adapt_every_n_steps,
            self.state_dtype,
            self.device,
        )

    def __getattr__(self, name: str) -> Any:
        if name == "W_enc" and self._encoder_follows_decoder:
            if self.cfg.tied:
                return self.W_dec.T
            rate = self.cfg.encoder_correction_rate
            return torch.add(self.W_dec, self.encoder_correction, alpha=rate).T
        return super().__getattr__(name)

    @property
    def state_dtype(self) -> torch.dtype:
        """Of biases, scales and statistics: that of the weights, at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    # --- the adapted biases ---

    @property
    def bias(self) -> torch.Tensor:
        """The adapted biases b, at most 0, in units of `input_scale`, shape (d_sae,)."""
        return -self.threshold.data if self._is_jumprelu else self.b_enc.data

    def set_bias(self, bias: torch.Tensor) -> None:
        """Put new biases in place, in units of `input_scale`; shape (d_sae,)."""
        if self._is_jumprelu:
            self.threshold.data.copy_(-bias)
        else:
            self.b_enc.data.copy_(bias)

    def bias_range(self) -> torch.Tensor:
        """c of the biases' range [-c, 0], in units of `input_scale`, shape (d_sae,)."""
        return math.sqrt(self.cfg.d_in) * self.W_enc.detach().norm(dim=0)

    # --- the unit of the inputs ---

    @property
    def input_scale(self) -> torch.Tensor:
        """Typical norm of the centred input / sqrt(d_in), shape (); 1 until it is known.

        The unit of ``b_dec``, ``b_enc`` and ``threshold`` while training. Together with a loss in
        its square it makes training the same whatever the unit of the activations, and lets the
        biases follow when that changes. A saved SAE is in units of the input.
        """
        norm = self.adapter.input_norm
        return torch.where(norm > 0, norm / math.sqrt(self.cfg.d_in), 1.0)

    def in_input_units(self, parameter: torch.Tensor) -> torch.Tensor:
        """``b_dec``, ``b_enc`` or ``threshold`` in units of the input."""
        return self.input_scale * parameter

    @override
    def process_sae_in(self, sae_in: torch.Tensor) -> torch.Tensor:
        # as SAELens', but for the unit of b_dec (test_upstream_contract.py)
        x = self.hook_sae_input(self.reshape_fn_in(sae_in.to(self.dtype)))
        x = self.run_time_activation_norm_fn_in(x)
        return x - self.in_input_units(self.b_dec) if self.cfg.apply_b_dec_to_input else x

    @torch.no_grad()
    def _to_input_units(self) -> None:
        """From here on, until the scale is known anew, the unit is that of the inputs."""
        for parameter in (self.b_dec, *self._encoder_biases()):
            parameter.data.mul_(self.input_scale)
        self.adapter.input_norm.zero_()
        self._started = False

    def _encoder_biases(self) -> list[nn.Parameter]:
        return [self.b_enc, self.threshold] if self._is_jumprelu else [self.b_enc]

    @property
    def _is_jumprelu(self) -> bool:
        return self.cfg.activation == "jumprelu"

    # --- encode and decode ---

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        # laid out in memory as in a loaded SAE: with another layout, products may differ in
        # the last bit
        return self._encode_dense(self.process_sae_in(x), self.W_enc.contiguous())[0]

    @override
    @outside_compilation  # its shapes depend on the data
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and pre-activations, both (batch, d_sae), for training.

        Below ``sparse_below_density`` both are sparse COO tensors of the active entries, as
        SAELens' trainer accepts them. Dense whenever a hook looks at either.
        """
        # no gradient to b_dec from here: it would move b_dec to undo the feedback on the
        # biases, since w.(x - b_dec) + b rises as well by -w.b_dec as by b
        sae_in = self.process_sae_in(x).detach()
        W_enc = self.W_enc
        found = self._find_active(sae_in, W_enc)
        if found is None:
            return self._encode_dense(sae_in, W_enc)
        active, values = found
        acts = SparseEncode.apply(sae_in, W_enc, values, active)
        self._step = _SparseStep(active.to_coo(acts), active, acts)
        return self._step.feature_acts, active.to_coo(values)

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        step = self._step
        if step is not None and feature_acts is step.feature_acts:
            recons = self._decode_sparse(step)
        else:
            recons = feature_acts @ self._scaled_W_dec()
        recons = self.hook_sae_recons(recons + self.in_input_units(self.b_dec))
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head)

    @outside_compilation
    def _decode_sparse(self, step: _SparseStep) -> torch.Tensor:
        if self._n_nested_sets == 1:
            return SparseDecode.apply(step.acts, self.W_dec, self.output_scale, step.active)
        # by bands of latents, for the nested reconstructions; all of them are the whole
        bands, order = step.active.in_bands(self._nested_set(), self._n_nested_sets)
        acts = step.acts.index_select(0, order)
        out = SparseDecode.apply(acts, self.W_dec, self.output_scale, bands)
        step.parts = out.view(self._n_nested_sets, step.active.batch, -1)
        return step.parts.sum(dim=0)

    def _nested_set(self) -> torch.Tensor:
        """Index of the smallest nested set that each latent belongs to, shape (d_sae,)."""
        return torch.tensor(self._nested_set_of_group, device=self.device)[self.adapter.group]

    def _encode_dense(
        self, sae_in: torch.Tensor, W_enc: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        b_enc = self.in_input_units(self.b_enc).to(self.dtype)
        hidden_pre = self.hook_sae_acts_pre(sae_in @ W_enc + b_enc)
        threshold = self._limit().to(self.dtype)
        acts = torch.where(hidden_pre > threshold, hidden_pre, 0.0)
        return self.hook_sae_acts_post(acts), hidden_pre

    def _find_active(
        self, sae_in: torch.Tensor, W_enc: torch.Tensor
    ) -> tuple[ActiveSet, torch.Tensor] | None:
        hooked = self.hook_sae_acts_pre.has_hooks() or self.hook_sae_acts_post.has_hooks()
        if hooked or sae_in.ndim != 2 or self.dtype != self.state_dtype:
            return None
        with torch.no_grad():
            return find_active(
                sae_in,
                W_enc,
                self.in_input_units(self.b_enc),
                self._limit(),
                self.cfg.sparse_below_density,
            )

    def _limit(self) -> torch.Tensor:
        """Above which pre-activation a latent is active, in units of the input, (d_sae,) or ()."""
        if self._is_jumprelu:
            return self.in_input_units(self.threshold.detach())
        return self.b_enc.new_zeros(())

    def _scaled_W_dec(self) -> torch.Tensor:
        return self.W_dec * self.output_scale.to(self.dtype).unsqueeze(1)

    # --- training ---

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        require_finite(step_input.sae_in, step_input.n_training_steps)
        if self.training:
            keep_rows_at_unit_norm(self.W_dec)
            self._take_in(step_input.sae_in)
        try:
            output = super().training_forward_pass(step_input)
        finally:
            self._step = None
        weight = self._loss_weight(step_input.sae_in)
        output.loss = output.loss * weight
        output.losses = {name: loss * weight for name, loss in output.losses.items()}
        # no loss, but SAELens' progress line and wandb show what stands here
        output.losses["l0_over_target"] = self._l0_over_target(output.feature_acts.detach())
        if self.training and self._has_started():
            self._observe_and_adapt(output.hidden_pre.detach())
        if step_input.is_logging_step:
            output.metrics.update(self._metrics())
        return output

    @torch.no_grad()
    def _take_in(self, batch: torch.Tensor) -> None:
        """What a batch says before it is trained on: the scale of the inputs, a start."""
        x = self.run_time_activation_norm_fn_in(batch.to(self.dtype))
        mean = x.mean(dim=0)
        norm = typical_norm(x - mean if self.cfg.apply_b_dec_to_input else x)
        if self._has_started():
            self.adapter.follow_norm(norm)
            self._calibration = self._other_l0s = None
            if self.cfg.calibration_samples > 0:
                self._recent.add(batch.detach())
        # a batch of zeros, of one row or of equal rows (but for rounding) says nothing
        elif float(typical_norm(x - mean)) > 1e-5 * float(mean.norm()):
            self._start(x, norm)

    def _has_started(self) -> bool:
        """Whether the scale of the inputs is known; nothing is learnt before."""
        if not self._started:
            self._started = float(self.adapter.input_norm) > 0
        return self._started

    def _start(self, x: torch.Tensor, norm: torch.Tensor) -> None:
        """The scale of the inputs is known; of a new SAE, b_dec and biases start as well."""
        self.adapter.input_norm.copy_(norm)
        if int(self.adapter.n_steps) > 0:
            for parameter in (self.b_dec, *self._encoder_biases()):
                parameter.data.div_(self.input_scale)
            return
        sae_in = x / self.input_scale
        if self.cfg.apply_b_dec_to_input:
            self.b_dec.data.copy_(sae_in.mean(dim=0))
            sae_in = sae_in - self.b_dec
        if self.cfg.bias_init == "quantile":
            self.set_bias(
                quantile_bias(sae_in, self.W_enc, self.adapter.target_frequency, self.bias_range())
            )

    def _l0_over_target(self, feature_acts: torch.Tensor) -> torch.Tensor:
        fires = feature_acts.values() if feature_acts.is_sparse else feature_acts > 0
        n_active = fires.numel() if feature_acts.is_sparse else fires.sum()
        n_samples = feature_acts.shape[:-1].numel()
        return n_active / n_samples / self.adapter.target_frequency.sum()

    def _loss_weight(self, sae_in: torch.Tensor) -> torch.Tensor:
        """Makes the squared error that of inputs of the unit's scale."""
        if self.training and not self._has_started():
            return self.input_scale * 0
        weight = self.input_scale**-2
        if self.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale"):
            seen = self.run_time_activation_norm_fn_in(sae_in)
            weight = weight * seen.square().sum() / sae_in.square().sum()
        return weight

    @torch.no_grad()
    def _observe_and_adapt(self, hidden_pre: torch.Tensor) -> None:
        self.adapter.observe(self._with_bias(hidden_pre))
        new_bias = self.adapter.adapt_if_due(self.bias, self.bias_range)
        if new_bias is not None:
            self.set_bias(new_bias)

    def _with_bias(self, hidden_pre: torch.Tensor) -> torch.Tensor:
        """y of the paper in units of `input_scale`: positive where a neuron is active."""
        if not hidden_pre.is_sparse:
            return (hidden_pre - self._limit()) / self.input_scale
        indices = hidden_pre.indices()
        limit = self._limit()
        above = hidden_pre.values() - (limit[indices[1]] if limit.ndim else limit)
        return torch.sparse_coo_tensor(
            indices,
            above / self.input_scale,
            hidden_pre.shape,
            is_coalesced=True,
            check_invariants=False,
        )

    # --- calibration ---

    @override
    def train(self, mode: bool = True) -> "GBATrainingSAE":
        """In evaluation mode biases are calibrated on the last ``calibration_samples``.

        Training goes on with the biases it had, whether or not it was evaluated in between.
        """
        if mode and self._in_training is not None:
            bias, frequency = self._in_training
            self.set_bias(bias)
            self.adapter.frequency = frequency
            self._in_training = self._calibration = None
        elif not mode and self.training and self._calibration is None:
            state = self.bias.clone(), self.adapter.frequency
            if self._calibrate():
                self._in_training = state
        return super().train(mode)

    def settle(self) -> None:
        """Make calibrated biases the SAE's own, as at the end of training.

        Saving it in its stock form does that: the SAE that was trained and the one that was
        saved are the same.
        """
        if self._calibration is None:
            self._calibrate()
        self._in_training = None
        if self._other_l0s is None:
            self._other_l0s = self._thresholds_for_other_l0s()

    def _calibrate(self) -> bool:
        """Put each group's mean on target on the recent samples; whether that could be done."""
        adapter = self.adapter
        target_l0 = float(adapter.target_frequency.sum())
        for found in self._calibrated_for([target_l0]):
            if found.l0 < 0.99 * target_l0:
                logger.warning(
                    "target_l0=%.4g can't be had: with all biases at 0, %.4g latents are active "
                    "a sample; the biases were not calibrated.", target_l0, found.l0
                )  # fmt: skip
                return False
            unit = self._margin_unit()
            self.set_bias((self.bias - found.offset[adapter.group] * unit).clamp(max=0))
            adapter.frequency = found.frequency.to(adapter.frequency.dtype)
            self._calibration = found
            return True
        return False

    @torch.no_grad()
    def _calibrated_for(self, l0s: list[float]) -> list[Calibration]:
        """On the recent samples; empty where they are too few to say anything."""
        adapter, n_samples = self.adapter, len(self._recent)
        group_frequency = adapter.targets.group_mean(adapter.target_frequency).double()
        sizes = torch.tensor(adapter.spectrum.sizes, device=group_frequency.device)
        rarest = float((group_frequency * sizes).min())
        if not self._has_started() or n_samples * rarest < LEAST_FIRINGS:
            return []
        return calibrate_groups(
            self._recent_pre_activations,
            -self.bias,
            self._margin_unit(),
            adapter.group,
            group_frequency,
            l0s,
        )

    def _thresholds_for_other_l0s(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """L0s and offsets of `NeuronGroups`, the latter in units of `input_scale`."""
        target_l0 = float(self.adapter.target_frequency.sum())
        wanted = [factor * target_l0 for factor in OTHER_L0S]
        found = self._calibrated_for(wanted)
        found = [c for c, l0 in zip(found, wanted, strict=False) if 0.99 * l0 < c.l0 < 1.01 * l0]
        if not found:
            return None
        return torch.tensor([c.l0 for c in found]), torch.stack([c.offset for c in found], dim=1)

    def _margin_unit(self) -> torch.Tensor:
        return self.W_enc.detach().norm(dim=0).to(self.state_dtype)

    @torch.no_grad()
    def _recent_pre_activations(self) -> Iterator[torch.Tensor]:
        """Biases left out, in units of `input_scale`, chunks of (n, d_sae)."""
        W_enc = self.W_enc
        for batch in self._recent.batches:
            for rows in batch.split(CHUNK_ROWS):
                yield (self.process_sae_in(rows) @ W_enc).to(self.state_dtype) / self.input_scale

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {}

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        if self._n_nested_sets == 1:
            return {}
        if self._step is not None:
            parts = self._step.parts
        else:
            W_dec, nested_set = self._scaled_W_dec(), self._nested_set()
            bands = [(nested_set == k).nonzero().squeeze(1) for k in range(self._n_nested_sets)]
            parts = torch.stack([feature_acts[:, band] @ W_dec[band] for band in bands])
        target = self.run_time_activation_norm_fn_in(step_input.sae_in.to(self.dtype))
        error = NestedSquaredError.apply(parts, target - self.in_input_units(self.b_dec))
        return {"nested_mse_loss": self.cfg.nested_weight * error}

    def _metrics(self) -> dict[str, Callable[[], torch.Tensor]]:
        """For logging steps; frequencies are those of the last adaptation."""
        adapter, targets = self.adapter, self.adapter.targets
        relative = adapter.frequency / adapter.target_frequency
        by_group = targets.group_mean(relative)
        bias_by_group = targets.group_mean(self.bias)
        metrics: dict[str, Callable[[], torch.Tensor]] = {
            "gba/l0_from_frequencies": adapter.frequency.sum,
            "gba/l0_target": adapter.target_frequency.sum,
            "gba/share_above_target": (relative > 1).float().mean,
            "gba/share_within_factor_2_of_target": (relative.log2().abs() <= 1).float().mean,
            "gba/share_dead": (adapter.frequency < self.cfg.dead_frequency).float().mean,
        }
        for k in range(targets.n_groups):
            metrics[f"gba/frequency_over_target/group_{k:02d}"] = by_group[k].clone
            metrics[f"gba/bias/group_{k:02d}"] = bias_by_group[k].clone
        for percent in (5, 50, 95):
            metrics[f"gba/bias/percentile_{percent:02d}"] = partial(
                torch.quantile, self.bias, percent / 100
            )
        return metrics

    @override
    @torch.no_grad()
    def log_histograms(self) -> dict[str, NDArray[Any]]:
        frequency = self.adapter.frequency
        floor = math.exp(-20)  # log of a silent neuron must stay finite for wandb
        return {  # not SAELens' W_dec_norms: all 1 to rounding, which wandb can't bin
            "weights/output_scale": _numpy(self.output_scale),
            "gba/log10_frequency": _numpy(frequency.clamp(min=floor).log10()),
            "gba/log10_frequency_over_target": _numpy(
                (frequency / self.adapter.target_frequency).clamp(min=floor).log10()
            ),
            "gba/bias": _numpy(self.bias),
        }

    # --- folding and saving ---

    def _free_encoder(self) -> None:
        """From here on the encoder is a parameter of its own."""
        if not self._encoder_follows_decoder:
            return
        W_enc = nn.Parameter(self.W_enc.detach().clone(memory_format=torch.preserve_format))
        if self.cfg.tied:
            self.cfg.tied = False
            self.cfg.add_training_info_to_metadata()
        else:
            del self.encoder_correction
        self._encoder_follows_decoder = False
        self.W_enc = W_enc

    def correction_for(self, W_enc: torch.Tensor, W_dec: torch.Tensor) -> torch.Tensor:
        """The encoder_correction that makes ``W_enc`` (d_in, d_sae) of ``W_dec`` (d_sae, d_in)."""
        return (W_enc.T - W_dec) / self.cfg.encoder_correction_rate

    def _move_row_norms_to_output_scale(self) -> None:
        self.output_scale.data.mul_(self.W_dec.norm(dim=1))
        normalise_rows(self.W_dec)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """As SAELens': same activations from raw inputs, in whose units input_scale is then.

        The decoder's part goes to output_scale: its rows stay unit norm.
        """
        self.settle()
        self._recent.batches.clear()  # in the unit of before
        if not self._has_started():
            self.adapter.input_norm.fill_(math.sqrt(self.cfg.d_in))  # input_scale 1, as it was
        self._free_encoder()
        for encoder_side in (self.W_enc, *self._encoder_biases()):
            encoder_side.data.mul_(scaling_factor)
        self.output_scale.data.div_(scaling_factor)
        self.adapter.input_norm /= scaling_factor
        self.cfg.normalize_activations = "none"

    @override
    @torch.no_grad()
    def fold_activation_whitening(
        self,
        mean: torch.Tensor,
        whitening_matrix: torch.Tensor,
        unwhitening_matrix: torch.Tensor,
    ) -> None:
        """As SAELens'; the norm of the raw inputs is estimated anew if training goes on."""
        self.settle()
        self._recent.batches.clear()  # in the unit of before
        self._other_l0s = None  # a whitening changes each latent's unit
        self._to_input_units()
        self._free_encoder()
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        self._move_row_norms_to_output_scale()

    @override
    @torch.no_grad()
    def get_W_dec_norm(self) -> torch.Tensor:
        """Norms of the decoder rows, output scale included, shape (d_sae,)."""
        return self._scaled_W_dec().norm(dim=-1).clamp(min=1e-8)

    @override
    @torch.no_grad()
    def fold_and_get_W_dec_norm(self) -> torch.Tensor:
        """Move the decoder's norms, output scale included, into encoder and biases."""
        norms = self.get_W_dec_norm()
        self._free_encoder()
        for encoder_side in (self.W_enc, *self._encoder_biases()):
            encoder_side.data.mul_(norms)
        self.output_scale.data.div_(norms)
        return norms

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        if "W_enc" in state_dict:
            state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        W_enc = state_dict.pop("W_enc", None)  # of an SAE that was folded
        if W_enc is not None:
            if self.cfg.tied:
                raise ValueError(
                    "tied=True, but the checkpoint has an encoder of its own (it was folded at the "
                    "end of training): set tied=False to go on from it."
                )
            state_dict["encoder_correction"] = self.correction_for(W_enc, state_dict["W_dec"])
        if "adapter.band" not in state_dict:
            self._to_todays_units(state_dict)
        self._started = False
        self._in_training = self._calibration = self._other_l0s = None
        self._recent.batches.clear()

    def _to_todays_units(self, state_dict: dict[str, Any]) -> None:
        """Of a checkpoint of before version 0.1, whose biases were in units of the input."""
        norm = float(state_dict["adapter.input_norm"])
        if norm > 0:
            for name in ("b_dec", "b_enc", "threshold", "adapter.peak"):
                if name in state_dict:
                    state_dict[name] = state_dict[name] / (norm / math.sqrt(self.cfg.d_in))

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """Leave exactly the parameters of the stock architecture, of calibrated biases."""
        self.settle()
        weights = {
            "W_enc": self.W_enc,
            "b_enc": self.in_input_units(self.b_enc),
            "W_dec": self._scaled_W_dec(),
            "b_dec": self.in_input_units(self.b_dec),
        }
        if self._is_jumprelu:
            weights["threshold"] = self.in_input_units(self.threshold)
        state_dict.clear()
        for name, weight in weights.items():
            state_dict[name] = weight.detach().to(self.dtype).contiguous()

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Save as a stock SAE, with ``gba_groups.safetensors`` beside it."""
        self.settle()
        metadata = self.cfg.metadata
        self.cfg.metadata = self.stock_metadata()
        try:
            paths = super().save_inference_model(path)
        finally:
            self.cfg.metadata = metadata
        self.groups().save(path)
        return paths

    def stock_metadata(self) -> SAEMetadata:
        """The SAE's own, with groups, L0 and scale of the inputs as they are saved."""
        metadata, found = deepcopy(self.cfg.metadata), self._calibration
        measured = float(self.adapter.frequency.sum()) if found is None else found.l0
        metadata.gba = {
            "groups": self.groups().summary(),
            "l0": {
                "target": float(self.adapter.target_frequency.sum()),
                "measured": measured,
                "n_samples": None if found is None else found.n_samples,
            },
            "input_scale": float(self.input_scale),
        }
        if found is not None:  # of the saved biases; the trainer's is a mean over training
            metadata.l0 = measured
        return metadata

    def groups(self) -> NeuronGroups:
        """Groups, targets, and frequencies: as calibrated, or as at the last adaptation.

        With thresholds for other L0s where the biases are `settled <settle>`.
        """
        groups = self.adapter.groups()
        if self._other_l0s is None:
            return groups
        l0s, offsets = self._other_l0s
        return replace(groups, other_l0s=l0s, offsets=offsets * self.input_scale)

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "GBATrainingSAE":
        names = ("b_enc", "threshold", "output_scale")
        kept = {name: p.data for name, p in self.named_parameters() if name in names}
        apply_keeping_float32(
            kept, lambda: super(GBATrainingSAE, self)._apply(*args, **kwargs), self.get_parameter
        )
        return self


def _numpy(values: torch.Tensor) -> NDArray[np.floating[Any]]:
    return values.detach().float().cpu().numpy()
