"""Quantities along the encoders: accuracy, clusters, noise and signal to noise, beside controls and at every threshold.

The tables are those of `cctlib.snp.tables`: one row a site (and threshold, draw, alternative), with `site`, `encoder`,
`kind` and the columns of `TITLES`. Every kind of site has its colour and its marker in all figures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
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
    MUTED,
    SMALLEST,
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
    theme,
    without_frame,
)
from cctlib.figures.wording import course, listing, number, percent, sentence
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
VARIANTS = {
    "noise": "noise",
    "snr": "SNR",
    "snr_blocks": "S/E",
    "snr_node": "SNR by node",
    "snr_field": "SNR of fields",
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


@theme()
def progressive(accuracy: pd.DataFrame, network: float | None = None) -> Card:
    """Accuracy of the probes along the encoders, with bootstrap bands; `network`: the network's own, a share of 1.

    accuracy: site, encoder, kind, accuracy, low, high (shares of 1).
    """
    kinds = kinds_in(accuracy.kind)
    figure, [[axes]] = card(3.7)
    for kind in kinds:
        _with_interval(axes, accuracy[accuracy.kind == kind])
    encoder_axis(axes, accuracy.encoder)
    axes.set_ylabel("accuracy on test images (%)")
    if network is not None:
        axes.axhline(100 * network, color=INK, linewidth=1, linestyle=DASHED)
        axes.text(axes.get_xlim()[0] + 0.1, 100 * network, f"the network, {percent(network)}", va="bottom")
    legend(figure, axes, "upper left")
    ends = listing([_accuracy_move(accuracy, kind) for kind in sub_blocks(kinds)])
    headline(figure, f"Probe accuracy {ends}", "One probe a site; bands: 95% bootstrap over test images.")
    return figure


def _with_interval(panel: Axes, accuracy: pd.DataFrame) -> None:
    rows, kind = accuracy.sort_values("encoder"), accuracy.kind.iloc[0]
    band(panel, rows.encoder, 100 * rows.low, 100 * rows.high, KINDS[kind], alpha=0.2)
    line(panel, rows, "accuracy", 100, **look(kind))


def _accuracy_move(accuracy: pd.DataFrame, kind: str) -> str:
    rows = accuracy[accuracy.kind == kind].sort_values("encoder")
    first, last = rows.iloc[0], rows.iloc[-1]
    if last.low <= first.high and first.low <= last.high:
        return f"goes from {percent(first.accuracy)} to {percent(last.accuracy)} at {kind} (intervals overlap)"
    return move(accuracy, kind, "accuracy", percent)


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
    its thin line is their median. accuracy: as for `progressive`; it is drawn in a row of its own. height: of a row,
    in inches. message: the title, by default how the first two `columns` move.
    """
    table = at_theta(by_theta)
    kinds = kinds_in(set(kinds) & set(table.kind)) or kinds_in(table.kind)[:2]

    def draw(panel: Axes, kind: str, column: str) -> None:
        if column == "accuracy" and accuracy is not None:
            return _with_interval(panel, accuracy[accuracy.kind == kind])
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


def beyond(by_theta: pd.DataFrame, controls: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> str:
    """At how many sites each quantity lies above or below all draws of each control, whichever is more frequent."""
    place, said = ["encoder", "kind"], []
    for name, control in controls.items():
        each = []
        for column in columns:
            ends = control.groupby(place)[column].agg(["min", "max"])
            sites = at_theta(by_theta).set_index(place)[[column]].join(ends, how="inner")
            sites = sites.replace([np.inf, -np.inf], np.nan).dropna()
            above, below = int((sites[column] > sites["max"]).sum()), int((sites[column] < sites["min"]).sum())
            side = "above" if above >= below else "below"
            each.append(f"{TITLES[column][0]} {side} at {max(above, below)}")
        said.append(f"{name}, {listing(each)} of {len(sites)} sites")
    return f"Beyond all draws with {'; with '.join(said)}"


def at_the_end(by_theta: pd.DataFrame, controls: Mapping[str, pd.DataFrame], column: str = "noise") -> str:
    """A quantity of nodes at the last encoder, beside the medians over the draws of each control, as a sentence."""
    table = at_theta(by_theta)
    last = table[table.encoder == table.encoder.max()].set_index("kind")[column]
    said = []
    for kind in sub_blocks(list(last.index)):
        medians = {
            name: rows[(rows.kind == kind) & (rows.encoder == table.encoder.max())][column].median()
            for name, rows in controls.items()
        }
        beside = listing([f"{number(value)} with {name}" for name, value in medians.items()])
        said.append(f"{number(last[kind])} at {kind} ({beside})")
    return f"At the last encoder, {TITLES[column][0]} is {listing(said)}"


@theme()
def site_means(by_theta: pd.DataFrame) -> Card:
    """Small panels of site means along the encoders, all kinds of site in each, for the columns of `TITLES`."""
    table = at_theta(by_theta)
    columns = [name for name in TITLES if name in table and name != "accuracy"]
    kinds, down = kinds_in(table.kind), -(-len(columns) // 2)
    figure, panels = card(0.4 + 1.62 * down, down, 2, sharex=True)
    for panel in panels.flat[len(columns) :]:
        panel.set_visible(False)
    for panel, column in zip(panels.flat, columns, strict=False):
        for kind in kinds:
            line(panel, table[table.kind == kind], column, **look(kind))
        panel.set(title=TITLES[column][0], ylabel=TITLES[column][1])
        encoder_axis(panel, table.encoder, label=column in columns[-2:])
        panel.tick_params(labelbottom=column in columns[-2:])  # below an odd number, one column is shorter
        if "noise" in column:
            panel.set_ylim(bottom=0)
    legend(figure, panels[0, 0], "upper left")
    detail = f"Means over the non-empty nodes at theta {THETA:g}; cluster size is pooled."
    headline(figure, moves(table, columns, kinds), detail)
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
    kind; a dot marks a significant trend.
    """
    trends = trend_table(by_theta)
    trends["mark"] = np.where(trends.rises | trends.falls, "●", "")
    kinds = kinds_in(trends.kind)
    down, across = -(-len(kinds) // 2), min(len(kinds), 2)
    figure, panels = card(0.3 + (0.62 + 0.24 * len(VARIANTS)) * down, down, across, sharex=True, sharey=True)
    limit = float(np.nanmax(np.abs(trends.change), initial=3.0))
    cells = {"cmap": DIVERGING, "norm": SymLogNorm(linthresh=0.5, vmin=-limit, vmax=limit), "linewidths": 1}
    for panel, kind in zip(panels.flat, kinds, strict=False):
        rows = trends[trends.kind == kind]
        change, mark = (rows.pivot(index="quantity", columns="theta", values=name) for name in ("change", "mark"))
        change, mark = (values.loc[list(VARIANTS)].rename(VARIANTS) for values in (change, mark))
        ink = {"color": INK, "size": SMALLEST}
        sns.heatmap(change, annot=mark, fmt="", annot_kws=ink, cbar=False, ax=panel, **cells)
        panel.set_title(kind, color=readable(KINDS[kind]))
        panel.set(xlabel="", ylabel="")
        step = -(-change.shape[1] // 7)
        panel.set_xticks(
            np.arange(change.shape[1])[::step] + 0.5, [f"{theta:g}" for theta in change.columns[::step]], rotation=0
        )
        without_frame(panel)
    for panel in panels.flat[len(kinds) :]:
        panel.set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("threshold θ")
    bar = colorbar(panels[0, 0].collections[0], "change per encoder (% of the mean)", list(panels.flat))
    ticks = [tick for tick in (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100) if abs(tick) <= limit]
    bar.set_ticks(ticks, labels=[f"{tick:+d}" if tick else "0" for tick in ticks])
    bar.ax.minorticks_off()
    detail = (
        "Slope along the encoders by threshold and definition. Blue: rises; brown: falls; dot: the order of the "
        "encoders is significant (Kendall, one-sided, 5%), which is what is counted."
    )
    headline(figure, sentence("; ".join(_significant(trends, kind) for kind in sub_blocks(kinds))), detail)
    return figure


def _significant(trends: pd.DataFrame, kind: str) -> str:
    """At how many thresholds noise falls, and in how many cases SNR rises, significantly. The ratio of fields has no
    threshold and counts once.
    """
    rows = trends[(trends.kind == kind) & ~((trends.quantity == "snr_field") & (trends.theta > trends.theta.min()))]
    noise, ratios = rows[rows.quantity == "noise"], rows[rows.quantity != "noise"]
    falls, rises = f"{noise.falls.sum()} of {len(noise)}", f"{ratios.rises.sum()} of {len(ratios)}"
    return f"at {kind}, noise falls at {falls} thresholds and SNR rises in {rises} cases"
