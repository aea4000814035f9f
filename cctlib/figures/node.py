"""Single nodes: their matrices and clusters, and the story in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from torch import Tensor

from cctlib.errors import UserError
from cctlib.figures.along import at_theta, moves
from cctlib.figures.style import (
    DIVERGING,
    FOREIGN,
    INK,
    MUTED,
    PANEL,
    SIGNAL,
    SMALLEST,
    WARN,
    Card,
    bare,
    card,
    colorbar,
    encoder_axis,
    headline,
    kinds_in,
    legend,
    line,
    look,
    theme,
)
from cctlib.figures.wording import count, place, short
from cctlib.snp import fields

ENTRIES = ListedColormap([PANEL, SIGNAL, WARN, FOREIGN])
ENTRY_NAMES = ("zero", "signal: inside a cluster", "column noise", "foreign noise")
NAMED = 22  # labels whose names fit beside a matrix


@dataclass(frozen=True)
class Node:
    """One node. Matrices are [true label, output]; `clusters` is -1 for a label off the diagonal."""

    site: str
    index: int
    theta: float
    field: Float[np.ndarray, "label label"]
    boolean: Bool[np.ndarray, "label label"]
    clusters: Int[np.ndarray, "label"]

    @property
    def scaled(self) -> Float[np.ndarray, "label label"]:
        """The field over its largest entry; of a silent node, over its largest magnitude."""
        largest = self.field.max()
        return self.field / (largest if largest > 0 else max(float(np.abs(self.field).max()), 1e-12))

    @property
    def entries(self) -> Int[np.ndarray, "label label"]:
        """What each entry of the Boolean matrix is: 0 zero, 1 signal, 2 column noise, 3 foreign noise."""
        on = self.clusters >= 0
        block = np.equal.outer(self.clusters, self.clusters) & on
        return np.where(self.boolean, np.where(block, 1, np.where(on[None], 2, 3)), 0)

    @property
    def noise(self) -> int:
        """Ones outside of the clusters' blocks."""
        return int((self.entries >= 2).sum())

    @property
    def order(self) -> Int[np.ndarray, "label"]:
        """Labels in the order that puts clusters on the diagonal, the largest first; the labels off the diagonal
        follow, those with most ones in their row and column first.
        """
        on = self.clusters >= 0
        size = np.where(on, np.bincount(self.clusters[on], minlength=1)[self.clusters], 0)
        ones = self.boolean.sum(axis=0) + self.boolean.sum(axis=1)
        return np.lexsort((np.arange(len(on)), np.where(on, 0, -ones), self.clusters, -size))

    def extent(self, least: int = 12) -> int:
        """How many labels, in this order, hold all ones of the Boolean matrix; at least `least`, at most all."""
        used = np.flatnonzero((self.boolean | self.boolean.T)[self.order].any(axis=1))
        return min(len(self.order), max(least, int(used[-1]) + 1 if len(used) else 0))

    @property
    def message(self) -> str:
        """What the node does, in a sentence."""
        who, labels = f"Node {self.index} at {place(self.site)}", int((self.clusters >= 0).sum())
        if not self.boolean.any():
            return f"{who} is silent: no entry of its field is positive"
        if not labels:
            return f"{who} has no label on its diagonal, and {count(self.noise, 'one')} elsewhere"
        groups = count(int(self.clusters.max()) + 1, "cluster")
        noisy = count(self.noise, "noisy entry", "noisy entries")
        return f"{who} recognises {count(labels, 'label')} in {groups}, and has {noisy}"


def look_at(
    mu: Float[Tensor, "label node"], W: Float[Tensor, "label node"], site: str, index: int, theta: float = fields.THETA
) -> Node:
    """The node `index` of a site, from the site's `mu` and `W` (Method, section 5).

    Raises `UserError` for a node that the site does not have, and as `fields.boolean`.
    """
    if not 0 <= index < mu.shape[1]:
        raise UserError(f"{site} has nodes 0 to {mu.shape[1] - 1}, not {index}")
    boolean = fields.boolean(mu[:, [index]], W[:, [index]], theta)
    parts = fields.field(mu[:, index], W[:, index]), boolean[0], fields.clusters(boolean)[0]
    return Node(site, index, theta, *(part.cpu().numpy() for part in parts))


def typical(nodes: pd.DataFrame, site: str, theta: float = fields.THETA) -> int:
    """The non-empty node of a site whose noise is nearest the site's median: one that nobody picked.

    nodes: site, encoder, kind, node, silent, noise, one row a node (and theta). Raises `UserError` when all are silent.
    """
    rows = at_theta(nodes, theta)
    rows = rows[(rows.site == site) & ~rows.silent.astype(bool)]
    if rows.empty:
        raise UserError(f"{site} has no node that is not silent at theta {theta:g}; choose another site")
    return int(rows.node.loc[(rows.noise - rows.noise.median()).abs().idxmin()])


@theme()
def node(shown: Node, names: Sequence[str]) -> Card:
    """One node in full: field and Boolean matrix, the same with clusters on the diagonal, and their names."""
    figure, [[left, right], [first, second]] = card(6.7, 2, 2)
    drawn = left.imshow(shown.scaled, cmap=DIVERGING, vmin=-1, vmax=1)
    bar = colorbar(drawn, "field / its largest", right, cax=right.inset_axes((1.05, 0.02, 0.045, 0.96)))
    bar.set_ticks([-1, 0, shown.theta, 1], labels=["-1", "0", f"θ {shown.theta:g}", "1"])
    right.imshow(shown.boolean, cmap=ListedColormap([PANEL, INK]), vmin=0, vmax=1)
    draw_matrix(first, shown, shown.extent(), frames=True)
    titles = ("field", f"field > {shown.theta:g} of its largest", f"clusters first, {shown.extent()} labels")
    for panel, title in zip((left, right, first), titles, strict=True):
        bare(panel)
        panel.set(title=title, xlabel="output", ylabel="true label")
    _named_block(second, shown, names)
    entry_legend(figure, [f"{ENTRY_NAMES[code]}, {(shown.entries == code).sum()}" for code in (1, 2, 3)])
    detail = "labels in the order of the data set above; below, clusters first, and only labels with ones."
    headline(figure, shown.message, f"{len(names)} {detail}")
    return figure


def entry_legend(figure: Card, texts: Sequence[str], where: str = "lower center") -> None:
    """A legend of the three kinds of ones in a Boolean matrix, with these texts."""
    keys = [Patch(facecolor=ENTRIES(code), label=text) for code, text in enumerate(texts, start=1)]
    legend(figure, keys, where, handlelength=1, handleheight=1)


def _named_block(axes: Axes, shown: Node, names: Sequence[str]) -> None:
    """The part of the sorted matrix on the diagonal set, as far as names fit."""
    diagonal = [label for label in shown.order if shown.clusters[label] >= 0]
    bare(axes)
    axes.set_box_aspect(1)
    axes.set(title="the labels it recognises", xlabel="output, in the same order")
    if not diagonal:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=MUTED)
        return
    kept = diagonal[:NAMED]
    axes.imshow(shown.entries[np.ix_(kept, kept)], cmap=ENTRIES, vmin=0, vmax=3, aspect="auto")
    side = max(len(kept), 6) - 0.5
    axes.set(xlim=(-0.5, side), ylim=(side, -0.5))
    _outline(axes, shown.clusters[kept], width=1.6)
    axes.yaxis.tick_right()
    axes.set_yticks(range(len(kept)), [short(names[label], 15) for label in kept], fontsize=SMALLEST)
    axes.tick_params(right=False)
    if len(kept) < len(diagonal):
        axes.set_xlabel(f"the first {len(kept)} of {len(diagonal)}")


def _outline(axes: Axes, clusters: Int[np.ndarray, "label"], width: float = 0.9) -> None:
    """Draw a frame around each cluster's block of a matrix whose labels are sorted by `clusters`."""
    starts = np.flatnonzero(np.diff(clusters, prepend=-2))
    for start, end in pairwise([*starts, len(clusters)]):
        if clusters[start] >= 0:
            corner, side = (start - 0.5, start - 0.5), end - start
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=INK, linewidth=width))


def draw_matrix(axes: Axes, shown: Node, labels: int, frames: bool = False) -> None:
    """Draw the first `labels` rows and columns of a node's Boolean matrix, clusters first."""
    order = shown.order[:labels]
    axes.imshow(shown.entries[np.ix_(order, order)], cmap=ENTRIES, vmin=0, vmax=3)
    if frames:
        _outline(axes, shown.clusters[order])


@theme()
def hero(first: Node, last: Node, by_theta: pd.DataFrame, theta: float = fields.THETA) -> Card:
    """A node's Boolean matrix at the first and at the last encoder, and noise and SNR along all of them."""
    table = at_theta(by_theta, theta)
    kinds = kinds_in(table.kind)
    figure, [[left, right], [noise, ratio]] = card(5.7, 2, 2, height_ratios=[1.62, 1])
    labels = max(first.extent(), last.extent())
    for panel, shown in ((left, first), (right, last)):
        draw_matrix(panel, shown, labels, frames=True)
        bare(panel)
        groups = count(int(shown.clusters.max()) + 1, "cluster")
        title = f"Node {shown.index} at {place(shown.site)}"
        panel.set(title=title, ylabel="true label", xlabel=f"output; {groups}, noise {shown.noise}")
    arrow: dict[str, Any] = {"arrowstyle": "-|>,head_length=6,head_width=4", "color": MUTED, "linewidth": 1.8}
    link = FancyArrowPatch((1.05, 0.5), (1.24, 0.5), transform=left.transAxes, clip_on=False, **arrow)
    link.set_in_layout(False)
    left.add_patch(link)
    panels = ((noise, "noise", "noise per node", "entries"), (ratio, "snr", "signal to noise", "SNR"))
    for panel, column, title, unit in panels:
        for kind in kinds:
            line(panel, table[table.kind == kind], column, **look(kind))
        encoder_axis(panel, table.encoder)
        panel.set(title=title, ylabel=unit)
    noise.set_ylim(bottom=0)
    entry_legend(figure, [name.split(":")[0] for name in ENTRY_NAMES[1:]], "upper left")
    legend(figure, noise)
    detail = "Top: outputs (columns) that a node switches on for true labels (rows), clusters first, labels with ones."
    headline(figure, moves(table, ["noise", "snr"], kinds), detail)
    return figure
