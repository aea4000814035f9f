"""Single nodes: their matrices and clusters."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle

from cctlib.errors import UserError
from cctlib.figures.along import at_theta
from cctlib.figures.style import FOREIGN, INK, PANEL, SIGNAL, WARN, Card, legend
from cctlib.figures.wording import count, place
from cctlib.snp import fields

ENTRIES = ListedColormap([PANEL, SIGNAL, WARN, FOREIGN])
ENTRY_NAMES = ("zero", "signal: inside a cluster", "column noise", "foreign noise")


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


def look_at(mu: fields.Nodes, W: fields.Nodes, site: str, index: int, theta: float = fields.THETA) -> Node:
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


def entry_legend(figure: Card, texts: Sequence[str], where: str = "lower center") -> None:
    """A legend of the three kinds of ones in a Boolean matrix, with these texts."""
    keys = [Patch(facecolor=ENTRIES(code), label=text) for code, text in enumerate(texts, start=1)]
    legend(figure, keys, where, handlelength=1, handleheight=1)


def outline(axes: Axes, clusters: Int[np.ndarray, "label"], width: float = 0.9) -> None:
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
        outline(axes, shown.clusters[order])
