"""Figures of a report, each made from its data alone (no model, no SAE, no text).

All are plotly figures without colours of their own for text and background, so that the page
gives them those of its light or dark theme.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_lens_gba.group_colors import group_color
from sae_lens_gba.report.compare import RELATED, SAME_FEATURE
from sae_lens_gba.report.results import Report, SaeResult

BINS_A_DECADE = 10
MAX_POINTS = 4000
PLAIN = "#4c8bf5"
# shares on a log axis, as 0.01%, 0.1%, 1%
SHARE_AXIS: dict[str, Any] = {"type": "log", "dtick": 1, "tickformat": ".3~%"}
# the same where values are logarithms
LOG10_AXIS: dict[str, Any] = {
    "tickvals": list(range(-7, 1)),
    "ticktext": ["0.00001%", "0.0001%", "0.001%", "0.01%", "0.1%", "1%", "10%", "100%"],
}
GRID = "rgba(128,128,128,0.25)"


def all_figures(report: Report) -> dict[str, go.Figure]:
    """Every figure of the page by the id of its place in it."""
    first = report.saes[0]
    figures = {"frequencies": frequency_histogram(first)}
    if first.latents.threshold is not None:
        figures["thresholds"] = threshold_against_frequency(first)
    if first.latents.target_frequency is not None:
        figures["targets"] = frequency_against_target(first)
    if report.comparisons:
        explained = [s.metrics.explained_variance for s in report.saes]
        figures["frontier"] = frontier(report.saes, "explained variance", explained)
        recovered = [r for s in report.saes if (r := s.metrics.ce_loss_recovered) is not None]
        if len(recovered) == len(report.saes):
            figures["frontier-ce"] = frontier(report.saes, "CE loss recovered", recovered)
        figures["frequencies-compared"] = frequencies_side_by_side(report.saes)
        figures["matches"] = match_histogram(first)
    return figures


def frequency_histogram(sae: SaeResult) -> go.Figure:
    """Latents by log10 of activation frequency, coloured by group, targets as lines."""
    figure = _figure("frequency (share of tokens)", "latents")
    _add_frequency_bars(figure, sae)
    for group, target in targets(sae).items():
        color = group_color(group, len(targets(sae)))
        figure.add_vline(x=math.log10(target), line={"color": color, "width": 1.5, "dash": "dot"})
    figure.update_layout(barmode="stack", bargap=0.04)
    return figure


def frequencies_side_by_side(saes: Sequence[SaeResult]) -> go.Figure:
    """The same of several SAEs, one above the other on one axis."""
    figure = make_subplots(
        rows=len(saes),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.28 / len(saes),
        subplot_titles=[_short(s.label) for s in saes],
    )
    _style(figure)
    for row, sae in enumerate(saes, start=1):
        _add_frequency_bars(figure, sae, row=row, col=1, showlegend=False)
    figure.update_layout(barmode="stack", bargap=0.04, height=130 + 170 * len(saes))
    figure.update_xaxes(title_text="frequency (share of tokens)", row=len(saes), col=1)
    figure.update_yaxes(title_text="latents")
    return figure


def frequency_against_target(sae: SaeResult) -> go.Figure:
    """Measured frequency of every latent against its target; on the line it is on target."""
    table, asked = sae.latents, targets(sae)
    figure = _figure("target frequency", "measured frequency")

    def aside(latent: int, group: int) -> float:
        """Side by side instead of on top of each other: a group has one target."""
        return asked[group] * float(10 ** (0.1 * ((latent * 0.618) % 1 - 0.5)))

    _add_points(figure, sae, aside, table.frequency, "measured %{y:.3~%}")
    ends = [min(asked.values()), max(asked.values())]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", name="on target", line={"color": "gray", "dash": "dash"}
    )
    figure.update_yaxes(**SHARE_AXIS)
    return figure


def threshold_against_frequency(sae: SaeResult) -> go.Figure:
    """How a latent's threshold (minus its bias) relates to how often it is active."""
    table = sae.latents
    figure = _figure("measured frequency", "threshold (= -bias)")
    hover = "threshold %{y:.3g}, fires on %{x:.3~%}"
    _add_points(
        figure, sae, lambda latent, _: table.frequency[latent], table.threshold or [], hover
    )
    return figure


def frontier(saes: Sequence[SaeResult], title: str, values: Sequence[float]) -> go.Figure:
    """Where each SAE stands between few active latents and good reconstruction."""
    figure = _figure("L0 (active latents per token)", title)
    for i, (sae, value) in enumerate(zip(saes, values, strict=True)):
        figure.add_scatter(
            x=[sae.metrics.l0],
            y=[value],
            mode="markers",
            marker={"size": 13, "color": group_color(i, len(saes))},
            name=_short(sae.label),
            hovertemplate=f"L0 %{{x:.3g}}<br>{title} %{{y:.4g}}",
        )
    figure.update_layout(showlegend=True, height=280)
    return figure


def match_histogram(sae: SaeResult) -> go.Figure:
    """Best decoder cosine of the living latents in each compared SAE (MCS)."""
    figure = _figure("best decoder cosine (MCS)", "latents")
    n_bins = 40
    for i, (label, cosines) in enumerate(sae.latents.best_match_cosine.items()):
        living = [c for f, c in zip(sae.latents.frequency, cosines, strict=True) if f > 0]
        counts = Counter(min(int(max(c, 0.0) * n_bins), n_bins - 1) for c in living)
        figure.add_scatter(
            x=[(b + 0.5) / n_bins for b in range(n_bins)],
            y=[counts[b] for b in range(n_bins)],
            name=_short(label),
            mode="lines",
            line={"shape": "hvh", "color": group_color(i, len(sae.latents.best_match_cosine))},
            hovertemplate="cosine %{x:.2f}: %{y} latents",
        )
    for cosine in (RELATED, SAME_FEATURE):
        figure.add_vline(x=cosine, line={"color": "gray", "width": 1, "dash": "dot"})
    figure.update_layout(showlegend=True)
    figure.update_xaxes(range=[0, 1])
    return figure


def latent_figure() -> go.Figure:
    """How strongly a latent fires when it does; the page puts in the bars."""
    figure = _figure("activation", "tokens (log)")
    figure.add_bar(
        x=[],
        y=[],
        marker_color=PLAIN,
        hovertemplate="activation %{x:.3g}: %{y} tokens",
        showlegend=False,
    )
    figure.update_layout(bargap=0.04, height=220)
    figure.update_yaxes(type="log", dtick=1)
    return figure


def _add_points(
    figure: go.Figure,
    sae: SaeResult,
    x: Callable[[int, int], float],
    y: Sequence[float],
    hover: str,
) -> None:
    """A point for each latent that fires, at ``x(latent, group)`` and ``y[latent]``."""
    groups = members(sae)
    for group, latents in groups.items():
        alive = [m for m in latents if sae.latents.frequency[m] > 0]
        # thousands of points say no more, and make the page slow
        alive = alive[:: max(1, -(-len(alive) // MAX_POINTS))]
        figure.add_scatter(
            x=[x(m, group) for m in alive],
            y=[y[m] for m in alive],
            mode="markers",
            marker={"size": 4, "opacity": 0.5, "color": group_color(group, len(groups))},
            name=f"group {group}" if sae.latents.group is not None else "latents",
            text=[f"latent {m}" for m in alive],
            hovertemplate=f"%{{text}}<br>{hover}",
        )
    figure.update_xaxes(**SHARE_AXIS)
    figure.update_layout(showlegend=False)


def _add_frequency_bars(
    figure: go.Figure, sae: SaeResult, showlegend: bool = True, **where: Any
) -> None:
    groups = members(sae)
    for group, latents in groups.items():
        living = [f for m in latents if (f := sae.latents.frequency[m]) > 0]
        counts = Counter(math.floor(math.log10(f) * BINS_A_DECADE) for f in living)
        bins = sorted(counts)
        figure.add_bar(
            x=[round((b + 0.5) / BINS_A_DECADE, 3) for b in bins],
            y=[counts[b] for b in bins],
            width=1 / BINS_A_DECADE,
            name=f"group {group}" if sae.latents.group is not None else "latents",
            marker_color=group_color(group, len(groups)),
            text=[
                f"{10 ** (b / BINS_A_DECADE):.2%} to {10 ** ((b + 1) / BINS_A_DECADE):.2%}"
                for b in bins
            ],
            textposition="none",
            hovertemplate="%{text}: %{y} latents",
            showlegend=showlegend,
            **where,
        )
    figure.update_xaxes(**LOG10_AXIS)


def members(sae: SaeResult) -> dict[int, list[int]]:
    """Latents of each group; all in group 0 if there are none."""
    if sae.latents.group is None:
        return {0: list(range(sae.d_sae))}
    found: dict[int, list[int]] = {k: [] for k in sorted(set(sae.latents.group))}
    for latent, group in enumerate(sae.latents.group):
        found[group].append(latent)
    return found


def targets(sae: SaeResult) -> dict[int, float]:
    """Target frequency of each group; empty if there are none."""
    table = sae.latents
    if table.group is None or table.target_frequency is None:
        return {}
    return {k: table.target_frequency[m[0]] for k, m in members(sae).items()}


def _short(label: str) -> str:
    return label if len(label) <= 32 else f"{label[:31]}…"


def _figure(x_title: str, y_title: str) -> go.Figure:
    figure = go.Figure()
    _style(figure)
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    return figure


def _style(figure: go.Figure) -> None:
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 56, "r": 12, "t": 28, "b": 48},
        height=340,
        legend={
            "orientation": "h",
            "traceorder": "normal",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "font_size": 11,
        },
        font={"size": 12},
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
