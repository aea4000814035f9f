"""Heads: whether the labels that a head owns could be chance, and whether the head is better at them.

Tables are those of `cctlib.heads.ownership` and `cctlib.heads.experts`, the latter as shares of 1 with 95% intervals
(*_low, *_high); heads are counted from 0, as in Method, section 3.
"""

from typing import Any, SupportsInt

import pandas as pd

from cctlib.claims.rules import SIGNIFICANT
from cctlib.figures.style import (
    FOREIGN,
    GROUND,
    HEADS,
    INK,
    KINDS,
    MUTED,
    Card,
    band,
    card,
    encoder_axis,
    headline,
    key,
    legend,
    line,
    swatch,
    theme,
)
from cctlib.figures.wording import number, place

MEASURED: dict[str, Any] = {"color": KINDS["mha"], "marker": "o"}


def head_color(head: SupportsInt) -> str:
    """The colour of a head."""
    return HEADS[int(head) % len(HEADS)]


@theme()
def concentration(sites: pd.DataFrame) -> Card:
    """Mean concentration of labels on heads, and the share of labels beyond chance, against nodes dealt at random.

    sites: `ownership.symmetry`, one row an encoder: encoder, concentration, dealt_mean, dealt_95, broken,
    broken_dealt, p_holm, deals.
    """
    sites = sites.sort_values("encoder")
    figure, [[left, right]] = card(3.4, 1, 2)
    band(left, sites.encoder, sites.dealt_mean, sites.dealt_95)
    line(left, sites, "dealt_mean", color=MUTED, linewidth=1.2)
    line(left, sites, "concentration", **MEASURED)
    line(right, sites, "broken_dealt", 100, color=MUTED, linewidth=1.2)
    line(right, sites, "broken", 100, **MEASURED)
    left.set(title="mean over labels", ylabel="concentration (1: one head only)")
    right.set(title="labels beyond chance", ylabel="labels (%)", ylim=(0, None))
    for panel in (left, right):
        encoder_axis(panel, sites.encoder)
    for row in sites[sites.p_holm < SIGNIFICANT].itertuples():
        place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        left.annotate("*", (row.encoder, row.concentration), size=13, **place)
    star = key("p < 0.05", linestyle="", marker=(6, 2, 0), color=INK, markeredgecolor=INK)
    legend(figure, [key("measured", **MEASURED), swatch("dealt nodes, mean to 95%"), star])
    beyond = int((sites.p_holm < SIGNIFICANT).sum())
    headline(
        figure,
        f"Labels are concentrated on heads beyond chance at {beyond} of {len(sites)} encoders "
        f"({number(sites.concentration.mean())} against {number(sites.dealt_mean.mean())} for dealt nodes)",
        f"Chance: the same nodes dealt into heads {int(sites.deals.min()):,} times. p after Holm's correction.",
    )
    return figure


@theme()
def expert_gap(heads: pd.DataFrame, sites: pd.DataFrame) -> Card:
    """Accuracy of each head alone on its own labels and on those of the other heads, and the mean gap against dealt
    nodes.

    heads, sites: `experts.expert_accuracy`: heads has encoder, head, own, others; sites has encoder, gap, dealt_mean,
    dealt_95, p.
    """
    sites, numbers = sites.sort_values("encoder"), sorted(heads["head"].unique())
    figure, [[upper], [lower]] = card(5.0, 2, 1, sharex=True, height_ratios=[1.5, 1])
    for head in numbers:
        rows, color = heads[heads["head"] == head], head_color(head)
        x = rows.encoder + 0.15 * (head - (len(numbers) - 1) / 2)
        upper.vlines(x, 100 * rows.others, 100 * rows.own, color=color, linewidth=1.4, alpha=0.6)
        upper.vlines(x, 100 * rows.own_low, 100 * rows.own_high, color=color, linewidth=3)
        upper.plot(x, 100 * rows.own, "o", color=color, markersize=7, label=f"head {head}")
        upper.plot(x, 100 * rows.others, "o", markerfacecolor=GROUND, markeredgecolor=color, markeredgewidth=1.5)
    upper.set(ylabel="accuracy of a head alone (%)", ylim=(0, None))
    band(lower, sites.encoder, 100 * sites.dealt_mean, 100 * sites.dealt_95)
    line(lower, sites, "dealt_mean", 100, color=MUTED, linewidth=1.2)
    lower.vlines(sites.encoder, 100 * sites.gap_low, 100 * sites.gap_high, color=MEASURED["color"])
    line(lower, sites, "gap", 100, **MEASURED)
    lower.axhline(0, color=INK, linewidth=0.8)
    lower.set_ylabel("own minus others\n(points)")
    for panel in (upper, lower):
        encoder_axis(panel, sites.encoder, label=panel is lower)
    hollow = {"marker": "o", "linestyle": "", "markerfacecolor": GROUND, "markeredgecolor": MUTED}
    keys = [*upper.get_legend_handles_labels()[0], key("others' labels", **hollow), swatch("dealt nodes")]
    legend(figure, keys, ncols=len(keys) if len(keys) <= 6 else 4, handlelength=1.2)
    better, beyond = int((sites.gap_low > 0).sum()), int((sites.p < SIGNIFICANT).sum())
    headline(
        figure,
        f"A head alone is better at its own labels than at others at {better} of {len(sites)} encoders, by "
        f"{number(100 * sites.gap.mean())} points on average; at {beyond} by more than dealt nodes are",
        "Each head alone, other heads silenced in the probe. Filled: own labels; hollow: the others'. "
        "Below: mean over heads, 95% intervals; band: dealt nodes, mean to 95%.",
    )
    return figure


@theme()
def ablation(sites: pd.DataFrame, heads: pd.DataFrame) -> Card:
    """What the network itself loses when a head is silenced in it: on that head's labels more than on others, and more
    than when random nodes are silenced?

    sites, heads: `experts.ablation`: sites has encoder, excess; heads has site, encoder, head, labels, drop_own,
    drop_others, random_own, random_others, draws. Single heads are drawn of the encoder with the largest excess.
    """
    sites = sites.sort_values("encoder")
    rows = heads[heads.encoder == sites.encoder[sites.excess.idxmax()]].sort_values("head")
    figure, [[upper], [lower]] = card(5.4, 2, 1, height_ratios=[1, 1.4])
    upper.vlines(sites.encoder, 100 * sites.excess_low, 100 * sites.excess_high, color=MEASURED["color"])
    line(upper, sites, "excess", 100, **MEASURED)
    upper.set(title="all heads: loss on own labels beyond others' and beyond random nodes", ylabel="points")
    encoder_axis(upper, sites.encoder)
    colors = [head_color(head) for head in rows["head"]]
    columns = {"drop_own": (-0.24, "o", False), "drop_others": (-0.08, "o", True)}
    columns |= {"random_own": (0.12, "s", False), "random_others": (0.26, "s", True)}
    for name, (shift, marker, hollow) in columns.items():
        for x, (color, low, middle, high) in enumerate(
            zip(colors, *(100 * rows[name + end] for end in ("_low", "", "_high")), strict=True)
        ):
            color = FOREIGN if name.startswith("random") else color
            lower.vlines(x + shift, low, high, color=color, linewidth=2.2)
            face = {"markerfacecolor": GROUND if hollow else color, "markeredgecolor": color, "markeredgewidth": 1.6}
            lower.plot(x + shift, middle, marker, markersize=7, **face)
    lower.set_xticks(range(len(rows)), [f"head {row.head}\n{row.labels} labels" for row in rows.itertuples()])
    lower.set(
        title=f"single heads at {place(rows.site.iloc[0])}",
        ylabel="accuracy lost (points)",
        xlim=(-0.5, len(rows) - 0.5),
    )
    lower.grid(axis="y")
    for panel in (upper, lower):
        panel.axhline(0, color=INK, linewidth=0.8)
    dot, square = {"linestyle": "", "marker": "o", "color": INK}, {"linestyle": "", "marker": "s", "color": FOREIGN}
    others = key("others' labels (hollow)", markerfacecolor=GROUND, markeredgecolor=INK, linestyle="", marker="o")
    legend(figure, [key("own labels", **dot), others, key("random nodes silenced", **square)])
    sure, mean = int((sites.excess_low > 0).sum()), 100 * sites.excess.mean()
    alone = int((rows.excess_low > 0).sum())
    headline(
        figure,
        f"Silencing a head costs its own labels {mean:.1f} points more than others, beyond random nodes, clearly "
        f"at {sure} of {len(sites)} encoders; at {place(rows.site.iloc[0])} for {alone} of {len(rows)} heads",
        "Accuracy lost in the network itself. Bars: 95% intervals over test images; random: "
        f"{int(rows.draws.min())} draws of as many nodes.",
    )
    return figure
