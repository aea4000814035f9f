"""Data sets side by side: the same quantities along the encoders on the same axes, and which claim holds on which of them.

Every data set has its colour, its marker and its kind of line, in the order in which they are given.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cctlib.errors import UserError
from cctlib.figures.overview import check_verdicts, pill
from cctlib.figures.palette import DATASETS, INK, LOOKS, MUTED, RULE, readable
from cctlib.figures.snr import at_theta, main_kinds
from cctlib.figures.style import (
    MARGIN,
    SMALLEST,
    WIDTH,
    Card,
    body,
    card,
    encoder_axis,
    headline,
    kinds_in,
    panel_title,
    themed,
    wrap,
)
from cctlib.figures.wording import count, course, listing, sentence

QUANTITIES = {  # with the words at the axis
    "accuracy": "probe accuracy\n(% of images)",
    "clusters": "clusters\nper node",
    "cluster_size": "labels\nper cluster",
    "noise": "noise per node\n(entries)",
    "snr": "signal to noise\n(SNR)",
}


class Measured(NamedTuple):
    """What is drawn of one data set: its tables `accuracy` and `by_theta`, and the network's own accuracy (a share of 1)."""

    accuracy: pd.DataFrame
    by_theta: pd.DataFrame
    network: float


@themed
def side_by_side(measured: Mapping[str, Measured], theta: float = 0.3) -> Card:
    """Site means along the encoders of several data sets, by name: a row of panels a quantity, a column a sub-block.

    Raises `UserError` for more data sets than can be told apart.
    """
    if not 0 < len(measured) <= len(LOOKS):
        raise UserError(f"side_by_side: {len(measured)} data sets given, expected 1 to {len(LOOKS)}")
    kinds = main_kinds(kinds_in(pd.concat([entry.by_theta.kind for entry in measured.values()])))
    figure = card(0.5 + 1.5 * len(QUANTITIES))
    part = body(figure)
    panels = part.subplots(len(QUANTITIES), len(kinds), sharex="col", sharey="row", squeeze=False)
    for (name, entry), look in zip(measured.items(), LOOKS, strict=False):
        for row, quantity in zip(panels, QUANTITIES, strict=True):
            for panel, kind in zip(row, kinds, strict=True):
                _draw(panel, entry, quantity, kind, theta, look | {"label": name})
    for row, words in zip(panels, QUANTITIES.values(), strict=True):
        row[0].set_ylabel(words)
        row[0].margins(y=0.12)
        row[0].set_ylim(bottom=0)
    for panel, kind in zip(panels[0], kinds, strict=True):
        panel_title(panel, kind)
    encoders = sorted(set(pd.concat([entry.by_theta.encoder for entry in measured.values()])))
    for panel in panels.flat:
        panel.grid(axis="y")
        panel.locator_params(axis="y", nbins=4)
        encoder_axis(panel, encoders, label=panel in panels[-1])
    handles = panels[0, 0].get_legend_handles_labels()[0]
    columns = len(handles) if len(handles) <= 3 else 2  # that fit beside each other
    part.legend(handles=handles, loc="outside upper left", ncols=columns, columnspacing=1.8, handlelength=2.6)
    headline(
        figure,
        _message(measured, kinds[-1], theta),
        f"Site means over the non-empty nodes at theta {theta:g}; top row: probes on test images, thin line: the network itself.",
    )
    return figure


def _draw(panel: Axes, entry: Measured, quantity: str, kind: str, theta: float, look: Mapping) -> None:
    if quantity == "accuracy":
        rows = entry.accuracy[entry.accuracy.kind == kind].sort_values("encoder")
        panel.plot(rows.encoder, 100 * rows.accuracy, **look)
        panel.axhline(100 * entry.network, color=look["color"], linewidth=0.9, alpha=0.8)
        return
    rows = at_theta(entry.by_theta[entry.by_theta.kind == kind], theta)
    panel.plot(rows.encoder, rows[quantity].replace([np.inf, -np.inf], np.nan), **look)


def _message(measured: Mapping[str, Measured], kind: str, theta: float) -> str:
    moves = []
    for name, entry in measured.items():
        rows = at_theta(entry.by_theta[entry.by_theta.kind == kind], theta)
        moves.append(f"{course(rows.snr.tolist())} on {name}")
    return sentence(f"at {kind}, signal to noise {listing(moves)}")


@themed
def claims(table: pd.DataFrame) -> Card:
    """Which claim holds on which data set. table: dataset, claim, statement, verdict, one row a claim and data set."""
    check_verdicts(table)
    names, rows = list(table.dataset.unique()), table.drop_duplicates("claim")
    column = 1.5
    left = WIDTH - 2 * MARGIN - column * len(names)
    roomy = left > 1.6  # beside four data sets the claims stand with their numbers alone
    statements = [wrap(statement, SMALLEST + 0.5, left - 0.62) if roomy else "" for statement in rows.statement]
    titles = [wrap(name, SMALLEST + 0.5, column - 0.15, bold=True) for name in names]
    heights = [max(0.42, 0.2 + 0.17 * (text.count("\n") + 1)) for text in statements]
    top = 0.12 + 0.18 * max(title.count("\n") + 1 for title in titles)
    figure = card(top + sum(heights) + 0.1)
    axes = figure.add_subplot()
    axes.set(xlim=(0, WIDTH - 0.3), ylim=(top + sum(heights), 0))
    axes.axis("off")
    for place, (title, color) in enumerate(zip(titles, DATASETS, strict=False)):
        axes.text(
            left + column * place,
            top - 0.08,
            title,
            va="bottom",
            weight="bold",
            size=SMALLEST + 0.5,
            color=readable(color),
        )
    for row, statement, height in zip(rows.itertuples(), statements, heights, strict=True):
        axes.axhline(top, color=RULE, linewidth=1)
        axes.text(0.02, top + 0.12, row.claim, va="top", weight="bold", size=SMALLEST + 2, color=MUTED)
        axes.text(0.55, top + 0.12, statement, va="top", size=SMALLEST + 0.5, linespacing=1.25, color=INK)
        found = table[table.claim == row.claim].set_index("dataset").verdict
        for place, name in enumerate(names):
            pill(axes, left + column * place, top + 0.11, found[name])
        top += height
    agreed = table.groupby("claim").verdict.nunique().eq(1).sum() if len(names) > 1 else 0
    holds = table.assign(holds=table.verdict == "holds").groupby("claim").holds.all()
    tally = f"{count(int(holds.sum()), 'claim')} of {len(holds)} {'holds' if holds.sum() == 1 else 'hold'} on "
    headline(
        figure,
        sentence(tally + (f"all {len(names)} data sets" if len(names) > 2 else listing(names))),
        f"The verdict is the same on each of them for {count(int(agreed), 'claim')}." if len(names) > 1 else "",
    )
    return figure
