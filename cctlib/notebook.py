"""What every notebook calls: a number named for the prose, a figure stamped, an interactive figure shown."""

import base64
import json
import sys
from collections.abc import Callable
from typing import Any

PLOTLY = "application/vnd.plotly.v1+json"


def glue(name: str, value: str) -> None:
    """Record a formatted text under `name`, for the prose of any page to show; nothing is displayed.

    Write the text as it shall be read (`f"{accuracy:.1%}"`); minus signs are set here. Without MyST-NB (in Colab, say)
    nothing happens.
    """
    try:
        from myst_nb import glue as record
    except ImportError:
        return
    from cctlib.figures.wording import typeset

    record(name, typeset(value), display=False)


def stamper(*studies: Any) -> Callable[[Any], Any]:
    """A function that notes where a figure of these studies came from: all that is said of any of them, once."""
    from cctlib.figures import stamp

    def stamped(figure: Any) -> Any:
        said: dict[str, list[str]] = {}
        for study in studies:  # asked late: stages may be read until then
            for key, value in study.provenance.items():
                said.setdefault(key, []).append(str(value))
        return stamp(figure, {key: ", ".join(dict.fromkeys(values)) for key, values in said.items()})

    return stamped


def show_plotly(figure: Any, alt: str, twin: Any) -> None:
    """Show an interactive figure. `alt` says in words what it shows; `twin` is a stamped static figure of the same.

    The figure is handed out as data: JupyterLab draws it, the book draws it with its own copy of plotly.js, and whoever
    draws nothing (a viewer without scripts, paper) shows the twin. Colab gets plotly's own renderer.
    """
    from IPython.display import display

    from cctlib.figures import to_png
    from cctlib.figures.provenance import under

    if "google.colab" in sys.modules:
        figure.show(renderer="colab")
    else:
        still = base64.b64encode(to_png(twin, dpi=150)).decode()
        display({PLOTLY: json.loads(figure.to_json()), "text/plain": alt, "image/png": still}, raw=True)
    display(under(twin), raw=True)
