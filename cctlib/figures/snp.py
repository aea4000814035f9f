"""Single nodes: their matrices and clusters, the images they like, and why a field is an outer product.

Matrices to hover over are in `browse.py`; what a `Node` is, and how its labels are ordered, in `nodes.py`.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import SubFigure
from matplotlib.patches import Patch, Rectangle

from cctlib.errors import UserError
from cctlib.figures.nodes import Node, clusters_first, entry_kinds, extent, message
from cctlib.figures.palette import DIVERGING, FOREIGN, INK, KINDS, MUTED, NEGATIVE, PANEL, RULE, SIGNAL, WARN, readable
from cctlib.figures.style import (
    SMALLEST,
    Array,
    Card,
    as_array,
    bare,
    body,
    card,
    colorbar,
    headline,
    kinds_in,
    panel_title,
    themed,
    wrap,
)
from cctlib.figures.wording import count, short
from cctlib.model.sites import parse

ENTRIES = ListedColormap([PANEL, SIGNAL, WARN, FOREIGN])
ENTRY_NAMES = ("zero", "signal: inside a cluster", "column noise", "foreign noise")
NAMED = 22  # labels whose names fit beside a matrix


@themed
def node(seen: Node, names: Sequence[str]) -> Card:
    """One node in full: field and Boolean matrix, the same with clusters on the diagonal, and their names."""
    order, kinds = clusters_first(seen), entry_kinds(seen)
    figure = card(6.7)
    part = body(figure)
    (left, right), (first, second) = part.subplots(2, 2)
    drawn = left.imshow(seen.scaled, cmap=DIVERGING, vmin=-1, vmax=1)
    bar = colorbar(figure, drawn, "field / its largest", cax=right.inset_axes((1.05, 0.02, 0.045, 0.96)))
    bar.set_ticks([-1, 0, seen.theta, 1], labels=["-1", "0", f"θ {seen.theta:g}", "1"])
    right.imshow(seen.boolean, cmap=ListedColormap([PANEL, INK]), vmin=0, vmax=1)
    draw_matrix(first, seen, extent(seen), frames=True)
    titles = (
        "field",
        f"field > {seen.theta:g} of its largest",
        f"clusters first, {extent(seen)} labels",
        "the labels it recognises",
    )
    for panel, title in zip((left, right, first, second), titles, strict=True):
        panel_title(panel, title)
    for panel in (left, right, first):
        bare(panel)
        panel.set(xlabel="output", ylabel="true label")
    _named_block(second, kinds, seen.clusters, order, names)
    _entry_legend(part, [f"{ENTRY_NAMES[code]}, {(kinds == code).sum()}" for code in (1, 2, 3)])
    detail = "labels in the order of the data set above; below, clusters first, and only labels with ones."
    headline(figure, message(seen), f"{len(order)} {detail}")
    return figure


def _entry_legend(part: SubFigure, texts: Sequence[str]) -> None:
    keys = [Patch(facecolor=ENTRIES(code), label=text) for code, text in enumerate(texts, start=1)]
    look = {"ncols": 3, "handlelength": 1, "handleheight": 1, "columnspacing": 1.4}
    part.legend(handles=keys, loc="outside lower center", **look)


def _named_block(
    axes: Axes,
    kinds: Int[np.ndarray, "label label"],
    clusters: Int[np.ndarray, "label"],
    order: Int[np.ndarray, "label"],
    names: Sequence[str],
) -> None:
    """The part of the sorted matrix on the diagonal set, as far as names fit."""
    own = [label for label in order if clusters[label] >= 0]
    bare(axes)
    axes.set_box_aspect(1)
    axes.set(xlabel="output, in the same order")
    if not own:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=MUTED)
        return
    kept = own[:NAMED]
    axes.imshow(kinds[np.ix_(kept, kept)], cmap=ENTRIES, vmin=0, vmax=3, aspect="auto")
    side = max(len(kept), 6) - 0.5
    axes.set(xlim=(-0.5, side), ylim=(side, -0.5))
    outline(axes, clusters[kept], width=1.6)
    axes.yaxis.tick_right()
    axes.set_yticks(range(len(kept)), [short(names[label], 15) for label in kept], fontsize=SMALLEST)
    axes.tick_params(right=False)
    if len(kept) < len(own):
        axes.set_xlabel(f"the first {len(kept)} of {len(own)}")


def outline(axes: Axes, clusters: Int[np.ndarray, "label"], width: float = 0.9) -> None:
    """Draw a frame around each cluster's block of a matrix whose labels are sorted by `clusters`."""
    starts = np.flatnonzero(np.diff(clusters, prepend=-2))
    for start, end in pairwise([*starts, len(clusters)]):
        if clusters[start] >= 0:
            corner, side = (start - 0.5, start - 0.5), end - start
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=INK, linewidth=width))


@themed
def gallery(nodes: Sequence[Node]) -> Card:
    """Boolean matrices along the encoders, one node a site, clusters first. Raises `UserError` for none."""
    if not nodes:
        raise UserError("gallery: no nodes given, expected one of each site (nodes.look)")
    at = {parse(seen.site): seen for seen in nodes}
    encoders, kinds = sorted({encoder for encoder, _ in at}), kinds_in([kind for _, kind in at])
    figure = card(0.55 + 1.28 * len(kinds))
    part = body(figure)
    panels = part.subplots(len(kinds), len(encoders), squeeze=False)
    labels = max(extent(seen) for seen in nodes)
    noise: dict[str, int] = {}
    for row, kind in zip(panels, kinds, strict=True):
        for panel, encoder in zip(row, encoders, strict=True):
            bare(panel)
            seen = at.get((encoder, kind))
            if seen is None:
                panel.set_axis_off()
                continue
            noise[seen.site] = draw_matrix(panel, seen, labels)
            panel.set_xlabel(f"noise {noise[seen.site]}", fontsize=SMALLEST)
        row[0].set_ylabel(kind, color=readable(KINDS[kind]), weight="bold")
    for panel, encoder in zip(panels[0], encoders, strict=True):
        name = f"encoder {encoder}" if len(encoders) < 8 else str(encoder)
        panel.set_title(name, loc="center", weight="normal", fontsize=SMALLEST + 0.5)
    _entry_legend(part, ENTRY_NAMES[1:])
    least, most = min(noise, key=noise.__getitem__), max(noise, key=noise.__getitem__)
    headline(
        figure,
        f"Of these nodes, that of {least} has the least noise ({noise[least]}), that of {most} the most ({noise[most]})",
        f"One node a site, clusters first. Rows: true labels, columns: outputs; beyond these {labels} there are no ones.",
    )
    return figure


def draw_matrix(axes: Axes, seen: Node, labels: int, frames: bool = False) -> int:
    """Draw the first `labels` rows and columns of a node's Boolean matrix, clusters first, and return its noise."""
    kinds, order = entry_kinds(seen), clusters_first(seen)[:labels]
    axes.imshow(kinds[np.ix_(order, order)], cmap=ENTRIES, vmin=0, vmax=3)
    if frames:
        outline(axes, seen.clusters[order])
    return int((kinds >= 2).sum())


@themed
def liked(
    most: UInt8[Array, "most height width 3"] | None,
    least: UInt8[Array, "least height width 3"] | None,
    most_names: Sequence[str],
    least_names: Sequence[str],
    site: str,
    index: int,
) -> Card:
    """The images with the largest and the smallest value of a node, over the names of their labels.

    Without the images (None) the names stand alone, and the figure says so. Raises `UserError` for none.
    """
    if not most_names or not least_names:
        raise UserError(f"liked: no images of node {index} of {site}; measure it on test images first")
    columns = min(8, max(len(most_names), len(least_names)))
    figure = card(3.0)
    rows = figure.subplots(2, columns, squeeze=False)
    for row, pixels, names in zip(rows, (most, least), (most_names, least_names), strict=True):
        for place, panel in enumerate(row):
            if place < len(names):
                _picture(panel, None if pixels is None else np.asarray(pixels[place]), names[place], 6.4 / columns)
            else:
                panel.set_axis_off()
    panel_title(rows[0, 0], "likes most")
    panel_title(rows[1, 0], "likes least")
    top, times = Counter(most_names).most_common(1)[0]
    who, shown = f"node {index} of {site} likes most", len(most_names)
    text = f"{times} of the {shown} images that {who} are labelled {short(top, 24)}"
    if times == 1:
        labels = count(shown, "different label") if shown > 1 else "one label"
        text = f"The {count(shown, 'image')} that {who} {'has' if shown == 1 else 'have'} {labels}"
    detail = "Test images with the largest and the smallest value of the node after pooling."
    if most is None or least is None:
        detail += " The images are not on this machine; their labels come from the measurement."
    headline(figure, text, detail)
    return figure


def _picture(axes: Axes, pixels: UInt8[np.ndarray, "height width 3"] | None, name: str, width: float) -> None:
    """One image, or a blank where it is missing, over its name in at most two lines `width` inches wide."""
    bare(axes)
    axes.imshow(np.full((4, 4, 3), 243, np.uint8) if pixels is None else pixels)
    if pixels is None:
        axes.text(0.5, 0.5, "?", transform=axes.transAxes, ha="center", va="center", size=16, color=MUTED)
    lines = wrap(short(name, 22), SMALLEST, width).split("\n")
    axes.set_xlabel("\n".join(short(line, round(16 * width)) for line in lines[:2]), fontsize=SMALLEST)


@themed
def outer_product(mu: Float[Array, "label"], weights: Float[Array, "label"], site: str, index: int) -> Card:
    """A field matrix and the two vectors that it is made of (Method, section 5).

    mu: the node's mean on the images of each label. weights: the probe's weight from the node to each output.
    """
    mu, weights = as_array(mu), as_array(weights)
    limit = max(float(np.abs(np.outer(mu, weights)).max()), 1e-12)
    figure = card(5.6)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.5, 4.2], height_ratios=[1.2, 4.2])
    main = figure.add_subplot(grid[1, 1])
    left, top = figure.add_subplot(grid[1, 0], sharey=main), figure.add_subplot(grid[0, 1], sharex=main)
    drawn = main.imshow(np.outer(mu, weights), cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    left.barh(range(len(mu)), mu, height=1, color=_signed(mu), linewidth=0)
    top.bar(range(len(mu)), weights, width=1, color=_signed(weights), linewidth=0)
    left.invert_xaxis()
    for panel in (main, left, top):
        panel.tick_params(labelbottom=panel is left, bottom=panel is left, labelleft=False, left=False)
        for spine in panel.spines.values():
            spine.set(visible=panel is main, color=RULE)
    left.axvline(0, color=INK, linewidth=0.8)
    top.axhline(0, color=INK, linewidth=0.8)
    left.locator_params(axis="x", nbins=2)
    top.locator_params(axis="y", nbins=3)
    top.yaxis.tick_right()
    top.yaxis.set_label_position("right")
    left.set(ylabel="true label i", xlabel="mean value μ[i]")
    top.set_ylabel("weight W[j]")
    main.set_xlabel("output j")
    colorbar(figure, drawn, "field M[i, j] = μ[i] · W[j]", main, shrink=1)
    headline(
        figure,
        f"{2 * len(mu)} numbers give the {len(mu) ** 2:,} entries of the field of node {index} of {site}",
        "An outer product: the node's mean on each label (left) times its weight to each output (top).",
    )
    return figure


def _signed(values: Float[np.ndarray, "label"]) -> list[str]:
    return [SIGNAL if value >= 0 else NEGATIVE for value in values]
