"""A report's figures as lines of text: what was asked, what was got, where latents fire."""

from sae_lens_gba.report.page_data import group_rows, visible
from sae_lens_gba.report.results import Context, Report

LATENTS_A_GROUP = 2
SNIPPETS_A_LATENT = 4
TOKENS_BEFORE, TOKENS_AFTER = 8, 3


def summary(report: Report) -> str:
    """Of the first SAE: its metrics, its groups, snippets of latents that the report details."""
    sae, groups = report.saes[0], group_rows(report.saes[0])
    metrics = sae.metrics
    lines = [
        "",
        f"held-out text, {report.provenance.n_tokens} tokens:",
        f"  L0 asked            {metrics.l0_asked:8.1f}",
        f"  L0 got              {metrics.l0:8.1f}",
        f"  explained variance  {metrics.explained_variance:8.3f}",
        f"  never active        {metrics.dead:8d} of {sae.d_sae} latents",
        "",
        "  group  latents  target frequency  measured",
    ]
    lines += [
        f"  {row['group']:5d}  {row['size']:7d}  {row['target']:16.5f}  {row['measured']:8.5f}"
        for row in groups
    ]
    lines += ["", "where some latents fire most, the token in ⟦ ⟧:"]
    for row in (groups[0], groups[len(groups) // 2], groups[-1]):
        for detail in row["latents"][:LATENTS_A_GROUP]:
            frequency = sae.latents.frequency[detail.latent]
            lines += [
                "",
                f"  latent {detail.latent} (group {row['group']}, {frequency:.2%} of tokens)",
            ]
            lines += [f"    {_snippet(context)}" for context in detail.top[:SNIPPETS_A_LATENT]]
    return "\n".join(lines) + "\n"


def _snippet(context: Context) -> str:
    tokens, at = context.tokens, context.focus
    before = "".join(tokens[max(0, at - TOKENS_BEFORE) : at])
    after = "".join(tokens[at + 1 : at + 1 + TOKENS_AFTER])
    return f"{visible(before)}⟦{visible(tokens[at])}⟧{visible(after)}"
