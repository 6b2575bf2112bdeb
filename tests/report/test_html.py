"""The page: small enough, whole, and data cannot become code."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from sae_lens_gba.report import Report
from sae_lens_gba.report.details import PART_OF_CHARACTER
from sae_lens_gba.report.html import render
from sae_lens_gba.report.latent_files import latents_folder
from sae_lens_gba.report.page_data import headline, latent_columns, number, percent, visible
from sae_lens_gba.report.results import Context, LatentTable
from tests.one_latent_a_word import ATTACKS, N_LATENTS, VOCABULARY


@pytest.fixture(scope="module")
def source(page: Path) -> str:
    """The page without plotly itself."""
    whole = page.read_text(encoding="utf-8")
    library = get_plotlyjs()
    assert whole.count(library) == 1
    return whole.replace(library, "")


def test_text_of_the_data_cannot_become_markup(source: str, page: Path, report: Report) -> None:
    shown = {c.tokens[c.focus] for d in report.saes[0].details for c in d.top}
    assert shown & set(ATTACKS), "the sample has none of the attacks: the test shows nothing"
    for attack in ATTACKS[:3]:
        assert attack not in source
    assert "<i>text</i>" not in source  # the data set's name
    assert "first<b>" not in source  # the folder's
    assert "\\u003cscript\\u003ewindow.attacked=1\\u003c/script\\u003e" in source
    details = "".join(path.read_text() for path in latents_folder(page).iterdir())
    assert "{{7*7}}" in details  # text, not a template


def test_scripts_are_ours_alone(source: str) -> None:
    tags = re.findall(r"<script\b[^>]*>", source)
    assert len(tags) == 3
    (nonce,) = set(re.findall(r'<script nonce="([^"]+)">', source))
    assert f"script-src 'nonce-{nonce}'" in source
    assert not re.search(r"\son\w+\s*=", re.sub(r"<script.*?</script>", "", source, flags=re.S))


def test_nothing_is_fetched_from_elsewhere(source: str) -> None:
    assert "default-src 'none'" in source
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", source)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in source
    assert "url(" not in source


def test_the_page_is_below_15_mb_of_a_wide_sae_as_well(report: Report, page: Path) -> None:
    assert page.stat().st_size < 15e6
    first = report.saes[0]
    n = 131_072
    repeats = -(-n // N_LATENTS)
    wide: dict[str, Any] = {"best_match": {}, "best_match_cosine": {}}
    for name, values in vars(first.latents).items():
        if name not in wide:  # no two entries the same
            wide[name] = [v + i * 1e-5 for i, v in enumerate(values * repeats)][:n]
    wide |= {"group": [k * 4 // n for k in range(n)], "nearest": list(range(n))}
    sae = replace(first, d_sae=n, latents=LatentTable(**wide))
    html = render(replace(report, saes=[sae], comparisons=[]), "x")
    assert len(html.encode()) < 15e6
    assert "every 4th latent is listed" in html


def test_the_table_has_every_latent(report: Report) -> None:
    columns = latent_columns(report.saes[0], 0, range(N_LATENTS))
    titles = [column["title"] for column in columns]
    assert titles == [
        "latent", "fires most on", "group", "target", "frequency", "Z-score", "max", "norm",
        "threshold", "nearest", "cosine", "in second", "MCS",
    ]  # fmt: skip
    assert all(len(column["values"]) == N_LATENTS for column in columns)
    assert all(column["hint"].endswith(".") for column in columns)  # the legend's sentences


def test_a_latents_headline_is_what_it_fires_on(report: Report) -> None:
    for detail in report.saes[0].details:
        assert headline(detail) == VOCABULARY[detail.latent]
    assert headline(None) == ""
    for first, shown in (("日", "日"), (PART_OF_CHARACTER, PART_OF_CHARACTER)):
        context = Context([first, PART_OF_CHARACTER, "本"], [0.0, 1.0, 0.0], focus=1)
        assert headline(replace(report.saes[0].details[0], top=[context])) == shown


def test_a_single_sae_without_groups_has_neither_groups_nor_comparison(report: Report) -> None:
    alone = render(replace(report, saes=[report.saes[1]], comparisons=[]), "x")
    assert 'id="summary"' in alone
    assert 'id="groups"' not in alone
    assert 'id="comparison"' not in alone


def test_numbers_are_short() -> None:
    assert [number(v) for v in (None, 0.84857, 12.0, 1981.2)] == ["-", "0.849", "12", "1,981"]
    assert [percent(v) for v in (None, 0.0, 0.2, 0.00381)] == ["-", "0%", "20%", "0.381%"]
    assert percent(1.234e-8) == "0.00000123%"
    assert visible("a\n\tb\r") == "a↵⇥b"
    assert visible("\u202eevil\u200b") == "⟨202E⟩evil⟨200B⟩"
    assert visible("👩\u200d💻 \ue000") == "👩\u200d💻 \ue000"
    assert visible("\u200d") == "⟨200D⟩"
    assert visible("\u06dd\u3164") == "\u06dd⟨3164⟩"
