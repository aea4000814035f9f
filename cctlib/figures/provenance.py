"""What stands under a figure: where it came from, the values that it draws, and its picture as vector graphics.

A notebook shows the line of provenance below the figure. The book makes links of the rest (`tools.executed`).
"""

import base64
import io
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, TypeVar

import matplotlib
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

KEYS = ("dataset", "model", "weights", "commit", "profile", "device")
FIGURE = "application/vnd.cctlib.figure+json"  # in a notebook: what came with the figure before it
COLUMNS = ["panel", "title", "series", "x", "y", "value"]

Drawn = TypeVar("Drawn", Figure, go.Figure)


def stamp(figure: Drawn, provenance: Mapping[str, object]) -> Drawn:
    """Note where a matplotlib or plotly figure came from, and return it; the line is shown below it.

    `provenance`: dataset, model, weights (a hash, or several with commas between), commit, profile and device, and
    optionally `note` (for example that the shipped measurement is shown). An absent entry is written as "not recorded".
    """
    recorded: dict[str, str] = {key: str(provenance.get(key) or "not recorded") for key in KEYS}
    recorded["weights"] = ", ".join(digest[:12] for digest in recorded["weights"].split(", "))  # enough to find them
    phrases = [recorded["dataset"], recorded["model"], *(f"{key} {recorded[key]}" for key in KEYS[2:])]
    if provenance.get("note"):
        phrases.append(str(provenance["note"]))
    line = " · ".join(phrases)
    if isinstance(figure, go.Figure):
        figure.update_layout(meta={"stamp": line})
    else:
        figure.stamp = line  # type: ignore[attr-defined]
    return figure


def stamp_of(figure: Figure | go.Figure) -> str:
    """The line of a figure; empty where it has none."""
    return (
        (figure.layout.meta or {}).get("stamp", "") if isinstance(figure, go.Figure) else getattr(figure, "stamp", "")
    )


def under(figure: Figure, line: str = "", phone: bytes | None = None) -> dict[str, Any]:
    """What is displayed below a figure, by MIME type. line: in place of its own. phone: its narrow form, a PNG."""
    line = line or stamp_of(figure)
    record = {
        "stamp": line,
        "csv": drawn_values(figure).to_csv(index=False, float_format="%.6g"),
        "svg": to_svg(figure),
    }
    if phone is not None:
        record["phone"] = base64.b64encode(phone).decode()
    shown = {"text/plain": line, "text/html": f'<p style="font-size: smaller">{escape(line)}</p>'}
    return shown | {FIGURE: record}


def to_svg(figure: Figure) -> str:
    """The figure as SVG, without the date."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "cctlib"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def drawn_values(figure: Figure) -> pd.DataFrame:
    """All values that a figure draws, one row a point, end of a band, bar or cell, in the columns of `COLUMNS`."""
    rows = []
    for number, axes in enumerate((each for each in figure.axes if each.get_visible()), start=1):
        titles = (axes.get_title(loc=where) for where in ("left", "center", "right"))
        title = " ".join(next(filter(None, [*titles, axes.get_ylabel(), axes.get_xlabel()]), "").split())
        rows += [(number, title, *point) for point in _points(axes)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _points(axes: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """(series, x, y, value) of everything drawn in a panel."""
    for number, line in enumerate(axes.lines):
        name = _name(line.get_label(), f"line {number + 1}")
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            yield name, x, y, None
    for number, drawn in enumerate(axes.collections):
        name = _name(drawn.get_label(), f"area {number + 1}")
        if isinstance(drawn, PathCollection):
            yield from _pairs(name, drawn.get_offsets())
        elif isinstance(drawn, QuadMesh):
            yield from _cells(name, np.ma.asarray(drawn.get_array()))
        elif isinstance(drawn, LineCollection):
            for segment in drawn.get_segments():
                yield from _pairs(name, segment)
        elif isinstance(drawn, PolyCollection):
            for path in drawn.get_paths():
                yield from _pairs(name, path.vertices)
    for number, image in enumerate(axes.images):
        values = np.ma.asarray(image.get_array())
        if values.ndim == 2:  # a matrix, and not a photograph
            yield from _cells(_name(image.get_label(), f"image {number + 1}"), values)
    for number, patch in enumerate(axes.patches):
        if isinstance(patch, Rectangle):
            middle = patch.get_x() + patch.get_width() / 2
            end, level = patch.get_y() + patch.get_height(), patch.get_width()
            yield _name(patch.get_label(), f"bar {number + 1}"), middle, end, level


def _pairs(name: str, points: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    for x, y in points:
        yield name, x, y, None


def _cells(name: str, values: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    for row, column in np.argwhere(~np.ma.getmaskarray(values)):
        yield name, column, row, values[row, column]


def _name(label: object, otherwise: str) -> str:
    """The label of an artist, if somebody gave it one."""
    text = " ".join(str(label).split())
    return otherwise if not text or text.startswith("_") else text
