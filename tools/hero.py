"""The story in one picture, for the README."""

from typing import Any

import pandas as pd
from matplotlib.patches import FancyArrowPatch

from cctlib.figures.along import at_theta, moves
from cctlib.figures.node import ENTRY_NAMES, Node, draw_matrix, entry_legend
from cctlib.figures.style import MUTED, Card, bare, card, encoder_axis, headline, kinds_in, legend, line, look, theme
from cctlib.figures.wording import count, place


@theme()
def hero(first: Node, last: Node, by_theta: pd.DataFrame) -> Card:
    """A node's Boolean matrix at the first and at the last encoder, and noise and SNR along all of them."""
    table = at_theta(by_theta)
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
