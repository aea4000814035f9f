"""The pages of the package: every example gives what the page shows, and shows every function that the page lists."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import cctlib

PAGES = sorted((Path(__file__).parents[2] / "book" / "api").glob("*.md"))
OVERVIEW = PAGES[0].parents[1] / "api.md"


def parts(page):
    """The example of a page, the module that it is about, and the names that it lists."""
    text = page.read_text(encoding="utf-8")
    example = re.search(r"```pycon\n(.*?)```", text, re.S)[1]
    module, members = re.search(r"automodule:: (\S+)\n\s+:members: (.+)", text).groups()
    return example, importlib.import_module(module), members.split(", ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_an_example_gives_what_the_page_shows(page):
    example = parts(page)[0]
    test = doctest.DocTestParser().get_doctest(example, {}, page.stem, str(page), 0)
    told = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=told.append)
    assert test.examples and not told, "".join(told)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_an_example_uses_every_function_of_its_page(page):
    example, module, names = parts(page)
    assert [name for name in names if not hasattr(module, name)] == []
    functions = [name for name in names if inspect.isfunction(getattr(module, name))]
    assert [name for name in functions if not re.search(rf"\b{name}\(", example)] == []


def test_the_overview_lists_every_page_with_its_names_and_marks_those_that_cctlib_offers():
    listed = {}
    for stem, cell in re.findall(r"^\| \[\]\(api/(\w+)\.md\) \| (.+) \|$", OVERVIEW.read_text(encoding="utf-8"), re.M):
        listed[stem] = cell.split(", ")
    offered = {f"cctlib.{module}": set(names) for tier in cctlib.TIERS.values() for module, names in tier.items()}
    assert set(listed) == {page.stem for page in PAGES}
    for page in PAGES:
        _, module, names = parts(page)
        assert {name.strip("*") for name in listed[page.stem]} == set(names)
        bold = {name.strip("*") for name in listed[page.stem] if name.startswith("**")}
        assert bold == offered.pop(module.__name__, set())
    assert not offered
