"""Parameters of a GBA training SAE: their units, folds, and what is saved of them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from sae_lens_gba.bias_adapter import BiasAdapter
from sae_lens_gba.encoder import EncoderFollowsDecoder
from sae_lens_gba.nested_reconstructions import NestedBands
from sae_lens_gba.optimizer_hooks import normalise_rows, warn_of_other_norms
from sae_lens_gba.precision import apply_keeping_float32, as_bytes, from_bytes, rounded_down

# of SAELens' normalisations, those of each sample by itself, which the output undoes
RUN_TIME_NORMALISATIONS = ("layer_norm", "constant_norm_rescale")


class GBAParameters(EncoderFollowsDecoder):
    """Everything about a `GBATrainingSAE` but what it computes; its table says what is what.

    ``b_dec``, ``b_enc`` and ``threshold`` are in units of `input_scale`, W_enc and W_dec have
    none. What is saved in stock form is in units of the input.
    """

    run_time_activation_norm_fn_in: Callable[[torch.Tensor], torch.Tensor]
    run_time_activation_norm_fn_out: Callable[[torch.Tensor], torch.Tensor]
    b_enc: nn.Parameter
    threshold: nn.Parameter  # with JumpReLU only
    output_scale: nn.Parameter
    adapter: BiasAdapter
    _started = False
    # at least float32, whatever the weights are
    _PRECISE: tuple[str, ...] = ("b_enc", "threshold", "output_scale")

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        cfg = self.cfg
        zeros = torch.zeros(cfg.d_sae, dtype=self.state_dtype, device=self.device)
        self.b_enc = nn.Parameter(zeros.clone(), requires_grad=False)
        if cfg.activation == "jumprelu":
            self.threshold = nn.Parameter(zeros.clone(), requires_grad=False)
        self.output_scale = nn.Parameter(
            zeros + cfg.output_scale_init, requires_grad=cfg.learn_output_scale
        )
        spectrum = cfg.spectrum()
        self._bands = NestedBands(cfg.nested_set_of_group(), spectrum.sizes)
        cfg.warn_of_open_l0(cfg.d_sae)
        self.adapter = BiasAdapter(
            spectrum,
            cfg.bias_update,
            cfg.rates_for(cfg.d_in, spectrum),
            cfg.adapt_every_n_steps,
            self.state_dtype,
            self.device,
        )

    @property
    def state_dtype(self) -> torch.dtype:
        """Of biases, scales and statistics: that of the weights, at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

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
        return math.sqrt(self.cfg.d_in) * self._encoder().detach().norm(dim=0)

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

    @property
    def target_scale(self) -> torch.Tensor:
        """`input_scale` of what the output is compared with: the unit of ``b_dec`` and loss, ()."""
        return self.input_scale

    @property
    def _centre(self) -> nn.Parameter | None:
        """What the encoder's inputs are relative to, in units of `input_scale`, (d_in,)."""
        return self.b_dec if self.cfg.apply_b_dec_to_input else None

    def _decoder_scale(self) -> torch.Tensor:
        """By what the rows of ``W_dec`` are multiplied, (d_sae,)."""
        is_learnt = self.cfg.learn_output_scale
        return self.output_scale if is_learnt else self.output_scale.detach()

    def _shrunk_by(self) -> torch.Tensor:
        """What is taken from a pre-activation that passed the threshold, at most that, (d_sae,)."""
        return torch.zeros_like(self.b_enc)

    def _pre_activation_bias(self) -> torch.Tensor:
        """What is added to the product of centred inputs and W_enc, in their units, (d_sae,)."""
        return self.in_input_units(self.b_enc.detach() - self._shrunk_by())

    def _limit(self) -> torch.Tensor:
        """Above which pre-activation a latent is active, in units of the input, (d_sae,) or ()."""
        if self._is_jumprelu:
            return self.in_input_units((self.threshold - self._shrunk_by()).detach())
        return self.b_enc.new_zeros(())

    def _stock_b_enc(self) -> torch.Tensor:
        """``b_enc`` of the stock SAE, for inputs as `process_sae_in` gives them, (d_sae,)."""
        return self._pre_activation_bias()

    def _stock_b_dec(self) -> torch.Tensor:
        """``b_dec`` of the stock SAE, (d_in,)."""
        return self.target_scale * self.b_dec

    @override
    def process_sae_in(self, sae_in: torch.Tensor) -> torch.Tensor:
        # as SAELens', but for the unit of b_dec (test_upstream_contract.py)
        return self._centred(self._uncentred(sae_in))

    def _uncentred(self, sae_in: torch.Tensor) -> torch.Tensor:
        x = self.hook_sae_input(self.reshape_fn_in(sae_in.to(self.dtype)))
        self._require_d_in(x)
        return self.normalised(x)

    def _centred(self, x: torch.Tensor) -> torch.Tensor:
        return x if self._centre is None else x - self.in_input_units(self._centre)

    def _require_d_in(self, x: torch.Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.cfg.d_in:
            raise ValueError(
                f"inputs of shape {tuple(x.shape)} are not possible: their last dimension must be "
                f"d_in={self.cfg.d_in}."
            )

    def normalised(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` as SAELens' run-time normalisation of activations leaves it."""
        return self.run_time_activation_norm_fn_in(x)

    @torch.no_grad()
    def _to_input_units(self) -> None:
        """From here on, until the scale is known anew, the unit is that of the inputs."""
        for parameter in (self.b_dec, *self._encoder_biases()):
            parameter.data.mul_(self.input_scale)
        self.adapter.input_norm.zero_()
        self._started = False

    def _has_started(self) -> bool:
        """Whether the scale of the inputs is known; nothing is learnt before."""
        if not self._started:
            self._started = float(self.adapter.input_norm) > 0
        return self._started

    def _encoder_biases(self) -> list[nn.Parameter]:
        return [self.b_enc, self.threshold] if self._is_jumprelu else [self.b_enc]

    @property
    def _is_jumprelu(self) -> bool:
        return self.cfg.activation == "jumprelu"

    def _scaled_W_dec(self) -> torch.Tensor:
        return self.W_dec * self._decoder_scale().to(self.dtype).unsqueeze(1)

    def _move_row_norms_to_output_scale(self) -> None:
        self.output_scale.data.mul_(self.W_dec.norm(dim=1))
        normalise_rows(self.W_dec)

    def _warn_of_other_norms(self) -> None:
        if int(self.adapter.n_steps) > 0:  # before, nobody promised anything
            warn_of_other_norms(self.W_dec)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """As SAELens': same activations from raw inputs, in whose units input_scale is then.

        The decoder's part goes to output_scale: its rows stay unit norm.
        """
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
        """Move the decoder's norms, output scale included, into encoder and biases.

        Rows of W_dec have unit norm then, whatever they had.
        """
        norms = self.get_W_dec_norm()
        self._free_encoder()
        self._move_row_norms_to_output_scale()
        for encoder_side in (self.W_enc, *self._encoder_biases()):
            encoder_side.data.mul_(norms)
        self.output_scale.data.div_(norms)
        return norms

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Counters, and what is more precise than the weights, go into the file as bytes."""
        self._warn_of_other_norms()
        if "W_enc" in state_dict:
            state_dict["W_enc"] = state_dict["W_enc"].contiguous()
        for name, value in state_dict.items():
            if value.dtype != self.dtype:
                state_dict[name] = as_bytes(value)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        for name, own in self.state_dict().items():
            if name in state_dict and state_dict[name].ndim == own.ndim + 1:
                state_dict[name] = from_bytes(state_dict[name], own)
        W_enc = state_dict.get("W_enc")  # of an SAE that was folded
        if W_enc is not None and self._encoder_follows_decoder:
            if self.cfg.tied:
                raise ValueError(
                    "tied=True, but the checkpoint has an encoder of its own (it was folded at the "
                    "end of training): set tied=False to go on from it."
                )
            del state_dict["W_enc"]
            state_dict["encoder_correction"] = self.correction_for(W_enc, state_dict["W_dec"])

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """Leave exactly the parameters of the stock architecture."""
        self._warn_of_other_norms()
        weights = self._stock_weights()
        state_dict.clear()
        for name, weight in weights.items():
            cast = rounded_down if name == "threshold" else torch.Tensor.to
            state_dict[name] = cast(weight.detach(), self.dtype).contiguous()

    def _stock_weights(self) -> dict[str, torch.Tensor]:
        weights = {
            "W_enc": self._encoder(),
            "b_enc": self._stock_b_enc(),
            "W_dec": self._scaled_W_dec(),
            "b_dec": self._stock_b_dec(),
        }
        if self._is_jumprelu:
            weights["threshold"] = self._limit()
        return weights

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "GBAParameters":
        kept = {name: p.data for name, p in self.named_parameters() if name in self._PRECISE}
        apply_keeping_float32(
            kept, lambda: super(GBAParameters, self)._apply(*args, **kwargs), self.get_parameter
        )
        return self
