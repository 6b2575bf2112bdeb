"""Measures of dictionaries: bare matrices in, numbers out."""

from sae_lens_gba.metrics.feature_recovery import BestMatch, best_match
from sae_lens_gba.metrics.frequencies import share_on_target
from sae_lens_gba.metrics.seed_consistency import shares_consistent, top_latents
from sae_lens_gba.metrics.selectivity import Selectivity, SelectivityMeter

__all__ = [
    "BestMatch",
    "Selectivity",
    "SelectivityMeter",
    "best_match",
    "share_on_target",
    "shares_consistent",
    "top_latents",
]
