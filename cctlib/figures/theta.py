"""Does it depend on the threshold? Trends and curves along the encoders at every theta."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, SymLogNorm

from cctlib.figures.palette import DIVERGING, KINDS, readable
from cctlib.figures.snr import TITLES, along, at_theta, main_kinds
from cctlib.figures.style import Card, card, colorbar, encoder_axis, headline, kinds_in, panel_title, themed
from cctlib.figures.wording import listing, sentence

VARIANTS = {
    "noise": "noise",
    "snr": "SNR",
    "snr_blocks": "S/E",
    "snr_node": "SNR by node",
    "snr_field": "SNR of fields",
}


def trend_table(by_theta: pd.DataFrame, columns: Sequence[str] = tuple(VARIANTS)) -> pd.DataFrame:
    """Trend of each quantity along the encoders: kind, theta, quantity, change (percent of its mean, per
    encoder; least squares).
    """
    rows = []
    for (kind, theta), group in by_theta.groupby(["kind", "theta"]):
        for column in columns:
            known = group[["encoder", column]].replace([np.inf, -np.inf], np.nan).dropna()
            slope = np.polyfit(known.encoder, known[column], 1)[0] if known.encoder.nunique() > 1 else np.nan
            rows.append((kind, theta, column, 100 * slope / max(abs(known[column].mean()), 1e-12)))
    return pd.DataFrame(rows, columns=["kind", "theta", "quantity", "change"])


@themed
def theta_trend(by_theta: pd.DataFrame, columns: Sequence[str] = tuple(VARIANTS)) -> Card:
    """Does noise fall and SNR rise at every threshold? The trend of each variant along the encoders, by
    threshold and kind.
    """
    trends = trend_table(by_theta, columns)
    kinds, thetas = kinds_in(trends.kind), sorted(trends.theta.unique())
    across = min(len(kinds), 2)
    figure = card(0.3 + (0.62 + 0.24 * len(columns)) * -(-len(kinds) // across))
    panels = figure.subplots(-(-len(kinds) // across), across, sharex=True, sharey=True, squeeze=False)
    limit = max(float(np.nanmax(np.abs(trends.change))), 3.0) if trends.change.notna().any() else 3.0
    scale = SymLogNorm(
        linthresh=0.5, vmin=-limit, vmax=limit
    )  # so that small trends keep their colour beside large ones
    for panel, kind in zip(panels.flat, kinds, strict=False):
        grid = (
            trends[trends.kind == kind].pivot(index="quantity", columns="theta", values="change").reindex(list(columns))
        )
        drawn = panel.pcolormesh(grid, cmap=DIVERGING, norm=scale, edgecolor="white", linewidth=1)
        panel.set_yticks(np.arange(len(columns)) + 0.5, [VARIANTS.get(column, column) for column in columns])
        step = -(-len(thetas) // 7)
        panel.set_xticks(np.arange(len(thetas))[::step] + 0.5, [f"{theta:g}" for theta in thetas[::step]])
        panel.tick_params(left=False, bottom=False)
        panel_title(panel, kind, readable(KINDS[kind]))
        for spine in panel.spines.values():
            spine.set_visible(False)
    panels[0, 0].invert_yaxis()
    for panel in panels.flat[len(kinds) :]:
        panel.set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("threshold θ")
    bar = colorbar(figure, drawn, "change per encoder (% of the mean)", list(panels.flat))
    ticks = [tick for tick in (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100) if abs(tick) <= limit]
    bar.set_ticks(ticks, labels=[f"{tick:+d}" if tick else "0" for tick in ticks])
    bar.ax.minorticks_off()
    spoken = main_kinds(kinds)
    falls = {kind: trends[(trends.kind == kind) & (trends.quantity == "noise")].change for kind in spoken}
    rises = {kind: trends[(trends.kind == kind) & (trends.quantity != "noise")].change for kind in spoken}
    counts = [
        f"at {k}, noise falls at {(falls[k] < 0).sum()} of {len(falls[k])} thresholds and SNR rises in "
        f"{(rises[k] > 0).sum()} of "
        f"{len(rises[k])} cases"
        for k in spoken
    ]
    headline(
        figure,
        sentence("; ".join(counts)),
        "Least-squares slope along the encoders, by threshold and variant. Blue: rises; brown: falls.",
    )
    return figure


@themed
def theta_lines(by_theta: pd.DataFrame, column: str = "snr") -> Card:
    """A quantity along the encoders at every threshold, one panel a kind; light to dark: low to high
    threshold.
    """
    kinds, thetas = kinds_in(by_theta.kind), sorted(by_theta.theta.unique())
    across = min(len(kinds), 2)
    figure = card(0.2 + 2.0 * -(-len(kinds) // across))
    panels = figure.subplots(-(-len(kinds) // across), across, sharex=True, squeeze=False)
    palette = sns.color_palette("cividis_r", as_cmap=True)
    for panel, kind in zip(panels.flat, kinds, strict=False):
        for theta in thetas:
            rows = at_theta(by_theta[by_theta.kind == kind], theta)
            shade = palette(0.1 + 0.9 * (theta - thetas[0]) / max(thetas[-1] - thetas[0], 1e-9))
            panel.plot(
                rows.encoder, rows[column].replace([np.inf, -np.inf], np.nan), color=shade, marker="o", markersize=3
            )
        panel_title(panel, kind, readable(KINDS[kind]))
        encoder_axis(panel, by_theta.encoder, label=False)
        panel.set_ylabel(TITLES[column][1])
        panel.grid(axis="y")
    for panel in panels.flat[len(kinds) :]:
        panel.set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("encoder")
    scale = ScalarMappable(Normalize(thetas[0], thetas[-1]), palette)
    colorbar(figure, scale, "threshold θ", list(panels.flat))
    spoken = main_kinds(kinds)
    ends = [
        f"{along(at_theta(by_theta, theta), spoken[-1], column)} at θ {theta:g}" for theta in (thetas[0], thetas[-1])
    ]
    headline(figure, sentence(f"{TITLES[column][0]} {listing(ends)}"), "The same measurement at every threshold.")
    return figure
