"""The same look for interactive figures: plotly, without MathJax, fonts or scripts from elsewhere."""

from collections.abc import Sequence
from typing import SupportsFloat

import plotly.graph_objects as go

from cctlib.figures.palette import GROUND, INK, MUTED, RULE

PLOTLY_DIVERGING = [
    [0, "#7A3B06"],
    [0.17, "#C9701B"],
    [0.33, "#F0C48E"],
    [0.5, GROUND],
    [0.67, "#9FC3E0"],
    [0.83, "#2F79B5"],
    [1, "#0B3C68"],
]
PLOTLY_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def plotly_card(figure: go.Figure, message: str, height: int = 640, left: int = 64, above: int = 60) -> go.Figure:
    """Give a plotly figure the look of a card. Pixels: `above` is free space between headline and panel, for
    a colour bar or buttons.

    The headline is broken for the narrowest page, a phone's 390 px. Plotly puts its first line 33 px above
    the panel and its padding.
    """
    lines = plotly_lines(message)
    top = 18 + 21 * len(lines) + above
    figure.update_layout(
        title={
            "text": "<b>" + "<br>".join(lines) + "</b>",
            "font": {"size": 15.5, "color": INK},
            "x": 0,
            "xref": "container",
            "pad": {"l": 14, "b": top - 63},
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
        },
        font={"family": PLOTLY_FONT, "size": 13, "color": INK},
        paper_bgcolor=GROUND,
        plot_bgcolor=GROUND,
        height=height,
        autosize=True,
        margin={"l": left, "r": 20, "t": top, "b": 70},
        hoverlabel={"font": {"size": 13}},
    )
    figure.update_xaxes(linecolor=MUTED, gridcolor=RULE, zeroline=False, title={"standoff": 10})
    figure.update_yaxes(linecolor=MUTED, gridcolor=RULE, zeroline=False, title={"standoff": 10})
    return figure


def plotly_bar(label: str, values: Sequence[SupportsFloat], texts: Sequence[object]) -> dict:
    """A slim horizontal colour bar above the panel, which leaves a phone its width."""
    return {
        "orientation": "h",
        "x": 0,
        "xanchor": "left",
        "len": 1,
        "y": 1.01,
        "yanchor": "bottom",
        "thickness": 9,
        "outlinewidth": 0,
        "title": {"text": label, "side": "top", "font": {"size": 12}},
        "tickvals": list(map(float, values)),
        "ticktext": list(map(str, texts)),
        "tickfont": {"size": 12},
    }


def plotly_names(names: Sequence[str], few: bool) -> dict:
    """Axis settings for labels: their names where they are few; else one unseen tick, which keeps the title off the panel."""
    if few:
        return {"tickvals": list(names)}
    unseen = {"ticks": "outside", "ticklen": 8, "tickcolor": GROUND, "tickfont": {"color": GROUND}, "tickangle": 0}
    return {"tickvals": [names[len(names) // 2]], "ticktext": ["."], **unseen}


def plotly_lines(message: str) -> list[str]:
    """A headline broken for a page of 390 px."""
    return _phone_lines(message, 39)


def _phone_lines(words: str | Sequence[str], width: int) -> list[str]:
    separator = " " if isinstance(words, str) else " · "
    lines: list[str] = []
    for word in words.split() if isinstance(words, str) else words:
        fits = lines and len(lines[-1]) + len(separator) + len(word) <= width
        lines = [*lines[:-1], lines[-1] + separator + word] if fits else [*lines, word]
    return lines


def stamp_below(figure: go.Figure, parts: Sequence[str]) -> go.Figure:
    """Write the phrases of a stamp below the panel; `style.stamp` puts them into words."""
    lines = _phone_lines(parts, 52)
    figure.layout.annotations = [note for note in figure.layout.annotations if note.name != "stamp"]
    bottom = 66 + 16 * len(lines)
    figure.update_layout(height=figure.layout.height + bottom - figure.layout.margin.b, margin={"b": bottom})
    figure.add_annotation(
        name="stamp",
        text="<br>".join(lines),
        xref="paper",
        yref="paper",
        x=0,
        y=0,
        xanchor="left",
        yanchor="top",
        align="left",
        xshift=14 - figure.layout.margin.l,
        yshift=-58,
        showarrow=False,
        font={"size": 12, "color": MUTED},
    )
    return figure


def to_html(figure: go.Figure) -> str:
    """A plotly figure as an HTML fragment that fetches nothing: the page it stands in brings one local
    plotly.min.js.
    """
    config = {"displayModeBar": False, "responsive": True, "showSendToCloud": False}  # the bar would cover the headline
    return figure.to_html(full_html=False, include_plotlyjs=False, include_mathjax=False, config=config)
