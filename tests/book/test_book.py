"""The book as its readers get it: notebooks run by papermill, built, and opened in a headless Chromium, offline."""

import os
from pathlib import Path

import pytest

from cctlib.errors import UserError
from cctlib.figures import style
from cctlib.snp import tables
from tools import book

ROOT = Path(__file__).resolve().parents[2]
PHONE, SCREEN = {"width": 390, "height": 844}, {"width": 1200, "height": 900}

BAD_IMAGES = """[...document.querySelectorAll('.bd-article img')]
  .filter(i => !i.alt.trim() || !i.naturalWidth || !i.clientWidth || !i.clientHeight).map(i => i.src.slice(-60))"""
BAD_PLOTS = """[...document.querySelectorAll('.plotly-graph-div')].filter(d => {
  const drawn = d.querySelector('svg.main-svg'), box = drawn && drawn.getBoundingClientRect();
  return !drawn || !box.width || !box.height || !d.closest('[aria-label]').ariaLabel.trim() }).map(d => d.id)"""
CUT_TABLES = """[...document.querySelectorAll('.bd-article .text_html, .bd-article .pst-scrollable-table-container')]
  .filter(b => b.querySelector('table') && b.scrollWidth > b.clientWidth + 1).map(b => b.innerText.slice(0, 50))"""
FOCUS = """() => { const e = document.activeElement, s = getComputedStyle(e);
  const seen = s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0;
  return {tag: e.tagName, text: e.textContent.trim(), seen} }"""


def pages(html):
    found = [path for folder in ("book", "notebooks") for path in sorted(html.glob(f"{folder}/*.html"))]
    assert len(found) >= 8
    return [*found, html / "search.html", html / "genindex.html"]


@pytest.mark.notebooks
def test_notebooks_run_from_the_shipped_measurement(executed):
    for path in executed:
        assert book.read_executed(path)["metadata"]["papermill"]["exception"] is None


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
def test_every_page_opens_without_a_network_and_fits_a_phone(html, opened):
    for path in pages(html):
        page, asked, errors = opened(path)
        assert asked == [], f"{path.name} asks the network for {asked}"
        assert errors == [], f"{path.name}: {errors}"
        assert page.evaluate(BAD_IMAGES) == [], f"{path.name}: an image is not seen or has no words"
        assert page.evaluate(BAD_PLOTS) == [], f"{path.name}: a plot is not seen or has no words"
        assert page.evaluate(CUT_TABLES) == [], f"{path.name}: a table is wider than its column on a screen"
        page.set_viewport_size(PHONE)
        page.wait_for_timeout(200)  # plots follow the width
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], (
            f"{path.name} scrolls sideways on a phone"
        )


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


@pytest.mark.browser
@pytest.mark.notebooks
@pytest.mark.parametrize(
    ("theme", "viewport"),
    [
        ("dark", PHONE),
        ("light", SCREEN),
        pytest.param("light", PHONE, marks=pytest.mark.slow),
        pytest.param("dark", SCREEN, marks=pytest.mark.slow),
    ],
)
def test_axe_finds_no_serious_fault(html, opened, theme, viewport):
    from axe_playwright_python.sync_playwright import Axe

    axe, faults = Axe(), {}
    for path in pages(html):
        page, _, _ = opened(path)
        page.set_viewport_size(viewport)
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        page.wait_for_timeout(100)  # boxes that scroll now get their place in the order of keys
        for fault in axe.run(page).response["violations"]:
            if fault["impact"] in ("serious", "critical"):
                faults[path.name, fault["id"]] = [node["html"][:120] for node in fault["nodes"]][:3]
    assert not faults
