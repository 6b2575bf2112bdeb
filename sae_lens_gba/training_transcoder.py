"""GBA training transcoders: GBA SAEs whose output is compared with activations at another hook."""

import torch
from torch import nn
from typing_extensions import override

from sae_lens_gba.batch_statistics import followed_norm, typical_norm
from sae_lens_gba.optimizer_hooks import normalise_rows
from sae_lens_gba.training_sae import GBATrainingSAE, Step
from sae_lens_gba.transcoder_config import GBATrainingTranscoderConfig


class GBATrainingTranscoder(GBATrainingSAE):
    """
    Transcoder whose biases are moved by feedback, as those of a `GBATrainingSAE`.

    Trained on batches of inputs x and targets y side by side, (batch, d_in + d_out). In units of
    `input_scale` s and `target_scale` t, which follow the data:

        h = (x / s - input_mean) W_enc + b_enc,  W_enc = rate * encoder_correction^T
        JumpReLU:  f = (h - shrinkage * threshold) * [h > threshold]
        ReLU:      f = max(h, 0)
        y_hat / t = (f * output_scale) W_dec + b_dec
        loss = ||y_hat - y||^2 / t^2, and that of nested sets, as of a GBA SAE

    Groups, biases, calibration, the sparse step and what is saved beside the weights are those of a
    GBA SAE. The encoder has nothing to follow, and is a matrix of its own. ``shrinkage`` is learnt:
    at 0 a latent's activation jumps from 0 to its threshold, at 1 it starts at 0 as a ReLU's does,
    below 0 it jumps further. It is part of b_enc and threshold in what is saved, and so is the
    mean, since SAELens' transcoders centre no inputs.

    | attribute              | what it is                            | shape          |
    | ---------------------- | ------------------------------------- | -------------- |
    | ``encoder_correction`` | W_enc^T / encoder_correction_rate     | (d_sae, d_in)  |
    | ``input_mean``         | of the first batch, in units of s     | (d_in,)        |
    | ``shrinkage``          | at most 1; with JumpReLU only         | (d_sae,)       |
    | ``W_dec``              | unit rows                             | (d_sae, d_out) |
    | ``b_dec``              | in units of t                         | (d_out,)       |
    | ``target_norm``        | t * sqrt(d_out); 0 until it is known  | ()             |
    """

    cfg: GBATrainingTranscoderConfig
    input_mean: nn.Parameter
    shrinkage: nn.Parameter
    target_norm: nn.Parameter
    _PRECISE = (*GBATrainingSAE._PRECISE, "shrinkage", "target_norm")

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        # the rows that an SAE's decoder starts with
        self.encoder_correction.data = self.correction_for(self.W_dec.data.T, self.W_dec.data)
        zeros = self.b_dec.data.new_zeros
        self.b_dec = nn.Parameter(zeros(self.d_out))
        self.W_dec = nn.Parameter(torch.randn_like(zeros(self.cfg.d_sae, self.d_out)))
        normalise_rows(self.W_dec)
        self.input_mean = nn.Parameter(zeros(self.cfg.d_in), requires_grad=False)
        self.target_norm = nn.Parameter(zeros((), dtype=self.state_dtype), requires_grad=False)
        if self._is_jumprelu:
            self.shrinkage = nn.Parameter(torch.zeros_like(self.threshold))

    @property
    def d_out(self) -> int:
        """Dimension of the target."""
        assert self.cfg.d_out is not None  # it has been set from d_in
        return self.cfg.d_out

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., d_in) -> (..., d_out)."""
        return self.decode(self.encode(x))

    @override
    def process_sae_in(self, sae_in: torch.Tensor) -> torch.Tensor:
        return self._uncentred(sae_in)

    @property
    @override
    def target_scale(self) -> torch.Tensor:
        """Typical norm of the centred target / sqrt(d_out), shape (); 1 until it is known."""
        norm = self.target_norm.detach()
        return torch.where(norm > 0, norm / self.d_out**0.5, 1.0)

    @property
    @override
    def _centre(self) -> nn.Parameter:
        return self.input_mean

    @override
    def _decoder_scale(self) -> torch.Tensor:
        return super()._decoder_scale() * self._target_over_input()

    def _target_over_input(self) -> torch.Tensor:
        return self.target_scale / self.input_scale

    @override
    def _shrunk_by(self) -> torch.Tensor:
        if not self._is_jumprelu:
            return super()._shrunk_by()
        # a copy: biases are adapted before the gradient is computed
        return self.shrinkage.clamp(max=1) * self.threshold.detach().clone()

    @override
    def _stock_b_enc(self) -> torch.Tensor:
        return super()._stock_b_enc() - self.in_input_units(self.input_mean @ self._encoder())

    @override
    def _computed_encoder(self) -> torch.Tensor:
        return (self.encoder_correction * self.cfg.encoder_correction_rate).T

    @override
    def correction_for(self, W_enc: torch.Tensor, W_dec: torch.Tensor) -> torch.Tensor:
        return W_enc.T / self.cfg.encoder_correction_rate

    @override
    def _input_and_target(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        d_in, d_out = self.cfg.d_in, self.d_out
        if batch.ndim != 2 or batch.shape[1] != d_in + d_out or len(batch) == 0:
            raise ValueError(
                f"a batch of shape {tuple(batch.shape)} is not possible: a transcoder trains on "
                f"inputs and targets side by side, (n, d_in={d_in} + d_out={d_out}), at least one, "
                "as sae_lens_gba.train, TranscoderTrainingRunner and TranscoderSetTrainingRunner "
                "make them."
            )
        sae_in, target = batch.split([d_in, d_out], dim=1)
        # inputs are kept for calibration, and would keep the targets with them
        return sae_in.contiguous(), target.contiguous()

    @override
    def _take_in(self, step: Step, n_steps: int) -> None:
        had_started = self._has_started()
        super()._take_in(step, n_steps)
        if self._is_jumprelu:  # above 1 it has no gradient
            self.shrinkage.data.clamp_(max=1)
        if had_started:
            norm = typical_norm(step.target - step.target.mean(dim=0), step.target)
            followed = followed_norm(self.target_norm, norm, self.adapter.is_first_window)
            self.target_norm.data.copy_(followed)

    @override
    def _start(self, step: Step, norm: torch.Tensor) -> None:
        super()._start(step, norm)
        mean = step.target.mean(dim=0)
        self.target_norm.data.copy_(typical_norm(step.target - mean, step.target))
        self.b_dec.data.copy_(mean / self.target_scale)

    @override
    def _left_to_latents(self, step: Step) -> torch.Tensor:
        return step.target.to(self.dtype) - self._stock_b_dec()

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """As SAELens', of inputs and targets that were scaled alike."""
        if not self._has_started():
            self.target_norm.data.fill_(self.d_out**0.5)  # target_scale 1, as it was
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self.target_norm.data.div_(scaling_factor)

    @override
    def fold_activation_whitening(
        self,
        mean: torch.Tensor,
        whitening_matrix: torch.Tensor,
        unwhitening_matrix: torch.Tensor,
    ) -> None:
        raise ValueError("a whitening can't be folded into a transcoder: its target is another.")


class GBATrainingSkipTranscoder(GBATrainingTranscoder):
    """
    A `GBATrainingTranscoder` that predicts by a linear map of the input as well:

        y_hat / t = (f * output_scale) W_dec + b_dec + rate * skip (x / s - input_mean)

    ``skip`` (d_out, d_in) starts at zero. As in SAELens, `decode` leaves it out, for want of x.
    """

    skip: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.skip = nn.Parameter(self.b_dec.data.new_zeros(self.d_out, self.cfg.d_in))

    @property
    def W_skip(self) -> torch.Tensor:
        """The linear map from raw inputs to outputs, (d_out, d_in), to compute with."""
        return self.skip * (self._target_over_input() * self.cfg.encoder_correction_rate)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x.to(self.dtype) @ self.W_skip.T

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        recons = super().decode(feature_acts)
        step = self._step
        if step is None or feature_acts is not step.feature_acts:
            return recons
        step.skipped = step.normalised @ self.W_skip.T
        return recons + step.skipped

    @override
    def _left_to_latents(self, step: Step) -> torch.Tensor:
        assert step.skipped is not None
        return super()._left_to_latents(step) - step.skipped

    @override
    def _stock_b_dec(self) -> torch.Tensor:
        mean = self.in_input_units(self.input_mean.detach())
        return super()._stock_b_dec() - self.W_skip @ mean

    @override
    def _stock_weights(self) -> dict[str, torch.Tensor]:
        return {**super()._stock_weights(), "W_skip": self.W_skip}
