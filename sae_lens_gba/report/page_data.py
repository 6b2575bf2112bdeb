"""What the page is filled in with, made from a report alone."""

from collections import Counter
from collections.abc import Iterable
from statistics import fmean
from typing import Any
from unicodedata import category

from sae_lens_gba.group_colors import group_color
from sae_lens_gba.report import plots
from sae_lens_gba.report.details import PART_OF_CHARACTER
from sae_lens_gba.report.latent_sample import spread
from sae_lens_gba.report.results import Context, LatentDetail, SaeResult

# keeps the page of a wide SAE under 15 MB: the JSON has every latent
MAX_TABLE_ROWS = 40_000
HEADLINE_TOKENS = 3
# of words and emoji; letters that look like nothing; signs of Arabic and Syriac that Unicode counts
# among what is not seen
_JOINERS, _BLANK = "\u034f\u200c\u200d\ufe0e\ufe0f", "\u115f\u1160\u2800\u3164\uffa0"
_SIGNS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2"
CHIPS_PER_GROUP = 6

# term, what SAELens calls it, what it is
TERMS = (
    (
        "explained variance",
        "metrics/explained_variance",
        "1 - squared error / variance of the activations, over all tokens at once.",
    ),
    (
        "CE loss recovered",
        "ce_loss_score",
        "Setting the hook to zero raises the model's cross-entropy loss; this is how much of the "
        "rise the SAE's output in its place avoids: (at zero - with SAE) / (at zero - untouched).",
    ),
    ("L0", "metrics/l0", "Mean number of active latents per token."),
    ("latent", "feature", "One of the SAE's d_sae hidden units."),
    ("frequency", "feature density; its log10: sparsity", "Share of tokens a latent fires on."),
    (
        "dead (never fired)",
        "-",
        "Did not fire on this text. SAELens' dead_features are those silent in training for "
        "dead_feature_window steps.",
    ),
    ("threshold", "threshold of jumprelu; -b_enc of standard", "In a GBA SAE minus the bias."),
)


def table_rows(sae: SaeResult) -> tuple[list[int], int]:
    """Latents that the page lists, and of how many each is one: 1 but of very wide SAEs."""
    step = max(1, -(-sae.d_sae // MAX_TABLE_ROWS))
    shown = {d.latent for d in sae.details} if len(sae.details) <= MAX_TABLE_ROWS else set()
    return [i for i in range(sae.d_sae) if i % step == 0 or i in shown], step


def latent_columns(sae: SaeResult, index: int, rows: Iterable[int]) -> list[dict[str, Any]]:
    """Columns of a table of an SAE's latents, for these rows.

    Args:
        index: of the SAE in the report, to which links go.
    """
    table, rows = sae.latents, list(rows)
    columns: list[dict[str, Any]] = []

    def add(title: str, values: Any, kind: str, hint: str, to: int | None = None) -> None:
        """``to``: the SAE whose latents these are."""
        if values is not None:
            picked = [values[i] for i in rows]
            columns.append({"title": title, "values": picked, "kind": kind, "hint": hint, "to": to})

    headlines = {d.latent: headline(d) for d in sae.details}
    names = [headlines.get(latent, "") for latent in range(sae.d_sae)]
    add("latent", range(sae.d_sae), "latent", "Index in the SAE, from 0.", index)
    add("fires most on", names, "text", "Tokens of its strongest activations, commonest first; ␣ "
        "is white space.")  # fmt: skip
    if sae.explanations:
        said = [sae.explanations.get(latent, "") for latent in range(sae.d_sae)]
        add("explanation", said, "text", "As read from the file that was given.")
    add("group", table.group, "integer", "Group of GBA; 0 is the most active.")
    add("target", table.target_frequency, "share", "Share of tokens its group was set to fire on "
        "when training ended.")  # fmt: skip
    add("frequency", table.frequency, "share", "Share of tokens it fired on here. SAELens: feature "
        "density; its log10: sparsity.")  # fmt: skip
    add("Z-score", table.z_score, "number", "By how many standard deviations its mean "
        "pre-activation on the tokens it fires on lies above that on all. Rarer latents have "
        "higher ones: compare those of one frequency.")  # fmt: skip
    add("max", table.max_activation, "number", "Its largest activation here.")
    add("norm", table.decoder_norm, "number", "Length of its row of W_dec.")
    add("threshold", table.threshold, "number", "Pre-activation above which it fires; in a GBA SAE "
        "minus the bias (in a transcoder less its shrinkage).")  # fmt: skip
    add("nearest", table.nearest, "latent", "The other latent of this SAE whose decoder row points "
        "most nearly the same way.", index)  # fmt: skip
    add("cosine", table.nearest_cosine, "number", "Of the two decoder rows.")
    for to, label in enumerate(table.best_match, start=1):
        add(f"in {label}", table.best_match[label], "latent", f"The latent of {label} whose "
            "decoder row points most nearly the same way, of those that fire here.",
            to)  # fmt: skip
        add("MCS", table.best_match_cosine[label], "number", f"Cosine with it, in {label} (maximum "
            "cosine similarity).")  # fmt: skip
    return columns


def headline(detail: LatentDetail | None) -> str:
    """The tokens a latent's strongest activations are on, most common first."""
    if detail is None:
        return ""
    tokens = Counter(visible(_at_focus(context)).strip() or "␣" for context in detail.top)
    return " · ".join(token for token, _ in tokens.most_common(HEADLINE_TOKENS))


def _at_focus(context: Context) -> str:
    read = context.tokens[: context.focus + 1]
    characters = (token for token in reversed(read) if token != PART_OF_CHARACTER)
    return next(characters, PART_OF_CHARACTER)  # a text may have that one itself


def group_rows(sae: SaeResult) -> list[dict[str, Any]]:
    """One dict per group: size, target, mean measured frequency, dead, some latents."""
    table, targets = sae.latents, plots.targets(sae)
    if table.group is None:
        return []
    rows = []
    living: dict[int, list[LatentDetail]] = {}
    for detail in sae.details:
        if detail.top:
            living.setdefault(table.group[detail.latent], []).append(detail)
    for group, members in plots.members(sae).items():
        frequencies = [table.frequency[latent] for latent in members]
        details = living.get(group, [])
        chosen = spread(list(range(len(details))), CHIPS_PER_GROUP)
        rows.append(
            {
                "group": group,
                "color": group_color(group, len(targets)),
                "size": len(members),
                "target": targets[group],
                "measured": fmean(frequencies),
                "dead": frequencies.count(0),
                "latents": [details[i] for i in chosen],
            }
        )
    return rows


def visible(token: str) -> str:
    """A token's text with line breaks, tabs and what else can't be seen; as in elements.js."""
    text = token.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")
    alone = not text.strip(_JOINERS)
    return "".join(f"⟨{ord(c):X}⟩" if alone or _is_unseen(c) else c for c in text)


def _is_unseen(character: str) -> bool:
    """Also of marks that turn the direction of what follows; not of joiners beside others."""
    unseen = category(character) in ("Cc", "Cf", "Zl", "Zp") or character in _BLANK
    return unseen and character not in _JOINERS + _SIGNS


def number(value: float | None) -> str:
    """At most three significant digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share with at most three significant digits, as the axes of the figures have it."""
    if value is None:
        return "-"
    digits = f"{float(f'{100 * value:.3g}'):.12f}"
    return digits.rstrip("0").rstrip(".") + "%"
