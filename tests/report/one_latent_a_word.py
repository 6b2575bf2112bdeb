"""What the report of these tests is made of: one latent for each word of a tiny vocabulary.

The model's embeddings are orthogonal and of unit norm, and the SAE on them has one latent a
token: it fires if and only if that token is read, with an activation of 1, and rebuilds the
embedding exactly. So every frequency, context and match can be counted by hand.
"""

from pathlib import Path
from typing import Any

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata

HOOK = "blocks.0.hook_resid_pre"
CONTEXT_SIZE = 16
D_MODEL = 48  # the size of the vocabulary
N_GROUPS = 4
ATTACKS = (
    "<script>window.attacked=1</script>",
    "</script><script>window.attacked=2</script>",
    "<img/src=x/onerror=window.attacked=3>",
    "{{7*7}}",
)
VOCABULARY = ["<s>", "<unk>", *(f"word{i}" for i in range(42)), *ATTACKS]
N_LATENTS = len(VOCABULARY)
NEVER_USED = 41  # word39: in the vocabulary, not in the text
REPLACED = (10, 11, 12)  # latents of which the second SAE has nothing


def text_rows(n_rows: int = 60) -> list[str]:
    """Texts in which word0 is common, and the last words are rare."""
    generator = torch.Generator().manual_seed(0)
    tokens = [t for t in range(2, N_LATENTS) if t != NEVER_USED]
    weights = torch.arange(1, len(tokens) + 1).float().pow(-0.7)
    rows = weights.repeat(n_rows, 1).multinomial(30, replacement=True, generator=generator)
    return [" ".join(VOCABULARY[tokens[i]] for i in row) for row in rows.tolist()]


def save_sae(folder: Path, directions: torch.Tensor, **metadata: Any) -> Path:
    """An SAE with a latent for each of ``directions`` (n, D_MODEL), which have unit norm."""
    values = {
        "model_name": "tiny",
        "hook_name": HOOK,
        "context_size": CONTEXT_SIZE,
        "prepend_bos": True,
        **metadata,
    }
    sae = JumpReLUSAE(
        JumpReLUSAEConfig(
            d_in=directions.shape[1],
            d_sae=len(directions),
            apply_b_dec_to_input=False,
            metadata=SAEMetadata(**values),
        )
    )
    with torch.no_grad():
        sae.W_enc.copy_(directions.T)
        sae.W_dec.copy_(directions)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
        sae.threshold.fill_(0.99)
    sae.save_model(folder)
    return folder
