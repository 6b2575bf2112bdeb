"""``sae-lens-gba plan``: what training on so many devices takes, before any is rented.

Counted, not measured: bytes and operations of a step, divided by a device's peak rates. Real
kernels reach 40 to 80 % of those, so read shares and what grows with what, not milliseconds.
"""

import argparse
import logging
from dataclasses import dataclass

from sae_lens_gba.adaptation_settings import COUNT, POSITIVE, Check, check_values, require
from sae_lens_gba.config import GBATrainingSAEConfig

logger = logging.getLogger(__name__)

_FLOAT = 4  # bytes
# matrices of d_in x d_sae in memory: decoder, correction, encoder; a gradient of each; Adam's two
# moments of the first two
_MATRICES = 10
# of these, a checkpoint has decoder, correction and Adam's moments
_SAVED_MATRICES = 6
# bytes of memory traffic for each of the d_in x d_sae weights: Adam (fused) 56, clipping 24, the
# encoder put together and cast, unit norm, gradients written 57
_WEIGHT_BYTES = 137
# for each pre-activation: written, compared, looked through for active ones
_PRE_ACTIVATION_BYTES = 15
# passes over the active latents' rows: decode, and three for the gradients
_GATHERS = 4
# passes over the outputs by nested set
_OUTPUT_PASSES = 8


# of an H100 SXM at its peak, a second
_OPERATIONS = 989e12
_BYTES = 3.35e12


@dataclass
class Plan:
    """Needs of training one SAE on several devices, each with a part of its latents.

    Args:
        d_in: dimensions of the input.
        d_sae: latents.
        batch: samples a step, of all devices together.
        devices: how many.
        l0: active latents a sample.
        nested: nested reconstructions.
        memory_gb: memory of a device.
        link_gb_s: what a device sends and receives a second: 370 over NVLink, 40 between nodes.

    Raises:
        ValueError: a number is not possible; names it.
    """

    d_in: int
    d_sae: int
    batch: int
    devices: int = 1
    l0: float = 64.0
    nested: int = GBATrainingSAEConfig.n_nested_reconstructions
    memory_gb: float = 80.0
    link_gb_s: float = 370.0

    def __post_init__(self) -> None:
        check_values(self, _POSSIBLE)
        for name, one in (("batch", "a sample"), ("d_sae", "a latent")):
            enough = getattr(self, name) >= self.devices
            require(self, name, enough, f"{one} at least of each of {self.devices} devices")

    @property
    def own_latents(self) -> int:
        """Latents of the device that has most."""
        return -(-self.d_sae // self.devices)

    @property
    def outputs_bytes(self) -> int:
        """Of the outputs by nested set, which are summed over devices."""
        return self.nested * self.batch * self.d_in * _FLOAT

    @property
    def memory_bytes(self) -> int:
        """Of a device: weights and optimizer, outputs, and samples kept for calibration."""
        weights = _MATRICES * self.d_in * self.own_latents * _FLOAT
        kept = GBATrainingSAEConfig.calibration_samples * self.d_in * _FLOAT
        return weights + 3 * self.outputs_bytes + kept

    @property
    def fits(self) -> bool:
        return self.memory_bytes < 0.9e9 * self.memory_gb

    @property
    def host_bytes(self) -> int:
        """Host memory that rank 0 needs while it writes a checkpoint."""
        return _SAVED_MATRICES * self.d_in * self.d_sae * _FLOAT

    @property
    def traffic_bytes(self) -> float:
        """What a device sends a step: outputs summed around a ring, its samples to all others."""
        others = (self.devices - 1) / self.devices
        return others * (2 * self.outputs_bytes + self.batch * self.d_in * _FLOAT)

    def times(self) -> dict[str, float]:
        """Seconds a step by what they are spent on, at the peak of an H100."""
        pre_activations = self.batch * self.own_latents
        active_rows = self.batch * self.l0 / self.devices * self.d_in * _FLOAT
        return {
            "encoder product (bf16)": 2 * pre_activations * self.d_in / _OPERATIONS,
            "finding active latents": pre_activations * _PRE_ACTIVATION_BYTES / _BYTES,
            "active latents' rows": _GATHERS * active_rows / _BYTES,
            "weights: Adam, clipping, unit norm": (
                _WEIGHT_BYTES * self.d_in * self.own_latents / _BYTES
            ),
            "nested outputs": _OUTPUT_PASSES * self.outputs_bytes / _BYTES,
            "between devices": self.traffic_bytes / (self.link_gb_s * 1e9),
        }

    def table(self) -> str:
        """This plan beside that of one device, as text."""
        plans = [Plan(**{**vars(self), "devices": 1})]
        if self.devices > 1:
            plans.append(self)
        rows: list[tuple[str, list[str]]] = [
            ("devices", [str(p.devices) for p in plans]),
            ("latents a device", [f"{p.own_latents:,}" for p in plans]),
            ("memory of a device, GB", [f"{p.memory_bytes / 1e9:.1f}" for p in plans]),
            (f"  of {self.memory_gb:g}", ["fits" if p.fits else "too much" for p in plans]),
            ("sent by a device a step, GB", [f"{p.traffic_bytes / 1e9:.3f}" for p in plans]),
            ("milliseconds a step, H100 SXM at its peak", ["" for _ in plans]),
        ]
        times = [p.times() for p in plans]
        rows += [(f"  {name}", [f"{1e3 * t[name]:.2f}" for t in times]) for name in times[0]]
        rows.append(("  in all", [f"{1e3 * sum(t.values()):.2f}" for t in times]))
        lines = [f"{name:<42}" + "".join(f"{v:>12}" for v in values) for name, values in rows]
        return "\n".join([*lines, "", *self._remarks(times[-1])])

    def _remarks(self, times: dict[str, float]) -> list[str]:
        bottleneck = max(times, key=lambda name: times[name])
        share = times[bottleneck] / sum(times.values())
        return [
            f"Expected bottleneck: {bottleneck} ({share:.0%} of the step).",
            "Every device holds the language model besides.",
            f"Rank 0 needs {self.host_bytes / 1e9:.1f} GB of host memory to write a checkpoint.",
            "Counted, not measured on GPUs: see docs/several_devices.md.",
        ]


_POSSIBLE: dict[str, Check] = {
    "d_in": COUNT,
    "d_sae": COUNT,
    "batch": COUNT,
    "devices": COUNT,
    "l0": POSITIVE,
    "nested": COUNT,
    "memory_gb": POSITIVE,
    "link_gb_s": POSITIVE,
}


def run_from_arguments(arguments: argparse.Namespace) -> None:
    """Say what it takes."""
    names = _POSSIBLE
    logger.info(Plan(**{name: getattr(arguments, name) for name in names}).table())
