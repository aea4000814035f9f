"""The network as a picture: from an image to labels above, one encoder opened below, its four sites marked."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

from cctlib.figures.style import (
    GROUND,
    HEADS,
    INK,
    KINDS,
    MUTED,
    PANEL,
    RULE,
    SMALLEST,
    Card,
    card,
    contrast,
    headline,
    readable,
    theme,
)
from cctlib.model.cct import SITES, CCTConfig

STEEL, STEEL_LIGHT = "#33475B", "#D9E0E6"
WIDE, TALL = 6.8, 4.58  # inches: the drawing's own coordinates
UPPER, LOWER = 4.05, 1.42  # heights of the two flows


@theme()
def network(config: CCTConfig) -> Card:
    """Draw the network that `config` describes; every size is computed from it (Method, sections 2, 3)."""
    figure, [[axes]] = card(TALL)
    axes.axis("off")
    nodes = {kind: config.nodes(f"enc1/{kind}") for kind in SITES}
    _pipeline(axes, config)
    _encoder(axes, config, nodes)
    axes.set(xlim=(0, WIDE), ylim=(0, TALL), aspect="equal")
    total = config.encoders * sum(nodes.values())
    headline(
        figure,
        f"{config.tokens} tokens pass {config.encoders} encoders, whose sites hold {total:,} nodes",
        f"CCT-{config.encoders}/{config.kernel}x{config.convolutions}. Dots: the sites where nodes are measured; "
        "a node is one coordinate of the token vectors there.",
    )
    return figure


def _pipeline(axes: Axes, config: CCTConfig) -> None:
    """The upper flow: image, tokenizer, tokens, encoders, SeqPool, labels."""
    axes.imshow(_flower(), extent=(0.05, 0.91, UPPER - 0.43, UPPER + 0.43), zorder=2)
    axes.add_patch(Rectangle((0.05, UPPER - 0.43), 0.86, 0.86, fill=False, edgecolor=MUTED, zorder=3))
    _tokenizer(axes, 1.27, config.convolutions)
    _token_grid(axes, 2.54, min(config.side(config.image_size), 8))  # a large grid is drawn coarser
    _slabs(axes, 3.78, 5.0, config.encoders)
    funnel = [(5.38, UPPER + 0.43), (5.38, UPPER - 0.43), (5.76, UPPER - 0.14), (5.76, UPPER + 0.14)]
    axes.add_patch(Polygon(funnel, facecolor=STEEL, joinstyle="round"))
    for place, length in enumerate((0.16, 0.1, 0.5, 0.2, 0.08, 0.13, 0.06)):
        color = STEEL if length == 0.5 else STEEL_LIGHT
        axes.add_patch(Rectangle((6.14, UPPER + 0.36 - 0.125 * place), length, 0.085, facecolor=color, linewidth=0))
    captions = {
        0.48: ("image", f"3 × {config.image_size} × {config.image_size}"),
        1.72: ("tokenizer", f"{config.convolutions} × conv {config.kernel}×{config.kernel}"),
        2.96: (f"{config.tokens} tokens", f"of {config.width} numbers"),
        4.39: (f"{config.encoders} encoders", f"{config.heads} heads each"),
        5.57: ("SeqPool", "1 vector"),
        6.4: (f"{config.num_classes}", "labels"),
    }
    for x, (name, size) in captions.items():
        _text(axes, x, UPPER - 0.56, name, va="top", weight="bold", size=SMALLEST + 0.5)
        _text(axes, x, UPPER - 0.74, size, va="top", color=MUTED)
    for left, right in ((0.98, 1.2), (2.24, 2.46), (3.46, 3.68), (5.1, 5.3), (5.84, 6.04)):
        _arrow(axes, left, right, UPPER)


def _text(axes: Axes, x: float, y: float, text: str, **settings: Any) -> None:
    usual: dict[str, Any] = {"ha": "center", "va": "center", "size": SMALLEST, "zorder": 4}
    axes.text(x, y, text, **usual | settings)


def _arrow(axes: Axes, left: float, right: float, y: float) -> None:
    style = {"arrowstyle": "-|>,head_length=0.3,head_width=0.2", "color": MUTED, "linewidth": 1.2}
    axes.annotate("", (right, y), (left, y), arrowprops=style | {"shrinkA": 0, "shrinkB": 0})


def _rounded(axes: Axes, corner: tuple[float, float], width: float, height: float, **settings: Any) -> None:
    shape: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.04", "linewidth": 0, "zorder": 2}
    axes.add_patch(FancyBboxPatch(corner, width, height, **shape | settings))


def _flower() -> np.ndarray:
    """A small flower, made of pixels like the images that the network reads."""
    y, x = np.mgrid[0:16, 0:16] - 7.5
    radius, angle = np.hypot(x, y + 1), np.arctan2(y + 1, x)
    petals = radius < 4.3 + 1.7 * np.cos(5 * angle - 0.6)
    image = np.full((16, 16, 3), 0.0) + np.array([0.80, 0.87, 0.92]) - 0.012 * (y + 7.5)[..., None]
    image[(np.abs(x - 0.5) <= 0.5) & (y > 0)] = (0.25, 0.50, 0.33)
    image[petals] = (0.72, 0.20, 0.42)
    image[petals & (radius < 3.6)] = (0.80, 0.32, 0.53)
    image[radius < 1.9] = (0.95, 0.75, 0.25)
    return image


def _tokenizer(axes: Axes, left: float, convolutions: int) -> None:
    """One stack of sheets per convolution, smaller and thicker as the map shrinks and the channels grow."""
    step = 0.9 / convolutions
    for layer in range(convolutions):
        side = 0.74 * 0.72**layer
        for sheet in range(3 + layer, -1, -1):
            corner = (left + layer * step + 0.055 * sheet, UPPER - side / 2 + 0.03 * sheet - 0.04)
            color = STEEL_LIGHT if sheet else STEEL
            axes.add_patch(Rectangle(corner, min(side, step) * 0.62, side, facecolor=color, edgecolor=GROUND))


def _token_grid(axes: Axes, left: float, side: int) -> None:
    """The tokens as the map they come from."""
    cell = 0.84 / side
    for row, column in np.ndindex(side, side):
        far = (row - side / 2 + 0.9) ** 2 + (column - side / 2 + 0.5) ** 2
        shade = 0.25 + 0.75 * np.exp(-far / (0.12 * side**2))
        corner = (left + column * cell, UPPER + 0.42 - (row + 1) * cell)
        axes.add_patch(Rectangle(corner, cell * 0.84, cell * 0.84, facecolor=STEEL, alpha=shade, linewidth=0))


def _slabs(axes: Axes, left: float, right: float, encoders: int) -> None:
    """The encoders; the one in the middle is opened below."""
    step, opened = (right - left) / encoders, encoders // 2
    for place in range(encoders):
        x = left + (place + 0.1) * step
        _rounded(axes, (x, UPPER - 0.43), 0.8 * step, 0.86, facecolor=STEEL if place == opened else STEEL_LIGHT)
        if encoders <= 9:
            _text(axes, x + 0.4 * step, UPPER, str(place + 1), color=GROUND if place == opened else INK)
    x = left + (opened + 0.1) * step
    wedge = [(x, UPPER - 0.45), (x + 0.8 * step, UPPER - 0.45), (WIDE - 0.05, 2.62), (0.05, 2.62)]
    axes.add_patch(Polygon(wedge, facecolor=PANEL, alpha=0.9, linewidth=0, zorder=0))


def _encoder(axes: Axes, config: CCTConfig, nodes: dict[str, int]) -> None:
    """The lower flow: LN, heads, projection, residual sums, and the feed-forward block, with the four sites."""
    frame = {"boxstyle": "round,pad=0,rounding_size=0.08", "edgecolor": RULE, "linewidth": 1, "zorder": 0}
    _rounded(axes, (0.05, 0.05), WIDE - 0.1, 2.57, facecolor=PANEL, **frame)
    _text(axes, 0.2, 2.42, "one encoder", ha="left", weight="bold", size=SMALLEST + 0.5)
    axes.plot([0.12, 6.68], [LOWER, LOWER], color=MUTED, linewidth=1.2, zorder=1)
    _arrow(axes, 6.5, 6.74, LOWER)
    boxes = (
        (0.4, 0.36, "LN"),
        (2.16, 0.5, "proj"),
        (3.06, 0.36, "LN"),
        (3.88, 0.78, "linear1\nGELU"),
        (5.2, 0.72, "linear2"),
    )
    for left, wide, text in boxes:
        _rounded(axes, (left, LOWER - 0.24), wide, 0.48, facecolor=GROUND, edgecolor=STEEL, linewidth=1)
        _text(axes, left + wide / 2, LOWER, text, linespacing=1.2)
    height = 1.5 / config.heads
    for head in range(config.heads):  # bars side by side: each owns its own block of the concatenated nodes
        bottom, color = LOWER + 0.75 - (head + 1) * height, HEADS[head % len(HEADS)]
        _rounded(axes, (0.98, bottom + 0.03), 0.8, height - 0.06, facecolor=color)
        ink = GROUND if contrast(color) > 4.5 else INK
        _text(axes, 1.38, bottom + height / 2, f"head {head}", color=ink, weight="bold")
    for left, right in ((0.26, 2.88), (3.68, 6.14)):  # residual connections: up, over, and down into a sum
        top = LOWER + 0.86
        axes.plot([left, left, right, right], [LOWER, top, top, LOWER + 0.1], color=MUTED, linewidth=1.2, zorder=1)
        axes.add_patch(Circle((right, LOWER), 0.1, facecolor=GROUND, edgecolor=STEEL, linewidth=1, zorder=3))
        plus: dict[str, Any] = {
            "marker": "+",
            "markersize": 8,
            "markeredgecolor": STEEL,
            "markeredgewidth": 1.2,
            "zorder": 4,
        }
        axes.plot(right, LOWER, **plus)
    for kind, x in {"mha": 1.98, "trunk": 3.6, "ff_hidden": 4.93, "ff": 6.36}.items():
        axes.plot([x, x], [LOWER - 0.08, 0.66], color=KINDS[kind], linewidth=1.2, zorder=2)
        axes.add_patch(Circle((x, LOWER), 0.085, facecolor=KINDS[kind], edgecolor=GROUND, linewidth=1.5, zorder=5))
        bold = {"color": readable(KINDS[kind]), "weight": "bold", "size": SMALLEST + 1}
        _text(axes, min(x, 6.31), 0.62, kind, va="top", **bold)
        _text(axes, min(x, 6.31), 0.43, f"{nodes[kind]} nodes", va="top")
    _text(axes, 1.98, 0.27, f"{config.heads} × {config.width // config.heads}", va="top", color=MUTED)
