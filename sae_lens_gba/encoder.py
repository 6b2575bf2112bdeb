"""The encoder of a GBA training SAE: the transposed decoder, plus a correction that is learnt."""

from copy import copy
from typing import Any

import torch
from sae_lens import TrainingSAE
from torch import nn
from typing_extensions import override

from sae_lens_gba.config import GBATrainingSAEConfig


class EncoderFollowsDecoder(TrainingSAE[GBATrainingSAEConfig]):
    """Computes ``W_enc``, and takes in what is written to it.

    What is read as ``sae.W_enc`` may be written to, as a parameter's value: ``W_enc.data = ...``,
    ``W_enc.copy_(...)``, ``W_enc[:, 3] = ...``. Entries that were written to are what W_enc has
    there when the SAE next runs or is saved, whatever happened to W_dec in between. If tied,
    they are W_dec's as well.
    """

    encoder_correction: nn.Parameter  # unless tied, or folded: then W_enc is a parameter
    _encoder_follows_decoder = False  # W_enc is a parameter until the weights are there
    # W_enc as it was last read from outside, where it may be written to, and as it was then
    _given_out: tuple[torch.Tensor, torch.Tensor] | None = None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        del self.W_enc
        self._encoder_follows_decoder = True
        if not self.cfg.tied:
            self.encoder_correction = nn.Parameter(torch.zeros_like(self.W_dec))

    def _encoder(self) -> torch.Tensor:
        """W_enc, shape (d_in, d_sae), to compute with; nobody writes to it."""
        self._take_in_what_was_written()
        return self._computed_encoder() if self._encoder_follows_decoder else self.W_enc

    def _computed_encoder(self) -> torch.Tensor:
        if self.cfg.tied:
            return self.W_dec.T
        rate = self.cfg.encoder_correction_rate
        return torch.add(self.W_dec, self.encoder_correction, alpha=rate).T

    def __getattr__(self, name: str) -> Any:
        if name == "W_enc" and self._encoder_follows_decoder:
            return self._give_out_encoder()
        return super().__getattr__(name)

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if name != "W_enc" or not self._encoder_follows_decoder:
            super().__setattr__(name, value)
            return
        shape = (self.cfg.d_in, self.cfg.d_sae)
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"W_enc={got} is not possible: it must be a tensor of shape {shape}.")
        self._give_out_encoder().data.copy_(value.detach())

    def _give_out_encoder(self) -> torch.Tensor:
        if self.cfg.tied:  # a view: only a new W_enc.data does not arrive by itself
            self._take_in_what_was_written()
            W_enc = self._computed_encoder()
            self._given_out = (W_enc, W_enc.detach())
            return W_enc
        W_enc = self._computed_encoder()
        original = W_enc.detach().clone()
        if self._given_out is not None:  # what was written before is still to be taken in
            written_to, its_original = self._given_out
            written = written_to.detach() != its_original
            W_enc = torch.where(written, written_to.detach(), W_enc)
            original = torch.where(written, its_original, original)
        self._given_out = (W_enc, original)
        return W_enc

    @torch.no_grad()
    def _take_in_what_was_written(self) -> None:
        if self._given_out is None:
            return
        W_enc, original = self._given_out
        self._given_out = None
        written = (W_enc != original).T
        if self.cfg.tied:
            self.W_dec.data.copy_(torch.where(written, W_enc.T, self.W_dec))
        else:
            correction = self.correction_for(W_enc, self.W_dec)
            self.encoder_correction.data.copy_(
                torch.where(written, correction, self.encoder_correction)
            )

    def correction_for(self, W_enc: torch.Tensor, W_dec: torch.Tensor) -> torch.Tensor:
        """The encoder_correction that makes ``W_enc`` (d_in, d_sae) of ``W_dec`` (d_sae, d_in)."""
        return (W_enc.T - W_dec) / self.cfg.encoder_correction_rate

    def _free_encoder(self) -> None:
        """From here on the encoder is a parameter of its own."""
        if not self._encoder_follows_decoder:
            return
        W_enc = nn.Parameter(self._encoder().detach().clone(memory_format=torch.preserve_format))
        if self.cfg.tied:  # of this SAE; the config may be its maker's
            self.cfg = copy(self.cfg)
            self.cfg.tied = False
        else:
            del self.encoder_correction
        self._encoder_follows_decoder = False
        self.W_enc = W_enc

    def _own_encoder(self) -> nn.Parameter | None:
        return None if self._encoder_follows_decoder else self.W_enc

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._take_in_what_was_written()
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._given_out = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: of parameters, not of what was computed from them."""
        self._take_in_what_was_written()
        return self.__dict__.copy()

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "EncoderFollowsDecoder":
        self._take_in_what_was_written()
        super()._apply(*args, **kwargs)
        return self
