"""Which tokens a latent's decoder row promotes (logit lens)."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sae_lens_gba.report.results import TokenWeight, significant
from sae_lens_gba.saved.saved_sae import SavedSAE

N_PROMOTED = 10
LOGIT_ROWS = 256
# hooks of TransformerLens whose values are of the residual stream, or added to it as they are
_RESIDUAL = re.compile(
    r"hook_(pos_)?embed|(pos_)?embed\.hook_out|blocks\.(?P<layer>\d+)\."
    r"(hook_(resid_(pre|mid|post)|(attn|mlp)_(in|out)|in|out)"
    r"|ln[12]_post\.hook_out|attn\.hook_result|(?P<part>attn|mlp)\.hook_out)"
)


@torch.no_grad()
def logit_lens(
    saved: SavedSAE, latents: Sequence[int], model: Any, read: Callable[[int], str]
) -> tuple[list[list[TokenWeight]], list[list[TokenWeight]], list[str]]:
    """Tokens that each latent promotes and demotes most, and notes on what could not be had.

    Args:
        saved: whose decoder rows are read.
        latents: indices.
        model: whose unembedding reads them.
        read: the text of a token.
    """
    rows = saved.decoder_rows[list(latents)]
    unembedding: Any = getattr(model, "W_U", None)
    reason = None
    if unembedding is None:
        reason = "the model has no W_U (load it with TransformerLens)"
    elif not _is_residual(saved.hook_name_out, model) or unembedding.shape[0] != rows.shape[1]:
        reason = f"{saved.hook_name_out} does not write to the residual stream"
    if reason is not None:
        none: list[list[TokenWeight]] = [[]] * len(latents)
        return none, none, [f"No logit lens: {reason}."]
    rows = _through_final_norm(rows.to(unembedding.device), model, unembedding.dtype)
    unembedding = unembedding.detach().float()
    n_shown = min(N_PROMOTED, unembedding.shape[1])
    promoted: list[list[TokenWeight]] = []
    demoted: list[list[TokenWeight]] = []
    # a block of latents at a time: all of a wide SAE's logits would take many GB
    for block in rows.split(LOGIT_ROWS):
        logits = block @ unembedding
        logits -= logits.mean(dim=1, keepdim=True)  # a constant changes no probability
        promoted += _token_weights(logits.topk(n_shown, dim=1), read)
        demoted += _token_weights(logits.topk(n_shown, dim=1, largest=False), read)
    return promoted, demoted, []


def _is_residual(hook: str, model: Any) -> bool:
    found = _RESIDUAL.fullmatch(hook)
    if found is None or found["part"] is None:
        return found is not None
    # a block may have another norm before what it adds
    block = model.blocks[int(found["layer"])]
    return not hasattr(block, {"attn": "ln1_post", "mlp": "ln2_post"}[found["part"]])


def _through_final_norm(rows: torch.Tensor, model: Any, dtype: torch.dtype) -> torch.Tensor:
    """As the model's last normalisation passes directions on, but for its scale, (n, d_model).

    Its weights, and whether it takes the mean away, are seen from what it does: models keep
    weights as they are, as an offset from 1, or folded into W_U.
    """
    norm = getattr(model, "ln_final", None)
    if norm is None:
        return rows
    ones = rows.new_ones(rows.shape[1])
    alternating = ones.clone()
    alternating[1::2] = -1

    def gain(signs: torch.Tensor) -> torch.Tensor:
        x = signs.to(dtype)[None, None]
        return ((norm(x) - norm(-x)) / 2 * x).float().squeeze(0)  # without its bias

    if float(gain(ones).norm()) < 0.01 * float(gain(alternating).norm()):
        rows = rows - rows.mean(dim=1, keepdim=True)
    return rows * gain(alternating)


def _token_weights(found: Any, read: Callable[[int], str]) -> list[list[TokenWeight]]:
    rows = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [
        [TokenWeight(read(t), significant(v)) for t, v in zip(tokens, values, strict=True)]
        for tokens, values in rows
    ]
