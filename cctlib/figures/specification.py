"""Specification curves: a claim at every equivalent reading, sorted by effect, over a panel of the choices made."""

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator

from cctlib.claims.specifications import CHOICES
from cctlib.figures.style import INK, MUTED, RULE, SIGNAL, SMALLEST, WARN, Card, card, headline, theme

ROW = 0.17  # inches of a row of the panel of choices


@theme()
def specification_curve(readings: pd.DataFrame, effect: str, neutral: float, claim: str) -> Card:
    """The readings of one quantity, each a point with its 95% interval, and below them which choices each has.

    readings: a table of `specifications`, of one quantity. effect: what the upper axis shows. neutral: the effect that
    says nothing, 1 for a ratio (drawn on a logarithmic axis) and 0 for a difference. claim: what a reading agrees with,
    as "SNR rises". Rows of the panel are the values of every choice that varies.
    """
    table = readings.sort_values("effect", kind="stable").reset_index(drop=True)
    varying = [name for name in CHOICES if name in table and table[name].nunique() > 1]
    rows = [(name, value) for name in varying for value in sorted(table[name].dropna().unique())]
    below = 0.2 + ROW * len(rows)
    figure, [[upper], [lower]] = card(2.1 + below, 2, 1, sharex=True, height_ratios=[1.9, below])
    colors = np.where(table.agrees, SIGNAL, WARN)
    place = np.arange(len(table))
    known = table.low.notna()
    upper.vlines(place[known], table.low[known], table.high[known], colors=colors[known], linewidth=1.2, alpha=0.7)
    upper.scatter(place, table.effect, c=colors, s=14, zorder=3, gid="readings")
    upper.axhline(neutral, color=MUTED, linewidth=1)
    upper.set_ylabel(effect)
    if neutral == 1:
        upper.set_yscale("log")
        upper.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        upper.yaxis.set_major_formatter("{x:g}")
        upper.minorticks_off()
    for y, (choice, value) in enumerate(rows):
        if y and choice != rows[y - 1][0]:
            lower.axhline(y - 0.5, color=RULE, linewidth=0.8)
        has = (table[choice] == value).to_numpy()
        lower.scatter(place[has], np.full(has.sum(), y), c=colors[has], s=9, marker="s", gid=f"{choice}={value}")
    names = [f"{choice}: {value:g}" if isinstance(value, float) else f"{choice}: {value}" for choice, value in rows]
    lower.set_yticks(range(len(rows)), names, size=SMALLEST, color=INK)
    lower.set_ylim(len(rows) - 0.4, -0.6)
    lower.set(xticks=[], xlabel="readings, sorted by effect")
    lower.spines[["left", "bottom"]].set_visible(False)
    lower.tick_params(left=False)
    agree = int(table.agrees.sum())
    headline(
        figure,
        f"{claim} in {agree} of {len(table)} readings; the median effect is {table.effect.median():.2f}",
        "Each point: one combination of equivalent choices, with its 95% interval where there is one. "
        "Blue agrees with the claim, orange does not. Marks below: the choices that the reading has.",
    )
    return figure
