"""What random directions would score: a number says something only as far as it beats theirs."""

from typing import Any

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_gba.saved.other_l0 import calibrate
from sae_lens_gba.saved.saved_sae import SavedSAE

LABEL = "random directions"
N_SAMPLES = 8192  # tokens that thresholds and scale are set on


@torch.no_grad()
def random_directions(
    saved: SavedSAE, activations: torch.Tensor, seed: int, l0: float | None = None
) -> SavedSAE:
    """An SAE as wide as ``saved`` and as active, whose latents are random and untrained.

    Encoder and decoder are the same random unit vectors, b_dec is the mean activation, thresholds
    give ``saved``'s own L0 on these activations, and one factor scales the output so that the
    squared error is least. After the random baselines of arXiv 2602.14111.

    Args:
        activations: what the SAE reads, shape (n, d_in).
        seed: of the directions.
        l0: active latents a sample; None takes ``saved``'s.

    Raises:
        CalibrationError: too few activations.
    """
    cfg, d_sae = saved.sae.cfg, saved.d_sae
    if l0 is None:
        l0 = _l0_of(saved.sae, activations)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(d_sae, cfg.d_in, generator=generator), dim=1)
    sae: Any = JumpReLUSAE(
        JumpReLUSAEConfig(
            d_in=cfg.d_in,
            d_sae=d_sae,
            device=str(saved.sae.device),
            normalize_activations=cfg.normalize_activations,
            metadata=SAEMetadata(
                **{
                    **cfg.metadata.to_dict(),
                    "training_architecture": "untrained",
                    "training_architecture_details": None,
                    "gba": None,
                }
            ),
        )
    )
    sae.W_dec.copy_(rows)
    sae.W_enc.copy_(rows.T)
    sae.b_dec.copy_(sae.run_time_activation_norm_fn_in(activations.to(sae.dtype)).mean(dim=0))
    found = calibrate(sae, activations, target_l0=l0)
    _scale_output(found.sae, activations)
    return SavedSAE(found.sae, found.sae.cfg.to_dict(), LABEL, LABEL)


def _l0_of(sae: Any, activations: torch.Tensor) -> float:
    active = 0
    for x in activations.split(512):
        acts = sae.encode(x.to(sae.dtype))
        active += int(((acts.to_dense() if acts.is_sparse else acts) != 0).sum())
    return active / len(activations)


def _scale_output(sae: Any, activations: torch.Tensor) -> None:
    """The least-squares factor of the output, into W_dec."""
    product, square = 0.0, 0.0
    for x in activations.to(sae.dtype).split(512):
        target = sae.run_time_activation_norm_fn_in(x) - sae.b_dec
        output = sae.encode(x) @ sae.W_dec
        product += float((output * target).sum())
        square += float(output.square().sum())
    sae.W_dec.mul_(product / square if square else 0.0)
