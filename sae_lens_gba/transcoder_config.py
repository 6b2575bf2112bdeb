"""Settings of GBA training transcoders."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

from sae_lens import (
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoderConfig,
    SAEConfig,
    SkipTranscoderConfig,
    TranscoderConfig,
)
from typing_extensions import override

from sae_lens_gba.adaptation_settings import COUNT, check_values, or_none, require
from sae_lens_gba.config import GBATrainingSAEConfig


@dataclass
class GBATrainingTranscoderConfig(GBATrainingSAEConfig):
    """
    Configuration class for training a GBATrainingTranscoder (Group Bias Adaptation).

    A transcoder reads activations at one hook and predicts those at another, such as an MLP's
    input and output. All fields of `GBATrainingSAEConfig` are fields of this class too; those
    below are new, or mean something else here.

    Args:
        d_out (int | None): Dimension of the target. None is d_in.
        hook_name_out (str): Where the target is, such as "blocks.8.hook_mlp_out". Needed to train
            on a language model.
        encoder_correction_rate (float): The encoder is a matrix of its own, which starts at random
            directions and moves at this multiple of the learning rate; so does a skip connection.
        error_exponent (float): As of an SAE; a transcoder has the mean squared error by default.
        n_nested_reconstructions (int): As of an SAE. A transcoder is better without, at 1.
        calibrate_for (str): Must be "groups": no targets are kept to tell errors by.
        tied (bool): Must be False: input and output are different activations.
        apply_b_dec_to_input (bool): Must be False: b_dec is in the target's units. Inputs are
            centred while training, by a mean of their own that goes into b_enc when saving.
        normalize_activations (str): "none" or "expected_average_only_in", which scales inputs and
            targets alike. Scales of both are followed in any case.
    """

    encoder_correction_rate: float = 1.0
    error_exponent: float = 2.0
    n_nested_reconstructions: int = 1
    calibrate_for: Literal["error", "groups"] = "groups"
    apply_b_dec_to_input: bool = False
    d_out: int | None = None
    hook_name_out: str = ""

    @override
    def __post_init__(self) -> None:
        check_values(self, {"d_out": or_none(COUNT)})
        if self.d_out is None:
            self.d_out = self.d_in
        for name, possible in _ONLY.items():
            must_be = " or ".join(map(repr, possible))
            require(self, name, getattr(self, name) in possible, f"{must_be} for a transcoder")
        if self.hook_name_out:  # where SAELens looks for it; not in another config's, of `replace`
            self.metadata = deepcopy(self.metadata)
            self.metadata.hook_name_out = self.hook_name_out
        super().__post_init__()

    @override
    @classmethod
    def architecture(cls) -> str:
        return "gba_transcoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        """The stock architecture that a trained GBA transcoder is saved as."""
        return JumpReLUTranscoderConfig if self.activation == "jumprelu" else TranscoderConfig


@dataclass
class GBATrainingSkipTranscoderConfig(GBATrainingTranscoderConfig):
    """
    Configuration class for training a GBATrainingSkipTranscoder.

    As `GBATrainingTranscoderConfig`, whose fields it has: the target is predicted by a linear map
    of the input as well, which leaves to the latents what is not linear.
    """

    @override
    @classmethod
    def architecture(cls) -> str:
        return "gba_skip_transcoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        is_jumprelu = self.activation == "jumprelu"
        return JumpReLUSkipTranscoderConfig if is_jumprelu else SkipTranscoderConfig


_ONLY = {
    "calibrate_for": ("groups",),
    "tied": (False,),
    "apply_b_dec_to_input": (False,),
    "normalize_activations": ("none", "expected_average_only_in"),
    "reshape_activations": ("none",),
}
