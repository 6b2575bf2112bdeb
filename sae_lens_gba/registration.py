"""Makes the architectures "gba", "gba_transcoder" and "gba_skip_transcoder" known to SAELens."""

from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, register_sae_training_class

from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.training_sae import GBATrainingSAE
from sae_lens_gba.training_transcoder import GBATrainingSkipTranscoder, GBATrainingTranscoder
from sae_lens_gba.transcoder_config import (
    GBATrainingSkipTranscoderConfig,
    GBATrainingTranscoderConfig,
)

CLASSES: dict[str, tuple[type[GBATrainingSAE], type[GBATrainingSAEConfig]]] = {
    config.architecture(): (cls, config)
    for cls, config in (
        (GBATrainingSAE, GBATrainingSAEConfig),
        (GBATrainingTranscoder, GBATrainingTranscoderConfig),
        (GBATrainingSkipTranscoder, GBATrainingSkipTranscoderConfig),
    )
}


def register() -> None:
    """Register all of them; again and again does no harm, so that notebooks can reload."""
    for name, (cls, config) in CLASSES.items():
        # a reload brings new classes under the old name: the newest wins
        SAE_TRAINING_CLASS_REGISTRY.pop(name, None)
        register_sae_training_class(name, cls, config)
