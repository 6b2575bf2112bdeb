"""Settings of a GBA training SAE."""

from bisect import bisect_right
from dataclasses import dataclass, fields
from typing import Any, Literal

from sae_lens import (
    JumpReLUSAEConfig,
    LanguageModelSAERunnerConfig,
    SAEConfig,
    StandardSAEConfig,
    TrainingSAEConfig,
)
from typing_extensions import override

from sae_lens_gba.adaptation_settings import (
    COUNT,
    POSITIVE,
    AdaptationSettings,
    Check,
    check_choices,
    check_values,
    integer,
    number,
    or_none,
    require,
    require_known,
)
from sae_lens_gba.frequency_spectrum import FrequencySpectrum


@dataclass
class GBATrainingSAEConfig(AdaptationSettings, TrainingSAEConfig):
    """
    Configuration class for training a GBATrainingSAE (Group Bias Adaptation).

    In most cases ``d_in``, ``d_sae``, ``target_l0`` and ``l0_warm_up_steps`` are all that need be
    set. Groups and their adaptation are set by the fields of `AdaptationSettings`, which are
    fields of this class too. `paper_v1` and `paper_iclr` give the settings of arXiv 2506.14002.

    Args:
        activation (str): "jumprelu" (the bias decides only whether a latent is active; saved as a
            stock jumprelu SAE) or "relu" (the bias also lowers its activation; saved as a stock
            standard SAE).
        tied (bool): Whether the encoder is the transposed decoder.
        encoder_correction_rate (float): When not tied, the encoder is the transposed decoder plus a
            learnt correction, which moves at this multiple of the learning rate. Less of it makes
            other seeds find more of the same latents.
        learn_output_scale (bool): Whether each latent has a learnt output scale, folded into W_dec
            when saving.
        output_scale_init (float): Output scale at the start, above 0; it stays there when
            learn_output_scale is off. A small one lets each latent learn from the input instead of
            from the other latents' error, as the paper's theory assumes; 1 learns to reconstruct
            faster.
        error_exponent (float): The loss is the power mean, with this exponent, of the norms of the
            samples' errors, squared; so is that of a nested set. 2 is the mean squared error, 1 the
            square of the mean norm.
            With less, samples that the SAE can't explain pull less on its latents: these come
            closer to true features, and other seeds find more of them. From 0.1 to 2.
        n_nested_reconstructions (int): Into how many nested sets the groups are divided, most
            active ones first, each of which must reconstruct the input without those after it, as
            in Matryoshka SAEs: so rare latents need not carry what more general ones can. 1 asks
            for the whole reconstruction alone, as the paper does. At most n_groups is used.
        nested_weight (float): Weight of the nested sets' mean error in the loss, where the error of
            all latents has 1. Each set's error trains only the latents that the set before it has
            not. More of it recovers more of a hierarchy's general features and reconstructs less.
            With l0_warm_up_steps this is its mean over those steps: it falls with the targets, from
            twice as much to nothing, for the sets to find features first and all latents to explain
            the input last.
        l0_warm_up_steps (int): For how many optimizer steps the target frequencies fall, evenly, to
            where they should end; best is the whole run, as the command has it. 0 starts with them
            there.
        l0_warm_up_start (float): What the targets are multiplied by when they start to fall, though
            none is raised above 0.6. At least 1.
        l0_warm_up_end (float): What they are multiplied by when they have fallen; from 1 to
            l0_warm_up_start. Above 1, the SAE trains with more active latents than it should have,
            and calibration alone brings L0 to where it was asked for.
        bias_init (str): "zero", or "quantile" to start each latent at its target frequency,
            measured on the first batch.
        sparse_below_density (float | None): Share of active entries in a batch below which sparse
            products are used. Results agree to rounding. 0 turns them off. None takes what pays on
            the device: 0.1 on a CPU.
        calibration_samples (int): On how many of the last samples the biases are set, when training
            ends, so that L0 is what was asked for. They are kept in memory while training
            (samples x d_in). 0 leaves the biases as the last adaptation left them.
        calibrate_for (str): Which latents have how much of that L0. "error": one more activation of
            any latent would lower the squared error by the same amount. "groups": each group's
            mean frequency is its target; with a ReLU, "error" does that too.
        decoder_init_norm (float | None): Must be 1.0: decoder rows are kept at unit norm.
        d_in (int): Input dimension. Inherited from SAEConfig.
        d_sae (int): Number of latents. Inherited from SAEConfig.
        dtype (str): Data type of the weights. Inherited from SAEConfig.
        device (str): Device of the SAE. Inherited from SAEConfig.
    """

    activation: Literal["jumprelu", "relu"] = "jumprelu"
    tied: bool = False
    encoder_correction_rate: float = 0.3
    learn_output_scale: bool = True
    output_scale_init: float = 1.0
    error_exponent: float = 0.5
    n_nested_reconstructions: int = 5
    nested_weight: float = 1.0
    l0_warm_up_steps: int = 0
    l0_warm_up_start: float = 1.5
    l0_warm_up_end: float = 1.0
    bias_init: Literal["zero", "quantile"] = "quantile"
    sparse_below_density: float | None = None
    calibration_samples: int = 32768
    calibrate_for: Literal["error", "groups"] = "error"
    decoder_init_norm: float | None = 1.0

    @override
    def __post_init__(self) -> None:
        check_choices(self, GBATrainingSAEConfig)
        check_values(self, _POSSIBLE)
        if self.l0_warm_up_end > 1 and self.calibration_samples == 0:
            raise ValueError(
                f"l0_warm_up_end={self.l0_warm_up_end!r} with calibration_samples=0: L0 would stay "
                "that many times too high; give calibration_samples, or l0_warm_up_end=1."
            )
        start = self.l0_warm_up_start
        holds = self.l0_warm_up_end <= start
        require(self, "l0_warm_up_end", holds, f"at most l0_warm_up_start={start}: targets fall")
        self.check(self.d_sae)
        super().__post_init__()

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> "GBATrainingSAEConfig":
        """As SAELens', but for fields that nobody knows.

        Raises:
            ValueError: a name that is neither a field of this class nor one that SAELens writes.
        """
        known = {field.name for field in fields(cls)}
        ours = {name: v for name, v in config_dict.items() if name not in _OF_SAELENS}
        require_known(ours, known, "a GBA SAE")
        return super().from_dict(config_dict)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "gba"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        """The stock architecture that a trained GBA SAE is saved as."""
        return JumpReLUSAEConfig if self.activation == "jumprelu" else StandardSAEConfig

    def spectrum(self) -> FrequencySpectrum:
        """Groups, their sizes and their target frequencies."""
        return self.spectrum_of(self.d_sae)

    def nested_set_of_group(self) -> list[int]:
        """Index of the smallest nested set that each group belongs to, most active group first."""
        n_groups = self.spectrum().n_groups
        n_nested = min(self.n_nested_reconstructions, n_groups)
        ends = [n_groups * i // n_nested for i in range(1, n_nested)]
        return [bisect_right(ends, group) for group in range(n_groups)]

    @classmethod
    def paper_v1(cls, d_in: int, d_sae: int, **overrides: Any) -> "GBATrainingSAEConfig":
        """Settings of arXiv 2506.14002 v1: 10 equal groups from 0.1 to 0.001, tied, K=10."""
        return cls(**{**_PAPER, "d_in": d_in, "d_sae": d_sae, **overrides})

    @classmethod
    def paper_iclr(cls, d_in: int, d_sae: int, **overrides: Any) -> "GBATrainingSAEConfig":
        """Settings of the ICLR 2026 version: as `paper_v1`, from 0.5 to 0.001."""
        iclr = {"highest_target_frequency": 0.5}
        return cls(**{**_PAPER, **iclr, "d_in": d_in, "d_sae": d_sae, **overrides})


# its loaders add some, and a config may stand among a run's settings
_OF_SAELENS = {"architecture", "finetuning_scaling_factor", "sae_lens_version"} | {
    field.name for field in fields(LanguageModelSAERunnerConfig)
}

_POSSIBLE: dict[str, Check] = {
    "d_in": COUNT,
    "d_sae": COUNT,
    "error_exponent": number(lambda v: 0.1 <= v <= 2, "a number from 0.1 to 2"),
    "n_nested_reconstructions": COUNT,
    "nested_weight": (POSITIVE[0], f"{POSITIVE[1]} (n_nested_reconstructions=1 for no nesting)"),
    "l0_warm_up_steps": integer(0),
    "l0_warm_up_start": number(lambda v: 1 <= v <= 10, "a number from 1 to 10"),
    "l0_warm_up_end": number(lambda v: 1 <= v <= 10, "a number from 1 to 10"),
    "output_scale_init": POSITIVE,
    "encoder_correction_rate": (POSITIVE[0], f"{POSITIVE[1]} (tied=True for no correction)"),
    "sparse_below_density": or_none(number(lambda v: 0 <= v <= 1, "a number from 0 to 1")),
    "calibration_samples": integer(0),
    "decoder_init_norm": (
        lambda v: v == 1.0,
        "1.0: GBA keeps decoder rows at unit norm (leave it out)",
    ),
}

_PAPER: dict[str, Any] = {
    "n_groups": 10,
    "highest_target_frequency": 0.1,
    "lowest_target_frequency": 0.001,
    "group_sizing": "equal",
    "tied": True,
    "learn_output_scale": True,
    "error_exponent": 2.0,
    "n_nested_reconstructions": 1,
    "bias_update": "paper",
    "adapt_every_n_steps": 50,
    "bias_decrease_rate": 0.01,
    "bias_increase_rate": 0.01,
    "bias_init": "zero",
    "calibration_samples": 0,
}
