"""The network as a picture: from an image to labels above, one encoder opened below, its four sites "
"marked."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from cctlib.figures.palette import GROUND, HEADS, INK, KINDS, MUTED, PANEL, RULE, contrast, readable
from cctlib.figures.style import SMALLEST, Card, card, headline, themed
from cctlib.model.cct import SITES, CCTConfig
from cctlib.model.sites import width

STEEL, STEEL_LIGHT = "#33475B", "#D9E0E6"
WIDE, TALL = 6.8, 4.58  # inches: the drawing's own coordinates
UPPER, LOWER = 4.05, 1.42  # heights of the two flows


@themed
def network(config: CCTConfig) -> Card:
    """Draw the network that `config` (a `CCTConfig`) describes; every size in the picture is computed from it
    (Method, sections 2, 3).
    """
    figure = card(TALL)
    axes = figure.add_subplot()
    axes.set(xlim=(0, WIDE), ylim=(0, TALL), aspect="equal")
    axes.axis("off")
    _pipeline(axes, config)
    _encoder(axes, config)
    total = config.encoders * sum(nodes(config).values())
    headline(
        figure,
        f"{config.tokens} tokens pass {config.encoders} encoders, whose sites hold {total:,} nodes",
        f"CCT-{config.encoders}/{config.kernel}x{config.convolutions}. Coloured dots are the sites "
        "where nodes are measured: "
        "a node is one coordinate of the token vectors there.",
    )
    return figure


def nodes(config: CCTConfig) -> dict[str, int]:
    """Number of nodes of each kind of site of an encoder."""
    return {kind: width(f"enc1/{kind}", config) for kind in SITES}


def _pipeline(axes: Axes, config: CCTConfig) -> None:
    _picture(axes, 0.05, UPPER, 0.86)
    _caption(axes, 0.48, "image", f"3 × {config.image_size} × {config.image_size}")
    _arrow(axes, 0.98, 1.2)
    _tokenizer(axes, 1.27, config)
    _caption(axes, 1.72, "tokenizer", f"{config.convolutions} × conv {config.kernel}×{config.kernel}")
    _arrow(axes, 2.24, 2.46)
    _token_grid(axes, 2.54, config.side(config.image_size))
    _caption(axes, 2.96, f"{config.tokens} tokens", f"of {config.width} numbers")
    _arrow(axes, 3.46, 3.68)
    _slabs(axes, 3.78, 5.0, config.encoders)
    _caption(axes, 4.39, f"{config.encoders} encoders", f"{config.heads} heads each")
    _arrow(axes, 5.1, 5.3)
    axes.add_patch(
        Polygon(
            [(5.38, UPPER + 0.43), (5.38, UPPER - 0.43), (5.76, UPPER - 0.14), (5.76, UPPER + 0.14)],
            closed=True,
            facecolor=STEEL,
            joinstyle="round",
        )
    )
    _caption(axes, 5.57, "SeqPool", "1 vector")
    _arrow(axes, 5.84, 6.04)
    _label_bars(axes, 6.14)
    _caption(axes, 6.4, f"{config.num_classes}", "labels")


def _caption(axes: Axes, x: float, name: str, size: str) -> None:
    axes.text(x, UPPER - 0.56, name, ha="center", va="top", weight="bold", size=SMALLEST + 0.5)
    axes.text(x, UPPER - 0.74, size, ha="center", va="top", color=MUTED, size=SMALLEST)


def _arrow(axes: Axes, left: float, right: float, y: float = UPPER, color: str = MUTED) -> None:
    style: dict[str, Any] = {
        "arrowstyle": "-|>,head_length=3,head_width=2",
        "color": color,
        "linewidth": 1.2,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.add_patch(FancyArrowPatch((left, y), (right, y), **style))


def _picture(axes: Axes, left: float, middle: float, side: float) -> None:
    """A small flower, made of pixels like the images that the network reads."""
    y, x = np.mgrid[0:16, 0:16] - 7.5
    radius, angle = np.hypot(x, y + 1), np.arctan2(y + 1, x)
    petals = radius < 4.3 + 1.7 * np.cos(5 * angle - 0.6)
    image = np.full((16, 16, 3), 0.0) + np.array([0.80, 0.87, 0.92]) - 0.012 * (y + 7.5)[..., None]
    image[(np.abs(x - 0.5) <= 0.5) & (y > 0)] = (0.25, 0.50, 0.33)
    image[petals] = (0.72, 0.20, 0.42)
    image[petals & (radius < 3.6)] = (0.80, 0.32, 0.53)
    image[radius < 1.9] = (0.95, 0.75, 0.25)
    axes.imshow(
        image, extent=(left, left + side, middle - side / 2, middle + side / 2), interpolation="nearest", zorder=2
    )
    axes.add_patch(Rectangle((left, middle - side / 2), side, side, fill=False, edgecolor=MUTED, zorder=3))
    axes.set(xlim=(0, WIDE), ylim=(0, TALL))


def _tokenizer(axes: Axes, left: float, config: CCTConfig) -> None:
    """One stack of sheets per convolution, smaller and thicker as the map shrinks and the channels grow."""
    step = 0.9 / config.convolutions
    for layer in range(config.convolutions):
        side = 0.74 * (0.72**layer)
        for sheet in range(3 + layer, -1, -1):
            corner = (left + layer * step + 0.055 * sheet, UPPER - side / 2 + 0.03 * sheet - 0.04)
            box = Rectangle(
                corner, min(side, step) * 0.62, side, facecolor=STEEL_LIGHT if sheet else STEEL, edgecolor=GROUND
            )
            axes.add_patch(box)


def _token_grid(axes: Axes, left: float, grid: int) -> None:
    """The tokens as the map they come from; a large grid is drawn coarser, and its true size is in the
    caption.
    """
    drawn = min(grid, 8)
    cell = 0.84 / drawn
    for row in range(drawn):
        for column in range(drawn):
            shade = 0.25 + 0.75 * np.exp(
                -((row - drawn / 2 + 0.9) ** 2 + (column - drawn / 2 + 0.5) ** 2) / (0.12 * drawn**2)
            )
            corner = (left + column * cell, UPPER + 0.42 - (row + 1) * cell)
            axes.add_patch(Rectangle(corner, cell * 0.84, cell * 0.84, facecolor=STEEL, alpha=shade, linewidth=0))


def _slabs(axes: Axes, left: float, right: float, encoders: int) -> None:
    step = (right - left) / encoders
    for index in range(encoders):
        opened = index == encoders // 2
        corner = (left + index * step + 0.1 * step, UPPER - 0.43)
        box = FancyBboxPatch(
            corner,
            0.8 * step,
            0.86,
            boxstyle="round,pad=0,rounding_size=0.03",
            linewidth=0,
            facecolor=STEEL if opened else STEEL_LIGHT,
        )
        axes.add_patch(box)
        if encoders <= 9:
            color = GROUND if opened else INK
            axes.text(
                corner[0] + 0.4 * step, UPPER, str(index + 1), ha="center", va="center", size=SMALLEST, color=color
            )
    middle = left + (encoders // 2 + 0.5) * step
    wedge = [
        (middle - 0.4 * step, UPPER - 0.45),
        (middle + 0.4 * step, UPPER - 0.45),
        (WIDE - 0.05, 2.62),
        (0.05, 2.62),
    ]
    axes.add_patch(Polygon(wedge, closed=True, facecolor=PANEL, alpha=0.9, linewidth=0, zorder=0))


def _label_bars(axes: Axes, left: float) -> None:
    for index, length in enumerate((0.16, 0.1, 0.5, 0.2, 0.08, 0.13, 0.06)):
        color = STEEL if length == 0.5 else STEEL_LIGHT
        axes.add_patch(Rectangle((left, UPPER + 0.36 - 0.125 * index), length, 0.085, facecolor=color, linewidth=0))


def _encoder(axes: Axes, config: CCTConfig) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (0.05, 0.05),
            WIDE - 0.1,
            2.57,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=PANEL,
            edgecolor=RULE,
            linewidth=1,
            zorder=0,
        )
    )
    axes.text(0.2, 2.42, "one encoder", weight="bold", va="center", size=SMALLEST + 0.5)
    axes.plot([0.12, 6.68], [LOWER, LOWER], color=MUTED, linewidth=1.2, zorder=1)
    _arrow(axes, 6.5, 6.74, LOWER)
    _skip(axes, 0.26, 2.88)
    _box(axes, 0.4, 0.36, "LN")
    _heads(axes, 0.98, config.heads)
    _box(axes, 2.16, 0.5, "proj")
    _plus(axes, 2.88)
    _box(axes, 3.06, 0.36, "LN")
    _skip(axes, 3.68, 6.14)
    _box(axes, 3.88, 0.78, "linear1\nGELU")
    _box(axes, 5.2, 0.72, "linear2")
    _plus(axes, 6.14)
    _site(axes, 1.98, "mha", f"{nodes(config)['mha']} nodes", f"{config.heads} × {config.width // config.heads}")
    _site(axes, 3.6, "trunk", f"{nodes(config)['trunk']} nodes")
    _site(axes, 4.93, "ff_hidden", f"{nodes(config)['ff_hidden']} nodes")
    _site(axes, 6.36, "ff", f"{nodes(config)['ff']} nodes")


def _box(axes: Axes, left: float, width: float, text: str) -> None:
    corner = (left, LOWER - 0.24)
    axes.add_patch(
        FancyBboxPatch(
            corner,
            width,
            0.48,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=GROUND,
            edgecolor=STEEL,
            linewidth=1,
            zorder=2,
        )
    )
    axes.text(left + width / 2, LOWER, text, ha="center", va="center", size=SMALLEST, zorder=3, linespacing=1.2)


def _heads(axes: Axes, left: float, heads: int) -> None:
    """The heads side by side as bars: each owns its own block of the concatenated nodes."""
    height = 1.5 / heads
    for head in range(heads):
        bottom = LOWER + 0.75 - (head + 1) * height
        axes.add_patch(
            FancyBboxPatch(
                (left, bottom + 0.03),
                0.8,
                height - 0.06,
                boxstyle="round,pad=0,rounding_size=0.04",
                facecolor=HEADS[head % len(HEADS)],
                linewidth=0,
                zorder=2,
            )
        )
        ink = GROUND if contrast(HEADS[head % len(HEADS)]) > 4.5 else INK
        axes.text(
            left + 0.4,
            bottom + height / 2,
            f"head {head}",
            ha="center",
            va="center",
            color=ink,
            size=SMALLEST,
            weight="bold",
            zorder=3,
        )


def _plus(axes: Axes, x: float) -> None:
    axes.add_patch(Circle((x, LOWER), 0.1, facecolor=GROUND, edgecolor=STEEL, linewidth=1, zorder=3))
    axes.plot([x - 0.055, x + 0.055], [LOWER, LOWER], color=STEEL, linewidth=1.2, zorder=4)
    axes.plot([x, x], [LOWER - 0.055, LOWER + 0.055], color=STEEL, linewidth=1.2, zorder=4)


def _skip(axes: Axes, left: float, right: float) -> None:
    """A residual connection: up, over, and down into the sum."""
    top = LOWER + 0.86
    axes.plot(
        [left, left, right, right],
        [LOWER, top, top, LOWER + 0.1],
        color=MUTED,
        linewidth=1.2,
        zorder=1,
        solid_joinstyle="round",
    )


def _site(axes: Axes, x: float, kind: str, size: str, note: str = "") -> None:
    axes.plot([x, x], [LOWER - 0.08, 0.66], color=KINDS[kind], linewidth=1.2, zorder=2)
    axes.add_patch(Circle((x, LOWER), 0.085, facecolor=KINDS[kind], edgecolor=GROUND, linewidth=1.5, zorder=5))
    x = min(x, 6.31)
    axes.text(x, 0.62, kind, ha="center", va="top", color=readable(KINDS[kind]), weight="bold", size=SMALLEST + 1)
    axes.text(x, 0.43, size, ha="center", va="top", size=SMALLEST, color=INK)
    axes.text(x, 0.27, note, ha="center", va="top", size=SMALLEST, color=MUTED)
