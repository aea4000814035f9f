"""The book as its readers get it: notebooks run by papermill, built, and opened in a headless Chromium, offline."""

import functools
import gzip
import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe

from cctlib import cli
from cctlib.errors import UserError
from cctlib.figures import provenance, style
from cctlib.notebook import PLOTLY
from cctlib.snp import tables
from tools import book

ROOT = Path(__file__).resolve().parents[2]
PHONE, SCREEN = {"width": 390, "height": 844}, {"width": 1200, "height": 900}

BAD_IMAGES = """[...document.querySelectorAll('.bd-article img')]
  .filter(i => !i.alt.trim() || !i.naturalWidth || !i.clientWidth || !i.clientHeight).map(i => i.src.slice(-60))"""
BAD_PLOTS = """[...document.querySelectorAll('.plotly-graph-div')].filter(d => {
  const drawn = d.querySelector('svg.main-svg'), box = drawn && drawn.getBoundingClientRect();
  return !drawn || !box.width || !box.height || !d.closest('[aria-label]').ariaLabel.trim() }).map(d => d.id)"""
CUT_PLOTS = """[...document.querySelectorAll('.js-plotly-plot')].flatMap(plot =>
  [...plot.querySelectorAll('.gtitle, .updatemenu-button, .updatemenu-header')].filter(words =>
    words.getBoundingClientRect().right > plot.getBoundingClientRect().right).map(words => words.textContent))"""
CUT_TABLES = """[...document.querySelectorAll('.bd-article .text_html, .bd-article .pst-scrollable-table-container')]
  .filter(b => b.querySelector('table') && b.scrollWidth > b.clientWidth + 1).map(b => b.innerText.slice(0, 50))"""
FOCUS = """() => { const e = document.activeElement, s = getComputedStyle(e);
  const seen = s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0;
  return {tag: e.tagName, text: e.textContent.trim(), seen} }"""


def pages(html, of_package=None):
    """All pages; of those on the package, which are of one make, the first few where a number is given."""
    package = sorted(html.glob("book/api/*.html"))
    found = [path for folder in ("book", "notebooks") for path in sorted(html.glob(f"{folder}/*.html"))]
    assert len(found) >= 8 and len(package) >= 20
    return [*found, *package[:of_package], html / "search.html", html / "genindex.html"]


@pytest.mark.notebooks
def test_notebooks_run_from_the_shipped_measurement(executed):
    for path in executed:
        assert book.read_executed(path)["metadata"]["papermill"]["exception"] is None


@pytest.mark.notebooks
def test_every_picture_of_a_notebook_is_on_its_page(executed, html):
    for path in executed:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        drawn = sum("image/png" in data and PLOTLY not in data for data in outputs)
        text = (html / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert len(re.findall(r"<img [^>]*_images/[0-9a-f]{64}\.png", text)) == drawn, path.name


@pytest.mark.notebooks
def test_the_same_inputs_are_not_built_again(executed, explored, html, monkeypatch):
    if os.environ.get("CCTLIB_BOOK"):
        pytest.skip("CCTLIB_BOOK names a finished book: nothing is built")
    monkeypatch.setattr(book, "_jupyter_book", lambda *_: pytest.fail("built again"))
    book.make(executed, explored, html.parent)


def test_every_alternative_has_a_look_of_its_own():
    assert len(style.LOOKS) >= len(tables.SPLITS) + len(tables.PROBES)  # chapter 03 draws all that were measured


@pytest.mark.notebooks
def test_a_notebook_that_was_not_executed_is_refused():
    with pytest.raises(UserError, match="01_model") as caught:
        book.read_executed(ROOT / "notebooks" / "01_model.ipynb")
    assert "\n" not in str(caught.value)


@pytest.mark.browser
@pytest.mark.notebooks
def test_every_page_opens_without_a_network_fits_a_phone_and_has_no_serious_fault(html, opened):
    faults = {}
    for path in pages(html):
        page, asked, errors = opened(path)
        assert asked == [], f"{path.name} asks the network for {asked}"
        assert errors == [], f"{path.name}: {errors}"
        assert page.evaluate(BAD_IMAGES) == [], f"{path.name}: an image is not seen or has no words"
        assert page.evaluate(BAD_PLOTS) == [], f"{path.name}: a plot is not seen or has no words"
        assert page.evaluate(CUT_TABLES) == [], f"{path.name}: a table is wider than its column on a screen"
        assert page.locator("[data-title*=Share]").count() == 0, f"{path.name}: a plot offers to upload itself"
        page.set_viewport_size(PHONE)
        page.wait_for_timeout(200)  # plots follow the width
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], (
            f"{path.name} scrolls sideways on a phone"
        )
        assert page.evaluate(CUT_PLOTS) == [], f"{path.name}: words of a plot leave it on a phone"
        if path in pages(html, of_package=2):
            faults |= faults_of(page, path.name, "dark", PHONE) | faults_of(page, path.name, "light", SCREEN)
    assert not faults


@pytest.mark.notebooks
def test_a_page_weighs_less_than_3_mb_as_servers_send_it(html):
    """Compressed, with everything that its HTML names: scripts, styles and pictures (the wide ones)."""
    sent = functools.cache(lambda path: len(gzip.compress(path.read_bytes(), compresslevel=6)))
    for path in pages(html):
        text = path.read_text(encoding="utf-8")
        named = re.findall(r'<(?:script|img)\b[^>]*? src="([^"#?:]+)', text) + re.findall(
            r'<link\b[^>]*? href="([^"#?:]+\.(?:css|js|svg))', text
        )
        files = {(path.parent / unquote(name)).resolve() for name in named}
        weight = sent(path) + sum(sent(file) for file in files if file.is_file())
        assert len(files) > 5 and weight < 3_000_000, f"{path.name}: {weight:,} bytes"


@pytest.mark.browser
@pytest.mark.notebooks
def test_a_phone_loads_narrow_pictures_where_there_are_such(html, opened):
    page, _, _ = opened(html / "notebooks" / "03_snr.html")
    shown = (
        "[...document.querySelectorAll('picture > img')].map(i => [i.currentSrc.includes('/phone/'), i.naturalWidth])"
    )
    wide = page.evaluate(shown)
    page.set_viewport_size(PHONE)
    page.wait_for_function(
        "[...document.querySelectorAll('picture > img')].every(i => i.complete && i.currentSrc.includes('/phone/'))"
    )
    narrow = page.evaluate(shown)
    assert len(wide) >= 6 and not any(phone for phone, _ in wide)
    assert all(phone and width < 0.6 * whole for (phone, width), (_, whole) in zip(narrow, wide, strict=True))


@pytest.mark.browser
@pytest.mark.notebooks
@pytest.mark.parametrize("name", ["book/index.html", "book/api.html", "notebooks/02_snp.html"])
def test_a_page_is_used_by_keyboard(html, opened, name):
    path = html / name
    page, _, _ = opened(path)
    page.keyboard.press("Tab")
    assert "skip to main" in page.evaluate(FOCUS)["text"].lower(), (
        f"{path.name}: the first Tab does not offer to skip to the content"
    )
    reached = []
    for _ in range(15):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUS))
    assert all(focus["tag"] in ("A", "BUTTON", "INPUT", "SUMMARY") for focus in reached), f"{path.name}: {reached}"
    assert all(focus["seen"] for focus in reached), f"{path.name}: the focus cannot be seen: {reached}"


@pytest.mark.browser
@pytest.mark.notebooks
def test_the_root_leads_to_the_landing_page(html, opened):
    page, _, _ = opened(html / "index.html")
    page.wait_for_url("**/book/index.html")
    assert page.locator("main table").count()


def faults_of(page, name, theme, viewport):
    """What axe finds in a page that is serious or critical: by name, theme, width and rule, the first elements."""
    page.set_viewport_size(viewport)
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    page.wait_for_timeout(100)  # boxes that scroll now get their place in the order of keys
    return {
        (name, theme, viewport["width"], fault["id"]): [node["html"][:120] for node in fault["nodes"]][:3]
        for fault in Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        if fault["impact"] in ("serious", "critical")
    }


@pytest.mark.browser
@pytest.mark.notebooks
@pytest.mark.slow
def test_axe_finds_no_serious_fault_with_theme_and_screen_the_other_way_round(html, opened):
    faults = {}
    for path in pages(html):
        page, _, _ = opened(path)
        faults |= faults_of(page, path.name, "light", PHONE) | faults_of(page, path.name, "dark", SCREEN)
    assert not faults


UNDER = """[...document.querySelectorAll('.bd-article .cct-under')].map(p => ({
  text: p.innerText, links: [...p.querySelectorAll('a')].map(a => a.href) }))"""
PICTURES = ".bd-article .cell_output img, .bd-article .cct-plotly"


@pytest.mark.browser
@pytest.mark.notebooks
def test_under_each_figure_are_its_values_its_picture_and_its_code(html, opened):
    values = {}
    for path in sorted(html.glob("notebooks/0[0-7]*.html")):
        page, _, _ = opened(path)
        lines = page.evaluate(UNDER)
        assert len(lines) == page.locator(PICTURES).count(), f"{path.name}: a figure has no line under it"
        for line in lines:
            *csv, svg, code = line["links"]
            assert csv or path.stem == "02_snp", f"{path.name}: a figure without values"  # photographs have none
            for table in map(pd.read_csv, (urlparse(each).path for each in csv)):
                assert list(table) == provenance.COLUMNS and len(table), f"{path.name}: {csv}"
                values.setdefault(path.stem, []).append(table)
            assert ET.parse(urlparse(svg).path).getroot().tag.endswith("}svg")
            assert f"/notebooks/{path.stem}.ipynb" in code and "commit" in line["text"]
    by_theta = pd.read_parquet(ROOT / "artifacts" / "cifar100" / "vgg_11" / "by_theta.parquet")
    rows = by_theta[np.isclose(by_theta.theta, 0.3) & (by_theta.kind == "filters")].sort_values("encoder")
    drawn = values["07_cnn"][0].query("series == 'filters'").groupby("panel").y.apply(list)
    assert any(np.allclose(line, rows.noise) for line in drawn), "the values under a figure are not the ones it draws"


@pytest.mark.browser
@pytest.mark.notebooks
def test_a_shared_link_shows_a_title_and_a_picture(html, opened):
    page, _, _ = opened(html / "notebooks" / "03_snr.html")
    told = dict(
        page.evaluate("[...document.querySelectorAll('meta[property]')].map(m => [m.attributes[0].value, m.content])")
    )
    assert told["og:title"] == "Along the encoders" and told["og:description"]
    assert told["og:image"].startswith("https://") and (html / "_static" / Path(told["og:image"]).name).is_file()


@pytest.mark.notebooks
def test_a_link_to_the_glossary_shows_the_definition(html):
    text = (html / "notebooks" / "03_snr.html").read_text(encoding="utf-8")
    links = re.findall(r"<a [^>]*glossary\.html#term-[^>]*>", text)
    assert links and all(re.search(r'title="[^"]{20,}"', link) for link in links)
    assert any("The measurement repeated with the labels exchanged at random" in link for link in links)


@pytest.mark.notebooks
def test_every_chapter_opens_in_colab(html):
    for path in sorted(html.glob("notebooks/0[0-7]*.html")):
        link = f"https://colab.research.google.com/github/cctlib/cctlib/blob/main/notebooks/{path.stem}.ipynb"
        assert f'href="{link}">Open in Colab' in path.read_text(encoding="utf-8"), path.name


@pytest.mark.notebooks
def test_every_command_has_its_help_on_the_page_of_the_command_line(html):
    text = (html / "book" / "commands.html").read_text(encoding="utf-8")
    for name in cli.commands():
        assert f"cctlib {name}" in text
    assert "enc7/ff_hidden" in text and "layer10/filters" in text, "no command shows what it prints"
