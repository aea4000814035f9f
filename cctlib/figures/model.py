"""The model and how well it reads: an image going through it, and its accuracy by label."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes

from cctlib.errors import UserError
from cctlib.figures.palette import FOREIGN, INK, MUTED, RULE, SEQUENTIAL, SIGNAL, WARN
from cctlib.figures.style import (
    SMALLEST,
    Array,
    Card,
    as_array,
    bare,
    card,
    colorbar,
    headline,
    panel_title,
    parts,
    themed,
)
from cctlib.figures.wording import number, percent, short

UNIT = (0, 1, 0, 1)  # images and maps of tokens are laid over each other


@themed
def journey(
    image: UInt8[Array, "height width 3"],
    token_maps: Float[Array, "encoder row column"],
    pooling: Float[Array, "row column"],
    probabilities: Float[Array, "label"],
    names: Sequence[str],
    label: int | None = None,
    best: int = 5,
) -> Card:
    """One image on its way: its token map after each encoder, where SeqPool looks, and the network's answer.

    token_maps: mean |activation| of each encoder's output over its nodes. pooling: SeqPool's weights, which
    add up to 1. label: the true one, or None. best: how many answers are named.
    """
    maps, weights, chances = as_array(token_maps), as_array(pooling), as_array(probabilities)
    encoders, columns = len(maps), min(len(maps), 7)
    rows = -(-encoders // columns)
    figure = card(2.35 + 0.75 + 1.15 * rows)
    upper, lower = parts(figure, [2.35, 0.75 + 1.15 * rows])
    left, middle, right = upper.subplots(1, 3, width_ratios=[1, 1, 1.1])
    for panel, title in ((left, "the image"), (middle, "SeqPool's weights")):
        panel.imshow(as_array(image), extent=UNIT)
        bare(panel)
        panel_title(panel, title)
    left.set_xlabel("" if label is None else short(names[label], 24))
    middle.imshow(weights, extent=UNIT, cmap=SEQUENTIAL, alpha=0.72)
    middle.set_xlabel(f"top token {percent(weights.max())}, even {percent(1 / weights.size)}")
    _answers(right, chances, names, label, best)
    panels = np.ravel(lower.subplots(rows, columns, squeeze=False))
    for encoder, panel in enumerate(panels):
        bare(panel)
        panel.set_visible(encoder < encoders)
        if encoder < encoders:
            drawn = panel.imshow(maps[encoder] / np.nanmean(maps[encoder]), cmap=SEQUENTIAL, vmin=0.5, vmax=1.5)
            panel.set_xlabel(f"encoder {encoder + 1}")
    colorbar(
        lower,
        drawn,
        "mean |activation| of a token over the map's mean",
        list(panels),
        location="bottom",
        shrink=0.55,
        pad=0.05,
        extend="both",
    )
    first = int(np.argmax(chances))
    truth = ""
    if label is not None:
        truth = ", which is right" if first == label else f"; it is {short(names[label], 30)}"
    headline(
        figure,
        f"The network reads {short(names[first], 30)} with probability {number(chances[first], 2)}{truth}",
        f"Its {maps.shape[1] * maps.shape[2]} tokens after each of {encoders} encoders (below), and their weights in the answer.",
    )
    return figure


def _answers(
    axes: Axes, chances: Float[np.ndarray, "label"], names: Sequence[str], label: int | None, best: int
) -> None:
    order = np.argsort(-chances)[:best]
    colors = [SIGNAL if label is not None and index == label else FOREIGN for index in order]
    axes.barh(range(len(order)), chances[order], color=colors, height=0.34)
    for row, index in enumerate(order):
        axes.text(0, row - 0.27, short(names[index], 24), va="bottom", size=SMALLEST + 0.5)
    axes.set(ylim=(len(order) - 0.4, -0.75), xlim=(0, max(1e-3, 1.05 * float(chances.max()))), xlabel="probability")
    axes.tick_params(left=False, labelleft=False)
    axes.locator_params(axis="x", nbins=4)
    axes.spines["left"].set_visible(False)
    panel_title(axes, "the answer")


@themed
def accuracy_by_label(
    accuracy: Float[Array, "label"],
    names: Sequence[str],
    groups: Sequence[int] | None = None,
    group_names: Sequence[str] | None = None,
    ends: int = 14,
) -> Card:
    """Accuracy of each label (shares of 1, NaN without images): by superclass, or of the worst and the best.

    groups: superclass of each label; group_names: their names. Without them, the `ends` worst and best labels
    are drawn, or all if they are few. Raises `UserError` when no label has an accuracy.
    """
    percents = 100 * as_array(accuracy)
    if not np.isfinite(percents).any():
        raise UserError("accuracy by label: no label has an accuracy; measure on some images first")
    worst, best = int(np.nanargmin(percents)), int(np.nanargmax(percents))
    if groups is not None and group_names is not None:
        figure, drawn = _by_group(percents, np.asarray(groups), group_names)
    else:
        figure, drawn = _by_label(percents, names, ends)
    headline(
        figure,
        f"Labels are read between {percents[worst]:.0f}% ({short(names[worst], 24)}) and {percents[best]:.0f}% ({short(names[best], 24)})",
        f"Accuracy of {drawn}; the dashed line is the mean over labels, {np.nanmean(percents):.1f}%.",
    )
    return figure


def _by_group(
    accuracy: Float[np.ndarray, "label"], groups: Int[np.ndarray, "label"], group_names: Sequence[str]
) -> tuple[Card, str]:
    known = [group for group in np.unique(groups) if np.isfinite(accuracy[groups == group]).any()]
    means = {group: float(np.nanmean(accuracy[groups == group])) for group in known}
    order = sorted(means, key=means.__getitem__)
    figure = card(0.7 + 0.25 * len(order))
    axes = figure.add_subplot()
    for row, group in enumerate(order):
        members = accuracy[groups == group]
        axes.plot([np.nanmin(members), np.nanmax(members)], [row, row], color=RULE, linewidth=5, zorder=1)
        axes.plot(members, np.full(len(members), row), "o", color=SIGNAL, alpha=0.75, markeredgewidth=0, zorder=2)
        axes.plot(means[group], row, "|", color=WARN, markersize=13, markeredgewidth=3, zorder=3)
    axes.set_yticks(range(len(order)), [short(group_names[group], 32) for group in order])
    _accuracy_axis(axes, accuracy, len(order))
    return figure, "the labels (dots) of each superclass (bar: their mean)"


def _by_label(accuracy: Float[np.ndarray, "label"], names: Sequence[str], ends: int) -> tuple[Card, str]:
    order = np.argsort(np.where(np.isfinite(accuracy), accuracy, -1), kind="stable")
    cut = len(order) > 2 * ends + 4
    kept = np.concatenate([order[:ends], order[-ends:]]) if cut else order
    rows = np.arange(len(kept)) + (np.arange(len(kept)) >= ends) * cut
    figure = card(0.7 + 0.22 * (len(kept) + cut))
    axes = figure.add_subplot()
    axes.hlines(rows, 0, accuracy[kept], color=RULE, linewidth=3, zorder=1)
    axes.plot(accuracy[kept], rows, "o", color=SIGNAL)
    axes.set_yticks(rows, [short(names[label], 30) for label in kept])
    if cut:
        axes.text(1, ends, f"… {len(order) - 2 * ends} labels between …", va="center", color=MUTED)
    _accuracy_axis(axes, accuracy, int(rows[-1]) + 1)
    some = f"the {ends} worst and the {ends} best of {len(order)} labels"
    return figure, some if cut else f"all {len(order)} labels"


def _accuracy_axis(axes: Axes, accuracy: Float[np.ndarray, "label"], rows: int) -> None:
    axes.axvline(np.nanmean(accuracy), color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set(xlim=(0, 101), ylim=(-0.7, rows - 0.3), xlabel="accuracy (% of the label's test images)")
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
