"""Makes the architecture "gba" known to SAELens."""

from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, register_sae_training_class

from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.training_sae import GBATrainingSAE


def register() -> None:
    """Register "gba"; again and again does no harm, so that notebooks can reload."""
    name = GBATrainingSAEConfig.architecture()
    # a reload brings new classes under the old name: the newest wins
    SAE_TRAINING_CLASS_REGISTRY.pop(name, None)
    register_sae_training_class(name, GBATrainingSAE, GBATrainingSAEConfig)
