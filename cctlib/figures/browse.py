"""Matrices to hover over: one node, or a browser over several, with plotly's own menus and so without a
kernel.
"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from cctlib.errors import UserError
from cctlib.figures.interactive import PLOTLY_DIVERGING, plotly_bar, plotly_card, plotly_lines, plotly_names
from cctlib.figures.nodes import Node, clusters_first, message
from cctlib.figures.palette import GROUND, INK, MUTED, PANEL, RULE, SIGNAL
from cctlib.figures.wording import short

ROW = 42  # pixels of a row of buttons


def node_heatmap(seen: Node, names: Sequence[str]) -> go.Figure:
    """One node's matrix with label names on hover; buttons choose field or Boolean matrix, and the order."""
    return node_browser([seen], names)


def node_browser(nodes: Sequence[Node], names: Sequence[str]) -> go.Figure:
    """A menu of nodes, measured with the same theta.

    A matrix of 100 labels takes about 55 kB of the page. Raises `UserError` without nodes.
    """
    if not nodes:
        raise UserError("node_browser: no nodes given, expected at least one (nodes.look)")
    names, theta = _unique([short(name, 40) for name in names]), nodes[0].theta
    figure = go.Figure()
    bar = plotly_bar("field / its largest entry", [-1, 0, theta, 1], ["-1", "0", f"θ {theta:g}", "1"])
    for place, seen in enumerate(nodes):
        order = clusters_first(seen)
        sorted_names = [names[label] for label in order]
        figure.add_heatmap(
            z=seen.scaled[np.ix_(order, order)].astype(np.float32),
            x=sorted_names,
            y=sorted_names,
            zmin=-1,
            zmax=1,
            colorscale=PLOTLY_DIVERGING,
            visible=place == 0,
            name=f"{seen.site} node {seen.index}",
            hovertemplate="true: <b>%{y}</b><br>output: <b>%{x}</b><br>field / largest: %{z:.2f}<extra></extra>",
            colorbar=bar,
        )
    messages = [message(seen) for seen in nodes]
    few = len(names) <= 20
    figure.update_xaxes(
        title="output, in the same order", showgrid=False, categoryorder="trace", **plotly_names(names, few=False)
    )
    figure.update_yaxes(
        title="true label", autorange="reversed", showgrid=False, categoryorder="trace", **plotly_names(names, few)
    )
    longest = max(messages, key=lambda text: len(plotly_lines(text)))
    plotly_card(figure, longest, height=680, left=120 if few else 44, above=60 + ROW * (2 if len(nodes) > 1 else 1))
    figure.update_layout(title={"text": headline_html(messages[0])}, updatemenus=_menus(figure, messages, names, theta))
    return figure


def headline_html(text: str) -> str:
    """A plotly headline: bold, broken for a phone."""
    return "<b>" + "<br>".join(plotly_lines(text)) + "</b>"


def _unique(names: Sequence[str]) -> list[str]:
    """Categories of an axis must differ; labels cut to the same text are numbered."""
    return [name if names.index(name) == place else f"{name} ({place})" for place, name in enumerate(names)]


def _menus(figure: go.Figure, messages: Sequence[str], names: Sequence[str], theta: float) -> list[dict]:
    step = (1 + theta) / 2  # where theta lies on the colour scale from -1 to 1
    two_tone = [[0, PANEL], [step, PANEL], [step, SIGNAL], [1, SIGNAL]]
    in_order = {
        "xaxis.categoryorder": "array",
        "xaxis.categoryarray": list(names),
        "yaxis.categoryorder": "array",
        "yaxis.categoryarray": list(names),
    }
    by_trace = {"xaxis.categoryorder": "trace", "yaxis.categoryorder": "trace"}
    look = {
        "showactive": True,
        "bgcolor": GROUND,
        "bordercolor": RULE,
        "font": {"size": 12, "color": INK},
        "yanchor": "bottom",
        "y": 1,
        "xanchor": "left",
        "active": 0,
    }
    inset = 14 - figure.layout.margin.l
    views = [
        {"label": "field", "method": "restyle", "args": [{"colorscale": [PLOTLY_DIVERGING]}]},
        {"label": "Boolean", "method": "restyle", "args": [{"colorscale": [two_tone]}]},
    ]
    orders = [
        {"label": "clusters first", "method": "relayout", "args": [by_trace]},
        {"label": "label order", "method": "relayout", "args": [in_order]},
    ]
    menus = [
        {**look, "type": "buttons", "direction": "right", "x": 0, "pad": {"l": inset, "b": 62}, "buttons": views},
        {
            **look,
            "type": "buttons",
            "direction": "right",
            "x": 0,
            "pad": {"l": inset + 142, "b": 62},
            "buttons": orders,
        },
    ]
    if len(messages) > 1:
        choices = [
            {
                "label": trace.name,
                "method": "update",
                "args": [
                    {"visible": [other == place for other in range(len(messages))]},
                    {"title.text": headline_html(messages[place])},
                ],
            }
            for place, trace in enumerate(figure.data)
        ]
        menus.insert(0, {**look, "x": 0, "pad": {"l": inset, "b": 62 + ROW}, "buttons": choices, "bordercolor": MUTED})
    return menus
