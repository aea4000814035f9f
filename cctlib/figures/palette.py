"""The colours of the figures, which people with any of the common kinds of colour blindness can tell "
"apart (tested)."""

from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb

GROUND, INK, MUTED, RULE, PANEL = "#FBFAF6", "#1F2430", "#565D6B", "#DDD9CF", "#F3F1EA"
NEGATIVE = "#C9701B"  # a field below 0
SIGNAL, WARN, FOREIGN = "#0F4C81", "#E08A1E", "#9EA4AE"  # ones inside blocks, column noise, foreign noise
KINDS = {"mha": "#0072B2", "trunk": "#9AA0A8", "ff_hidden": "#E69F00", "ff": "#B34700", "filters": "#2F3440"}
MARKERS = {"mha": "o", "trunk": "s", "ff_hidden": "^", "ff": "D", "filters": "P"}
HEADS = ("#5A3FA3", "#44AA99", "#A8A032", "#7A1F3D", "#88CCEE", "#CC6677")
METHODS = {"andc": "#882255", "shuffled": "#117733", "random": "#9AA0A8", "magnitude": "#2F8FCB", "wanda": "#D98A12"}
DATASETS = ("#1F2430", "#C2428A", "#2F8FCB", "#B9A62C")  # in the order in which they are given
LOOKS: tuple[dict[str, Any], ...] = tuple(  # of lines that are compared with each other, in the same colours and order
    {"color": color, "marker": marker, "linestyle": dash, "markeredgecolor": "white", "markeredgewidth": 0.6}
    for color, marker, dash in zip(
        DATASETS, "oD^s", ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (5, 1.5, 1.2, 1.5))), strict=True
    )
)
SEQUENTIAL = "cividis"
DIVERGING = LinearSegmentedColormap.from_list(
    "field", ["#7A3B06", "#C9701B", "#F0C48E", "#FBFAF6", "#9FC3E0", "#2F79B5", "#0B3C68"]
)
COUNTS = LinearSegmentedColormap.from_list(
    "counts", ["#EDF1F4", "#9DBBD6", "#2F79B5", "#0B2A4A"]
)  # few to many, light to dark


def contrast(color: str, ground: str = GROUND) -> float:
    """Contrast ratio of two colours (WCAG): 1 to 21; text wants 4.5."""
    lights = []
    for name in (color, ground):
        channels = np.array(to_rgb(name))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(lights) / min(lights)


def readable(color: str) -> str:
    """`color`, darkened towards the ink until text in it can be read on a card."""
    for share in np.linspace(0, 1, 21):
        mixed = to_hex((1 - share) * np.array(to_rgb(color)) + share * np.array(to_rgb(INK)))
        if contrast(mixed) >= 4.5:
            return mixed
    return INK
