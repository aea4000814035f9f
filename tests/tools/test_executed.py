"""What the book accepts: executed notebooks, figures with words, glued texts. The notebooks are written out by hand."""

import base64
import copy
import hashlib
import json

import pytest

from cctlib.errors import UserError
from tools import book, executed

RUN = {
    "start_time": "2026-01-02T03:04:05",
    "end_time": "2026-01-02T03:04:47",
    "duration": 42.2,
    "parameters": {"profile": "quick"},
}
IMAGE = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "aGVsbG8=", "text/plain": "Noise falls."}}
PLOT = {
    "output_type": "display_data",
    "metadata": {},
    "data": {executed.PLOTLY: {"data": [], "layout": {}}, "text/plain": 'A "matrix".'},
}


def code(outputs=(), source="1 + 1", count=1, **metadata):
    return {
        "cell_type": "code",
        "source": source,
        "execution_count": count,
        "metadata": metadata,
        "outputs": list(outputs),
    }


def notebook(*cells, papermill=RUN):
    return {
        "cells": [copy.deepcopy(cell) for cell in cells],
        "metadata": {"papermill": papermill},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def glued(name, text):
    data = {f"{executed.GLUED}text/plain": repr(text)}
    return {"output_type": "display_data", "metadata": {"scrapbook": {"name": name}}, "data": data}


def written(tmp_path, content):
    path = tmp_path / "01_model.ipynb"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_an_executed_notebook_is_read(tmp_path):
    empty = code(source="", count=None)
    assert len(book.read_executed(written(tmp_path, notebook(code(), empty)))["cells"]) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "JSON is broken"),
        (notebook(code(), papermill={}), "not executed by papermill"),
        (notebook(code(), papermill={"start_time": "2026-01-02"}), "not executed by papermill"),
        (notebook(code(), code(count=None)), "cell 2 was not executed"),
        (
            notebook(code([{"output_type": "error", "ename": "KeyError", "evalue": "'x'"}])),
            "cell 1 ends in KeyError: 'x'",
        ),
    ],
)
def test_a_notebook_that_is_not_whole_is_refused_in_one_line(tmp_path, content, says):
    with pytest.raises(UserError, match=says) as caught:
        book.read_executed(written(tmp_path, content))
    assert "01_model.ipynb" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_copy_is_named(tmp_path):
    with pytest.raises(UserError, match="make reproduce"):
        book.read_executed(tmp_path / "01_model.ipynb")
    with pytest.raises(UserError, match=r"01_model\.ipynb"):
        book.assemble([], tmp_path, tmp_path / "source")
    assert not (tmp_path / "source").exists()


def page(tmp_path, *cells):
    run = executed.run_of(tmp_path / "01_model.ipynb", notebook())
    return executed.as_page(notebook(*cells), "01_model.ipynb", run, tmp_path / "static", "https://github.com/me/book")[
        "cells"
    ]


def test_the_alt_text_says_what_is_found_and_what_is_drawn(tmp_path):
    first, second, _ = page(tmp_path, code([IMAGE]), code([IMAGE], mystnb={"image": {"alt": "My own words."}}))
    assert first["metadata"]["mystnb"]["image"]["alt"] == "Noise falls."
    assert second["metadata"]["mystnb"]["image"]["alt"] == "Noise falls. My own words."


def test_pictures_of_one_cell_have_words_and_numbers_of_their_own(tmp_path):
    other = copy.deepcopy(IMAGE)
    other["data"] |= {"image/png": "d29ybGQ=", "text/plain": "SNR rises."}
    text = {"output_type": "stream", "name": "stdout", "text": "Both:"}
    figure = {"name": "fig-both", "caption": "A network."}
    both = code([text, IMAGE, other], tags=["hide-input"], mystnb={"figure": figure, "image": {"alt": "Lines."}})
    told, first, second, _ = page(tmp_path, both)
    assert [cell["outputs"] for cell in (told, first, second)] == [[text], [IMAGE], [other]]
    assert "figure" not in told["metadata"]["mystnb"], "a text is no figure"
    assert [cell["metadata"]["mystnb"]["image"]["alt"] for cell in (first, second)] == [
        "Noise falls. Lines.",
        "SNR rises. Lines.",
    ]
    assert [cell["metadata"]["mystnb"]["figure"]["name"] for cell in (first, second)] == ["fig-both", "fig-both-2"]
    assert told["source"] == "1 + 1" and first["source"] and second["source"], (
        "MyST-NB leaves out a cell without source"
    )
    assert "remove-input" not in told["metadata"]["tags"] and "remove-input" in second["metadata"]["tags"]


def test_what_comes_with_a_figure_becomes_files_and_links(tmp_path):
    record = {"stamp": "CIFAR-100 · <b>", "csv": "panel,x\n1,2\n", "svg": "<svg/>"}
    below = {"output_type": "display_data", "metadata": {}, "data": {executed.FIGURE: record, "text/html": "old"}}
    cell, under, _ = page(tmp_path, code([IMAGE, below]))
    assert [list(output["data"]) for output in cell["outputs"]] == [list(IMAGE["data"])]
    for kind in ("csv", "svg"):
        assert f'href="../_static/figures/01_model-1-1.{kind}" download' in under["source"]
        assert (tmp_path / f"static/figures/01_model-1-1.{kind}").read_text() == record[kind]
    assert 'href="https://github.com/me/book/blob/' in under["source"] and "&lt;b&gt;" in under["source"]


def test_a_narrow_picture_has_the_name_that_myst_nb_gives_the_wide_one(tmp_path):
    narrow = base64.b64encode(b"narrow").decode()
    record = {"stamp": "", "csv": "", "svg": "<svg/>", "phone": narrow}
    below = {"output_type": "display_data", "metadata": {}, "data": {executed.FIGURE: record}}
    page(tmp_path, code([IMAGE, below]))
    name = hashlib.sha256(base64.b64decode(IMAGE["data"]["image/png"])).hexdigest()
    assert (tmp_path / f"static/phone/{name}.png").read_bytes() == b"narrow"


def test_a_page_says_below_its_title_what_it_shows(tmp_path):
    line = "A <set> · net · weights 12 · commit ab · profile full, reduced · device a clock · not made here"
    record = {"stamp": line, "csv": "", "svg": "<svg/>"}
    below = {"output_type": "display_data", "metadata": {}, "data": {executed.FIGURE: record}}
    title = {"cell_type": "markdown", "metadata": {}, "source": ["# Title\n", "\n", "Text."]}
    first = page(tmp_path, title, code([IMAGE, below]))[0]["source"]
    said = (
        "*A <set>; [profile full, reduced](../book/running.md); not made here. Drawn in 42 s on "
        "a device that was not recorded; "
        "[how long the measurement took](../book/runs.md). "
        "[Open in Colab](https://colab.research.google.com/github/me/book/blob/main/notebooks/01_model.ipynb).*"
    )
    assert first == f"# Title\n\n{said}\n\nText."


def test_a_figure_without_words_is_refused(tmp_path):
    bare = {**IMAGE, "data": {"image/png": "aGVsbG8=", "text/plain": "<Figure size 640x480 with 1 Axes>"}}
    with pytest.raises(UserError, match="cell 2 shows a figure without an alt text"):
        page(tmp_path, code(), code([bare]))
    page(tmp_path, code([bare], tags=["remove-cell"]))  # nobody sees it


def test_a_plotly_figure_becomes_html_that_asks_the_network_for_nothing(tmp_path):
    cell = page(tmp_path, code([{**PLOT, "data": {**PLOT["data"], "image/png": "aGVsbG8="}}]))[0]
    html = cell["outputs"][0]["data"]["text/html"]
    assert executed.PLOTLY not in cell["outputs"][0]["data"]
    assert 'aria-label="A &quot;matrix&quot;."' in html and "<noscript><img" in html
    assert "cdn" not in html and "mathjax" not in html.lower().replace("mathjaxconfig", "")
    assert (
        html
        == page(tmp_path, code([{**PLOT, "data": {**PLOT["data"], "image/png": "aGVsbG8="}}]))[0]["outputs"][0]["data"][
            "text/html"
        ]
    )


def test_settings_are_unseen_and_the_last_cell_says_how_the_page_was_made(tmp_path):
    (tmp_path / "provenance.json").write_text(
        json.dumps({"device": "a clock", "python": "3.11", "torch": "2.6", "commit": "abc"})
    )
    first, last = page(tmp_path, code(tags=["parameters"]))
    assert "remove-cell" in first["metadata"]["tags"]
    for word in ("2026-01-02 03:04 UTC", "42 s", "a clock", "torch 2.6", "commit abc"):
        assert word in last["source"]


def test_glued_texts_are_collected_with_their_page():
    text = 'it\'s 3.1% of "all" \\ µ'
    found = executed.glued({"01_model.ipynb": notebook(code([glued("accuracy", text)]))})
    assert found == {"accuracy": {"text": text, "page": "notebooks/01_model"}}
    with pytest.raises(UserError, match="both glue 'accuracy'"):
        executed.glued({name: notebook(code([glued("accuracy", text)])) for name in ("01_model.ipynb", "02_snp.ipynb")})


def test_the_runs_page_lists_every_run(tmp_path):
    table = book._runs_table({"01_model.ipynb": executed.run_of(tmp_path / "x.ipynb", notebook())})
    assert "2026-01-02 03:04 UTC | 42 |" in table and "profile = quick" in table and "| torch |" in table
