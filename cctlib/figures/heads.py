"""Heads: which labels each head owns, and whether that could be chance.

Tables are those of `cctlib.heads.ownership`; heads are counted from 0, as in Method, section 3.
"""

from collections.abc import Sequence
from typing import SupportsInt

import numpy as np
import pandas as pd
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from cctlib.claims.rules import SIGNIFICANT
from cctlib.errors import UserError
from cctlib.figures.palette import COUNTS, DIVERGING, FOREIGN, HEADS, INK, KINDS, MUTED, WARN, readable
from cctlib.figures.style import (
    SMALLEST,
    Array,
    Card,
    as_array,
    body,
    card,
    colorbar,
    encoder_axis,
    headline,
    panel_title,
    themed,
)
from cctlib.figures.wording import count, listing, number, short

ROW = 0.148  # inches of a label's line


def head_color(head: SupportsInt) -> str:
    """The colour of a head."""
    return HEADS[int(head) % len(HEADS)]


@themed
def labels_by_heads(
    counts: Int[Array, "head label"], designation: Int[Array, "label"], names: Sequence[str], site: str
) -> Card:
    """Every label under the head that owns it, with the number of nodes of each head that have it.

    counts: d_h(i). designation: the owning head, or -1 for a label that nobody owns. The labels of a head are
    ordered by its share of their nodes, so that its own column stands out as a block.
    """
    nodes, owner = as_array(counts), as_array(designation)
    heads, total = len(nodes), nodes.sum(axis=0)
    rank = np.lexsort((-total, -nodes.max(axis=0) / np.maximum(total, 1)))
    columns = [[int(label) for label in rank if owner[label] == head] for head in range(heads)]
    across = heads if heads <= 4 else 3
    bands = [columns[start : start + across] for start in range(0, heads, across)]
    lines = [max(6, *(len(column) for column in band)) for band in bands]
    figure = card(sum(lines) * ROW + 0.55 * len(bands) + 0.55)
    panels = figure.subplots(len(bands), across, squeeze=False, height_ratios=lines)
    brightest = max(int(nodes.max()), 1)
    for head, panel in enumerate(panels.flat):
        panel.set_visible(head < heads)
        if head < heads:
            drawn = _label_column(
                panel, nodes[:, columns[head]], [names[label] for label in columns[head]], head, lines[head // across]
            )
            drawn.set_clim(0, brightest)
    colorbar(
        figure,
        drawn,
        "nodes with the label on their diagonal",
        list(panels.flat),
        location="bottom",
        shrink=0.5,
        pad=0.01,
    )
    sizes = [len(column) for column in columns]
    nobody = int((owner < 0).sum())
    headline(
        figure,
        f"At {site}, heads own {listing([str(size) for size in sizes])} of the {len(owner)} labels",
        f"Cells: heads 0 to {heads - 1}. A label belongs to the head with most nodes for it; "
        f"{count(nobody, 'label')} {'has' if nobody == 1 else 'have'} no single such head.",
    )
    return figure


def _label_column(
    axes: Axes, counts: Int[np.ndarray, "head label"], names: Sequence[str], head: int, lines: int
) -> AxesImage:
    """The labels of one head: their names, and a row of cells each, one cell a head."""
    heads = len(counts)
    grid = counts.T if counts.shape[1] else np.zeros((1, heads))
    drawn = axes.imshow(
        np.ma.masked_equal(grid, 0), cmap=COUNTS, aspect="auto", extent=(0, heads, len(grid) - 0.5, -0.5)
    )
    axes.set(xlim=(0, heads), ylim=(lines - 0.5, -0.5))
    axes.set_xticks(np.arange(heads) + 0.5, [str(other) for other in range(heads)], fontsize=SMALLEST)
    axes.xaxis.tick_top()
    axes.get_xticklabels()[head].set_fontweight("bold")
    axes.set_yticks(range(len(names)), [short(name, 15 if heads <= 4 else 20) for name in names], fontsize=SMALLEST)
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if names:
        axes.add_patch(
            Rectangle((head, -0.5), 1, len(names), fill=False, edgecolor=head_color(head), linewidth=2, clip_on=False)
        )
    axes.set_title(f"head {head}", loc="right", color=readable(head_color(head)), pad=8)
    return drawn


@themed
def concentration(sites: pd.DataFrame) -> Card:
    """Mean concentration of labels on heads, and the share of labels beyond chance, against nodes dealt at
    random.

    sites: `heads.symmetry`, one row an encoder: encoder, concentration, dealt_mean, dealt_95, broken,
    broken_dealt, p_holm, deals.
    """
    sites = sites.sort_values("encoder")
    figure = card(3.4)
    part = body(figure)
    left, right = part.subplots(1, 2)
    color = KINDS["mha"]
    left.fill_between(sites.encoder, sites.dealt_mean, sites.dealt_95, color=FOREIGN, alpha=0.45, linewidth=0)
    left.plot(sites.encoder, sites.dealt_mean, color=MUTED, linewidth=1.2)
    left.plot(sites.encoder, sites.concentration, color=color, marker="o", markeredgecolor="white")
    left.set_ylabel("concentration (1: one head only)")
    panel_title(left, "mean over labels")
    right.plot(sites.encoder, 100 * sites.broken_dealt, color=MUTED, linewidth=1.2)
    right.plot(sites.encoder, 100 * sites.broken, color=color, marker="o", markeredgecolor="white")
    right.set(ylabel="labels (%)", ylim=(0, None))
    panel_title(right, "labels beyond chance")
    for panel in (left, right):
        encoder_axis(panel, sites.encoder)
        panel.grid(axis="y")
    for row in sites.itertuples():
        if row.p_holm < SIGNIFICANT:
            left.annotate(
                "*",
                (row.encoder, row.concentration),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                size=13,
                color=INK,
            )
    keys = [
        Line2D([], [], color=color, marker="o", label="measured"),
        Patch(facecolor=FOREIGN, alpha=0.45, label="dealt nodes, mean to 95%"),
        Line2D([], [], linestyle="", marker=(6, 2, 0), color=INK, label="p < 0.05"),
    ]
    part.legend(handles=keys, loc="outside lower left", ncols=3)
    beyond = int((sites.p_holm < SIGNIFICANT).sum())
    headline(
        figure,
        f"Labels are concentrated on heads beyond chance at {beyond} of {len(sites)} encoders "
        f"({number(sites.concentration.mean())} against {number(sites.dealt_mean.mean())} for dealt nodes)",
        f"Chance: the same nodes dealt into heads {int(sites.deals.min()):,} times. p after Holm's correction over encoders.",
    )
    return figure


@themed
def enrichment(table: pd.DataFrame) -> Card:
    """Which superclasses a head holds more of than chance gives, at one encoder.

    table: `heads.enrichment` of one site: site, head, group_name, shared, expected, fold, p_holm.
    """
    if table.site.nunique() != 1:
        raise UserError(
            f"enrichment: the table has {table.site.nunique()} sites, expected one; select the rows of a site"
        )
    wide = {
        name: table.pivot(index="group_name", columns="head", values=name) for name in ("shared", "expected", "p_holm")
    }
    excess = np.log2((wide["shared"] + 0.5) / (wide["expected"] + 0.5))
    order = np.lexsort((-excess.max(axis=1), excess.to_numpy().argmax(axis=1)))
    excess, wide = excess.iloc[order], {name: grid.iloc[order] for name, grid in wide.items()}
    figure = card(0.75 + 0.235 * len(excess), width=6.0)
    axes = figure.add_subplot()
    limit = max(float(np.nanmax(np.abs(excess))), 2.6)
    drawn = axes.pcolormesh(excess, cmap=DIVERGING, vmin=-limit, vmax=limit, edgecolor="white", linewidth=1)
    for row, column in np.ndindex(excess.shape):
        value, sure = wide["shared"].iloc[row, column], wide["p_holm"].iloc[row, column] < SIGNIFICANT
        ink = "white" if abs(excess.iloc[row, column]) > 0.62 * limit else INK
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{value:g}{' *' if sure else ''}",
            ha="center",
            va="center",
            color=ink,
            weight="bold" if sure else "normal",
        )
    axes.set_yticks(np.arange(len(excess)) + 0.5, [short(name, 32) for name in excess.index])
    axes.set_xticks(np.arange(excess.shape[1]) + 0.5, [f"head {head}" for head in excess.columns])
    axes.set_xlabel("labels owned by the head (number in the cell)")
    axes.tick_params(length=0)
    axes.invert_yaxis()
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = colorbar(figure, drawn, "against chance", axes)
    ticks = [tick for tick in (-2, -1, 0, 1, 2) if abs(tick) <= limit]
    bar.set_ticks(ticks, labels=[f"× {2.0**tick:g}" for tick in ticks])
    significant = int((wide["p_holm"] < SIGNIFICANT).to_numpy().sum())
    headline(
        figure,
        f"At {table.site.iloc[0]}, {significant or 'none'} of {excess.size} pairs of a superclass and a head "
        f"{'stand' if significant > 1 else 'stands'} out from chance",
        "Hypergeometric test with Holm's correction (* p < 0.05). Five labels a superclass give "
        "little power: see the test over all of them.",
    )
    return figure


@themed
def semantics(table: pd.DataFrame) -> Card:
    """Do labels of one superclass go to the same head? `heads.semantics`: encoder, same, shuffled_mean,
    shuffled_95, dealt_mean, dealt_95, p_holm, p_dealt_holm.
    """
    table = table.sort_values("encoder")
    figure = card(3.2)
    part = body(figure)
    axes = part.add_subplot()
    for name, color in (("shuffled", FOREIGN), ("dealt", WARN)):
        mean, top = 100 * table[f"{name}_mean"], 100 * table[f"{name}_95"]
        axes.fill_between(table.encoder, mean, top, color=color, alpha=0.3, linewidth=0)
        axes.plot(table.encoder, mean, color=color, linewidth=1.2)
    axes.plot(table.encoder, 100 * table.same, color=KINDS["mha"], marker="o", markeredgecolor="white")
    axes.set_ylabel("pairs with the same head (%)")
    axes.grid(axis="y")
    encoder_axis(axes, table.encoder)
    keys = [
        Line2D([], [], color=KINDS["mha"], marker="o", label="measured"),
        Patch(facecolor=WARN, alpha=0.4, label="dealt nodes"),
        Patch(facecolor=FOREIGN, alpha=0.4, label="labels shuffled"),
    ]
    part.legend(handles=keys, loc="outside lower left", ncols=3)
    meaning, more = int((table.p_holm < SIGNIFICANT).sum()), int((table.p_dealt_holm < SIGNIFICANT).sum())
    headline(
        figure,
        f"Labels of a superclass share a head beyond chance at {meaning} of {len(table)} encoders; beyond what nodes give at {more}",
        "Pairs of labels of one superclass designated to the same head. Bands: from the mean of each null to its 95th percentile.",
    )
    return figure
