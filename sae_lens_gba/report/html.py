"""The report as one HTML file that needs nothing else."""

import json
import secrets
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.group_colors import group_color
from sae_lens_gba.report import plots
from sae_lens_gba.report.results import LatentDetail, Report, SaeResult

# keeps the page of a wide SAE under 15 MB: the JSON has every latent
MAX_TABLE_ROWS = 40_000
HEADLINE_TOKENS = 3
CHIPS_A_GROUP = 6


def write_html(report: Report, path: Path) -> None:
    """Write the page, all or nothing."""
    page = render(report)
    write_atomically(path, lambda partial: partial.write_text(page, encoding="utf-8"))


def render(report: Report) -> str:
    """The page as text.

    Text of the data reaches it in two ways only: through the template, which escapes it, and as
    JSON whose ``<`` is escaped. Scripts carry a nonce that a content security policy asks for,
    which also forbids the page to load anything.
    """
    environment = Environment(
        loader=PackageLoader("sae_lens_gba.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        {"visible": visible, "number": number, "percent": percent, "pretty": pretty}
    )
    first = report.saes[0]
    return environment.get_template("report.html.jinja").render(
        report=report,
        first=first,
        nonce=secrets.token_urlsafe(16),
        plotly=Markup(get_plotlyjs()),
        figures={name: _plain(f) for name, f in plots.all_figures(report).items()},
        latent_figures={
            f"{i}-{detail.latent}": _plain(plots.latent_histogram(detail))
            for i, sae in enumerate(report.saes)
            for detail in sae.details
        },
        table=latent_table(first),
        groups=group_rows(first),
        headline=headline,
        details={(i, d.latent): d for i, sae in enumerate(report.saes) for d in sae.details},
        has_frontier_ce=all(s.metrics.ce_loss_recovered is not None for s in report.saes),
    )


def latent_table(sae: SaeResult) -> dict[str, Any]:
    """Columns of the page's table, and for each row whether it can be opened."""
    table = sae.latents
    step = max(1, -(-sae.d_sae // MAX_TABLE_ROWS))
    shown = {d.latent: headline(d) for d in sae.details}
    rows = [i for i in range(sae.d_sae) if i % step == 0 or i in shown]
    columns: list[dict[str, Any]] = []

    def add(title: str, values: list[Any] | None, kind: str, hint: str) -> None:
        if values is not None:
            picked = [values[i] for i in rows]
            columns.append({"title": title, "values": picked, "kind": kind, "hint": hint})

    add("latent", list(range(sae.d_sae)), "latent", "")
    fires_on = [shown.get(latent, "") for latent in range(sae.d_sae)]
    add("fires most on", fires_on, "text", "tokens of its strongest activations")
    add("group", table.group, "integer", "0 is the most active")
    add("target", table.target_frequency, "share", "share of tokens it was trained to fire on")
    add("frequency", table.frequency, "share", "share of tokens it fired on")
    add("Z-score", table.z_score, "number", "how far out its active tokens lie, in deviations")
    add("max", table.max_activation, "number", "largest activation")
    add("norm", table.decoder_norm, "number", "of its decoder row")
    add("threshold", table.threshold, "number", "minus the bias")
    add("nearest", table.nearest, "integer", "the other latent most like it")
    add("cosine", table.nearest_cosine, "number", "of their decoder rows")
    for label, matches in table.best_match.items():
        add(f"in {label}", matches, "integer", f"the latent of {label} most like it")
        add("MCS", table.best_match_cosine[label], "number", f"cosine with it in {label}")
    return {"columns": columns, "step": step}


def headline(detail: LatentDetail | None) -> str:
    """The tokens a latent's strongest activations are on, most common first."""
    if detail is None:
        return ""
    tokens = Counter(visible(c.tokens[c.focus]).strip() or "␣" for c in detail.top)
    return " · ".join(token for token, _ in tokens.most_common(HEADLINE_TOKENS))


def group_rows(sae: SaeResult) -> list[dict[str, Any]]:
    """One dict a group: size, target, mean measured frequency, dead, some latents."""
    table, targets = sae.latents, plots.targets(sae)
    if table.group is None:
        return []
    rows = []
    for group, members in plots.members(sae).items():
        frequencies = [table.frequency[latent] for latent in members]
        details = [d for d in sae.details if table.group[d.latent] == group]
        rows.append(
            {
                "group": group,
                "color": group_color(group, len(targets)),
                "size": len(members),
                "target": targets[group],
                "measured": fmean(frequencies),
                "dead": frequencies.count(0),
                "latents": details[:CHIPS_A_GROUP],
            }
        )
    return rows


def visible(token: str) -> str:
    """A token's text with line breaks and tabs that can be seen."""
    return token.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")


def number(value: float | None) -> str:
    """At most three significant digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share, with digits that suit its size."""
    if value is None:
        return "-"
    if value == 0:
        return "0 %"
    return f"{100 * value:.1f} %" if value >= 0.01 else f"{100 * value:.2g} %"


def pretty(value: Mapping[str, Any]) -> str:
    """A config as indented JSON."""
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)


def _plain(figure: go.Figure) -> dict[str, Any]:
    """Data and layout as plain JSON; the page draws from these."""
    plain = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return {"data": plain["data"], "layout": plain["layout"]}
