"""Group Bias Adaptation (GBA) for SAELens. Importing this package registers "gba"."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sae_lens_gba.bias_adapter import BiasAdapter
from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.frequency_spectrum import FrequencySpectrum
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.registration import register
from sae_lens_gba.training_hook import BiasAdaptationHook
from sae_lens_gba.training_sae import GBATrainingSAE

if TYPE_CHECKING:
    from sae_lens_gba.hub.publishing import publish
    from sae_lens_gba.runs.resumable import resumable_run
    from sae_lens_gba.runs.training import train
    from sae_lens_gba.saved.loading import list_published, load, to_training_sae
    from sae_lens_gba.saved.other_l0 import at_l0, calibrate

__version__ = version("sae-lens-gba")

__all__ = [
    "BiasAdaptationHook",
    "BiasAdapter",
    "FrequencySpectrum",
    "GBATrainingSAE",
    "GBATrainingSAEConfig",
    "NeuronGroups",
    "at_l0",
    "calibrate",
    "list_published",
    "load",
    "publish",
    "register",
    "resumable_run",
    "to_training_sae",
    "train",
]

# imported when first used: a training run does not need them
_LATER = {
    "publish": "sae_lens_gba.hub.publishing",
    "load": "sae_lens_gba.saved.loading",
    "list_published": "sae_lens_gba.saved.loading",
    "at_l0": "sae_lens_gba.saved.other_l0",
    "calibrate": "sae_lens_gba.saved.other_l0",
    "to_training_sae": "sae_lens_gba.saved.loading",
    "resumable_run": "sae_lens_gba.runs.resumable",
    "train": "sae_lens_gba.runs.training",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register()
