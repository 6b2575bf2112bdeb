"""The GBA training SAE: what it computes, and how a step of training runs."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from sae_lens.util import str_to_dtype
from typing_extensions import override

from sae_lens_gba.adaptation_settings import require
from sae_lens_gba.batch_statistics import quantile_bias, require_usable, typical_norm
from sae_lens_gba.calibrated_biases import CalibratedBiases
from sae_lens_gba.gba_parameters import RUN_TIME_NORMALISATIONS
from sae_lens_gba.nested_reconstructions import NestedError
from sae_lens_gba.optimizer_hooks import attend_optimizer_of
from sae_lens_gba.precision import rounded_down
from sae_lens_gba.sparse_autoencoder_ops import (
    ActiveSet,
    SparseEncode,
    density_that_pays,
    find_active,
    squared_power_mean_error,
)
from sae_lens_gba.training_metrics import Curves, histograms, l0_over_target, training_metrics

logger = logging.getLogger(__name__)

_WARM_UP = "l0_warm_up"  # from 0 to 1
_PATIENCE = 100  # steps without anything to learn from, after which to say so
_F = TypeVar("_F", bound=Callable[..., Any])


def outside_compilation(function: _F) -> _F:
    """torch.compile leaves ``function`` as it is."""
    compiled_around: _F = torch.compiler.disable(function)
    return compiled_around


_l0_over_target = outside_compilation(l0_over_target)  # targets are others at each step


@dataclass
class Step:
    """What a training step has found out so far, for its later parts.

    Attributes:
        sae_in: the inputs, as the trainer gives them, (batch, d_in).
        target: what SAELens passes around, and compares the output with; ``sae_in`` itself,
            except of a transcoder.
        normalised: the inputs, as the SAE sees them.
        feature_acts: the activations, as SAELens passes them on, (batch, d_sae).
        sparse: where the step runs sparsely, the active ones, (nnz,), and which they are:
            values() would cost their gradient a detour.
        nested_weight: of the nested sets' error, ().
        parts: what each band of latents adds to the output, (n_bands, batch, d_in).
        skipped: what a transcoder's skip connection adds to it, (batch, d_out).
    """

    sae_in: torch.Tensor
    target: torch.Tensor
    normalised: torch.Tensor
    feature_acts: torch.Tensor | None = None
    sparse: tuple[torch.Tensor, ActiveSet] | None = None
    nested_weight: torch.Tensor | None = None
    parts: torch.Tensor | None = None
    skipped: torch.Tensor | None = None


class GBATrainingSAE(CalibratedBiases):
    """
    Sparse autoencoder whose biases are moved by feedback, not by gradient.

    In units of `input_scale` s, which follows the data:

        h = (x / s - b_dec) W_enc + b_enc,  W_enc = (W_dec + rate * encoder_correction)^T
        JumpReLU:  f = h * [h > threshold]          ReLU:  f = max(h, 0)
        x_hat / s = (f * output_scale) W_dec + b_dec
        loss = (mean over samples of ||x_hat - x||^p)^(2/p) / s^2, p = error_exponent, and nothing
               else but, with n_nested_reconstructions > 1, the mean of the same of the
               outputs of the first groups alone, times nested_weight, which falls with the
               targets

    Every ``adapt_every_n_steps`` steps the biases b (``-threshold``, or ``b_enc`` with
    ReLU) are moved until each latent fires as often as its group should; see
    `sae_lens_gba.bias_adaptation`. Activations and outputs are in units of the input.

    | paper    | attribute                              | shape         |
    | -------- | -------------------------------------- | ------------- |
    | w_m      | ``W_dec[m]``, unit norm                | (d_sae, d_in) |
    | w_m      | ``W_enc[:, m]`` (``W_dec.T`` if tied)  | (d_in, d_sae) |
    | -        | ``encoder_correction`` (not if tied)   | (d_sae, d_in) |
    | a_m      | ``output_scale``                       | (d_sae,)      |
    | b_m      | ``-threshold``, or ``b_enc`` with ReLU | (d_sae,)      |
    | b_pre    | ``b_dec``                              | (d_in,)       |
    | p_m, r_m | ``adapter.frequency``, ``.peak``       | (d_sae,)      |

    Deviations from the paper, each with the test that pins it:

    - Groups are sized so that each carries the same share of L0, and feedback acts on each
      group's mean frequency, by Newton's step; ``bias_update="paper"`` and
      ``group_sizing="equal"`` give the paper's (test_bias_adaptation.py).
    - Once training pauses or ends, biases are set so that L0 is on target exactly and one more
      activation gains the same whichever latent's it is (test_equal_gain.py), or each group is on
      target with ``calibrate_for="groups"``; ``calibration_samples=0`` leaves them as they are
      (test_calibration.py).
    - The most active groups must reconstruct the input without the rarer ones as well;
      ``n_nested_reconstructions=1`` turns it off (test_training_sae.py).
    - Samples far off count for less than in a mean squared error; ``error_exponent=2`` gives
      that (test_sparse_autoencoder_ops.py).
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

    _step: Step | None = None  # while one is in progress
    _curves = cached_property(lambda _: Curves())  # for wandb, if anybody logs

    def __init__(self, cfg: Any, use_error_term: bool = False):
        # in half precision Adam's eps is 0, and weights become NaN
        is_half = str_to_dtype(cfg.dtype) == torch.float16
        require(cfg, "dtype", not is_half, "'float32', 'float64' or 'bfloat16' for training")
        super().__init__(cfg, use_error_term)
        self.mse_loss_fn = partial(squared_power_mean_error, exponent=cfg.error_exponent)

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        # laid out in memory as in a loaded SAE: with another layout, products may differ in
        # the last bit
        W_enc = self._encoder().contiguous()
        return self._encode_dense(self.process_sae_in(x), W_enc, self._stock_b_enc())[0]

    @override
    @outside_compilation  # its shapes depend on the data
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and pre-activations, both (batch, d_sae), for training.

        Below ``sparse_below_density`` both are sparse COO tensors of the active entries, as
        SAELens' trainer accepts them. Dense whenever a hook looks at either, and always with
        ``sparse_below_density=0``: for code of one's own that compares them (``acts > 0``), which
        torch's sparse tensors don't allow.
        """
        if self._step is not None:  # SAELens gives what it compares the output with
            x = self._step.sae_in
        # no gradient to b_dec from here: it would move b_dec to undo the feedback on the
        # biases, since w.(x - b_dec) + b rises as well by -w.b_dec as by b
        sae_in = self._centred(self._uncentred(x)).detach()
        W_enc, b_enc = self._encoder(), self._pre_activation_bias()
        found = self._find_active(sae_in, W_enc, b_enc)
        sparse = None
        if found is None:
            feature_acts, hidden_pre = self._encode_dense(sae_in, W_enc, b_enc)
        else:
            active, values = found
            acts = SparseEncode.apply(sae_in, W_enc, b_enc, values.to(self.dtype), active)
            feature_acts, hidden_pre, sparse = (
                active.to_coo(acts),
                active.to_coo(values),
                (acts, active),
            )
        if self._step is not None:
            self._step.feature_acts, self._step.sparse = feature_acts, sparse
        return feature_acts, hidden_pre

    @override
    def normalised(self, x: torch.Tensor) -> torch.Tensor:
        step = self._step
        if step is not None and x is step.sae_in:  # no hook gave another
            return step.normalised
        return super().normalised(x)

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        step = self._step
        if step is not None and feature_acts is step.feature_acts:
            recons = self._decode_step(step, feature_acts)
        else:
            recons = self.adapter.share.sum(feature_acts @ self._scaled_W_dec())
        recons = self.hook_sae_recons(recons + self._stock_b_dec())
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head)

    @outside_compilation
    def _decode_step(self, step: Step, feature_acts: torch.Tensor) -> torch.Tensor:
        bands, group = self._bands, self.adapter.group
        if step.sparse is None:
            own_parts = bands.dense_parts(feature_acts, self._scaled_W_dec(), group)
        else:
            own_parts = bands.sparse_parts(*step.sparse, self.W_dec, self._decoder_scale(), group)
        step.parts = self.adapter.share.sum(own_parts)
        return step.parts.sum(dim=0)

    def _encode_dense(
        self, sae_in: torch.Tensor, W_enc: torch.Tensor, b_enc: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_pre = self.hook_sae_acts_pre(sae_in @ W_enc + b_enc.to(self.dtype))
        threshold = rounded_down(self._limit(), self.dtype)
        acts = torch.where(hidden_pre > threshold, hidden_pre, 0.0)
        return self.hook_sae_acts_post(acts), hidden_pre

    def _find_active(
        self, sae_in: torch.Tensor, W_enc: torch.Tensor, b_enc: torch.Tensor
    ) -> tuple[ActiveSet, torch.Tensor] | None:
        # torch's own, which those of TransformerLens are as well
        hooked = any(
            point._forward_hooks
            or point._forward_pre_hooks
            or point._backward_hooks
            or point._backward_pre_hooks
            for point in (self.hook_sae_acts_pre, self.hook_sae_acts_post)
        )
        max_density = self._max_density()
        spectrum = self.adapter.spectrum
        target_density = self.adapter.warm_up * spectrum.l0 / sum(spectrum.sizes)
        if hooked or sae_in.ndim != 2 or target_density > max_density:
            return None
        with torch.no_grad():
            return find_active(sae_in, W_enc, b_enc, self._limit(), max_density)

    def _max_density(self) -> float:
        """Share of active entries up to which sparse products are used."""
        pays, asked = density_that_pays(self.W_dec), self.cfg.sparse_below_density
        return asked if asked is not None and pays > 0 else pays

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        sae_in, target = self._input_and_target(step_input.sae_in)
        step = Step(sae_in, target, self.normalised(sae_in.to(self.dtype)))
        require_usable(step_input.sae_in, step_input.n_training_steps, step.normalised)
        trains = self.training and torch.is_grad_enabled()  # SAELens leaves SAEs in training mode
        self._follow_warm_up(step, step_input.coefficients, trains)
        if trains:
            attend_optimizer_of(self.W_dec, self._own_encoder())
            self._take_in(step, step_input.n_training_steps)
        self._step = step
        try:
            output = super().training_forward_pass(replace(step_input, sae_in=target))
        finally:
            self._step = None
        weight = self._loss_weight(step)
        output.loss = output.loss * weight
        output.losses = {name: loss * weight for name, loss in output.losses.items()}
        # no loss, but SAELens' progress line and wandb show what stands here
        output.losses["l0_over_target"] = _l0_over_target(self.adapter, output.feature_acts)
        if trains and self._has_started():
            self._observe_and_adapt(output.hidden_pre.detach())
        if step_input.is_logging_step:
            output.metrics.update(training_metrics(self.adapter, self.bias, self._curves))
        return output

    def _input_and_target(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What of a trainer's batch is encoded, and what the output is compared with."""
        if batch.ndim != 2 or batch.shape[1] != self.cfg.d_in or len(batch) == 0:
            raise ValueError(
                f"a batch of shape {tuple(batch.shape)} is not possible: an SAE trains on samples, "
                f"(n, d_in={self.cfg.d_in}), at least one."
            )
        return batch, batch

    @outside_compilation  # it would be compiled anew for every number of samples held
    @torch.no_grad()
    def _take_in(self, step: Step, n_steps: int) -> None:
        """What a batch says before it is trained on: the scale of the inputs, a start.

        Args:
            step: about to be taken.
            n_steps: taken so far.
        """
        x = step.normalised
        mean = x.mean(dim=0)
        norm = typical_norm(x if self._centre is None else x - mean, step.sae_in)
        if self._has_started():
            self.adapter.follow_norm(norm)
            self._keep_for_calibration(step.sae_in)
        # a batch of zeros, of one row or of equal rows (but for rounding) says nothing
        elif float(typical_norm(x - mean, step.sae_in)) > 1e-5 * float(mean.norm()):
            self._start(step, norm)
        elif n_steps == _PATIENCE:
            logger.warning(
                "no batch of %d had two different rows: nothing is learnt from such; give batches "
                "of several samples.",
                n_steps,
            )

    def _start(self, step: Step, norm: torch.Tensor) -> None:
        """The scale of the inputs is known; of a new SAE, b_dec and biases start as well."""
        self.adapter.input_norm.copy_(norm)
        if int(self.adapter.n_steps) > 0:
            for parameter in (self.b_dec, *self._encoder_biases()):
                parameter.data.div_(self.input_scale)
            return
        sae_in = step.normalised / self.input_scale
        if self._centre is not None:
            self._centre.data.copy_(sae_in.mean(dim=0))
            sae_in = sae_in - self._centre
        if self.cfg.bias_init == "quantile":
            self.set_bias(
                quantile_bias(
                    sae_in, self._encoder(), self.adapter.targets.frequency, self.bias_range()
                )
            )

    def _loss_weight(self, step: Step) -> torch.Tensor:
        """Makes the squared error that of targets of the unit's scale."""
        if self.training and not self._has_started():
            return self.input_scale * 0
        return self.target_scale**-2 * self._normalised_over_raw(step)

    def _normalised_over_raw(self, step: Step) -> torch.Tensor | float:
        """Squares of what is encoded, in those of what the output is compared with."""
        if self.cfg.normalize_activations not in RUN_TIME_NORMALISATIONS:
            return 1.0
        squares = (x.to(self.state_dtype).square().sum() for x in (step.normalised, step.sae_in))
        tiny = torch.finfo(self.state_dtype).tiny  # of a batch of zeros
        return torch.div(*(total.clamp(min=tiny) for total in squares))

    @outside_compilation
    @torch.no_grad()
    def _observe_and_adapt(self, hidden_pre: torch.Tensor) -> None:
        # y of the paper in units of `input_scale`: positive where a latent is active
        self.adapter.observe(hidden_pre, self._limit(), self.input_scale)
        new_bias = self.adapter.adapt_if_due(self.bias, self.bias_range)
        if new_bias is not None:
            self.set_bias(new_bias)

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        # SAELens counts the steps, in its checkpoints as well, and hands back how far they are
        return {_WARM_UP: TrainCoefficientConfig(1.0, warm_up_steps=self.cfg.l0_warm_up_steps)}

    @outside_compilation  # it would be compiled anew for every number
    def _follow_warm_up(self, step: Step, coefficients: dict[str, float], trains: bool) -> None:
        progress = coefficients.get(_WARM_UP, 1.0)
        if trains:
            start, end = self.cfg.l0_warm_up_start, self.cfg.l0_warm_up_end
            self.adapter.warm_up = start + (end - start) * progress
        step.nested_weight = step.normalised.new_full(
            (), self._nested_weight(progress), dtype=self.state_dtype
        )

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        step = self._step
        if self._bands.n_bands == 1 or step is None or step.parts is None:
            return {}
        assert step.nested_weight is not None
        left = self._left_to_latents(step)
        error = NestedError.apply(step.parts, left, self.cfg.error_exponent)
        # what is encoded is its unit already
        weight = step.nested_weight / self._normalised_over_raw(step)
        return {"nested_mse_loss": weight * error}

    def _nested_weight(self, progress: float) -> float:
        """From twice `nested_weight` to nothing while targets fall, so the mean is as asked."""
        if self.cfg.l0_warm_up_steps == 0:
            return self.cfg.nested_weight
        return 2 * self.cfg.nested_weight * (1 - progress)

    def _left_to_latents(self, step: Step) -> torch.Tensor:
        """What the latents' parts of the output should add up to, (batch, d_in)."""
        return step.normalised - self._stock_b_dec()

    @override
    @torch.no_grad()
    def log_histograms(self) -> dict[str, NDArray[Any]]:
        # not SAELens' W_dec_norms: all 1 to rounding, which wandb can't bin
        return histograms(self.adapter, self.bias, self.output_scale)
