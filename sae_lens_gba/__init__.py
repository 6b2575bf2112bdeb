"""Group Bias Adaptation (GBA) for SAELens. Importing this package registers "gba"."""

from importlib.metadata import version

from sae_lens_gba.bias_adaptation import BiasAdapter
from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.frequency_spectrum import FrequencySpectrum
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.registration import register
from sae_lens_gba.training_hook import BiasAdaptationHook
from sae_lens_gba.training_sae import GBATrainingSAE

__version__ = version("sae-lens-gba")

__all__ = [
    "BiasAdaptationHook",
    "BiasAdapter",
    "FrequencySpectrum",
    "GBATrainingSAE",
    "GBATrainingSAEConfig",
    "NeuronGroups",
    "register",
]

register()
