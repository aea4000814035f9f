"""Along the encoders: progressive accuracy, clusters, noise, signal-to-noise ratio, and their distributions.

The tables are those of `tables.py`: one row a site (and threshold, draw, order), with `site`, `encoder`,
`kind` and the columns named in `snp.SiteStatistics`. Every kind of site has its colour and its marker in all
figures.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from cctlib.errors import UserError
from cctlib.figures.palette import INK, KINDS, MARKERS, readable
from cctlib.figures.style import Card, body, card, encoder_axis, headline, kind_legend, kinds_in, panel_title, themed
from cctlib.figures.wording import course, listing, number, percent, sentence

TITLES = {
    "accuracy": ("accuracy of the probe", "share of images"),
    "clusters": ("clusters per node", "N_c"),
    "cluster_size": ("labels per cluster", "C_s"),
    "labels": ("labels on the diagonal", "|D|"),
    "silent_share": ("silent nodes", "%"),
    "noise": ("noise per node", "entries"),
    "column_noise": ("column noise", "entries"),
    "foreign_noise": ("foreign noise", "entries"),
    "snr": ("signal to noise", "SNR"),
    "snr_blocks": ("signal over ones outside blocks", "S/E"),
    "snr_node": ("signal to noise, node by node", "SNR"),
    "snr_field": ("signal to noise of fields", "SNR"),
}
ALONG = ("clusters", "cluster_size", "labels", "silent_share", "noise", "column_noise", "foreign_noise", "snr")


def at_theta(table: pd.DataFrame, theta: float = 0.3) -> pd.DataFrame:
    """The rows of a threshold (all rows, when the table has no `theta`), in the order of kinds and encoders,
    with the share of silent nodes added. Raises `UserError` when there are none.
    """
    rows = table[np.isclose(table.theta, theta)] if "theta" in table else table
    if rows.empty:
        raise UserError(f"figures: no row with theta {theta:g}; thresholds are {sorted(set(table.get('theta', [])))}")
    if {"silent", "nodes"} <= set(rows):
        rows = rows.assign(silent_share=100 * rows.silent / rows.nodes)
    return rows.sort_values(["kind", "encoder"])


def along(
    table: pd.DataFrame, kind: str, column: str, show: Callable[[float], str] = number, tolerance: float = 0.03
) -> str:
    """The move of a quantity from the first encoder to the last: "falls from 371 to 352 at mha"."""
    rows = table[table.kind == kind].sort_values("encoder")
    return f"{course(rows[column].tolist(), show, tolerance)} at {kind}"


def main_kinds(kinds: Sequence[str]) -> list[str]:
    """The kinds a headline speaks of: the two sub-blocks, where they are there."""
    return [kind for kind in ("mha", "ff") if kind in kinds] or list(kinds)[:2]


def _line(axes: Axes, rows: pd.DataFrame, column: str, kind: str) -> None:
    values = rows[column].replace([np.inf, -np.inf], np.nan)
    axes.plot(
        rows.encoder, values, color=KINDS[kind], marker=MARKERS[kind], markeredgecolor="white", markeredgewidth=0.6
    )


@themed
def progressive(accuracy: pd.DataFrame, network: float | None = None) -> Card:
    """Accuracy of the probes along the encoders, with bootstrap bands; `network`: the network's own accuracy,
    a share of 1.

    accuracy: site, encoder, kind, accuracy, low, high (shares of 1).
    """
    kinds = kinds_in(accuracy.kind)
    figure = card(3.7)
    part = body(figure)
    axes = part.add_subplot()
    for kind in kinds:
        rows = accuracy[accuracy.kind == kind].sort_values("encoder")
        axes.fill_between(rows.encoder, 100 * rows.low, 100 * rows.high, color=KINDS[kind], alpha=0.18, linewidth=0)
        axes.plot(
            rows.encoder,
            100 * rows.accuracy,
            color=KINDS[kind],
            marker=MARKERS[kind],
            markeredgecolor="white",
            markeredgewidth=0.6,
        )
    encoder_axis(axes, accuracy.encoder)
    axes.set_ylabel("accuracy on test images (%)")
    axes.grid(axis="y")
    if network is not None:
        axes.axhline(100 * network, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(axes.get_xlim()[0] + 0.1, 100 * network, f"the network, {percent(network)}", va="bottom")
    kind_legend(part, kinds)
    moves = listing([_accuracy_move(accuracy, kind) for kind in main_kinds(kinds)])
    headline(figure, f"Probe accuracy {moves}", "One probe a site; bands: 95% bootstrap over test images.")
    return figure


def _accuracy_move(accuracy: pd.DataFrame, kind: str) -> str:
    rows = accuracy[accuracy.kind == kind].sort_values("encoder")
    first, last = rows.iloc[0], rows.iloc[-1]
    apart = last.low > first.high or last.high < first.low
    ends = f"{percent(first.accuracy)} to {percent(last.accuracy)}"
    if not apart:
        return f"goes from {ends} at {kind} (intervals overlap)"
    return f"{'rises' if last.accuracy > first.accuracy else 'falls'} from {ends} at {kind}"


@themed
def along_encoders(by_theta: pd.DataFrame, columns: Sequence[str] = ALONG, theta: float = 0.3) -> Card:
    """Small multiples of the site means along the encoders. by_theta: site, encoder, kind, theta, nodes,
    silent and the `columns`.
    """
    table = at_theta(by_theta, theta)
    kinds, rows_of_panels = kinds_in(table.kind), -(-len(columns) // 2)
    figure = card(0.4 + 1.62 * rows_of_panels)
    part = body(figure)
    panels = part.subplots(rows_of_panels, 2, sharex=True, squeeze=False)
    for panel, column in zip(panels.flat, columns, strict=False):
        for kind in kinds:
            _line(panel, table[table.kind == kind], column, kind)
        title, unit = TITLES[column]
        panel_title(panel, title)
        panel.set_ylabel(unit)
        panel.grid(axis="y")
        panel.locator_params(axis="y", nbins=5)
        encoder_axis(panel, table.encoder, label=False)
        if column in ("silent_share", "noise", "column_noise", "foreign_noise"):
            panel.set_ylim(0, None if (table[column] > 0).any() else 1)
    for panel in panels.flat[len(columns) :]:
        panel.set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("encoder")
    kind_legend(part, kinds)
    spoken = main_kinds(kinds)
    parts = [
        f"{name} {listing([along(table, kind, column) for kind in spoken])}"
        for column, name in (("noise", "noise"), ("snr", "SNR"))
        if column in table
    ]
    headline(
        figure,
        sentence("; ".join(parts)),
        f"From the first encoder to the last. Means over the non-empty nodes of a site at theta {theta:g}; cluster size is pooled.",
    )
    return figure


@themed
def distributions(nodes: pd.DataFrame, columns: Sequence[str] = ("noise", "labels"), theta: float = 0.3) -> Card:
    """How nodes differ within a site. nodes: encoder, kind, silent and the `columns`, one row a node (and
    theta); silent nodes are left out.
    """
    rows = nodes[np.isclose(nodes.theta, theta)] if "theta" in nodes else nodes
    rows = rows[~rows.silent.astype(bool)]
    kinds = kinds_in(rows.kind)
    figure = card(0.25 + 1.5 * len(kinds))
    panels = figure.subplots(len(kinds), len(columns), sharex=True, sharey="col", squeeze=False)
    for row, kind in zip(panels, kinds, strict=True):
        of_kind = rows[rows.kind == kind]
        for panel, column in zip(row, columns, strict=True):
            _violins(panel, of_kind, column, kind, sorted(rows.encoder.unique().tolist()))
        row[0].set_ylabel(f"{kind}\n{TITLES[columns[0]][1]}", color=readable(KINDS[kind]), weight="bold")
        for panel, column in zip(row[1:], columns[1:], strict=True):
            panel.set_ylabel(TITLES[column][1])
    for panel, column in zip(panels[0], columns, strict=True):
        panel_title(panel, TITLES[column][0])
    for panel in panels[-1]:
        panel.set_xlabel("encoder")
    spread = rows.groupby(["encoder", "kind"])[columns[0]].quantile([0.1, 0.9]).unstack()
    ratio = (spread[0.9] / spread[0.1].replace(0, np.nan)).median()
    name = TITLES[columns[0]][0]
    message = (
        f"Within a site, {name} differs {number(ratio, 2)}-fold between the lowest and the highest tenth of the nodes"
    )
    headline(
        figure,
        message,
        "Each shape: the non-empty nodes of one site (widest where most nodes are); dot: median, bar: "
        "middle half. "
        "The highest 0.5% are not drawn.",
    )
    return figure


def _violins(axes: Axes, rows: pd.DataFrame, column: str, kind: str, encoders: Sequence[int]) -> None:
    top = max(float(rows[column].quantile(0.995)), 1.0) if len(rows) else 1.0
    drawn = rows[rows[column] <= top]
    sns.violinplot(
        data=drawn,
        x="encoder",
        y=column,
        order=encoders,
        ax=axes,
        color=KINDS[kind],
        inner=None,
        cut=0,
        density_norm="width",
        linewidth=0,
        saturation=0.9,
        width=0.86,
        alpha=0.55,
        native_scale=False,
    )
    for place, encoder in enumerate(encoders):
        values = rows.loc[rows.encoder == encoder, column].dropna()
        if len(values):
            low, middle, high = values.quantile([0.25, 0.5, 0.75])
            axes.plot([place, place], [low, high], color=INK, linewidth=2)
            axes.plot(place, middle, "o", color="white", markeredgecolor=INK, markersize=4.5)
    axes.set(xlabel="", ylabel="", ylim=(0, None))
    axes.grid(axis="y")
    axes.locator_params(axis="y", nbins=4)
