"""Settings of groups and bias adaptation: what a GBA SAE and the training hook have in common."""

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sae_lens_gba.bias_adaptation import UPDATE_RULES, AdaptationRates
from sae_lens_gba.frequency_spectrum import FrequencySpectrum, GroupSizing, build_spectrum
from sae_lens_gba.plain_values import make_plain

logger = logging.getLogger(__name__)


@dataclass
class AdaptationSettings:
    """
    Which latent should fire how often, and how its bias is moved until it does.

    Args:
        target_l0 (float | None): Active latents a sample to train towards. Fixes the frequency
            spectrum by solving for its lowest frequency, so lowest_target_frequency is not used.
            None uses the frequencies as given.
        n_groups (int): Number of groups of latents (K). Each group has its own target activation
            frequency. Fewer where d_sae and target_l0 leave no room for as many.
        highest_target_frequency (float): Target of the most active group, as a share of samples,
            above 0 and below 1 (HTF).
        lowest_target_frequency (float): Target of the least active group, as a share of samples
            (LTF). Not used when target_l0 is set.
        group_sizing (str): "power_law" makes groups of rarer targets larger; "equal" is the
            paper's.
        group_size_exponent (float): With power_law, a group's size is proportional to its target to
            the power of minus this. 1 gives every group the same share of L0, 0 equal groups.
        bias_update (str): The rule that moves the biases, by its name in
            sae_lens_gba.bias_adaptation.UPDATE_RULES: "group_newton", "group_mean",
            "log_proportional", "log_proportional_one_sided" or "paper".
        adapt_every_n_steps (int): Optimizer steps between two adaptations of the biases (T).
        bias_decrease_rate (float | None): How far a bias moves per adaptation when its latent fires
            too often; a share of its largest pre-activation (paper) or of the input norm (other
            rules). With group_newton, a group's step is at most twice this. None means
            1.14 / sqrt(d_in): pre-activations of a random direction spread by the input norm /
            sqrt(d_in), and the step should be a fixed part of that spread.
        bias_increase_rate (float | None): How far the bias of a dead latent is raised per
            adaptation; a share of the input norm (group_newton, group_mean) or of the mean largest
            pre-activation of its group (other rules). None means 0.23 / sqrt(d_in).
        dead_frequency (float | None): A latent active on a smaller share of samples is dead, and
            raised; with group_newton and group_mean, once it was silent for five times as long as
            its target says. Below every target. None means 1e-5, or a tenth of the lowest target
            if that is less.
        frequency_cap (float): With group_newton and group_mean, a single latent is pushed down
            individually above this multiple of its target. At least 1.
    """

    target_l0: float | None = None
    n_groups: int = 10
    highest_target_frequency: float = 0.2
    lowest_target_frequency: float = 0.001
    group_sizing: GroupSizing = "power_law"
    group_size_exponent: float = 1.0
    bias_update: str = "group_newton"
    adapt_every_n_steps: int = 10
    bias_decrease_rate: float | None = None
    bias_increase_rate: float | None = None
    dead_frequency: float | None = None
    frequency_cap: float = 3.0

    def spectrum_of(self, d_sae: int) -> FrequencySpectrum:
        """Groups of ``d_sae`` latents, their sizes and their target frequencies."""
        return build_spectrum(
            d_sae=d_sae,
            n_groups=self.n_groups,
            highest=self.highest_target_frequency,
            lowest=self.lowest_target_frequency,
            sizing=self.group_sizing,
            exponent=self.group_size_exponent,
            target_l0=self.target_l0,
            floor=_LOWEST_TARGET if self.dead_frequency is None else self.dead_frequency,
        )

    def warn_of_open_l0(self, d_sae: int) -> None:
        """If nothing was said of L0, neither ``target_l0`` nor frequencies of one's own."""
        names = ("target_l0", "highest_target_frequency", "lowest_target_frequency")
        if all(getattr(self, name) == getattr(AdaptationSettings, name) for name in names):
            logger.warning(
                "target_l0 is not set: with the default frequencies %.3g of d_sae=%d latents will "
                "be active on a sample; set target_l0 to the number you want, such as 32.",
                self.spectrum_of(d_sae).l0,
                d_sae,
            )

    def rates_for(self, d_in: int, spectrum: FrequencySpectrum) -> AdaptationRates:
        """Step sizes and limits for inputs of ``d_in`` dimensions and these targets."""
        dead = min(1e-5, spectrum.frequencies[-1] / 10)
        spread = 1 / math.sqrt(d_in)
        decrease, increase = self.bias_decrease_rate, self.bias_increase_rate
        return AdaptationRates(
            decrease=1.14 * spread if decrease is None else decrease,
            increase=0.23 * spread if increase is None else increase,
            dead_frequency=dead if self.dead_frequency is None else self.dead_frequency,
            frequency_cap=self.frequency_cap,
        )

    def check(self, d_sae: int) -> None:
        """That ``d_sae`` latents can have these settings.

        Raises:
            ValueError: names the field, its value and what it must be.
        """
        check_choices(self, AdaptationSettings)
        check_values(self, _POSSIBLE)
        highest, lowest = self.highest_target_frequency, self.lowest_target_frequency
        if self.target_l0 is None:
            require(
                self,
                "lowest_target_frequency",
                lowest <= highest,
                f"at most highest_target_frequency={highest}",
            )
        name = "lowest_target_frequency" if self.target_l0 is None else "highest_target_frequency"
        target = lowest if self.target_l0 is None else highest
        require(
            self,
            "dead_frequency",
            self.dead_frequency is None or self.dead_frequency < target,
            f"below {name}={target}, or latents on target count as dead",
        )
        self.spectrum_of(d_sae)


_LOWEST_TARGET = 1e-7  # that target_l0 may be solved with

Check = tuple[Callable[[Any], bool], str]  # of a value, and what it must be


def number(holds: Callable[[float], bool], must_be: str) -> Check:
    """A number (neither a bool nor a text) for which this holds."""
    return lambda v: isinstance(v, int | float) and not isinstance(v, bool) and holds(v), must_be


def integer(least: int) -> Check:
    is_number, _ = number(lambda v: v >= least, "")
    return lambda v: isinstance(v, int) and is_number(v), f"an integer, at least {least}"


def or_none(check: Check) -> Check:
    return lambda v: v is None or check[0](v), f"{check[1]}, or None"


POSITIVE = number(lambda v: 0 < v < math.inf, "a finite number above 0")
SHARE = number(lambda v: 0 < v < 1, "a number between 0 and 1, exclusive")
COUNT = integer(1)

_POSSIBLE: dict[str, Check] = {
    "target_l0": or_none(POSITIVE),
    "highest_target_frequency": SHARE,
    "lowest_target_frequency": SHARE,
    "bias_update": (lambda v: v in list(UPDATE_RULES), f"one of {list(UPDATE_RULES)}"),
    "bias_decrease_rate": or_none(POSITIVE),
    "bias_increase_rate": or_none(POSITIVE),
    "adapt_every_n_steps": COUNT,
    "n_groups": COUNT,
    "dead_frequency": or_none(SHARE),
    "frequency_cap": number(lambda v: v >= 1, "a number, at least 1"),
    "group_size_exponent": number(lambda v: 0 <= v <= 10, "a number from 0 to 10"),
}


def check_values(settings: object, possible: Mapping[str, Check]) -> None:
    """Each field of ``possible`` by its check, NumPy's numbers as Python's; errors as `require`."""
    make_plain(settings, possible)
    for name, (is_possible, must_be) in possible.items():
        require(settings, name, is_possible(getattr(settings, name)), must_be)


def check_choices(settings: object, declared_in: type) -> None:
    """Fields that a class declares as Literal or bool hold such a value; else as `require`."""
    hints = get_type_hints(declared_in)
    for name in declared_in.__annotations__:
        value = getattr(settings, name)
        if get_origin(hints[name]) is Literal:
            choices = list(get_args(hints[name]))
            require(settings, name, value in choices, f"one of {choices}")
        elif hints[name] is bool:
            require(settings, name, isinstance(value, bool), "True or False")


def require_known(settings: Mapping[str, Any], known: Collection[str], whose: str) -> None:
    """ValueError for a name that is no setting, with the one that was meant."""
    for name, value in settings.items():
        if name not in known:
            meant = get_close_matches(name, known, n=1)
            hint = f"did you mean {meant[0]!r}?" if meant else "leave it out."
            raise ValueError(f"{name}={value!r} is no setting of {whose}: {hint}")


def require(settings: object, name: str, ok: bool, must_be: str) -> None:
    """ValueError with the field, its value and the remedy, unless ``ok``."""
    if not ok:
        value = getattr(settings, name)
        raise ValueError(f"{name}={value!r} is not possible: it must be {must_be}.")
