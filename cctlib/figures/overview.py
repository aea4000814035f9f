"""The story in one picture, the same quantities along several networks, and the claims with their verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from cctlib.errors import UserError
from cctlib.figures.nodes import Node, extent
from cctlib.figures.palette import GROUND, INK, KINDS, MARKERS, MUTED, RULE, SIGNAL, WARN
from cctlib.figures.snp import ENTRIES, draw_matrix
from cctlib.figures.snr import TITLES, at_theta
from cctlib.figures.style import (
    MARGIN,
    SMALLEST,
    WIDTH,
    Card,
    bare,
    body,
    card,
    encoder_axis,
    headline,
    kinds_in,
    panel_title,
    themed,
    wrap,
)
from cctlib.figures.wording import count, course, listing, number, sentence

DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)))
VERDICTS = {
    "holds": (SIGNAL, "✓"),
    "holds in part": (SIGNAL, "~"),
    "does not hold": (WARN, "✗"),
    "not tested": (MUTED, "?"),
}


@themed
def hero(first: Node, last: Node, by_theta: pd.DataFrame, theta: float = 0.3) -> Card:
    """A node's Boolean matrix at the first and at the last encoder, and noise and SNR along all of them.

    by_theta: as for `snr.along_encoders`.
    """
    table = at_theta(by_theta, theta)
    kinds = kinds_in(table.kind)
    figure = card(5.7)
    part = body(figure)
    (left, right), (noise, ratio) = part.subplots(2, 2, height_ratios=[1.62, 1])
    labels = max(extent(first), extent(last))
    for panel, entry in ((left, first), (right, last)):
        _matrix(panel, entry, labels)
    link = FancyArrowPatch(
        (1.05, 0.5),
        (1.24, 0.5),
        transform=left.transAxes,
        clip_on=False,
        arrowstyle="-|>,head_length=6,head_width=4",
        color=MUTED,
        linewidth=1.8,
    )
    link.set_in_layout(False)
    left.add_patch(link)
    for panel, column, title in ((noise, "noise", "noise per node (entries)"), (ratio, "snr", "signal to noise (SNR)")):
        for kind in kinds:
            rows = table[table.kind == kind]
            panel.plot(
                rows.encoder,
                rows[column].replace([np.inf, -np.inf], np.nan),
                color=KINDS[kind],
                marker=MARKERS[kind],
                markeredgecolor="white",
                markeredgewidth=0.6,
                label=kind,
            )
        encoder_axis(panel, table.encoder)
        panel.grid(axis="y")
        panel.set_ylabel("entries" if column == "noise" else "SNR")
        panel.locator_params(axis="y", nbins=5)
        panel_title(panel, title)
    noise.set_ylim(bottom=0)
    keys = [
        Patch(facecolor=ENTRIES(code), label=name)
        for code, name in ((1, "signal"), (2, "column noise"), (3, "foreign noise"))
    ]
    part.legend(handles=keys, loc="outside upper left", ncols=3, handlelength=1, handleheight=1, columnspacing=1.4)
    part.legend(
        handles=noise.get_legend_handles_labels()[0], loc="outside lower left", ncols=len(kinds), columnspacing=1.8
    )
    headline(
        figure,
        _story(table, kinds),
        "Top: the outputs (columns) that a node switches on for true labels (rows), clusters first; only labels with ones.",
    )
    return figure


def _matrix(axes: Axes, seen: Node, labels: int) -> None:
    noise = draw_matrix(axes, seen, labels, frames=True)
    bare(axes)
    panel_title(axes, f"{seen.site}, node {seen.index}")
    groups = count(int(seen.clusters.max()) + 1, "cluster")
    axes.set(ylabel="true label", xlabel=f"output; {groups}, noise {noise}")


def _story(table: pd.DataFrame, kinds: list[str]) -> str:
    kind = max(kinds, key=lambda kind: _fold(table[table.kind == kind]))
    rows = table[table.kind == kind].sort_values("encoder")
    noise, snr = course(rows.noise.tolist()), course(rows.snr.tolist())
    others = [other for other in ("mha", "ff") if other in kinds and other != kind]
    ends = [table[table.kind == other].sort_values("encoder").noise for other in others]
    tail = (
        "; noise " + " and ".join(f"{course(end.tolist())} at {other}" for other, end in zip(others, ends, strict=True))
        if others
        else ""
    )
    return sentence(f"at {kind}, noise {noise} and SNR {snr}{tail}")


def _fold(rows: pd.DataFrame) -> float:
    """How much noise changes from the first encoder to the last, whichever the direction."""
    ends = rows.sort_values("encoder").noise.to_numpy(float)
    return abs(np.log(max(ends[-1], 1e-9) / max(ends[0], 1e-9))) if np.isfinite(ends[[0, -1]]).all() else 0.0


@themed
def across_networks(
    networks: Mapping[str, pd.DataFrame],
    columns: Sequence[str] = ("clusters", "cluster_size", "noise", "snr"),
    theta: float = 0.3,
) -> Card:
    """The same quantities along networks of different depth, on one figure (Method, section 8, C7).

    networks: name -> `by_theta` table, of the kinds of site to draw. Raises `UserError` for more than three.
    """
    if not 0 < len(networks) <= len(DASHES):
        raise UserError(f"across_networks: {len(networks)} networks given, expected 1 to {len(DASHES)}")
    figure = card(0.35 + 1.9 * -(-len(columns) // 2))
    part = body(figure)
    panels = list(part.subplots(-(-len(columns) // 2), 2, sharex=True, squeeze=False).flat)
    moves = []
    for (name, table), dash in zip(networks.items(), DASHES, strict=False):
        for kind in kinds_in(table.kind):
            rows = at_theta(table[table.kind == kind], theta)
            depth = (rows.encoder - rows.encoder.min()) / max(rows.encoder.max() - rows.encoder.min(), 1)
            look = {"color": KINDS[kind], "marker": MARKERS[kind], "linestyle": dash, "markeredgecolor": "white"}
            for panel, column in zip(panels, columns, strict=False):
                panel.plot(
                    100 * depth, rows[column].replace([np.inf, -np.inf], np.nan), label=f"{name}, {kind}", **look
                )
            moves.append(f"{course(rows.snr.tolist())} in {name}, {kind}")
    for panel, column in zip(panels, columns, strict=False):
        panel_title(panel, TITLES[column][0])
        panel.set(ylabel=TITLES[column][1], xlabel="depth (%, first to last site)")
        panel.grid(axis="y")
    handles = panels[0].get_legend_handles_labels()[0]
    part.legend(handles=handles, loc="outside lower left", ncols=min(len(handles), 3))
    headline(figure, f"Signal to noise {listing(moves)}", f"Site means over non-empty nodes at theta {theta:g}.")
    return figure


def check_verdicts(table: pd.DataFrame) -> None:
    """Raise `UserError` for a verdict that has no sign."""
    if unknown := set(table.verdict) - set(VERDICTS):
        raise UserError(f"figures: unknown verdict {sorted(unknown)}, expected some of {list(VERDICTS)}")


@themed
def verdicts(table: pd.DataFrame) -> Card:
    """The claims, each with its verdict and its effect. table: claim, statement, verdict, effect, low, high
    (`rules.verdicts_table`).
    """
    check_verdicts(table)
    text = WIDTH - 2 * MARGIN - 2.2
    blocks = [(wrap(row.statement, SMALLEST + 1, text, bold=True), _effect(row, text)) for row in table.itertuples()]
    heights = [0.24 + 0.18 * (first.count("\n") + 1) + 0.162 * (second.count("\n") + 1) for first, second in blocks]
    figure = card(sum(heights) + 0.1)
    axes = figure.add_subplot()
    axes.set(xlim=(0, WIDTH - 0.3), ylim=(sum(heights), 0))
    axes.axis("off")
    top = 0.0
    for row, (statement, effect), height in zip(table.itertuples(), blocks, heights, strict=True):
        axes.axhline(top, color=RULE, linewidth=1)
        axes.text(0.02, top + 0.1, row.claim, va="top", weight="bold", size=SMALLEST + 2, color=MUTED)
        pill(axes, 0.45, top + 0.1, row.verdict)
        axes.text(1.95, top + 0.1, statement, va="top", weight="bold", size=SMALLEST + 1, linespacing=1.25)
        axes.text(
            1.95,
            top + 0.12 + 0.18 * (statement.count("\n") + 1),
            effect,
            va="top",
            size=SMALLEST,
            color=MUTED,
            linespacing=1.28,
        )
        top += height
    tally = [
        f"{(table.verdict == verdict).sum()} {verdict}" for verdict in VERDICTS if (table.verdict == verdict).any()
    ]
    headline(
        figure,
        f"Of {len(table)} claims: {', '.join(tally)}"
        if len(table) > 1
        else f"{table.claim.iloc[0]} is {table.verdict.iloc[0]} here",
        "Each verdict follows from a rule written down before the measurement.",
    )
    return figure


def _effect(row: Any, width: float) -> str:
    """The effect, cut where it is long, and its interval on a line of its own."""
    effect = str(row.effect)
    effect = effect if len(effect) <= 260 else effect[:259].rsplit(" ", 1)[0] + " …"
    interval = np.isfinite([row.low, row.high]).all()
    return wrap(effect, SMALLEST, width) + (
        f"\n95% interval: {number(row.low)} to {number(row.high)}" if interval else ""
    )


def pill(axes: Axes, left: float, top: float, verdict: str) -> None:
    """A verdict with its sign, on axes measured in inches; filled where the claim holds."""
    color, sign = VERDICTS[verdict]
    filled = verdict == "holds"
    axes.add_patch(
        FancyBboxPatch(
            (left, top - 0.02),
            1.36,
            0.26,
            boxstyle="round,pad=0,rounding_size=0.13",
            facecolor=color if filled else GROUND,
            edgecolor=color,
            linewidth=1.4,
        )
    )
    ink = GROUND if filled else INK
    axes.text(left + 0.15, top + 0.115, sign, ha="center", va="center", color=ink, size=SMALLEST + 1, weight="bold")
    axes.text(left + 0.27, top + 0.115, verdict, va="center", color=ink, size=SMALLEST)
