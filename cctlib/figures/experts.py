"""Experts: is a head better at the labels it owns, alone or when it is missing, and where does it look?

Tables are those of `cctlib.heads.experts`, as shares of 1 with 95% intervals (*_low, *_high); heads count from 0.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cctlib.claims.rules import SIGNIFICANT
from cctlib.errors import UserError
from cctlib.figures.heads import head_color
from cctlib.figures.palette import FOREIGN, GROUND, INK, KINDS, MUTED, SEQUENTIAL, readable
from cctlib.figures.style import Array, Card, as_array, bare, body, card, encoder_axis, headline, themed
from cctlib.figures.wording import number, short


@themed
def expert_gap(heads: pd.DataFrame, sites: pd.DataFrame) -> Card:
    """Accuracy of each head alone on its own labels and on those of the other heads, and the mean gap against
    dealt nodes.

    heads, sites: `experts.expert_accuracy`, as shares of 1 with *_low and *_high (95%): heads has encoder,
    head, own, others; sites has encoder, gap, dealt_mean, dealt_95, p.
    """
    sites, numbers = sites.sort_values("encoder"), sorted(heads["head"].unique())
    figure = card(5.0)
    part = body(figure)
    upper, lower = part.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    for head in numbers:
        rows = heads[heads["head"] == head]
        x = rows.encoder + 0.15 * (head - (len(numbers) - 1) / 2)
        upper.vlines(x, 100 * rows.others, 100 * rows.own, color=head_color(head), linewidth=1.4, alpha=0.6)
        upper.vlines(x, 100 * rows.own_low, 100 * rows.own_high, color=head_color(head), linewidth=3)
        upper.plot(
            x, 100 * rows.own, "o", color=head_color(head), markeredgecolor="white", markeredgewidth=0.6, markersize=7
        )
        upper.plot(
            x,
            100 * rows.others,
            "o",
            color=head_color(head),
            markerfacecolor=GROUND,
            markeredgewidth=1.5,
            markersize=5.5,
        )
    upper.set(ylabel="accuracy of a head alone (%)", ylim=(0, None))
    lower.fill_between(
        sites.encoder, 100 * sites.dealt_mean, 100 * sites.dealt_95, color=FOREIGN, alpha=0.45, linewidth=0
    )
    lower.plot(sites.encoder, 100 * sites.dealt_mean, color=MUTED, linewidth=1.2)
    error = 100 * np.abs(np.stack([sites.gap - sites.gap_low, sites.gap_high - sites.gap]))
    lower.errorbar(sites.encoder, 100 * sites.gap, yerr=error, color=KINDS["mha"], marker="o", markeredgecolor="white")
    lower.axhline(0, color=INK, linewidth=0.8)
    lower.set_ylabel("own minus others\n(points)")
    encoder_axis(lower, sites.encoder)
    for panel in (upper, lower):
        panel.grid(axis="y")
    keys: list[Artist] = [
        Line2D([], [], color=head_color(head), marker="o", linestyle="", label=f"head {head}") for head in numbers
    ]
    keys += [
        Line2D([], [], color=MUTED, marker="o", linestyle="", markerfacecolor=GROUND, label="others' labels"),
        Patch(facecolor=FOREIGN, alpha=0.45, label="dealt nodes"),
    ]
    part.legend(
        handles=keys,
        loc="outside lower left",
        ncols=len(keys) if len(keys) <= 6 else 4,
        columnspacing=1.1,
        handletextpad=0.3,
        handlelength=1.2,
    )
    better, beyond = int((sites.gap_low > 0).sum()), int((sites.p < SIGNIFICANT).sum())
    headline(
        figure,
        f"Heads read their own labels better than others at {better} of {len(sites)} encoders, by "
        f"{number(100 * sites.gap.mean())} points on "
        f"average; at {beyond} by more than dealt nodes",
        "Each head alone, other heads silenced in the probe. Filled: own labels; hollow: the others'. "
        "Below: mean over heads, 95% intervals.",
    )
    return figure


@themed
def attention_maps(
    pixels: UInt8[Array, "image height width 3"],
    maps: Float[Array, "image head row column"],
    names: Sequence[str],
    owners: Sequence[int],
    site: str,
) -> Card:
    """Where each head looks on images of its own and of other labels.

    maps: attention received by each token, averaged over queries. owners: the head that owns each
    image's label (-1: nobody); its map has a frame in its colour.
    """
    received = as_array(maps)
    received = received / received.mean(axis=(2, 3), keepdims=True)  # over an even share
    images, heads = received.shape[:2]
    figure = card(0.35 + (6.6 / (heads + 1) * 0.97) * images, width=7.0 if heads < 6 else 8.0)
    panels = figure.subplots(images, heads + 1, squeeze=False)
    for row, image, image_maps, name, owner in zip(panels, as_array(pixels), received, names, owners, strict=True):
        row[0].imshow(image)
        row[0].set_xlabel(short(name, 17))
        bare(row[0])
        for head, panel in enumerate(row[1:]):
            panel.imshow(image, extent=(0, 1, 0, 1), alpha=0.35)
            panel.imshow(image_maps[head], extent=(0, 1, 0, 1), cmap=SEQUENTIAL, vmin=0, vmax=3, alpha=0.78)
            bare(panel)
            if head == owner:
                for spine in panel.spines.values():
                    spine.set(color=head_color(head), linewidth=3.5)
                panel.set_xlabel("its own label", color=readable(head_color(head)), weight="bold")
    for head, panel in enumerate(panels[0, 1:]):
        panel.set_title(f"head {head}", loc="center", color=readable(head_color(head)))
    focus = received.max(axis=(0, 2, 3))
    strongest = int(np.argmax(focus))
    headline(
        figure,
        f"At {site}, head {strongest} attends most sharply: up to {number(focus[strongest], 2)} times an even share",
        "Attention that each token receives, averaged over all queries; yellow: 3 times an even share or more.",
    )
    return figure


@themed
def ablation(heads: pd.DataFrame, site: str | None = None) -> Card:
    """Accuracy lost in the real network when a head is silenced, on its own labels and on the others',
    against as many random nodes.

    heads: `experts.ablation`, shares of 1 with *_low and *_high (95%): site, encoder, head, drop_own,
    drop_others, random_own, random_others, draws. One site is drawn: `site`, or the only one.
    """
    rows = heads if site is None else heads[heads.site == site]
    if rows.site.nunique() != 1:
        raise UserError(f"ablation: {rows.site.nunique()} sites to draw, expected one of {sorted(set(heads.site))}")
    rows = rows.sort_values("head")
    figure = card(3.3)
    part = body(figure)
    axes = part.add_subplot()
    places = np.arange(len(rows))
    looks = [
        ("drop_own", -0.24, "o", None),
        ("drop_others", -0.08, "o", GROUND),
        ("random_own", 0.12, "s", None),
        ("random_others", 0.26, "s", GROUND),
    ]
    for name, shift, marker, fill in looks:
        for place, row in zip(places, rows.itertuples(), strict=True):
            color = FOREIGN if name.startswith("random") else head_color(row.head)
            low, middle, high = (100 * getattr(row, name + end) for end in ("_low", "", "_high"))
            axes.plot([place + shift] * 2, [low, high], color=color, linewidth=2.2)
            axes.plot(
                place + shift,
                middle,
                marker,
                color=color,
                markerfacecolor=fill or color,
                markeredgewidth=1.6,
                markersize=7,
            )
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(places, [f"head {row.head}\n{row.labels} labels" for row in rows.itertuples()])
    axes.set(ylabel="accuracy lost (points)", xlim=(-0.5, len(rows) - 0.5), xlabel="silenced in the network")
    axes.tick_params(bottom=False)
    axes.grid(axis="y")
    keys = [
        Line2D([], [], linestyle="", marker="o", color=INK, label="head silenced, own labels"),
        Line2D([], [], linestyle="", marker="o", color=INK, markerfacecolor=GROUND, label="others' labels"),
        Line2D([], [], linestyle="", marker="s", color=FOREIGN, label="random nodes silenced"),
    ]
    part.legend(handles=keys, loc="outside lower left", ncols=3, columnspacing=1.2, handletextpad=0.4)
    surely = int((rows.excess_low > 0).sum())
    headline(
        figure,
        f"At {rows.site.iloc[0]}, silencing a head singles out its own labels, beyond what random "
        f"nodes do, for {surely} of {len(rows)} heads",
        f"Mean loss: {100 * rows.drop_own.mean():.1f} points on own labels, "
        f"{100 * rows.drop_others.mean():.1f} on the others'. 95% intervals; "
        f"random: {int(rows.draws.min())} draws of as many nodes.",
    )
    return figure
