"""Quantities along the encoders: accuracy, clusters, noise and signal to noise; beside controls, at every threshold,
under other choices of the method, and on several data sets.

The tables are those of `cctlib.snp.tables`: one row a site (and threshold, draw, alternative), with `site`, `encoder`,
`kind` and the columns of `TITLES`. Every kind of site has its colour and its marker in all figures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm

from cctlib.claims import rules
from cctlib.errors import UserError
from cctlib.figures.style import (
    DASHED,
    DIVERGING,
    FOREIGN,
    INK,
    KINDS,
    LOOKS,
    WARN,
    Card,
    band,
    card,
    colorbar,
    encoder_axis,
    headline,
    key,
    kinds_in,
    legend,
    line,
    look,
    readable,
    swatch,
    theme,
    without_frame,
)
from cctlib.figures.wording import course, listing, number, percent, sentence

TITLES = {  # of a panel, and at its axis
    "accuracy": ("accuracy of the probe", "% of images"),
    "clusters": ("clusters per node", "clusters"),
    "cluster_size": ("labels per cluster", "labels"),
    "labels": ("labels on the diagonal", "labels"),
    "noise": ("noise per node", "entries"),
    "column_noise": ("column noise", "entries"),
    "foreign_noise": ("foreign noise", "entries"),
    "snr": ("signal to noise", "SNR"),
}
VARIANTS = {
    "noise": "noise",
    "snr": "SNR",
    "snr_blocks": "S/E",
    "snr_node": "SNR by node",
    "snr_field": "SNR of fields",
}
CONTROLS = {"labels shuffled": FOREIGN, "random basis": WARN}
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


@theme()
def progressive(accuracy: pd.DataFrame, network: float | None = None) -> Card:
    """Accuracy of the probes along the encoders, with bootstrap bands; `network`: the network's own, a share of 1.

    accuracy: site, encoder, kind, accuracy, low, high (shares of 1).
    """
    kinds = kinds_in(accuracy.kind)
    figure, [[axes]] = card(3.7)
    for kind in kinds:
        rows = accuracy[accuracy.kind == kind].sort_values("encoder")
        band(axes, rows.encoder, 100 * rows.low, 100 * rows.high, KINDS[kind], alpha=0.18)
        line(axes, rows, "accuracy", 100, **look(kind))
    encoder_axis(axes, accuracy.encoder)
    axes.set_ylabel("accuracy on test images (%)")
    if network is not None:
        _network_line(axes, network)
    legend(figure, axes, "upper left")
    moves = listing([_accuracy_move(accuracy, kind) for kind in sub_blocks(kinds)])
    headline(figure, f"Probe accuracy {moves}", "One probe a site; bands: 95% bootstrap over test images.")
    return figure


def _network_line(axes: Axes, network: float) -> None:
    axes.axhline(100 * network, color=INK, linewidth=1, linestyle=DASHED)
    axes.text(axes.get_xlim()[0] + 0.1, 100 * network, f"the network, {percent(network)}", va="bottom")


def _accuracy_move(accuracy: pd.DataFrame, kind: str) -> str:
    rows = accuracy[accuracy.kind == kind].sort_values("encoder")
    first, last = rows.iloc[0], rows.iloc[-1]
    ends = f"{percent(first.accuracy)} to {percent(last.accuracy)}"
    if last.low <= first.high and first.low <= last.high:
        return f"goes from {ends} at {kind} (intervals overlap)"
    return f"{'rises' if last.accuracy > first.accuracy else 'falls'} from {ends} at {kind}"


@theme()
def beside_controls(
    by_theta: pd.DataFrame,
    controls: Mapping[str, pd.DataFrame],
    columns: Sequence[str] = ("noise", "snr"),
    accuracy: pd.DataFrame | None = None,
    kinds: Sequence[str] = ("mha", "ff"),
    theta: float = THETA,
    height: float = 1.9,
    message: str | None = None,
) -> Card:
    """Site means along the encoders, one row of panels a quantity and one column a kind, in front of bands of controls.

    controls: by a name of `CONTROLS`, the same columns as `by_theta`, one row a site and draw; a band spans all draws,
    its thin line is their median. accuracy: as for `progressive`; it is drawn in a row of its own. height: of a row,
    in inches. message: the title, by default how the first two `columns` move.
    """
    table = at_theta(by_theta, theta)
    kinds = [kind for kind in kinds_in(table.kind) if kind in kinds] or kinds_in(table.kind)[:2]
    names = [*(["accuracy"] if accuracy is not None else []), *columns]
    figure, panels = card(0.4 + height * len(names), len(names), len(kinds), sharex=True, sharey="row")
    for row, column in zip(panels, names, strict=True):
        for panel, kind in zip(row, kinds, strict=True):
            if column == "accuracy" and accuracy is not None:
                rows = accuracy[accuracy.kind == kind].sort_values("encoder")
                band(panel, rows.encoder, 100 * rows.low, 100 * rows.high, KINDS[kind], alpha=0.25)
                line(panel, rows, column, 100, **look(kind))
            else:
                _control_bands(panel, controls, kind, column, theta)
                line(panel, table[table.kind == kind], column, **look(kind))
            encoder_axis(panel, table.encoder, label=column == names[-1])
        title, unit = TITLES[column]
        row[0].set_ylabel(f"{title}\n({unit})")
        row[0].set_ylim(bottom=0)
    for panel, kind in zip(panels[0], kinds, strict=True):
        panel.set_title(kind, color=readable(KINDS[kind]))
    keys = [key("nodes", color=KINDS[kind], marker=look(kind)["marker"]) for kind in kinds[:1]]
    legend(figure, [*keys, *(swatch(f"{name}: all draws", CONTROLS[name]) for name in controls)])
    draws = listing([f"{name} ({_draws(drawn)} draws)" for name, drawn in controls.items()])
    headline(
        figure,
        sentence(message or "; ".join(_moves(table, column, kinds) for column in columns[:2])),
        f"Means over the non-empty nodes of a site at theta {theta:g}. Bands: {draws}.",
    )
    return figure


def _control_bands(panel: Axes, controls: Mapping[str, pd.DataFrame], kind: str, column: str, theta: float) -> None:
    for name, table in controls.items():
        rows = at_theta(table, theta)
        draws = rows[rows.kind == kind].replace([np.inf, -np.inf], np.nan).groupby("encoder")[column]
        band(panel, draws.min().index, draws.min(), draws.max(), CONTROLS[name])
        panel.plot(draws.median().index, draws.median(), color=CONTROLS[name], linewidth=1.2)


def _draws(table: pd.DataFrame) -> int:
    return int(at_theta(table).groupby(["encoder", "kind"]).size().min())


def _moves(table: pd.DataFrame, column: str, kinds: Sequence[str]) -> str:
    name = {"noise": "noise", "snr": "SNR"}.get(column, TITLES[column][0])
    return f"{name} {listing([move(table, kind, column) for kind in sub_blocks(kinds)])}"


def null_comparison(by_theta: pd.DataFrame, null: pd.DataFrame, theta: float = THETA) -> Card:
    """`beside_controls` of clusters, noise and signal to noise, at all kinds of site, with labels shuffled across
    images; the title counts at how many sites the nodes lie beyond all draws (Method, section 8, C2).
    """
    columns = ("clusters", "cluster_size", "noise", "snr")
    kinds = [kind for kind in kinds_in(by_theta.kind) if kind in set(null.kind)]
    counts = "; ".join(_beyond(at_theta(by_theta, theta), at_theta(null, theta), column) for column in columns)
    controls = {"labels shuffled": null}
    return beside_controls(by_theta, controls, columns, kinds=kinds, theta=theta, height=1.5, message=counts)


def _beyond(table: pd.DataFrame, null: pd.DataFrame, column: str) -> str:
    """At how many sites a quantity lies above or below all draws."""
    place = ["encoder", "kind"]
    ends = null.groupby(place)[column].agg(["min", "max"])
    joined = table.set_index(place)[[column]].join(ends, how="inner").replace([np.inf, -np.inf], np.nan).dropna()
    above, below = int((joined[column] > joined["max"]).sum()), int((joined[column] < joined["min"]).sum())
    side, sites = ("above", above) if above >= below else ("below", below)
    return f"{TITLES[column][0]} is {side} all draws at {sites} of {len(joined)} sites"


@theme()
def site_means(by_theta: pd.DataFrame, columns: Sequence[str] | None = None, theta: float = THETA) -> Card:
    """Small panels of site means along the encoders, for all kinds of site; by default all columns of `TITLES` but
    accuracy.
    """
    table = at_theta(by_theta, theta)
    columns = [name for name in TITLES if name in table and name != "accuracy"] if columns is None else list(columns)
    kinds, down = kinds_in(table.kind), -(-len(columns) // 2)
    figure, panels = card(0.4 + 1.62 * down, down, 2, sharex=True)
    for place, panel in enumerate(panels.flat):
        if place >= len(columns):
            panel.set_visible(False)
            continue
        for kind in kinds:
            line(panel, table[table.kind == kind], columns[place], **look(kind))
        panel.set(title=TITLES[columns[place]][0], ylabel=TITLES[columns[place]][1])
        encoder_axis(panel, table.encoder, label=place >= len(columns) - 2)
        if "noise" in columns[place]:
            panel.set_ylim(bottom=0)
    legend(figure, panels[0, 0], "upper left")
    spoken = "; ".join(_moves(table, column, kinds) for column in columns[:2])
    headline(figure, sentence(spoken), f"Means over the non-empty nodes at theta {theta:g}; cluster size is pooled.")
    return figure


def trend_table(by_theta: pd.DataFrame, columns: Sequence[str] = tuple(VARIANTS)) -> pd.DataFrame:
    """Trend of each quantity along the encoders: kind, theta, quantity, change (percent of its mean, per encoder; least
    squares), and whether it `rises` or `falls` significantly (`rules.trend`; neither where a value is missing).
    """
    rows = []
    for (kind, theta), group in by_theta.sort_values("encoder").groupby(["kind", "theta"]):
        for column in columns:
            known = group[["encoder", column]].replace([np.inf, -np.inf], np.nan).dropna()
            slope = np.polyfit(known.encoder, known[column], 1)[0] if len(known) > 1 else np.nan
            change, whole = 100 * slope / max(abs(known[column].mean()), 1e-12), len(known) == len(group)
            rises, falls = (whole and rules.trend(known[column].to_numpy(), sign)[1] for sign in (1, -1))
            rows.append((kind, theta, column, change, rises, falls))
    return pd.DataFrame(rows, columns=["kind", "theta", "quantity", "change", "rises", "falls"])


@theme()
def theta_trend(by_theta: pd.DataFrame) -> Card:
    """Does noise fall and SNR rise at every threshold? The trend of each variant along the encoders, by threshold and
    kind; a dot marks a significant trend. The ratio of fields does not depend on the threshold and has one wide cell.
    """
    trends = trend_table(by_theta)
    kinds, thetas = kinds_in(trends.kind), sorted(trends.theta.unique())
    down, across = -(-len(kinds) // 2), min(len(kinds), 2)
    figure, panels = card(0.3 + (0.62 + 0.24 * len(VARIANTS)) * down, down, across, sharex=True, sharey=True)
    limit = float(np.nanmax(np.abs(trends.change), initial=3.0))
    scale = {
        "cmap": DIVERGING,
        "norm": SymLogNorm(linthresh=0.5, vmin=-limit, vmax=limit),
    }  # small trends keep their colour
    for panel, kind in zip(panels.flat, kinds, strict=False):
        for row, quantity in enumerate(VARIANTS):
            cells = trends[(trends.kind == kind) & (trends.quantity == quantity)].sort_values("theta")
            cells = cells[:1] if quantity == "snr_field" else cells
            edges = np.linspace(0, len(thetas), len(cells) + 1)
            lines = {"edgecolor": "white", "linewidth": 1}
            drawn = panel.pcolormesh(edges, [row, row + 1], cells.change.to_numpy()[None], **scale, **lines)
            sure = (edges[:-1] + edges[1:])[(cells.rises | cells.falls).to_numpy()] / 2
            panel.plot(sure, np.full(len(sure), row + 0.5), "o", color=INK, markersize=3.5)
        panel.set_yticks(np.arange(len(VARIANTS)) + 0.5, list(VARIANTS.values()))
        step = -(-len(thetas) // 7)
        panel.set_xticks(np.arange(len(thetas))[::step] + 0.5, [f"{theta:g}" for theta in thetas[::step]])
        panel.set_title(kind, color=readable(KINDS[kind]))
        without_frame(panel)
    panels[0, 0].invert_yaxis()
    for panel in panels.flat[len(kinds) :]:
        panel.set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("threshold θ")
    bar = colorbar(drawn, "change per encoder (% of the mean)", list(panels.flat))
    ticks = [tick for tick in (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100) if abs(tick) <= limit]
    bar.set_ticks(ticks, labels=[f"{tick:+d}" if tick else "0" for tick in ticks])
    bar.ax.minorticks_off()
    headline(
        figure,
        sentence("; ".join(_significant(trends, kind) for kind in sub_blocks(kinds))),
        "Slope along the encoders by threshold and definition. Blue: rises; brown: falls; dot: the order of the "
        "encoders is significant (Kendall, one-sided, 5%), which is what is counted.",
    )
    return figure


def _significant(trends: pd.DataFrame, kind: str) -> str:
    """At how many thresholds noise falls, and in how many cases SNR rises, significantly; the ratio of fields counts
    once.
    """
    rows = trends[(trends.kind == kind) & ~((trends.quantity == "snr_field") & (trends.theta > trends.theta.min()))]
    noise, ratios = rows[rows.quantity == "noise"], rows[rows.quantity != "noise"]
    falls, rises = f"{noise.falls.sum()} of {len(noise)}", f"{ratios.rises.sum()} of {len(ratios)}"
    return f"at {kind}, noise falls at {falls} thresholds and SNR rises in {rises} cases"


@theme()
def alternatives(table: pd.DataFrame, columns: Sequence[str] = ("accuracy", "cluster_size", "noise", "snr")) -> Card:
    """The same quantities with a choice of the method made otherwise.

    table: the columns of `by_theta`, and `alternative`, one row a site and alternative; the first alternative is the
    choice made. A column that the table lacks is left out, and an alternative without a value in a column is not drawn
    there.
    """
    columns = [column for column in columns if column in table]
    kinds, choices = sub_blocks(kinds_in(table.kind)), list(dict.fromkeys(table.alternative))
    if len(choices) > len(LOOKS):
        raise UserError(
            f"alternatives: {len(choices)} to draw, at most {len(LOOKS)} can be told apart; select some of them"
        )
    figure, panels = card(0.4 + 1.55 * len(columns), len(columns), len(kinds), sharex=True, sharey="row")
    for row, column in zip(panels, columns, strict=True):
        for panel, kind in zip(row, kinds, strict=True):
            for choice, style in zip(choices, LOOKS, strict=False):
                rows = table[(table.kind == kind) & (table.alternative == choice)]
                if rows[column].notna().any():
                    line(panel, rows, column, 100 if column == "accuracy" else 1, **style, label=str(choice))
            encoder_axis(panel, table.encoder, label=column == columns[-1])
        row[0].set(title=TITLES[column][0], ylabel=TITLES[column][1])
    for panel, kind in zip(panels[0], kinds, strict=True):
        panel.set_title(kind, loc="right", color=readable(KINDS[kind]))
    keys = [key(str(choice), **style) for choice, style in zip(choices, LOOKS, strict=False)]
    legend(figure, keys, ncols=2, handlelength=2.6)
    differs = listing([text for choice in choices[1:] if (text := _turned(table, choices[0], choice, kinds, columns))])
    everywhere = "Every alternative moves in the direction of the choice made, from the first encoder to the last"
    headline(
        figure,
        f"The direction changes with {differs}" if differs != "none" else everywhere,
        "The choices of the method, made otherwise one at a time; all else is the same."
        + (" Accuracy is drawn where the probe itself changes." if "accuracy" in columns else ""),
    )
    return figure


def _turned(table: pd.DataFrame, usual: object, choice: object, kinds: Sequence[str], columns: Sequence[str]) -> str:
    """What moves the other way under an alternative than with the usual choice, and how; empty if nothing does."""
    turned = []
    for kind in kinds:
        rows = table[table.kind == kind].sort_values("encoder")
        for column in columns:
            usually, now = (rows[rows.alternative == name][column].iloc[[0, -1]].tolist() for name in (usual, choice))
            if np.isfinite([*usually, *now]).all() and np.sign(np.diff(usually)) != np.sign(np.diff(now)):
                name = TITLES[column][0].removesuffix(" per node")
                turned.append(f"{name} {number(now[0])} → {number(now[1])} at {kind}")
    return f"“{choice}”: {listing(turned)}" if turned else ""


SIDE_BY_SIDE = {  # with the words at the axis
    "accuracy": "probe accuracy\n(% of images)",
    "clusters": "clusters\nper node",
    "cluster_size": "labels\nper cluster",
    "noise": "noise per node\n(entries)",
    "snr": "signal to noise\n(SNR)",
}


class Measured(NamedTuple):
    """What is drawn of one data set: tables `accuracy` and `by_theta`, and the network's accuracy (a share of 1)."""

    accuracy: pd.DataFrame
    by_theta: pd.DataFrame
    network: float


@theme()
def side_by_side(measured: Mapping[str, Measured], theta: float = THETA) -> Card:
    """Site means along the encoders of several data sets, by name: a row of panels a quantity, a column a sub-block.

    Raises `UserError` for more data sets than can be told apart.
    """
    if not 0 < len(measured) <= len(LOOKS):
        raise UserError(f"side_by_side: {len(measured)} data sets given, expected 1 to {len(LOOKS)}")
    everything = pd.concat([entry.by_theta for entry in measured.values()])
    kinds = sub_blocks(kinds_in(everything.kind))
    height = 0.5 + 1.5 * len(SIDE_BY_SIDE)
    figure, panels = card(height, len(SIDE_BY_SIDE), len(kinds), sharex="col", sharey="row")
    for row, (quantity, words) in zip(panels, SIDE_BY_SIDE.items(), strict=True):
        for panel, kind in zip(row, kinds, strict=True):
            for (name, entry), style in zip(measured.items(), LOOKS, strict=False):
                if quantity == "accuracy":
                    panel.axhline(100 * entry.network, color=style["color"], linewidth=0.9, alpha=0.8)
                rows = entry.accuracy if quantity == "accuracy" else at_theta(entry.by_theta, theta)
                scale = 100 if quantity == "accuracy" else 1
                line(panel, rows[rows.kind == kind], quantity, scale, **style, label=name)
            encoder_axis(panel, everything.encoder, label=quantity == "snr", ticks=4)
        row[0].set_ylabel(words)
        row[0].margins(y=0.12)
        row[0].set_ylim(bottom=0)
    for panel, kind in zip(panels[0], kinds, strict=True):
        panel.set_title(kind)
    legend(figure, panels[0, 0], "upper left", ncols=len(measured) if len(measured) <= 3 else 2, handlelength=2.6)
    moves = [f"{move(at_theta(entry.by_theta, theta), kinds[-1], 'snr')} on {name}" for name, entry in measured.items()]
    headline(
        figure,
        f"Signal to noise {listing(moves)}",
        f"Site means over the non-empty nodes at theta {theta:g}; top row: probes, thin line: the network itself.",
    )
    return figure
