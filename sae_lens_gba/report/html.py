"""The report as an HTML file that needs nothing else but the details of its latents beside it."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.report import page_data, plots
from sae_lens_gba.report.latent_files import FUNCTION, LATENTS_PER_FILE, latents_folder
from sae_lens_gba.report.results import Report, SaeResult


def write_html(report: Report, path: Path) -> None:
    """Write the page, all or nothing. `Report.save` writes the details that it opens."""
    page = render(report, latents_folder(path).name)
    write_atomically(path, lambda partial: partial.write_text(page, encoding="utf-8"))


def environment() -> Environment:
    """The templates of the package, in which all data is escaped."""
    found = Environment(
        loader=PackageLoader("sae_lens_gba.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        {"number": page_data.number, "percent": page_data.percent, "pretty": pretty}
    )
    return found


def render(report: Report, details_folder: str) -> str:
    """The page as text.

    Text of the data reaches it in three ways only: through the template, which escapes it, as
    JSON whose ``<`` is escaped, and as text nodes made of what the details beside it hold.
    Scripts carry a nonce that a content security policy asks for, which also forbids the page to
    load anything else.

    Args:
        details_folder: name of the folder beside the page that has the details of latents.
    """
    first, *others = report.saes
    rows, step = page_data.table_rows(first)
    shown = [rows, *([d.latent for d in sae.details] for sae in others)]
    saes = [
        _sae(sae, i, some) for i, (sae, some) in enumerate(zip(report.saes, shown, strict=True))
    ]
    return environment().get_template("report.html.jinja").render(
        report=report,
        first=first,
        nonce=secrets.token_urlsafe(16),
        plotly=Markup(get_plotlyjs()),
        columns=saes[0]["columns"],
        step=step,
        groups=page_data.group_rows(first),
        headline=page_data.headline,
        terms=page_data.TERMS,
        all_latents=len(first.details) == first.d_sae,
        data={
            "figures": {name: _plain(f) for name, f in plots.all_figures(report).items()},
            "latentFigure": _plain(plots.latent_figure()),
            "saes": saes,
            "several": len(report.saes) > 1,
            "details": {
                "folder": details_folder, "perFile": LATENTS_PER_FILE, "function": FUNCTION
            },
        },
    )  # fmt: skip


def _sae(sae: SaeResult, index: int, rows: list[int]) -> dict[str, Any]:
    return {
        "label": sae.label,
        "width": sae.d_sae,
        "columns": page_data.latent_columns(sae, index, rows),
        "detailed": [d.latent for d in sae.details],
    }


def pretty(value: Mapping[str, Any]) -> str:
    """A config as indented JSON."""
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)


def _plain(figure: go.Figure) -> dict[str, Any]:
    """Data and layout as plain JSON; the page draws from these."""
    plain = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return {"data": plain["data"], "layout": plain["layout"]}
