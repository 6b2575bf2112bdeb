"""The GBA training SAE: what it computes, and how a step of training runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from typing_extensions import override

from sae_lens_gba.batch_statistics import quantile_bias, require_usable, typical_norm
from sae_lens_gba.calibrated_biases import CalibratedBiases
from sae_lens_gba.sparse_autoencoder_ops import (
    ActiveSet,
    NestedSquaredError,
    SparseDecode,
    SparseEncode,
    find_active,
)
from sae_lens_gba.training_metrics import histograms, training_metrics
from sae_lens_gba.unit_norm_rows import keep_rows_at_unit_norm

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


class GBATrainingSAE(CalibratedBiases):
    """
    Sparse autoencoder whose biases are moved by feedback, not by gradient.

    In units of `input_scale` s, which follows the data:

        h = (x / s - b_dec) W_enc + b_enc,  W_enc = (W_dec + rate * encoder_correction)^T
        JumpReLU:  f = h * [h > threshold]          ReLU:  f = max(h, 0)
        x_hat / s = (f * output_scale) W_dec + b_dec
        loss = ||x_hat - x||^2 / s^2, and nothing else but, with n_nested_reconstructions > 1,
               the mean of the same for the outputs of the first groups alone, times
               nested_weight

    Every ``adapt_every_n_steps`` steps the biases b (``-threshold``, or ``b_enc`` with
    ReLU) are moved until each neuron fires as often as its group should; see
    `sae_lens_gba.bias_adaptation`. Activations and outputs are in units of the input.

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
      group's mean frequency, by Newton's step; ``bias_update="paper"`` and
      ``group_sizing="equal"`` give the paper's (test_bias_adaptation.py).
    - Once training pauses or ends, biases are set so that each group is on target exactly;
      ``calibration_samples=0`` leaves them as they are (test_calibration.py).
    - The most active groups must reconstruct the input without the rarer ones as well;
      ``n_nested_reconstructions=1`` turns it off (test_training_sae.py).
    - The encoder is the transposed decoder plus a learnt correction that moves more slowly
      (``encoder_correction_rate``); ``tied=True`` gives the paper's tied weights
      (test_training_sae.py).
    - b_dec starts at the mean of the first batch, not at zero: SAEs of language models see
      inputs with a large mean (test_training_sae.py).
    - b_dec gets its gradient from the output alone. With the encoder's as well, a ReLU SAE
      moves b_dec until the biases' feedback is undone (test_training_sae.py).
    - Inputs need not have unit norm: their scale is the unit of biases and loss, so that
      training is the same whatever it is (test_calibration.py).
    - SAELens' loss has no factor 1/2: Adam does not see it.
    """

    _step: _SparseStep | None = None

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
        # TransformerLens 2 has no HookPoint.has_hooks
        points = (self.hook_sae_acts_pre, self.hook_sae_acts_post)
        hooked = any(point.fwd_hooks or point.bwd_hooks for point in points)
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

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        require_usable(step_input.sae_in, step_input.n_training_steps)
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
            output.metrics.update(training_metrics(self.adapter, self.bias))
        return output

    @torch.no_grad()
    def _take_in(self, batch: torch.Tensor) -> None:
        """What a batch says before it is trained on: the scale of the inputs, a start."""
        x = self.run_time_activation_norm_fn_in(batch.to(self.dtype))
        mean = x.mean(dim=0)
        norm = typical_norm(x - mean if self.cfg.apply_b_dec_to_input else x)
        if self._has_started():
            self.adapter.follow_norm(norm)
            self._keep_for_calibration(batch)
        # a batch of zeros, of one row or of equal rows (but for rounding) says nothing
        elif float(typical_norm(x - mean)) > 1e-5 * float(mean.norm()):
            self._start(x, norm)

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

    @override
    @torch.no_grad()
    def log_histograms(self) -> dict[str, NDArray[Any]]:
        # not SAELens' W_dec_norms: all 1 to rounding, which wandb can't bin
        return histograms(self.adapter, self.bias, self.output_scale)
