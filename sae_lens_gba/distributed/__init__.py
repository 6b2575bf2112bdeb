"""One SAE on several devices: each rank has a part of the latents, and runs the model on its data.

See docs/several_devices.md.
"""

from sae_lens_gba.distributed.latent_slice import LatentSlice
from sae_lens_gba.distributed.ranks import Ranks, join
from sae_lens_gba.distributed.trainer import LatentParallelTrainer

__all__ = ["LatentParallelTrainer", "LatentSlice", "Ranks", "join"]
