"""What stands under a figure: where it came from, the values that it draws, and its picture as vector graphics.

A notebook shows the line of provenance below the figure. The book makes links of the rest (`tools.executed`).
"""

import base64
import io
from collections.abc import Iterator, Mapping
from html import escape
from itertools import chain
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

KEYS = ("dataset", "model", "weights", "commit", "profile", "device")
FIGURE = "application/vnd.cctlib.figure+json"  # in a notebook: what came with the figure before it
COLUMNS = ["panel", "title", "series", "x", "y", "value"]


def stamp(figure: Any, provenance: Mapping[str, object]) -> Any:
    """Note where a card (`style.Card`) came from, and return it; the line is shown below it.

    `provenance`: dataset, model, weights (a hash, or several with commas between), commit, profile and device, and
    optionally `note` (for example that the shipped measurement is shown). An absent entry is written as "not recorded".
    """
    recorded: dict[str, str] = {key: str(provenance.get(key) or "not recorded") for key in KEYS}
    recorded["weights"] = ", ".join(digest[:12] for digest in recorded["weights"].split(", "))  # enough to find them
    phrases = [recorded["dataset"], recorded["model"], *(f"{key} {recorded[key]}" for key in KEYS[2:])]
    if provenance.get("note"):
        phrases.append(str(provenance["note"]))
    figure.stamp = " · ".join(phrases)
    return figure


def under(figure: Any, phone: bytes | None = None) -> dict[str, Any]:
    """What is displayed below a card, by MIME type. phone: its narrow form, a PNG."""
    values = drawn_values(figure).to_csv(index=False, float_format="%.6g")
    record = {"stamp": figure.stamp, "csv": values, "svg": to_svg(figure)}
    if phone is not None:
        record["phone"] = base64.b64encode(phone).decode()
    line = f'<p style="font-size: smaller">{escape(figure.stamp)}</p>'
    return {"text/plain": figure.stamp, "text/html": line, FIGURE: record}


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
    """(series, x, y, value) of everything drawn in a panel; a series that nobody labelled has a number."""
    drawn = {"line": axes.lines, "area": axes.collections, "image": axes.images, "bar": axes.patches}
    for kind, artists in drawn.items():
        for number, artist in enumerate(artists, start=1):
            label = " ".join(str(artist.get_label()).split())
            name = f"{kind} {number}" if not label or label.startswith("_") else label
            for x, y, *value in _coordinates(artist):
                yield name, x, y, value[0] if value else None


def _coordinates(artist: Any) -> Iterator[tuple[Any, ...]]:
    """(x, y) of the points of a line or an area; (x, y, value) of cells; middle, end and width of a bar."""
    kind = type(artist)
    if issubclass(kind, Line2D):
        yield from zip(artist.get_xdata(), artist.get_ydata(), strict=True)
    elif issubclass(kind, PathCollection):
        yield from artist.get_offsets()
    elif issubclass(kind, LineCollection):
        yield from chain.from_iterable(artist.get_segments())
    elif issubclass(kind, PolyCollection):
        yield from chain.from_iterable(path.vertices for path in artist.get_paths())
    elif issubclass(kind, QuadMesh | AxesImage):
        values = np.ma.asarray(artist.get_array())
        if values.ndim == 2:  # a matrix, and not a photograph
            for row, column in np.argwhere(~np.ma.getmaskarray(values)):
                yield column, row, values[row, column]
    elif issubclass(kind, Rectangle):
        yield artist.get_x() + artist.get_width() / 2, artist.get_y() + artist.get_height(), artist.get_width()
