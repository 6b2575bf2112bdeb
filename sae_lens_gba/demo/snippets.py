"""Top activating snippets of a few latents, for a person to read."""

from typing import Any

import torch

from sae_lens_gba.demo.training import CONTEXT_SIZE, HeldOutActivations
from sae_lens_gba.training_sae import GBATrainingSAE

LATENTS_A_GROUP = 2
SNIPPETS_A_LATENT = 4
TOKENS_BEFORE, TOKENS_AFTER = 8, 3


@torch.no_grad()
def show_snippets(sae: GBATrainingSAE, held_out: HeldOutActivations) -> str:
    """For latents of the first, a middle and the last group, where they fire most."""
    acts = torch.cat([sae.encode(part) for part in held_out.activations.split(2048)])
    group = sae.groups().group
    n_groups = int(group.max()) + 1
    lines = ["where some latents fire most, the token in >>> <<<:"]
    for k in sorted({0, n_groups // 2, n_groups - 1}):
        strongest = acts.amax(dim=0).masked_fill(group != k, -1).topk(LATENTS_A_GROUP)
        for latent in strongest.indices.tolist():
            lines.append(f"\n  latent {latent} (group {k}, {_percent(acts[:, latent])} of tokens)")
            lines += [f"    {snippet}" for snippet in _snippets(acts[:, latent], held_out)]
    return "\n".join(lines) + "\n"


def _percent(acts: torch.Tensor) -> str:
    return f"{float((acts > 0).float().mean()):.2%}"


def _snippets(acts: torch.Tensor, held_out: HeldOutActivations) -> list[str]:
    """One snippet a prompt, strongest first."""
    by_prompt = acts.view(-1, CONTEXT_SIZE - 1)
    peaks = by_prompt.max(dim=1)
    found = []
    for prompt in peaks.values.topk(min(SNIPPETS_A_LATENT, len(by_prompt))).indices.tolist():
        if peaks.values[prompt] > 0:
            at = int(peaks.indices[prompt]) + 1  # activations leave out BOS
            found.append(_snippet(held_out.tokens[prompt], at, held_out.tokenizer))
    return found


def _snippet(tokens: torch.Tensor, at: int, tokenizer: Any) -> str:
    before = tokenizer.decode(tokens[max(1, at - TOKENS_BEFORE) : at])
    token = tokenizer.decode(tokens[at])
    after = tokenizer.decode(tokens[at + 1 : at + 1 + TOKENS_AFTER])
    return f"{before}>>>{token}<<<{after}".replace("\n", "\\n")
