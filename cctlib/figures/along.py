"""Quantities along the encoders: accuracy, clusters, noise and signal to noise, beside controls.

The tables are those of `cctlib.snp.tables`: one row a site (and threshold or draw), with `site`, `encoder`,
`kind` and the columns of `TITLES`. Every kind of site has its colour and its marker in all figures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cctlib.claims import rules
from cctlib.errors import UserError
from cctlib.figures.style import (
    DASHED,
    FOREIGN,
    KINDS,
    MUTED,
    Card,
    band,
    card,
    encoder_axis,
    headline,
    key,
    kinds_in,
    legend,
    line,
    look,
    readable,
    theme,
)
from cctlib.figures.wording import course, listing, number, sentence
from cctlib.snp.controls import BASIS
from cctlib.snp.measure import SHUFFLED

TITLES = {  # of a panel, and at its axis
    "accuracy": ("probe accuracy", "% of images"),
    "clusters": ("clusters per node", "clusters"),
    "cluster_size": ("labels per cluster", "labels"),
    "labels": ("labels on the diagonal", "labels"),
    "noise": ("noise per node", "entries"),
    "column_noise": ("column noise", "entries"),
    "foreign_noise": ("foreign noise", "entries"),
    "snr": ("signal to noise", "SNR"),
}
CONTROLS: dict[str, dict[str, Any]] = {
    SHUFFLED: {"color": FOREIGN, "linestyle": ":"},
    BASIS: {"color": MUTED, "linestyle": DASHED},
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


def controls_of(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The rows of a study's table `controls`, by the names of `CONTROLS`."""
    table = tables["controls"]
    return {name: table[table.control == name] for name in CONTROLS}


def sub_blocks(kinds: Sequence[str]) -> list[str]:
    """The kinds of site a headline speaks of: the two sub-blocks, where they are there."""
    return [kind for kind in ("mha", "ff") if kind in kinds] or list(kinds)[:2]


def move(table: pd.DataFrame, kind: str, column: str, show: Callable[[float], str] = number) -> str:
    """How a quantity moves from the first encoder to the last: "falls from 371 to 352 at mha"."""
    rows = table[table.kind == kind].sort_values("encoder")
    return f"{course(rows[column].tolist(), show)} at {kind}"


def moves(table: pd.DataFrame, columns: Sequence[str], kinds: Sequence[str]) -> str:
    """How the first two quantities move at the sub-blocks, as a sentence."""
    names = {column: title for column, (title, _) in TITLES.items()} | {"noise": "noise", "snr": "SNR"}
    each = [f"{names[name]} {listing([move(table, kind, name) for kind in sub_blocks(kinds)])}" for name in columns[:2]]
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
        row[0].set_ylim(bottom=0)
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


@theme()
def beside_controls(
    by_theta: pd.DataFrame,
    controls: Mapping[str, pd.DataFrame],
    columns: Sequence[str] = ("noise", "snr"),
    accuracy: pd.DataFrame | None = None,
    kinds: Sequence[str] = ("mha", "ff"),
    height: float = 1.9,
    message: str | None = None,
) -> Card:
    """Site means along the encoders, one row of panels a quantity and one column a kind, in front of bands of controls.

    controls: by a name of `CONTROLS`, the same columns as `by_theta`, one row a site and draw; a band spans all draws,
    its thin line is their median. accuracy: as for `with_interval`; it is drawn in a row of its own. height: of a row,
    in inches. message: the title, by default how the first two `columns` move.
    """
    table = at_theta(by_theta)
    kinds = kinds_in(set(kinds) & set(table.kind)) or kinds_in(table.kind)[:2]

    def draw(panel: Axes, kind: str, column: str) -> None:
        if column == "accuracy" and accuracy is not None:
            return with_interval(panel, accuracy[accuracy.kind == kind])
        for name, control in controls.items():
            rows = control[control.kind == kind].replace([np.inf, -np.inf], np.nan)
            draws = rows.groupby("encoder")[column].agg(["min", "median", "max"])
            band(panel, draws.index, draws["min"], draws["max"], CONTROLS[name]["color"])
            panel.plot(draws.index, draws["median"], **CONTROLS[name], linewidth=1.4)
        line(panel, table[table.kind == kind], column, **look(kind))

    names = list(columns) if accuracy is None else ["accuracy", *columns]
    figure = grid(names, kinds, table.encoder, draw, height)
    keys = [key(**look(kind) | {"label": f"nodes, {kind}"}) for kind in kinds]
    legend(figure, [*keys, *(key(name, **CONTROLS[name]) for name in controls)], ncols=3)
    counts = {name: control.groupby(["encoder", "kind"]).size().min() for name, control in controls.items()}
    draws = listing([f"{name} ({number(size)} draws)" for name, size in counts.items()])
    detail = (
        f"Means over the non-empty nodes of a site at theta {THETA:g}. Bands: from the least to the largest of {draws}."
    )
    headline(figure, message or moves(table, columns, kinds), detail)
    return figure
