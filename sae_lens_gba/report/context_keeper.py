"""Pieces of text around the tokens on which latents are active: the best so many are kept."""

import torch

TOKENS_BEFORE = 14
TOKENS_AFTER = 8
NO_TOKEN = -1


class ContextKeeper:
    """For each of some latents, the contexts with the largest key, at most one a sequence.

    With the activation as key these are the strongest activations. With a random key they are a
    uniform sample of active tokens (but for the one a sequence), whatever the length of the
    text. O(n_latents * n_kept) memory.

    Attributes:
        key: of the contexts, in falling order; -inf where there are none, shape
            (n_latents, n_kept).
        tokens: token ids, NO_TOKEN beyond a sequence's ends, shape (n_latents, n_kept, width)
            with width = TOKENS_BEFORE + 1 + TOKENS_AFTER; the token the key belongs to is at
            TOKENS_BEFORE.
        activations: of the latent on them, same shape.
    """

    def __init__(self, n_latents: int, n_kept: int) -> None:
        width = TOKENS_BEFORE + 1 + TOKENS_AFTER
        self.key = torch.full((n_latents, n_kept), -torch.inf)
        self.tokens = torch.full((n_latents, n_kept, width), NO_TOKEN, dtype=torch.int32)
        self.activations = torch.zeros(n_latents, n_kept, width)

    def offer(self, key: torch.Tensor, tokens: torch.Tensor, acts: torch.Tensor) -> None:
        """Keep what is better than what there is.

        Args:
            key: shape (n_sequences, n_tokens, n_latents); -inf is never kept.
            tokens: token ids, shape (n_sequences, n_tokens).
            acts: activations, shape of ``key``.
        """
        best = key.max(dim=1)
        window_tokens, window_acts = _windows(best.indices.T, tokens, acts)
        keys = torch.cat([self.key, best.values.T], dim=1)
        self.key, kept = keys.topk(self.key.shape[1], dim=1)
        wide = kept.unsqueeze(2).expand(-1, -1, self.tokens.shape[2])
        self.tokens = torch.cat([self.tokens, window_tokens], dim=1).gather(1, wide)
        self.activations = torch.cat([self.activations, window_acts], dim=1).gather(1, wide)


def _windows(
    positions: torch.Tensor, tokens: torch.Tensor, acts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and activations around ``positions`` (n_latents, n_sequences)."""
    n_latents, n_tokens = len(positions), tokens.shape[1]
    around = positions.unsqueeze(2) + torch.arange(-TOKENS_BEFORE, TOKENS_AFTER + 1)
    inside = (around >= 0) & (around < n_tokens)
    at = around.clamp(0, n_tokens - 1)
    window_tokens = tokens.int().unsqueeze(0).expand(n_latents, -1, -1).gather(2, at)
    window_acts = acts.permute(2, 0, 1).gather(2, at).float()
    return (
        torch.where(inside, window_tokens, NO_TOKEN),
        torch.where(inside, window_acts, 0.0),
    )
