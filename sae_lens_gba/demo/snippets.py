"""Top activating snippets of a few latents, for a person to read."""

from typing import Any

import torch

from sae_lens_gba.demo.training import HeldOut
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.report.details import one_a_sequence

LATENTS_A_GROUP = 2
SNIPPETS_A_LATENT = 4
TOKENS_BEFORE, TOKENS_AFTER = 8, 3


def show_snippets(groups: NeuronGroups, held_out: HeldOut) -> str:
    """For latents of the first, a middle and the last group, where they fire most."""
    group, peak = groups.group, held_out.acts.amax(dim=0)
    n_groups = int(group.max()) + 1
    lines = ["where some latents fire most, the token in >>> <<<:"]
    for k in sorted({0, n_groups // 2, n_groups - 1}):
        strongest = peak.masked_fill(group != k, -1).topk(LATENTS_A_GROUP)
        for latent in strongest.indices.tolist():
            acts = held_out.acts[:, latent]
            frequency = float((acts > 0).float().mean())
            lines.append(f"\n  latent {latent} (group {k}, {frequency:.2%} of tokens)")
            lines += [f"    {snippet}" for snippet in _snippets(acts, held_out)]
    return "\n".join(lines) + "\n"


def _snippets(acts: torch.Tensor, held_out: HeldOut) -> list[str]:
    """One snippet a prompt, strongest first."""
    strongest_first = acts.argsort(descending=True, stable=True)[: int((acts > 0).sum())]
    n_tokens = held_out.tokens.shape[1] - 1  # activations leave out BOS
    found = one_a_sequence(strongest_first, n_tokens, SNIPPETS_A_LATENT)
    return [
        _snippet(held_out.tokens[place // n_tokens], place % n_tokens + 1, held_out.tokenizer)
        for place in found
    ]


def _snippet(tokens: torch.Tensor, at: int, tokenizer: Any) -> str:
    before = tokenizer.decode(tokens[max(1, at - TOKENS_BEFORE) : at])
    token = tokenizer.decode(tokens[at])
    after = tokenizer.decode(tokens[at + 1 : at + 1 + TOKENS_AFTER])
    return f"{before}>>>{token}<<<{after}".replace("\n", "\\n")
