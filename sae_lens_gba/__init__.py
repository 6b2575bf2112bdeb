"""Group Bias Adaptation (GBA) for SAELens. Importing this package registers its architectures."""

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
from sae_lens_gba.training_transcoder import GBATrainingSkipTranscoder, GBATrainingTranscoder
from sae_lens_gba.transcoder_config import (
    GBATrainingSkipTranscoderConfig,
    GBATrainingTranscoderConfig,
)

if TYPE_CHECKING:
    from sae_lens_gba.hub.publishing import publish
    from sae_lens_gba.runs.activation_pairs import join_cached_activations
    from sae_lens_gba.runs.resumable import resumable_run
    from sae_lens_gba.runs.training import train
    from sae_lens_gba.runs.transcoders import (
        TranscoderSetTrainingRunner,
        TranscoderTrainingRunner,
    )
    from sae_lens_gba.saved.circuit_tracer import export_for_circuit_tracer
    from sae_lens_gba.saved.loading import list_published, load, to_training_sae
    from sae_lens_gba.saved.other_l0 import at_l0, calibrate

__version__ = version("sae-lens-gba")

__all__ = [
    "BiasAdaptationHook",
    "BiasAdapter",
    "FrequencySpectrum",
    "GBATrainingSAE",
    "GBATrainingSAEConfig",
    "GBATrainingSkipTranscoder",
    "GBATrainingSkipTranscoderConfig",
    "GBATrainingTranscoder",
    "GBATrainingTranscoderConfig",
    "NeuronGroups",
    "TranscoderSetTrainingRunner",
    "TranscoderTrainingRunner",
    "at_l0",
    "calibrate",
    "export_for_circuit_tracer",
    "join_cached_activations",
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
    "TranscoderTrainingRunner": "sae_lens_gba.runs.transcoders",
    "TranscoderSetTrainingRunner": "sae_lens_gba.runs.transcoders",
    "join_cached_activations": "sae_lens_gba.runs.activation_pairs",
    "export_for_circuit_tracer": "sae_lens_gba.saved.circuit_tracer",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register()
