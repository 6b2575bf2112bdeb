"""The paper's data model, and what its theory says about it."""

from sae_lens_gba.synthetic.feature_mixture import (
    FeatureMixture,
    FeatureMixtureConfig,
    geometric_relative_frequencies,
)
from sae_lens_gba.synthetic.theory import ResonanceBand, resonance_band

__all__ = [
    "FeatureMixture",
    "FeatureMixtureConfig",
    "ResonanceBand",
    "geometric_relative_frequencies",
    "resonance_band",
]
