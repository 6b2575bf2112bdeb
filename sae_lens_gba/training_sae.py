"""The GBA training SAE: glue between bias adaptation and SAELens."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from torch import nn
from typing_extensions import override

from sae_lens_gba.bias_adaptation import quantile_bias, require_finite, typical_norm
from sae_lens_gba.bias_adapter import BiasAdapter
from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.precision import apply_keeping_float32
from sae_lens_gba.sparse_autoencoder_ops import (
    ActiveSet,
    NestedSquaredError,
    SparseDecode,
    SparseEncode,
    find_active,
)
from sae_lens_gba.unit_norm_rows import keep_rows_at_unit_norm, normalise_rows

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
        """The adapted biases b, at most 0, shape (d_sae,)."""
        return -self.threshold.data if self._is_jumprelu else self.b_enc.data

    def set_bias(self, bias: torch.Tensor) -> None:
        """Put new biases in place; shape (d_sae,)."""
        if self._is_jumprelu:
            self.threshold.data.copy_(-bias)
        else:
            self.b_enc.data.copy_(bias)

    def bias_range(self) -> torch.Tensor:
        """c of the biases' range [-c, 0], in pre-activation units, shape (d_sae,)."""
        return self.adapter.input_norm * self.W_enc.detach().norm(dim=0)

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
        recons = self.hook_sae_recons(recons + self.b_dec)
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
        hidden_pre = self.hook_sae_acts_pre(sae_in @ W_enc + self.b_enc.to(self.dtype))
        threshold = self.threshold.to(self.dtype) if self._is_jumprelu else 0.0
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
                self.b_enc,
                self.threshold if self._is_jumprelu else None,
                self.cfg.sparse_below_density,
            )

    def _scaled_W_dec(self) -> torch.Tensor:
        return self.W_dec * self.output_scale.to(self.dtype).unsqueeze(1)

    # --- training ---

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        require_finite(step_input.sae_in, step_input.n_training_steps)
        if self.training:
            keep_rows_at_unit_norm(self.W_dec)
            self._start_if_new(step_input.sae_in)
        try:
            output = super().training_forward_pass(step_input)
        finally:
            self._step = None
        if self.training:
            self._observe_and_adapt(output.hidden_pre.detach())
        if step_input.is_logging_step:
            output.metrics.update(self._metrics())
        return output

    @torch.no_grad()
    def _start_if_new(self, batch: torch.Tensor) -> None:
        """On the first batch: input norm, and of a new SAE also b_dec and biases."""
        if float(self.adapter.input_norm) > 0:
            return
        is_new = int(self.adapter.n_steps) == 0
        sae_in = self.run_time_activation_norm_fn_in(batch.to(self.dtype))
        if self.cfg.apply_b_dec_to_input:
            if is_new:
                self.b_dec.data.copy_(sae_in.mean(dim=0))
            sae_in = sae_in - self.b_dec
        self.adapter.input_norm.copy_(typical_norm(sae_in))
        if is_new and self.cfg.bias_init == "quantile":
            self.set_bias(
                quantile_bias(sae_in, self.W_enc, self.adapter.target_frequency, self.bias_range())
            )

    @torch.no_grad()
    def _observe_and_adapt(self, hidden_pre: torch.Tensor) -> None:
        self.adapter.observe(self._with_bias(hidden_pre))
        new_bias = self.adapter.adapt_if_due(self.bias, self.bias_range)
        if new_bias is not None:
            self.set_bias(new_bias)

    def _with_bias(self, hidden_pre: torch.Tensor) -> torch.Tensor:
        """y of the paper: positive where a neuron is active. Same shape and layout."""
        if not self._is_jumprelu:
            return hidden_pre
        if not hidden_pre.is_sparse:
            return hidden_pre - self.threshold
        indices = hidden_pre.indices()
        above = hidden_pre.values() - self.threshold[indices[1]]
        return torch.sparse_coo_tensor(
            indices, above, hidden_pre.shape, is_coalesced=True, check_invariants=False
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
        error = NestedSquaredError.apply(parts, target - self.b_dec)
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
        """As SAELens', but the decoder's factor goes to output_scale: its rows stay unit norm.

        Pre-activations, and with them biases, are the same as before the fold.
        """
        self._free_encoder()
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self._move_row_norms_to_output_scale()
        self.adapter.input_norm /= scaling_factor

    @override
    @torch.no_grad()
    def fold_activation_whitening(
        self,
        mean: torch.Tensor,
        whitening_matrix: torch.Tensor,
        unwhitening_matrix: torch.Tensor,
    ) -> None:
        """As SAELens'; the norm of the raw inputs is estimated anew if training goes on."""
        self._free_encoder()
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        self._move_row_norms_to_output_scale()
        self.adapter.input_norm.zero_()

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
        for encoder_side in (
            self.W_enc,
            self.b_enc,
            *([self.threshold] if self._is_jumprelu else []),
        ):
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

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """Leave exactly the parameters of the stock architecture."""
        weights = {
            "W_enc": self.W_enc,
            "b_enc": self.b_enc,
            "W_dec": self._scaled_W_dec(),
            "b_dec": self.b_dec,
        }
        if self._is_jumprelu:
            weights["threshold"] = self.threshold
        state_dict.clear()
        for name, weight in weights.items():
            state_dict[name] = weight.detach().to(self.dtype).contiguous()

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Save as a stock SAE, with ``gba_groups.safetensors`` beside it."""
        groups = self.groups()
        self.cfg.metadata.gba = {"groups": groups.summary()}
        paths = super().save_inference_model(path)
        groups.save(path)
        return paths

    def groups(self) -> NeuronGroups:
        """Groups, targets, and frequencies as measured at the last adaptation."""
        return self.adapter.groups()

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
