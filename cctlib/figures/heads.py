"""Heads: which labels each head owns, whether that could be chance, and whether a head is better at the labels it owns.

Tables are those of `cctlib.heads.ownership` and `cctlib.heads.experts`, the latter as shares of 1 with 95% intervals
(*_low, *_high); heads are counted from 0, as in Method, section 3.
"""

from collections.abc import Sequence
from typing import Any, SupportsInt

import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Bool, Int
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from cctlib.claims.rules import SIGNIFICANT
from cctlib.errors import UserError
from cctlib.figures.style import (
    COUNTS,
    DIVERGING,
    FOREIGN,
    GROUND,
    HEADS,
    INK,
    KINDS,
    MUTED,
    SMALLEST,
    WARN,
    Array,
    Card,
    as_array,
    band,
    card,
    colorbar,
    encoder_axis,
    headline,
    key,
    legend,
    line,
    readable,
    swatch,
    theme,
    without_frame,
)
from cctlib.figures.wording import count, listing, number, short

ROW = 0.155  # inches of a label's line
FEW = 3  # an owner with fewer nodes for a label is weak evidence
MEASURED: dict[str, Any] = {"color": KINDS["mha"], "marker": "o"}


def head_color(head: SupportsInt) -> str:
    """The colour of a head."""
    return HEADS[int(head) % len(HEADS)]


@theme()
def labels_by_heads(
    counts: Int[Array, "head label"], designation: Int[Array, "label"], names: Sequence[str], site: str
) -> Card:
    """Every label under the head that owns it, with the number of nodes of each head that have it.

    counts: d_h(i). designation: the owning head, or -1 for a label that nobody owns. The labels of a head are ordered
    by the number of its nodes that have them, which is written behind the name; names with fewer than `FEW` nodes are
    grey.
    """
    nodes, owner = as_array(counts), as_array(designation)
    heads = len(nodes)
    rank = np.argsort(-nodes.max(axis=0), kind="stable")
    columns = [[int(label) for label in rank if owner[label] == head] for head in range(heads)]
    across = heads if heads <= 4 else 3
    bands = [columns[start : start + across] for start in range(0, heads, across)]
    lines = [max(6, *(len(column) for column in band)) for band in bands]
    figure, panels = card(sum(lines) * ROW + 0.55 * len(bands) + 0.55, len(bands), across, height_ratios=lines)
    for head, panel in enumerate(panels.flat):
        panel.set_visible(head < heads)
        if head < heads:
            owned = [short(names[label], 15 if heads <= 4 else 20) for label in columns[head]]
            drawn = _label_column(panel, nodes[:, columns[head]], owned, head, lines[head // across])
            drawn.set_clim(0, max(int(nodes.max()), 1))
    where = {"location": "bottom", "shrink": 0.5, "pad": 0.01}
    colorbar(drawn, "nodes with the label on their diagonal", list(panels.flat), **where)
    sizes = listing([str(len(column)) for column in columns])
    nobody = int((owner < 0).sum())
    headline(
        figure,
        f"At {site}, heads own {sizes} of the {len(owner)} labels",
        f"Cells: heads 0 to {heads - 1}. A label belongs to the head with most nodes for it; their number follows it "
        f"(grey: fewer than {FEW}). {count(nobody, 'label')} {'has' if nobody == 1 else 'have'} no single such head.",
    )
    return figure


def _label_column(
    axes: Axes, counts: Int[np.ndarray, "head label"], names: Sequence[str], head: int, lines: int
) -> AxesImage:
    """The labels of one head: their names, and a row of cells each, one cell a head."""
    heads = len(counts)
    grid = counts.T if counts.shape[1] else np.zeros((1, heads))
    extent = (0, heads, len(grid) - 0.5, -0.5)
    drawn = axes.imshow(np.ma.masked_equal(grid, 0), cmap=COUNTS, aspect="auto", extent=extent)
    axes.set(xlim=(0, heads), ylim=(lines - 0.5, -0.5))
    axes.set_xticks(np.arange(heads) + 0.5, [str(other) for other in range(heads)], fontsize=SMALLEST)
    axes.xaxis.tick_top()
    axes.get_xticklabels()[head].set_fontweight("bold")
    numbered = [f"{name} {nodes}" for name, nodes in zip(names, counts[head], strict=True)]
    axes.set_yticks(range(len(names)), numbered, fontsize=SMALLEST)
    for tick, nodes in zip(axes.get_yticklabels(), counts[head], strict=True):
        tick.set_color(INK if nodes >= FEW else MUTED)
    without_frame(axes)
    if names:
        frame: dict[str, Any] = {"fill": False, "edgecolor": head_color(head), "linewidth": 2, "clip_on": False}
        axes.add_patch(Rectangle((head, -0.5), 1, len(names), **frame))
    axes.set_title(f"head {head}", loc="right", color=readable(head_color(head)), pad=8)
    return drawn


@theme()
def concentration(sites: pd.DataFrame) -> Card:
    """Mean concentration of labels on heads, and the share of labels beyond chance, against nodes dealt at random.

    sites: `ownership.symmetry`, one row an encoder: encoder, concentration, dealt_mean, dealt_95, broken,
    broken_dealt, p_holm, deals.
    """
    sites = sites.sort_values("encoder")
    figure, [[left, right]] = card(3.4, 1, 2)
    band(left, sites.encoder, sites.dealt_mean, sites.dealt_95)
    line(left, sites, "dealt_mean", color=MUTED, linewidth=1.2)
    line(left, sites, "concentration", **MEASURED)
    line(right, sites, "broken_dealt", 100, color=MUTED, linewidth=1.2)
    line(right, sites, "broken", 100, **MEASURED)
    left.set(title="mean over labels", ylabel="concentration (1: one head only)")
    right.set(title="labels beyond chance", ylabel="labels (%)", ylim=(0, None))
    for panel in (left, right):
        encoder_axis(panel, sites.encoder)
    for row in sites[sites.p_holm < SIGNIFICANT].itertuples():
        place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        left.annotate("*", (row.encoder, row.concentration), size=13, **place)
    star = key("p < 0.05", linestyle="", marker=(6, 2, 0), color=INK, markeredgecolor=INK)
    legend(figure, [key("measured", **MEASURED), swatch("dealt nodes, mean to 95%"), star])
    beyond = int((sites.p_holm < SIGNIFICANT).sum())
    headline(
        figure,
        f"Labels are concentrated on heads beyond chance at {beyond} of {len(sites)} encoders "
        f"({number(sites.concentration.mean())} against {number(sites.dealt_mean.mean())} for dealt nodes)",
        f"Chance: the same nodes dealt into heads {int(sites.deals.min()):,} times. p after Holm's correction.",
    )
    return figure


@theme()
def enrichment(table: pd.DataFrame) -> Card:
    """Which superclasses a head holds more of than chance gives, at one encoder.

    table: `ownership.enrichment` of one site: site, head, group_name, group_labels, shared, expected, p_holm.
    """
    if table.site.nunique() != 1:
        raise UserError(
            f"enrichment: the table has {table.site.nunique()} sites, expected one; select the rows of a site"
        )
    table = table.assign(excess=np.log2((table.shared + 0.5) / (table.expected + 0.5)), sure=table.p_holm < SIGNIFICANT)
    table = table.assign(written=table.shared.astype(str) + table.sure.map({True: " *", False: ""}))
    excess, written = (table.pivot(index="group_name", columns="head", values=name) for name in ("excess", "written"))
    excess = excess.iloc[np.lexsort((-excess.max(axis=1), excess.to_numpy().argmax(axis=1)))]
    figure, [[axes]] = card(0.75 + 0.235 * len(excess), width=6.0)
    limit = max(float(np.nanmax(np.abs(excess))), 2.6)
    cells = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit, "linewidths": 1, "cbar": False}
    sns.heatmap(excess, annot=written.loc[excess.index], fmt="", ax=axes, **cells)
    axes.set_yticks(np.arange(len(excess)) + 0.5, [short(name, 32) for name in excess.index], rotation=0)
    axes.set_xticks(np.arange(excess.shape[1]) + 0.5, [f"head {head}" for head in excess.columns])
    axes.set(xlabel="labels owned by the head (number in the cell)", ylabel="")
    without_frame(axes)
    bar = colorbar(axes.collections[0], "against chance", axes)
    ticks = [tick for tick in (-2, -1, 0, 1, 2) if abs(tick) <= limit]
    bar.set_ticks(ticks, labels=[f"× {2.0**tick:g}" for tick in ticks])
    headline(
        figure,
        f"At {table.site.iloc[0]}, {_whole_groups(table)}",
        f"Beyond chance alone: {int(table.sure.sum()) or 'none'} of {len(table)} cells (* hypergeometric, Holm, 5%). "
        "Five labels give little power; the figure above tests all together.",
    )
    return figure


def _whole_groups(table: pd.DataFrame) -> str:
    """Which superclasses have all their owned labels with one head: "head 0 owns all labels of trees and flowers"."""
    whole = table[(table.shared == table.group_labels) & (table.group_labels > 1)]
    if whole.empty:
        return "no superclass has all its labels with one head"
    parts = {head: listing([short(name, 36) for name in rows.group_name]) for head, rows in whole.groupby("head")}
    return "; ".join(f"head {head} owns all labels of {names}" for head, names in parts.items())


@theme()
def semantics(table: pd.DataFrame) -> Card:
    """Do labels of one superclass go to the same head? `ownership.semantics`: encoder, same, shuffled_mean,
    shuffled_95, dealt_mean, dealt_95, p_holm, p_dealt_holm.
    """
    table = table.sort_values("encoder")
    figure, [[axes]] = card(3.2)
    for name, color in (("shuffled", MUTED), ("dealt", WARN)):
        line(axes, table, f"{name}_mean", 100, color=color, linewidth=1.2)
        line(axes, table, f"{name}_95", 100, color=color, linewidth=1.2, linestyle=(0, (3, 2)))
    line(axes, table, "same", 100, **MEASURED)
    axes.set_ylabel("pairs with the same head (%)")
    encoder_axis(axes, table.encoder)
    keys = [key("measured", **MEASURED), key("dealt nodes", color=WARN), key("labels shuffled", color=MUTED)]
    legend(figure, keys)
    meaning, more = int((table.p_holm < SIGNIFICANT).sum()), int((table.p_dealt_holm < SIGNIFICANT).sum())
    headline(
        figure,
        f"Labels of a superclass share a head beyond chance at {meaning} of {len(table)} encoders; "
        f"beyond what nodes give at {more}",
        "Pairs of labels of one superclass that one head owns. Thin: mean and 95th percentile (dashed) of a null.",
    )
    return figure


@theme()
def expert_gap(heads: pd.DataFrame, sites: pd.DataFrame) -> Card:
    """Accuracy of each head alone on its own labels and on those of the other heads, and the mean gap against dealt
    nodes.

    heads, sites: `experts.expert_accuracy`: heads has encoder, head, own, others; sites has encoder, gap, dealt_mean,
    dealt_95, p.
    """
    sites, numbers = sites.sort_values("encoder"), sorted(heads["head"].unique())
    figure, [[upper], [lower]] = card(5.0, 2, 1, sharex=True, height_ratios=[1.5, 1])
    for head in numbers:
        rows, color = heads[heads["head"] == head], head_color(head)
        x = rows.encoder + 0.15 * (head - (len(numbers) - 1) / 2)
        upper.vlines(x, 100 * rows.others, 100 * rows.own, color=color, linewidth=1.4, alpha=0.6)
        upper.vlines(x, 100 * rows.own_low, 100 * rows.own_high, color=color, linewidth=3)
        upper.plot(x, 100 * rows.own, "o", color=color, markersize=7, label=f"head {head}")
        upper.plot(x, 100 * rows.others, "o", markerfacecolor=GROUND, markeredgecolor=color, markeredgewidth=1.5)
    upper.set(ylabel="accuracy of a head alone (%)", ylim=(0, None))
    band(lower, sites.encoder, 100 * sites.dealt_mean, 100 * sites.dealt_95)
    line(lower, sites, "dealt_mean", 100, color=MUTED, linewidth=1.2)
    lower.vlines(sites.encoder, 100 * sites.gap_low, 100 * sites.gap_high, color=MEASURED["color"])
    line(lower, sites, "gap", 100, **MEASURED)
    lower.axhline(0, color=INK, linewidth=0.8)
    lower.set_ylabel("own minus others\n(points)")
    for panel in (upper, lower):
        encoder_axis(panel, sites.encoder, label=panel is lower)
    hollow = {"marker": "o", "linestyle": "", "markerfacecolor": GROUND, "markeredgecolor": MUTED}
    keys = [*upper.get_legend_handles_labels()[0], key("others' labels", **hollow), swatch("dealt nodes")]
    legend(figure, keys, ncols=len(keys) if len(keys) <= 6 else 4, handlelength=1.2)
    better, beyond = int((sites.gap_low > 0).sum()), int((sites.p < SIGNIFICANT).sum())
    headline(
        figure,
        f"A head alone is better at its own labels than at others at {better} of {len(sites)} encoders, by "
        f"{number(100 * sites.gap.mean())} points on average; at {beyond} by more than dealt nodes are",
        "Each head alone, other heads silenced in the probe. Filled: own labels; hollow: the others'. "
        "Below: mean over heads, 95% intervals; band: dealt nodes, mean to 95%.",
    )
    return figure


@theme()
def ablation(sites: pd.DataFrame, heads: pd.DataFrame) -> Card:
    """What the network itself loses when a head is silenced in it: on that head's labels more than on others, and more
    than when random nodes are silenced?

    sites, heads: `experts.ablation`: sites has encoder, excess; heads has site, encoder, head, labels, drop_own,
    drop_others, random_own, random_others, draws. Single heads are drawn of the encoder with the largest excess.
    """
    sites = sites.sort_values("encoder")
    rows = heads[heads.encoder == sites.encoder[sites.excess.idxmax()]].sort_values("head")
    figure, [[upper], [lower]] = card(5.4, 2, 1, height_ratios=[1, 1.4])
    upper.vlines(sites.encoder, 100 * sites.excess_low, 100 * sites.excess_high, color=MEASURED["color"])
    line(upper, sites, "excess", 100, **MEASURED)
    upper.set(title="all heads: loss on own labels beyond others' and beyond random nodes", ylabel="points")
    encoder_axis(upper, sites.encoder)
    colors = [head_color(head) for head in rows["head"]]
    columns = {"drop_own": (-0.24, "o", False), "drop_others": (-0.08, "o", True)}
    columns |= {"random_own": (0.12, "s", False), "random_others": (0.26, "s", True)}
    for name, (shift, marker, hollow) in columns.items():
        for place, (color, low, middle, high) in enumerate(
            zip(colors, *(100 * rows[name + end] for end in ("_low", "", "_high")), strict=True)
        ):
            color = FOREIGN if name.startswith("random") else color
            lower.vlines(place + shift, low, high, color=color, linewidth=2.2)
            face = {"markerfacecolor": GROUND if hollow else color, "markeredgecolor": color, "markeredgewidth": 1.6}
            lower.plot(place + shift, middle, marker, markersize=7, **face)
    lower.set_xticks(range(len(rows)), [f"head {row.head}\n{row.labels} labels" for row in rows.itertuples()])
    lower.set(
        title=f"single heads at {rows.site.iloc[0]}", ylabel="accuracy lost (points)", xlim=(-0.5, len(rows) - 0.5)
    )
    lower.grid(axis="y")
    for panel in (upper, lower):
        panel.axhline(0, color=INK, linewidth=0.8)
    dot, square = {"linestyle": "", "marker": "o", "color": INK}, {"linestyle": "", "marker": "s", "color": FOREIGN}
    others = key("others' labels (hollow)", markerfacecolor=GROUND, markeredgecolor=INK, linestyle="", marker="o")
    legend(figure, [key("own labels", **dot), others, key("random nodes silenced", **square)])
    sure, mean = int((sites.excess_low > 0).sum()), 100 * sites.excess.mean()
    alone = int((rows.excess_low > 0).sum())
    headline(
        figure,
        f"Silencing a head costs its own labels {mean:.1f} points more than others, beyond random nodes, clearly "
        f"at {sure} of {len(sites)} encoders; at {rows.site.iloc[0]} for {alone} of {len(rows)} heads",
        "Accuracy lost in the network itself. Bars: 95% intervals over test images; random: "
        f"{int(rows.draws.min())} draws of as many nodes.",
    )
    return figure


def image_of_each_head(
    counts: Int[Array, "head label"],
    designation: Int[Array, "label"],
    labels: Int[Array, "image"],
    correct: Bool[Array, "image"],
) -> list[int]:
    """For each head the first image that the network gets right of the label that it owns with most nodes.

    A head that owns no label, or whose label has no such image, has none.
    """
    nodes, owner, labels, correct = (as_array(values) for values in (counts, designation, labels, correct))
    rows = []
    for head, of_head in enumerate(nodes):
        owned = np.where(owner == head, of_head, -1)
        images = np.flatnonzero(correct & (labels == owned.argmax()))
        if owned.max() > 0 and len(images):
            rows.append(int(images[0]))
    return rows
