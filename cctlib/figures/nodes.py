"""What figures of single nodes draw: a node's matrices and clusters, their order, a sentence about them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cctlib.errors import UserError
from cctlib.figures.wording import count
from cctlib.snp import fields


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


def look(
    mu: Float[Tensor, "label node"], W: Float[Tensor, "label node"], site: str, index: int, theta: float = fields.THETA
) -> Node:
    """The node `index` of a site, from the site's `mu` and `W` (Method, section 5).

    Raises `UserError` for a node that the site does not have, and as `snp.boolean`.
    """
    if not 0 <= index < mu.shape[1]:
        raise UserError(f"{site} has nodes 0 to {mu.shape[1] - 1}, not {index}")
    boolean = fields.boolean(mu[:, [index]], W[:, [index]], theta)
    parts = fields.field(mu[:, index], W[:, index]), boolean[0], fields.clusters(boolean)[0]
    return Node(site, index, theta, *(part.cpu().numpy() for part in parts))


def typical(nodes: pd.DataFrame, site: str, theta: float = fields.THETA) -> int:
    """The non-empty node of a site whose noise is nearest the site's median: one that nobody picked.

    nodes: site, node, silent, noise, one row a node (and theta). Raises `UserError` when all are silent.
    """
    rows = nodes[np.isclose(nodes.theta, theta)] if "theta" in nodes else nodes
    rows = rows[(rows.site == site) & ~rows.silent.astype(bool)]
    if rows.empty:
        raise UserError(f"{site} has no node that is not silent at theta {theta:g}; choose another site")
    return int(rows.node.loc[(rows.noise - rows.noise.median()).abs().idxmin()])


def clusters_first(seen: Node) -> Int[np.ndarray, "label"]:
    """Labels in the order that puts clusters on the diagonal, the largest first.

    The labels off the diagonal follow, those with most ones in their row and column first.
    """
    on = seen.clusters >= 0
    size = np.where(on, np.bincount(seen.clusters[on], minlength=1)[seen.clusters], 0)
    ones = seen.boolean.sum(axis=0) + seen.boolean.sum(axis=1)
    return np.lexsort((np.arange(len(on)), np.where(on, 0, -ones), seen.clusters, -size))


def extent(seen: Node, least: int = 12) -> int:
    """How many labels, clusters first, hold all ones of the Boolean matrix; at least `least`, at most all."""
    order = clusters_first(seen)
    used = np.flatnonzero((seen.boolean | seen.boolean.T)[order].any(axis=1))
    return min(len(order), max(least, int(used[-1]) + 1 if len(used) else 0))


def entry_kinds(seen: Node) -> Int[np.ndarray, "label label"]:
    """What each entry of the Boolean matrix is: 0 zero, 1 signal, 2 column noise, 3 foreign noise."""
    on = seen.clusters >= 0
    block = np.equal.outer(seen.clusters, seen.clusters) & on
    return np.where(seen.boolean, np.where(block, 1, np.where(on[None], 2, 3)), 0)


def message(seen: Node) -> str:
    """What a node does, in a sentence."""
    who, labels = f"Node {seen.index} of {seen.site}", int((seen.clusters >= 0).sum())
    noise = int((entry_kinds(seen) >= 2).sum())
    if not seen.boolean.any():
        return f"{who} is silent: no entry of its field is positive"
    if not labels:
        return f"{who} has no label on its diagonal, and {count(noise, 'one')} elsewhere"
    groups = count(int(seen.clusters.max()) + 1, "cluster")
    return (
        f"{who} recognises {count(labels, 'label')} in {groups}, and has {count(noise, 'noisy entry', 'noisy entries')}"
    )
