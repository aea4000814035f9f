"""What chance gives, and what the choices give: labels shuffled across images, label orders, alternatives of
the method.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cctlib.errors import UserError
from cctlib.figures.palette import FOREIGN, INK, KINDS, MARKERS, MUTED, readable
from cctlib.figures.snr import TITLES, at_theta
from cctlib.figures.style import Card, body, card, encoder_axis, headline, kind_legend, kinds_in, panel_title, themed
from cctlib.figures.wording import listing, number, sentence

QUANTITIES = ("clusters", "cluster_size", "snr")


@themed
def null_comparison(
    by_theta: pd.DataFrame, null: pd.DataFrame, columns: Sequence[str] = QUANTITIES, theta: float = 0.3
) -> Card:
    """Measured site means against those with the labels shuffled across images (Method, section 8, C2).

    by_theta: as measured. null: the same columns, one row a site and draw; the band spans all draws.
    """
    table = at_theta(by_theta, theta)
    kinds = [kind for kind in kinds_in(table.kind) if kind in set(null.kind)]
    figure = card(0.5 + 1.55 * len(columns))
    part = body(figure)
    panels = part.subplots(len(columns), len(kinds), sharex=True, sharey="row", squeeze=False)
    for row, column in zip(panels, columns, strict=True):
        for panel, kind in zip(row, kinds, strict=True):
            rows, draws = table[table.kind == kind], null[null.kind == kind].groupby("encoder")[column]
            panel.fill_between(draws.min().index, draws.min(), draws.max(), color=FOREIGN, alpha=0.5, linewidth=0)
            panel.plot(draws.median().index, draws.median(), color=MUTED, linewidth=1.2)
            panel.plot(
                rows.encoder,
                rows[column],
                color=KINDS[kind],
                marker=MARKERS[kind],
                markeredgecolor="white",
                markeredgewidth=0.6,
            )
            encoder_axis(panel, table.encoder, label=column == columns[-1])
            panel.grid(axis="y")
            panel.locator_params(axis="y", nbins=4)
        row[0].set_ylabel(f"{TITLES[column][0].replace(' per ', chr(10) + 'per ')}\n({TITLES[column][1]})")
    for panel, kind in zip(panels[0], kinds, strict=True):
        panel_title(panel, kind, readable(KINDS[kind]))
    keys = [
        Line2D([], [], color=KINDS[kinds[0]], marker=MARKERS[kinds[0]], label="measured"),
        Patch(facecolor=FOREIGN, alpha=0.5, label="labels shuffled: all draws"),
        Line2D([], [], color=MUTED, label="their median"),
    ]
    part.legend(handles=keys, loc="outside lower center", ncols=3)
    verdicts = [_against(table, null, column) for column in columns]
    draws = null.groupby("site").size().min() if "site" in null else len(null)
    headline(
        figure,
        sentence("; ".join(verdicts)),
        f"Site means at theta {theta:g} against at least {draws} draws with labels shuffled across images.",
    )
    return figure


def _against(table: pd.DataFrame, null: pd.DataFrame, column: str) -> str:
    """At how many sites a quantity lies above and below all draws."""
    ends = null.groupby(["encoder", "kind"])[column].agg(["min", "max"])
    joined = (
        table.set_index(["encoder", "kind"])[[column]]
        .join(ends, how="inner")
        .replace([np.inf, -np.inf], np.nan)
        .dropna()
    )
    above, below = int((joined[column] > joined["max"]).sum()), int((joined[column] < joined["min"]).sum())
    name = TITLES[column][1]
    return (
        f"{name} is above all draws at {above} of {len(joined)} sites"
        if above >= below
        else f"{name} is below all draws at {below} of {len(joined)} sites"
    )


@themed
def order_spread(
    by_theta: pd.DataFrame,
    orders: pd.DataFrame,
    columns: Sequence[str] = ("clusters", "cluster_size", "noise"),
    theta: float = 0.3,
) -> Card:
    """How far the label order moves the numbers of each site, in percent of those with the usual order.

    orders: the columns of `by_theta`, one row a site and random order; bars span all orders.
    """
    table = at_theta(by_theta, theta)
    kinds = kinds_in(table.kind)
    figure = card(0.4 + 1.5 * len(columns))
    part = body(figure)
    panels = part.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    for panel, column in zip(panels, columns, strict=True):
        moved = _moved(table, orders, column)
        panel.axhline(0, color=INK, linewidth=0.8)
        for place, kind in enumerate(kinds):
            spread = moved[moved.kind == kind].groupby("encoder").moved
            x = spread.min().index + 0.15 * (place - (len(kinds) - 1) / 2)
            panel.vlines(x, spread.min(), spread.max(), color=KINDS[kind], linewidth=3)
            look = {"color": KINDS[kind], "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
            panel.plot(x, spread.mean(), MARKERS[kind], **look)
        panel_title(panel, TITLES[column][0])
        panel.set_ylabel("change (%)")
        panel.grid(axis="y")
        encoder_axis(panel, table.encoder, label=panel is panels[-1])
    kind_legend(part, kinds)
    far = [
        f"{TITLES[column][1] if column != 'noise' else 'noise'} by at most {number(_moved(table, orders, column).moved.abs().max(), 2)}%"
        for column in columns
    ]
    headline(
        figure,
        f"Random label orders move {listing(far)}",
        "From the labels' usual order, site by site. Bar: all random orders; marker: their mean.",
    )
    return figure


def _moved(table: pd.DataFrame, orders: pd.DataFrame, column: str) -> pd.DataFrame:
    """Encoder, kind and `moved`: the distance of each random order from the usual one, in percent of that."""
    usual = table[["encoder", "kind", column]]
    both = orders[["encoder", "kind", column]].merge(usual, on=["encoder", "kind"], suffixes=("", "_usual"))
    share = both[column] / both[f"{column}_usual"].where(both[f"{column}_usual"] != 0) - 1
    return both.assign(moved=100 * share.replace([np.inf, -np.inf], np.nan))


@themed
def alternatives(table: pd.DataFrame, columns: Sequence[str] = ("accuracy", "cluster_size", "noise", "snr")) -> Card:
    """The numbers had a choice of the method been made otherwise. table: the columns of `by_theta`, and `alternative`, one
    row a site and alternative; the first alternative is the choice made. A column that the table lacks is left out (older
    tables have no `accuracy`), and an alternative that has no value in a column is not drawn there.
    """
    columns = [column for column in columns if column in table]
    kinds, choices = (
        [kind for kind in ("mha", "ff") if kind in set(table.kind)] or kinds_in(table.kind)[:2],
        list(dict.fromkeys(table.alternative)),
    )
    if len(choices) > 4:
        raise UserError(f"alternatives: {len(choices)} to draw, at most 4 can be told apart; select some of them")
    figure = card(0.4 + 1.55 * len(columns))
    part = body(figure)
    panels = part.subplots(len(columns), len(kinds), sharex=True, sharey="row", squeeze=False)
    styles: list[tuple[Any, float]] = [("-", 2.2), ((0, (5, 2)), 1.6), ((0, (1.2, 1.6)), 1.8), ((0, (5, 2, 1, 2)), 1.6)]
    for row, column in zip(panels, columns, strict=True):
        for panel, kind in zip(row, kinds, strict=True):
            for choice, (dash, width) in zip(choices, styles, strict=False):
                rows = table[(table.kind == kind) & (table.alternative == choice)].sort_values("encoder")
                panel.plot(
                    rows.encoder,
                    rows[column].replace([np.inf, -np.inf], np.nan),
                    color=KINDS[kind],
                    linestyle=dash,
                    linewidth=width,
                )
            encoder_axis(panel, table.encoder, label=column == columns[-1])
            panel.grid(axis="y")
        row[0].set_ylabel(TITLES[column][1])
        panel_title(row[0], TITLES[column][0])
    for panel, kind in zip(panels[0], kinds, strict=True):
        panel.set_title(kind, loc="right", color=readable(KINDS[kind]))
    keys = [
        Line2D([], [], color=MUTED, linestyle=dash, linewidth=width, label=choice)
        for choice, (dash, width) in zip(choices, styles, strict=False)
    ]
    part.legend(handles=keys, loc="outside lower left", ncols=min(len(keys), 2), handlelength=2.6)
    same = [_same_direction(table, choices, kind, column) for kind in kinds for column in columns]
    only = " Accuracy is drawn where the probe is another." if "accuracy" in columns else ""
    headline(
        figure,
        f"In {sum(same)} of {len(same)} panels every alternative moves in the direction of the choice made",
        f"From the first encoder to the last. The choices of the method, made otherwise one at a time.{only}",
    )
    return figure


def _same_direction(table: pd.DataFrame, choices: Sequence[object], kind: str, column: str) -> bool:
    signs = set()
    for choice in choices:
        rows = table[(table.kind == kind) & (table.alternative == choice)].sort_values("encoder")
        if rows[column].notna().any():
            signs.add(float(np.sign(rows[column].iloc[-1] - rows[column].iloc[0])))
    return len(signs) == 1
