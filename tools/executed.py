"""Executed notebooks as pages: whole ones only, with figures drawn and described, and glued texts collected."""

import ast
import base64
import copy
import hashlib
import html as markup
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from cctlib.errors import UserError
from cctlib.figures.provenance import FIGURE, KEYS
from cctlib.notebook import PLOTLY

GLUED = "application/papermill.record/"
UNSEEN_TAGS = {"parameters", "injected-parameters"}  # what was set is told on the page of runs instead


def read_executed(path: Path) -> dict:
    """Read an executed notebook. Raises `UserError` when papermill did not run it to its end, or a cell failed."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run: make reproduce") from None
    except ValueError:
        raise UserError(f"{path} is not a notebook (its JSON is broken); remove it and run: make reproduce") from None
    run = notebook.get("metadata", {}).get("papermill", {})
    if not run.get("end_time"):
        raise UserError(f"{path} was not executed by papermill to its end; run: make reproduce")
    for number, cell in enumerate(notebook["cells"], start=1):
        if cell["cell_type"] != "code":
            continue
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                raise UserError(
                    f"{path}, cell {number} ends in {output['ename']}: {output['evalue']}; "
                    "mend it, then run: make reproduce"
                )
        if _text(cell["source"]).strip() and cell["execution_count"] is None:
            raise UserError(f"{path}, cell {number} was not executed; run: make reproduce")
    return notebook


def as_page(notebook: dict, name: str, run: Mapping, static: Path, address: str) -> dict:
    """The notebook as a page: without its settings, with figures described, and a last cell on how it was made.

    static: the book's folder of static files, into which the values and the pictures of figures go. address: of the
    repository.
    """
    cells, commit = [], run["commit"]
    _say_what_is_shown(notebook, name, run, address)
    code = f"{address}/blob/{commit.removesuffix('-dirty')}/notebooks/{name}"
    notebook["cells"] = [part for cell in notebook["cells"] for part in _one_picture_each(cell)]
    for number, cell in enumerate(notebook["cells"], start=1):
        tags, below = set(cell["metadata"].get("tags", [])), ""
        if tags & UNSEEN_TAGS:
            cell["metadata"]["tags"] = sorted(tags | {"remove-cell"})
        if cell["cell_type"] == "code" and "remove-cell" not in cell["metadata"].get("tags", []):
            _describe(cell, f"notebooks/{name}, cell {number}")
            below = _links(cell, static, f"figures/{name.removesuffix('.ipynb')}-{number}", code, commit)
        cells.append(cell)
        if below:  # a cell of its own, since MyST-NB would make a figure of each output of the one above
            cells.append({"cell_type": "markdown", "metadata": {}, "source": below, "id": f"under-{number}"})
    made = (
        "```{admonition} How this page was made\n:class: dropdown run-note\n"
        f"Run on {run['made']} in {run['seconds']} s on {run['device']}, with {run['versions']}, "
        f"commit {run['commit']}. "
        "[All runs and versions](../book/runs.md).\n```"
    )
    cells.append({"cell_type": "markdown", "metadata": {}, "source": made, "id": "how-made"})
    return {**notebook, "cells": cells}


def _say_what_is_shown(notebook: dict, name: str, run: Mapping, address: str) -> None:
    """Write below the title of a page of which data set and of which profile it is, as its first figure has it, what
    drew it in what time, and where it can be run.
    """
    outputs = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    stamps = [record["stamp"].split(" · ") for data in outputs if (record := data.get(FIGURE))]
    if not stamps or len(stamps[0]) < len(KEYS):
        return
    dataset, (profile, *note) = stamps[0][0], [part for part in stamps[0][4:] if not part.startswith("device ")]
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    title, _, text = _text(cell["source"]).partition("\n")
    colab = address.replace("https://github.com", "https://colab.research.google.com/github")
    said = (
        f"*{dataset}; {'; '.join([f'[{profile}](../book/running.md)', *note])}. Drawn in {run['seconds']} s on "
        f"{run['device']}; [how long the measurement took](../book/runs.md). "
        f"[Open in Colab]({colab}/blob/main/notebooks/{name}).*"
    )
    cell["source"] = f"{title}\n\n{said}\n{text}"


def _one_picture_each(cell: dict) -> Iterator[dict]:
    """The cell, and a cell of its own for each picture and what else it shows behind its first output.

    Caption, number and words are a cell's, and MyST-NB gives them to whatever the cell shows. It leaves out cells whose
    source is empty.
    """
    parts: list[tuple[bool, list[dict]]] = []  # whether it is a picture with what came with it, and the outputs
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        picture, drawn = "image/png" in data, "image/png" in data or FIGURE in data
        if picture or not parts or drawn != parts[-1][0]:
            parts.append((drawn, []))
        parts[-1][1].append(output)
    if len(parts) < 2:
        yield cell
        return
    pictures = 0
    for number, (drawn, outputs) in enumerate(parts, start=1):
        part = copy.deepcopy(cell) | {"outputs": outputs}
        if number > 1:
            part |= {"source": "# the same cell", "id": f"{cell.get('id', 'cell')}-{number}"}
            part["metadata"]["tags"] = ["remove-input"]
        settings = part["metadata"].get("mystnb", {})
        if not drawn:
            settings.pop("figure", None)
        elif pictures and "name" in settings.get("figure", {}):
            settings["figure"]["name"] += f"-{pictures + 1}"
        pictures += drawn
        yield part


def _describe(cell: dict, where: str) -> None:
    """Give the figures of a cell their words, and turn plotly data into HTML.

    Raises `UserError` for a figure without words.

    The alt text of an image is the text that came with it, which says what is found, and the cell's own
    (`mystnb.image.alt` in its metadata), which says what is drawn.
    """
    own = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
    for position, output in enumerate(cell["outputs"]):
        data = output.get("data", {})
        if PLOTLY not in data and "image/png" not in data and "image/svg+xml" not in data:
            continue
        said = _text(data.get("text/plain", "")).strip()
        message = "" if said.startswith("<") else said  # <Figure size ...>
        if not message and not own:
            raise UserError(f"{where} shows a figure without an alt text; set mystnb.image.alt in the cell's metadata")
        alt = _sentences(message, own)
        if PLOTLY in data:
            name = re.sub(r"\W+", "-", where) + f"-{position}"
            data["text/html"] = _plotly_html(data.pop(PLOTLY), alt, data.get("image/png"), name)
        else:
            cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})["alt"] = alt


def _sentences(*texts: str) -> str:
    """Those that are not empty, each with a full stop, on one line."""
    return " ".join(f"{' '.join(text.split()).rstrip('.')}." for text in texts if text)


def _links(cell: dict, static: Path, place: str, code: str, commit: str) -> str:
    """Take from a cell what came with its figures, write it to files, and return what stands below them as HTML: links
    to the files and to the code, and the line of provenance.
    """
    shown, picture = [], ""
    for position, output in enumerate(cell["outputs"]):
        picture = output.get("data", {}).get("image/png", picture)
        record = output.get("data", {}).get(FIGURE)
        if record is None:
            continue
        if "phone" in record:  # under the name that MyST-NB gives the picture, by which `cctbook` finds it
            path = static / "phone" / f"{hashlib.sha256(base64.b64decode(_text(picture))).hexdigest()}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(record["phone"]))
        links = []
        files = {"csv": "Values (CSV)", "svg": "Picture (SVG)"}
        if record["csv"].count("\n") < 2:  # photographs alone, which have no values
            del files["csv"]
        for kind, words in files.items():
            path = static / f"{place}-{position}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(record[kind], encoding="utf-8")
            links.append(f'<a href="../_static/{place}-{position}.{kind}" download>{words}</a>')
        links.append(f'<a href="{code}">Code at {commit}</a>')
        shown.append(f'<p class="cct-under">{" ".join(links)}<br>{markup.escape(record["stamp"])}</p>')
    cell["outputs"] = [output for output in cell["outputs"] if FIGURE not in output.get("data", {})]
    return "\n".join(shown)


def _plotly_html(figure: dict, alt: str, twin: str | list | None, name: str) -> str:
    """A plotly figure as HTML that relies on the page for plotly.js; the twin stands in where scripts do not run."""
    import plotly.io

    drawn = plotly.io.to_html(
        figure,
        config={"responsive": True, "displaylogo": False, "showSendToCloud": False},  # nothing is uploaded
        full_html=False,
        include_plotlyjs=False,
        include_mathjax=False,
        validate=False,
        div_id=name,
    )
    words = markup.escape(" ".join(alt.split()), quote=True)
    still = (
        f'<noscript><img alt="{words}" src="data:image/png;base64,{_text(twin).strip()}"></noscript>' if twin else ""
    )
    return f'<div class="cct-plotly" role="group" aria-label="{words}">{drawn}{still}</div>'


def glued(notebooks: Mapping[str, dict]) -> dict[str, dict[str, str]]:
    """Every glued text, with the page that it comes from. Raises `UserError` when two notebooks use one name."""
    found: dict[str, dict[str, str]] = {}
    for name, notebook in notebooks.items():
        for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
            key = output.get("metadata", {}).get("scrapbook", {}).get("name")
            text = output.get("data", {}).get(f"{GLUED}text/plain")
            if key is None or text is None:
                continue
            where = f"notebooks/{name.removesuffix('.ipynb')}"
            if found.get(key, {}).get("page", where) != where:
                raise UserError(f"{where} and {found[key]['page']} both glue {key!r}; give one of them another name")
            found[key] = {"text": ast.literal_eval(_text(text)), "page": where}
    return found


def run_of(path: Path, notebook: dict) -> dict[str, str]:
    """When, where, with what and for how long a notebook ran: from papermill and from the record of its stage."""
    run = notebook["metadata"]["papermill"]
    record = path.with_name("provenance.json")
    about = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    versions = ", ".join(f"{key} {about[key]}" for key in ("python", "torch", "numpy") if key in about)
    python = notebook["metadata"].get("language_info", {}).get("version", "")
    return {
        "made": run["start_time"][:16].replace("T", " ") + " UTC",
        "seconds": f"{run['duration']:.0f}",
        "device": about.get("device", "a device that was not recorded"),
        "versions": versions or f"Python {python}",
        "commit": about.get("commit", "not recorded"),
        "parameters": ", ".join(f"{key} = {value}" for key, value in run.get("parameters", {}).items()),
    }


def _text(source: str | list[str] | None) -> str:
    """A notebook's text, which may be stored as a list of lines."""
    return "".join(source or "")
