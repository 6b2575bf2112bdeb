"""The page in headless Chromium.

Without a browser these tests fail. To leave them out, set SAE_LENS_GBA_NO_BROWSER_TESTS=1.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

from sae_lens_gba.report import Report
from sae_lens_gba.report.html import write_html
from sae_lens_gba.report.page_data import visible
from tests.one_latent_a_word import (
    ATTACKS,
    N_LATENTS,
    NEVER_USED,
    VOCABULARY,
    Collect,
    save_sae,
)

UNSEEN = [
    "a\n\tb\r", "\u202eevil", "\u200b", "\x1b[31m", "e\u200de", "\ue000", "\u2028", "é🙂",
    "\u200d\ufe0f", "\u06dd", "\u3164", "\u115f", "\uffa0", "\u034f", "e\u034f",
]  # fmt: skip
DESKTOP, PHONE = (1200, 900), (390, 844)


def set_scheme(browser: Any, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def show(browser: Any, page: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> None:
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    set_scheme(browser, scheme)
    browser.get("about:blank")
    browser.get(page.as_uri())


@pytest.fixture
def shown(browser: Any, page: Path) -> Iterator[Any]:
    browser.get_log("browser")
    browser.get_log("performance")
    show(browser, page)
    yield browser
    assert browser.get_log("browser") == []  # no script error, nothing blocked by the policy


@pytest.fixture(scope="module")
def linked(model: Any, collect: Collect, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a single SAE that shows all latents, of which 7 is a twin of 2."""
    folder = tmp_path_factory.mktemp("linked")
    directions = model.W_E.detach().float().clone()
    directions[7] = directions[2]
    report = collect(save_sae(folder / "sae", directions), n_tokens=1600, n_latents=None)
    report.save(folder / "page.json")
    write_html(report, folder / "page.html")
    return folder / "page.html"


def eventually(browser: Any, happens: Callable[[], Any]) -> None:
    """Plotly draws, and Chromium tells of a change of theme, in their own time."""
    WebDriverWait(browser, 30).until(
        lambda _: happens(), message="it did not happen within 30 seconds"
    )


def rows(browser: Any) -> list[list[str]]:
    return browser.execute_script(
        "return [...document.querySelectorAll('#latents tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )


def column(browser: Any, title: str) -> list[str]:
    titles = browser.execute_script(
        "return [...document.querySelectorAll('#latents th')].map((th) => th.textContent)"
    )
    return [row[titles.index(title)] for row in rows(browser)]


def press_header(browser: Any, title: str) -> None:
    (button,) = (
        b for b in browser.find_elements(By.CSS_SELECTOR, "#latents th button") if b.text == title
    )
    button.click()


def search(browser: Any, text: str) -> None:
    field = browser.find_element(By.ID, "search")
    field.clear()
    field.send_keys(text)


def list_all(browser: Any) -> None:
    browser.find_element(By.ID, "only-openable").click()


def contexts(browser: Any) -> list[str]:
    """What the open dialog shows, empty until its file is read."""
    return browser.execute_script(
        "return [...document.querySelectorAll('dialog .context')].map((line) => line.textContent)"
    )


def open_latent(browser: Any, latent: int, index: int = 0) -> None:
    browser.execute_script(f"location.hash = '#latent-{index}-{latent}'")
    eventually(browser, lambda: title(browser).split()[1] == str(latent) and contexts(browser))


def title(browser: Any) -> str:
    return str(browser.find_element(By.ID, "detail-title").text)


def test_nothing_is_loaded_from_the_network(shown: Any, page: Path) -> None:
    shown.find_element(By.CSS_SELECTOR, ".chip").click()
    eventually(shown, lambda: contexts(shown))
    messages = [json.loads(entry["message"])["message"] for entry in shown.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    requested = [params["request"]["url"] for params in sent]
    assert page.as_uri() in requested  # the log does see requests
    local = ("file:", "data:", "about:", "chrome:")  # the last are the browser's own new tab's
    assert [url for url in requested if not url.startswith(local)] == []
    names = shown.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert [name for name in names if not name.startswith(("data:", "file:"))] == []
    beside = {unquote(url).rpartition("/my report")[2] for url in requested if "report" in url}
    assert beside == {".html", "_latents/0-00000.js"}


def test_script_in_the_data_does_not_run(shown: Any, report: Report) -> None:
    list_all(shown)
    for detail in report.saes[0].details:
        if VOCABULARY[detail.latent] in ATTACKS:
            open_latent(shown, detail.latent)
            assert VOCABULARY[detail.latent] in contexts(shown)[0]
            shown.find_element(By.ID, "close").click()
    assert shown.execute_script("return window.attacked") is None
    assert shown.execute_script("return document.querySelectorAll('img').length") == 0


def test_the_policy_stops_a_script_that_got_in(browser: Any, page: Path) -> None:
    show(browser, page)
    browser.execute_script(
        "const script = document.createElement('script');"
        "script.textContent = 'window.attacked = 4'; document.body.append(script)"
    )
    assert browser.execute_script("return window.attacked") is None
    assert "Content Security Policy" in str(browser.get_log("browser"))


def test_every_figure_is_drawn(shown: Any) -> None:
    places = shown.find_elements(By.CSS_SELECTOR, "[data-figure]")
    assert len(places) == 7
    marks = ".trace path, .trace .point"
    for place in places:
        eventually(shown, partial(place.find_elements, By.CSS_SELECTOR, marks))


def test_the_table_starts_with_the_latents_that_can_be_opened(shown: Any, report: Report) -> None:
    expected = [str(detail.latent) for detail in report.saes[0].details]
    assert column(shown, "latent") == expected[:25]
    assert shown.find_elements(By.CSS_SELECTOR, "#latents tbody a")


def test_sorting_by_frequency_puts_the_most_active_first_and_then_last(
    shown: Any, report: Report
) -> None:
    list_all(shown)
    frequency = report.saes[0].latents.frequency
    descending = sorted(range(N_LATENTS), key=lambda latent: (-frequency[latent], latent))
    press_header(shown, "frequency")
    assert [int(text) for text in column(shown, "latent")][:5] == descending[:5]
    press_header(shown, "frequency")
    shares = [float(text.removesuffix("%")) for text in column(shown, "frequency")]
    assert shares == sorted(shares)
    assert shares[0] == 0


def test_searching_for_a_word_finds_the_latent_that_fires_on_it(shown: Any, report: Report) -> None:
    latent = report.saes[0].details[3].latent
    search(shown, VOCABULARY[latent].upper())
    assert str(latent) in column(shown, "latent")
    words = column(shown, "fires most on")
    assert all(VOCABULARY[latent] in word for word in words)


def test_searching_for_a_number_finds_that_latent_alone(shown: Any) -> None:
    list_all(shown)
    search(shown, str(NEVER_USED))
    assert NEVER_USED in [int(text) for text in column(shown, "latent")]
    assert all(str(NEVER_USED) in (row[0], *row[1].split("word")) for row in rows(shown))
    search(shown, "no such text")
    assert rows(shown) == []
    assert "0 latents" in shown.find_element(By.ID, "count").text


def test_choosing_a_group_leaves_the_others_out(shown: Any) -> None:
    list_all(shown)
    Select(shown.find_element(By.ID, "group")).select_by_value("2")
    assert set(column(shown, "group")) == {"2"}
    assert len(rows(shown)) == N_LATENTS // 4


def test_pages_of_the_table_show_every_latent_once(shown: Any) -> None:
    list_all(shown)
    first = column(shown, "latent")
    shown.find_element(By.ID, "next").click()
    second = column(shown, "latent")
    assert sorted(map(int, first + second)) == list(range(N_LATENTS))
    assert not shown.find_element(By.ID, "next").is_enabled()
    shown.find_element(By.ID, "previous").click()
    assert column(shown, "latent") == first


def test_opening_a_latent_shows_its_contexts_and_histogram(shown: Any, report: Report) -> None:
    detail = report.saes[0].details[0]
    shown.find_element(By.CSS_SELECTOR, f"#latents [href='#latent-0-{detail.latent}']").click()
    dialog = shown.find_element(By.ID, "detail")
    assert dialog.is_displayed()
    eventually(shown, lambda: dialog.find_elements(By.CSS_SELECTOR, ".plot .bars path"))
    assert title(shown).startswith(f"Latent {detail.latent} ")
    assert contexts(shown)[0].replace("<s>", "") == "".join(
        t for i, t in enumerate(detail.top[0].tokens) if i not in detail.top[0].special
    )
    marked = dialog.find_element(By.CSS_SELECTOR, ".context .focus")
    assert marked.text == VOCABULARY[detail.latent]
    assert marked.value_of_css_property("background-color") != "rgba(0, 0, 0, 0)"
    assert VOCABULARY[detail.latent] in dialog.find_element(By.CSS_SELECTOR, ".tokens").text
    shown.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()


def test_special_tokens_are_shown_as_such(shown: Any, report: Report) -> None:
    detail = next(d for d in report.saes[0].details if any(c.special for c in d.top))
    open_latent(shown, detail.latent)
    marks = shown.find_elements(By.CSS_SELECTOR, "dialog .special")
    assert {mark.text for mark in marks} == {"<s>"}


def test_the_address_says_which_latent_is_open(shown: Any, report: Report) -> None:
    first, second = (detail.latent for detail in report.saes[0].details[1:3])
    dialog = shown.find_element(By.ID, "detail")
    open_latent(shown, first)
    open_latent(shown, second)
    assert shown.current_url.endswith(f"#latent-0-{second}")
    shown.back()
    eventually(shown, lambda: title(shown).startswith(f"Latent {first} "))
    shown.find_element(By.ID, "close").click()
    assert "#latent" not in shown.current_url
    assert not dialog.is_displayed()
    shown.back()
    eventually(shown, dialog.is_displayed)


def test_a_link_to_a_latent_opens_it(browser: Any, page: Path, report: Report) -> None:
    latent = report.saes[0].details[2].latent
    browser.get("about:blank")
    browser.get(f"{page.as_uri()}#latent-0-{latent}")
    assert title(browser).startswith(f"Latent {latent} ")


def test_a_latents_nearest_and_those_that_fire_with_it_are_links(
    browser: Any, linked: Path
) -> None:
    show(browser, linked)
    open_latent(browser, 2)
    targets = {
        link.get_attribute("href").rpartition("#")[2]
        for link in browser.find_elements(By.CSS_SELECTOR, "dialog a")
    }
    assert targets == {"latent-0-7"}  # its twin, which is its nearest too
    browser.find_element(By.CSS_SELECTOR, "dialog .co-firing a").click()
    eventually(browser, lambda: title(browser) == "Latent 7" and contexts(browser))
    assert not browser.find_element(By.ID, "only-openable").is_displayed()  # all have examples
    assert len(rows(browser)) == 25


def test_a_latent_without_examples_says_how_to_have_them(
    browser: Any, page: Path, report: Report
) -> None:
    shown_ones = {detail.latent for detail in report.saes[0].details}
    frequency = report.saes[0].latents.frequency
    others = [i for i in range(N_LATENTS) if i not in shown_ones]
    fires = next(i for i in others if frequency[i] > 0)
    never = next(i for i in others if frequency[i] == 0)
    show(browser, page)
    list_all(browser)
    for latent, words in ((fires, f"report SAE_DIR --latents {fires} "), (never, "never fired")):
        search(browser, str(latent))
        browser.find_element(By.CSS_SELECTOR, f"#latents [href='#latent-0-{latent}']").click()
        assert title(browser).startswith(f"Latent {latent} ")
        said = browser.find_element(By.ID, "detail-content").text
        assert "Fires on" in said and words in said
        browser.find_element(By.ID, "close").click()
    browser.get(f"{page.as_uri()}#latent-1-{fires}")
    said = browser.find_element(By.ID, "detail-content").text
    assert "no examples of it." in said and "--latents" not in said
    browser.get("about:blank")
    browser.get(f"{page.as_uri()}#latent-0-{N_LATENTS}")
    assert not browser.find_element(By.ID, "detail").is_displayed()


def test_a_latent_that_fires_beyond_the_examples_is_not_said_to_be_silent(
    browser: Any, report: Report, tmp_path: Path
) -> None:
    first, *others = report.saes
    rare, *rest = [d for d in first.details if first.latents.frequency[d.latent] > 0]
    late = replace(rare, top=[], intervals=[], co_firing=[])
    changed = replace(report, saes=[replace(first, details=[late, *rest]), *others])
    changed.save(tmp_path / "p.json")
    write_html(changed, tmp_path / "p.html")
    show(browser, tmp_path / "p.html")
    browser.execute_script(f"location.hash = '#latent-0-{rare.latent}'")
    content = browser.find_element(By.ID, "detail-content")
    eventually(browser, lambda: "did not fire in the part of the text" in content.text)
    assert "never fired" not in content.text


@pytest.mark.parametrize("token", UNSEEN)
def test_what_cannot_be_seen_is_shown_as_in_the_table(shown: Any, token: str) -> None:
    assert shown.execute_script("return visible(arguments[0])", token) == visible(token)


def test_without_scripts_the_page_says_what_is_missing(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, page)
        body = browser.find_element(By.TAG_NAME, "body").text
        assert "need JavaScript" in body and "explained variance" in body
        for scripted in ("#latent-table", "figcaption", ".chip", "nav [href='#latent-table']"):
            assert not browser.find_element(By.CSS_SELECTOR, scripted).is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_legend_explains_every_column(shown: Any) -> None:
    titles = shown.execute_script(
        "return [...document.querySelectorAll('#latents th')].map((th) => th.textContent.trim())"
    )
    explained = shown.execute_script(
        "return [...document.querySelectorAll('#legend dt')].map((dt) => dt.textContent)"
    )
    assert explained == titles


def test_details_that_were_not_moved_along_are_named(
    browser: Any, page: Path, report: Report, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.html"
    alone.write_bytes(page.read_bytes())
    latent = report.saes[0].details[0].latent
    browser.get(f"{alone.as_uri()}#latent-0-{latent}")
    eventually(
        browser,
        lambda: "0-00000.js is missing" in browser.find_element(By.ID, "detail-content").text,
    )
    browser.get_log("browser")  # of the failed read


def test_matched_pairs_show_both_sides(shown: Any, report: Report) -> None:
    pair = report.comparisons[0].pairs[0]
    block = shown.find_element(By.CSS_SELECTOR, "#comparison details.pair")
    block.find_element(By.TAG_NAME, "summary").click()
    eventually(shown, lambda: len(block.find_elements(By.CSS_SELECTOR, ".focus")) > 4)
    focus = [e.text for e in block.find_elements(By.CSS_SELECTOR, ".context .focus")]
    assert set(focus) == {VOCABULARY[pair.latent]}
    block.find_element(By.CSS_SELECTOR, f"[href='#latent-1-{pair.other_latent}']").click()
    eventually(shown, lambda: "second" in title(shown) and contexts(shown))


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_the_page_is_never_wider_than_the_screen(
    browser: Any, page: Path, size: tuple[int, int]
) -> None:
    show(browser, page, size)
    assert browser.execute_script("return innerWidth") == size[0]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    browser.execute_script("document.querySelector('.chip').click()")
    eventually(browser, lambda: contexts(browser))
    assert browser.execute_script(
        "const d = document.getElementById('detail'); return d.scrollWidth <= d.clientWidth"
    )


def luminance(color: str) -> float:
    """Relative luminance of an rgb(...) colour, as WCAG defines it."""
    channels = [int(c) / 255 for c in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_ground(browser: Any, page: Path, scheme: str) -> None:
    show(browser, page, scheme=scheme)
    ground = luminance(
        browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    )
    assert (ground < 0.05) == (scheme == "dark")
    for selector in ("h1", ".soft", "nav a", "#latents td", "[data-figure] .xtick text"):
        css = "fill" if "text" in selector else "color"
        found = browser.execute_script(
            f"return getComputedStyle(document.querySelector({selector!r})).{css}"
        )
        dark, light = sorted((luminance(found), ground))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, selector
    ink, hot = browser.execute_script(
        "const mark = document.body.appendChild(document.createElement('p'));"
        "mark.style.background = 'var(--hot)';"
        "const style = getComputedStyle(mark); return [style.color, style.backgroundColor]"
    )
    dark, light = sorted(map(luminance, (ink, hot)))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_plots_follow_a_change_of_the_theme(browser: Any, page: Path) -> None:
    show(browser, page, scheme="light")
    color = "return getComputedStyle(document.querySelector('[data-figure] .xtick text')).fill"
    before = browser.execute_script(color)
    set_scheme(browser, "dark")
    eventually(browser, lambda: luminance(browser.execute_script(color)) > luminance(before) + 0.5)
