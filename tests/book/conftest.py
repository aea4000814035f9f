"""Fixtures: a built book, and a headless Chromium that opens its pages with the network cut.

`CCTLIB_BOOK=_build/html` opens a book that is built already instead of building one.
"""

import os
import shutil
from pathlib import Path

import pytest

from cctlib.study import open_study
from tools import book, explore, reproduce

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREEN = {"width": 1200, "height": 900}
UNDRAWN_MATHS = "[...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container svg')).length"


@pytest.fixture(scope="session")
def shipped():
    return open_study("cifar100", profile="shipped", device="cpu")


@pytest.fixture(scope="session")
def executed(shipped, tmp_path_factory):
    """Executed copies of all notebooks, from the measurement that ships."""
    runs = tmp_path_factory.mktemp("runs")
    settings = {"dataset": "cifar100", "model": "default", "profile": "shipped", "runs": str(runs), "device": "cpu"}
    return reproduce.execute_all(reproduce.notebooks(ROOT / "notebooks"), settings, shipped, runs)


@pytest.fixture(scope="session")
def explored(shipped, tmp_path_factory):
    """The data of the page that shows all nodes, without images."""
    folder = tmp_path_factory.mktemp("explored")
    explore.write(shipped, None, folder)
    return folder


@pytest.fixture(scope="session")
def html(request, tmp_path_factory):
    """The folder of a built book."""
    if named := os.environ.get("CCTLIB_BOOK"):
        return Path(named).resolve()
    executed, explored = (request.getfixturevalue(name) for name in ("executed", "explored"))
    return book.make(executed, explored, tmp_path_factory.mktemp("build")).parent


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the book was not opened in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield found
        found.close()


@pytest.fixture
def opened(browser):
    """A function that opens a page with the network cut, and returns it with what it asked for and what went wrong."""
    contexts = []

    def open_page(path):
        context = browser.new_context(viewport=SCREEN, reduced_motion="reduce")
        contexts.append(context)
        asked, errors = [], []

        def local_only(route):
            if route.request.url.startswith(("file:", "data:", "blob:")):
                return route.continue_()
            asked.append(route.request.url)
            return route.abort()

        context.route("**/*", local_only)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri(), wait_until="load")
        if page.locator(".plotly-graph-div").count():
            page.wait_for_function(
                "document.querySelectorAll('.plotly-graph-div:not(:has(svg.main-svg))').length === 0"
            )
        if page.locator(".math").count():
            page.wait_for_function(f"{UNDRAWN_MATHS} === 0")
        return page, asked, errors

    yield open_page
    for context in contexts:
        context.close()
