"""Settings of a GBA training SAE."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Literal

from sae_lens import JumpReLUSAEConfig, SAEConfig, StandardSAEConfig, TrainingSAEConfig
from typing_extensions import override

from sae_lens_gba.bias_adaptation import UPDATE_RULES, AdaptationRates
from sae_lens_gba.frequency_spectrum import FrequencySpectrum, build_spectrum

BiasUpdate = Literal["paper", "log_proportional", "log_proportional_one_sided", "group_mean"]


@dataclass
class GBATrainingSAEConfig(TrainingSAEConfig):
    """
    Configuration class for training a GBATrainingSAE (Group Bias Adaptation).

    In most cases ``d_in``, ``d_sae`` and ``target_l0`` are all that need be set.
    `paper_v1` and `paper_iclr` give the settings of arXiv 2506.14002.

    Args:
        target_l0 (float | None): Active latents a sample to train towards. Fixes the frequency
            spectrum by solving for its lowest frequency, so lowest_target_frequency is not used.
            None uses the frequencies as given.
        n_groups (int): Number of groups of neurons (K). Each group has its own target activation
            frequency.
        highest_target_frequency (float): Target of the most active group, as a share of samples,
            above 0 and below 1 (HTF).
        lowest_target_frequency (float): Target of the least active group, as a share of samples
            (LTF). Not used when target_l0 is set.
        group_sizing (str): "power_law" makes groups of rarer targets larger; "equal" is the
            paper's.
        group_size_exponent (float): With power_law, a group's size is proportional to its target to
            the power of minus this. 1 gives every group the same share of L0, 0 equal groups.
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
        n_nested_reconstructions (int): Into how many nested sets the groups are divided, most
            active ones first, each of which must reconstruct the input without those after it, as
            in Matryoshka SAEs: so rare latents need not carry what more general ones can. 1 asks
            for the whole reconstruction alone, as the paper does. At most n_groups is used.
        nested_weight (float): Weight of the nested sets' mean error in the loss, where the error of
            all latents has 1. More of it recovers more of a hierarchy's general features and
            reconstructs less.
        bias_update (str): The rule that moves the biases: "group_mean", "log_proportional",
            "log_proportional_one_sided" or "paper".
        adapt_every_n_steps (int): Optimizer steps between two adaptations of the biases (T).
        bias_decrease_rate (float | None): How far a bias moves per adaptation when its neuron fires
            too often; a share of its largest pre-activation (paper) or of the input norm (other
            rules). None means 1.14 / sqrt(d_in): pre-activations of a random direction spread by
            the input norm / sqrt(d_in), and the step should be a fixed part of that spread.
        bias_increase_rate (float | None): How far the bias of a dead neuron is raised per
            adaptation, in the same units. None means 0.23 / sqrt(d_in).
        dead_frequency (float): A neuron active on a smaller share of samples is dead, and raised.
            Must be below every target.
        frequency_cap (float): With group_mean, a single neuron is pushed down individually above
            this multiple of its target. At least 1.
        bias_init (str): "zero", or "quantile" to start each neuron at its target frequency,
            measured on the first batch.
        sparse_below_density (float): Share of active entries in a batch below which sparse products
            are used. Results agree to rounding. 0 turns them off.
        decoder_init_norm (float | None): Must be 1.0: decoder rows are kept at unit norm.
        d_in (int): Input dimension. Inherited from SAEConfig.
        d_sae (int): Number of latents. Inherited from SAEConfig.
        dtype (str): Data type of the weights. Inherited from SAEConfig.
        device (str): Device of the SAE. Inherited from SAEConfig.
    """

    target_l0: float | None = None
    n_groups: int = 10
    highest_target_frequency: float = 0.2
    lowest_target_frequency: float = 0.001
    group_sizing: Literal["power_law", "equal"] = "power_law"
    group_size_exponent: float = 1.0
    activation: Literal["jumprelu", "relu"] = "jumprelu"
    tied: bool = False
    encoder_correction_rate: float = 0.3
    learn_output_scale: bool = True
    output_scale_init: float = 1.0
    n_nested_reconstructions: int = 5
    nested_weight: float = 1.0
    bias_update: BiasUpdate = "group_mean"
    adapt_every_n_steps: int = 10
    bias_decrease_rate: float | None = None
    bias_increase_rate: float | None = None
    dead_frequency: float = 1e-5
    frequency_cap: float = 3.0
    bias_init: Literal["zero", "quantile"] = "quantile"
    sparse_below_density: float = 0.1
    decoder_init_norm: float | None = 1.0

    @override
    def __post_init__(self) -> None:
        self._validate()
        super().__post_init__()

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
        return build_spectrum(
            d_sae=self.d_sae,
            n_groups=self.n_groups,
            highest=self.highest_target_frequency,
            lowest=self.lowest_target_frequency,
            sizing=self.group_sizing,
            exponent=self.group_size_exponent,
            target_l0=self.target_l0,
            floor=self.dead_frequency,
        )

    def nested_set_of_group(self) -> list[int]:
        """Index of the smallest nested set that each group belongs to, most active group first."""
        n_nested = min(self.n_nested_reconstructions, self.n_groups)
        ends = [self.n_groups * i // n_nested for i in range(1, n_nested)]
        return [bisect_right(ends, group) for group in range(self.n_groups)]

    def adaptation_rates(self) -> AdaptationRates:
        return AdaptationRates(
            decrease=_or(self.bias_decrease_rate, 1.14 / math.sqrt(self.d_in)),
            increase=_or(self.bias_increase_rate, 0.23 / math.sqrt(self.d_in)),
            dead_frequency=self.dead_frequency,
            frequency_cap=self.frequency_cap,
        )

    @classmethod
    def paper_v1(cls, d_in: int, d_sae: int, **overrides: Any) -> "GBATrainingSAEConfig":
        """Settings of arXiv 2506.14002 v1: 10 equal groups from 0.1 to 0.001, tied, K=10."""
        return cls(**{**_PAPER, "d_in": d_in, "d_sae": d_sae, **overrides})

    @classmethod
    def paper_iclr(cls, d_in: int, d_sae: int, **overrides: Any) -> "GBATrainingSAEConfig":
        """Settings of the ICLR 2026 version: as `paper_v1`, from 0.5 to 0.001."""
        iclr = {"highest_target_frequency": 0.5}
        return cls(**{**_PAPER, **iclr, "d_in": d_in, "d_sae": d_sae, **overrides})

    def _validate(self) -> None:
        for name, choices in _CHOICES.items():
            _require(getattr(self, name) in choices, self, name, f"one of {list(choices)}")
        for name in ("highest_target_frequency", "lowest_target_frequency"):
            _require(0 < getattr(self, name) < 1, self, name, "between 0 and 1, exclusive")
        for name in ("bias_decrease_rate", "bias_increase_rate"):
            rate = getattr(self, name)
            _require(rate is None or _positive(rate), self, name, "a finite number above 0")
        for name in (
            "adapt_every_n_steps",
            "n_nested_reconstructions",
            "n_groups",
            "d_in",
            "d_sae",
        ):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, self, name, "an integer, at least 1")
        _require(
            self.n_groups <= self.d_sae,
            self,
            "n_groups",
            f"at most d_sae={self.d_sae}, so that no group is empty",
        )
        _require(0 < self.dead_frequency < 1, self, "dead_frequency", "between 0 and 1, exclusive")
        _require(
            _positive(self.output_scale_init), self, "output_scale_init", "a finite number above 0"
        )
        _require(_positive(self.nested_weight), self, "nested_weight", "a finite number above 0")
        _require(
            _positive(self.encoder_correction_rate),
            self,
            "encoder_correction_rate",
            "a finite number above 0 (tied=True for no correction)",
        )
        _require(self.frequency_cap >= 1, self, "frequency_cap", "at least 1")
        _require(
            0 <= self.group_size_exponent < math.inf, self, "group_size_exponent", "at least 0"
        )
        _require(0 <= self.sparse_below_density <= 1, self, "sparse_below_density", "from 0 to 1")
        _require(
            self.decoder_init_norm == 1.0,
            self,
            "decoder_init_norm",
            "1.0: GBA keeps decoder rows at unit norm (leave it out)",
        )
        self._validate_spectrum()

    def _validate_spectrum(self) -> None:
        if self.target_l0 is not None:
            _require(_positive(self.target_l0), self, "target_l0", "a finite number above 0")
            _require(
                self.dead_frequency < self.highest_target_frequency,
                self,
                "dead_frequency",
                f"below highest_target_frequency={self.highest_target_frequency}",
            )
        else:
            lowest = self.lowest_target_frequency
            _require(
                lowest <= self.highest_target_frequency,
                self,
                "lowest_target_frequency",
                f"at most highest_target_frequency={self.highest_target_frequency}",
            )
            _require(
                self.dead_frequency < lowest,
                self,
                "dead_frequency",
                f"below lowest_target_frequency={lowest}, or neurons on target count as dead",
            )
        self.spectrum()


_CHOICES: dict[str, tuple[str, ...]] = {
    "group_sizing": ("power_law", "equal"),
    "activation": ("jumprelu", "relu"),
    "bias_update": tuple(UPDATE_RULES),
    "bias_init": ("zero", "quantile"),
}

_PAPER: dict[str, Any] = {
    "n_groups": 10,
    "highest_target_frequency": 0.1,
    "lowest_target_frequency": 0.001,
    "group_sizing": "equal",
    "tied": True,
    "learn_output_scale": True,
    "n_nested_reconstructions": 1,
    "bias_update": "paper",
    "adapt_every_n_steps": 50,
    "bias_decrease_rate": 0.01,
    "bias_increase_rate": 0.01,
    "bias_init": "zero",
}


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _require(ok: bool, cfg: GBATrainingSAEConfig, name: str, remedy: str) -> None:
    if not ok:
        raise ValueError(f"{name}={getattr(cfg, name)!r} is not possible: it must be {remedy}.")
