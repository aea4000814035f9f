"""Quantities along the encoders: accuracy, clusters, noise and signal to noise.

The tables are those of `cctlib.snp.tables`: one row a site (and threshold or draw), with `site`, `encoder`,
`kind` and the columns of `TITLES`. Every kind of site has its colour and its marker in all figures.
"""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from cctlib.claims import rules
from cctlib.errors import UserError
from cctlib.figures.style import KINDS, Card, band, card, encoder_axis, line, look, readable
from cctlib.figures.wording import course, listing_moves, number, sentence
from cctlib.snp.controls import BASIS

TITLES = {  # of a panel, and at its axis
    "accuracy": ("probe accuracy", "% of images"),
    "clusters": ("clusters per node", "clusters"),
    "cluster_size": ("labels per cluster", "labels"),
    "labels": ("labels on the diagonal", "labels"),
    "noise": ("noise per node", "entries"),
    "column_noise": ("column noise", "entries"),
    "foreign_noise": ("foreign noise", "entries"),
    "snr": ("signal to noise", "SNR"),
    "ratio": ("SNR of nodes", "random bases: 1"),
}
THETA = rules.THETA


def at_theta(table: pd.DataFrame, theta: float = THETA) -> pd.DataFrame:
    """`rules.at_theta`, in the order of kinds and encoders.

    Raises `UserError` when there are none.
    """
    rows = rules.at_theta(table, theta)
    if rows.empty:
        raise UserError(f"figures: no row with theta {theta:g}; thresholds are {sorted(set(table.get('theta', [])))}")
    return rows.sort_values(["kind", "encoder"])


def random_basis(tables: Mapping[str, pd.DataFrame], kind: str) -> pd.DataFrame:
    """The rows of the table controls on random bases, at one kind of site."""
    controls = tables["controls"]
    return controls[(controls.control == BASIS) & (controls.kind == kind)]


def beyond_basis(tables: Mapping[str, pd.DataFrame], kind: str) -> pd.DataFrame:
    """Along one kind of site: encoder, ratio (SNR of nodes over the median of random bases), out (whether the nodes
    exceed all of them).
    """
    rows = at_theta(tables["by_theta"]).query("kind == @kind").set_index("encoder").sort_index()
    draws = random_basis(tables, kind).groupby("encoder").snr.agg(["median", "max"])
    beyond = {"ratio": rows.snr / draws["median"], "out": rows.snr > draws["max"]}
    return pd.DataFrame(beyond).rename_axis("encoder").reset_index()


def sub_blocks(kinds: Sequence[str]) -> list[str]:
    """The kinds of site a headline speaks of: the two sub-blocks, where they are there."""
    return [kind for kind in ("mha", "ff") if kind in kinds] or list(kinds)[:2]


def move(table: pd.DataFrame, kind: str, column: str, show: Callable[[float], str] = number) -> str:
    """How a quantity moves from the first encoder to the last: "falls from 371 to 352 at mha"."""
    rows = table[table.kind == kind].sort_values("encoder")
    return f"{course(rows[column].tolist(), show)} at {kind}"


def moves(table: pd.DataFrame, columns: Sequence[str], kinds: Sequence[str]) -> str:
    """How the first two quantities move at the sub-blocks, as a sentence."""
    names = {column: title for column, (title, _) in TITLES.items()}
    names |= {"clusters": "the number of clusters", "cluster_size": "their size", "noise": "noise", "snr": "SNR"}
    shown = sub_blocks(kinds)
    each = [f"{names[name]} {listing_moves([move(table, kind, name) for kind in shown])}" for name in columns[:2]]
    return sentence("; ".join(each))


def grid(
    columns: Sequence[str],
    kinds: Sequence[str],
    encoders: pd.Series,
    draw: Callable[[Axes, str, str], None],
    height: float = 1.55,
) -> Card:
    """Panels along the encoders: a row of `height` inches for each of `columns`, and a column for each kind of site.

    `draw(panel, kind, column)` fills one of them. Legend and headline are the caller's.
    """
    figure, panels = card(0.4 + height * len(columns), len(columns), len(kinds), sharex=True, sharey="row")
    for row, column in zip(panels, columns, strict=True):
        for panel, kind in zip(row, kinds, strict=True):
            draw(panel, kind, column)
            encoder_axis(panel, encoders, label=column == columns[-1])
        row[0].set_ylabel("{}\n({})".format(*TITLES[column]))
        row[0].set_ylim(0, 1.05 * row[0].get_ylim()[1])  # room for the markers
    for panel, kind in zip(panels[0], kinds, strict=True):
        panel.set_title(kind, color=readable(KINDS[kind]))
    return figure


def with_interval(panel: Axes, accuracy: pd.DataFrame) -> None:
    """Accuracy of the probes at one kind of site, as a line before the band of its interval, in percent.

    accuracy: encoder, kind, accuracy, low, high (shares of 1).
    """
    rows, kind = accuracy.sort_values("encoder"), accuracy.kind.iloc[0]
    band(panel, rows.encoder, 100 * rows.low, 100 * rows.high, KINDS[kind], alpha=0.2)
    line(panel, rows, "accuracy", 100, **look(kind))
