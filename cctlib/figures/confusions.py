"""What the network confuses: the most frequent mistakes, and all of them to hover over."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from matplotlib.ticker import MaxNLocator

from cctlib.figures.interactive import plotly_bar, plotly_card, plotly_names
from cctlib.figures.palette import SIGNAL
from cctlib.figures.style import Array, Card, as_array, card, headline, themed
from cctlib.figures.wording import percent, short


def _shares(counts: Int[Array, "label label"]) -> Float[np.ndarray, "label label"]:
    """Of each true label's images, the share read as each label."""
    images = as_array(counts).astype(float)
    return images / np.maximum(images.sum(axis=1, keepdims=True), 1)


@themed
def confused_pairs(confusion: Int[Array, "label label"], names: Sequence[str], pairs: int = 12) -> Card:
    """The label pairs most often confused. confusion: counts [true label, predicted label]."""
    share = _shares(confusion)
    np.fill_diagonal(share, 0)
    order = np.argsort(-share, axis=None, kind="stable")[:pairs]
    order = order[share.flat[order] > 0]
    figure = card(0.75 + 0.27 * max(len(order), 2))
    axes = figure.add_subplot()
    true, read = np.unravel_index(order, share.shape)
    values = 100 * share[true, read]
    axes.barh(range(len(order)), values, color=SIGNAL, height=0.62)
    for row, value in enumerate(values):
        axes.text(value, row, f" {value:.0f}%", va="center")
    axes.set_yticks(
        range(len(order)), [f"{short(names[t], 18)} → {short(names[r], 18)}" for t, r in zip(true, read, strict=True)]
    )
    axes.set(
        ylim=(max(len(order), 2) - 0.4, -0.6),
        xlabel="share of the true label's test images (%)",
        ylabel="true label → label read",
    )
    axes.set_xlim(0, 1.12 * values.max() if len(order) else 1)
    axes.tick_params(left=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines["left"].set_visible(False)
    found = set(zip(true.tolist(), read.tolist(), strict=True))
    mutual = [pair for pair in sorted(found) if pair[0] < pair[1] and pair[::-1] in found]
    message = "No label is read as another"
    if len(order):
        most, other = short(names[true[0]], 22), short(names[read[0]], 22)
        message = f"{percent(values[0] / 100, 0)} of the images of {most} are read as {other}"
    both = ", ".join(f"{short(names[t], 18)} ↔ {short(names[r], 18)}" for t, r in mutual[:2])
    headline(
        figure,
        message,
        f"The {len(order)} most frequent mistakes." + (f" In both directions: {both}." if mutual else ""),
    )
    return figure


def confusion_matrix(
    confusion: Int[Array, "label label"], names: Sequence[str], groups: Sequence[int] | None = None
) -> go.Figure:
    """All confusions, with names on hover; labels ordered by superclass where they have one.

    confusion: counts [true label, predicted label]. groups: superclass of each label.
    """
    counts, share = as_array(confusion), 100 * _shares(confusion)
    group = np.zeros(len(share), int) if groups is None else np.asarray(groups)
    order = np.argsort(group, kind="stable")
    labels = [short(names[index], 40) for index in order]
    marks = [0, 1, 5, 10, 25, 50, 100]
    figure = go.Figure(
        go.Heatmap(
            z=np.sqrt(share[np.ix_(order, order)]).astype(np.float32),
            x=labels,
            y=labels,
            colorscale="Cividis",
            zmin=0,
            zmax=10,
            customdata=share[np.ix_(order, order)].round(1).astype(np.float32),
            hovertemplate=("true: <b>%{y}</b><br>read as: <b>%{x}</b><br>%{customdata}% of its images<extra></extra>"),
            colorbar=plotly_bar("share of the true label's images (%)", [mark**0.5 for mark in marks], marks),
        )
    )
    few = len(labels) <= 20
    figure.update_xaxes(title="label read, in the same order", showgrid=False, **plotly_names(labels, few=False))
    figure.update_yaxes(title="true label", autorange="reversed", showgrid=False, **plotly_names(labels, few))
    right, total = int(np.trace(counts)), int(counts.sum())
    message = f"{percent(right / max(total, 1))} of the test images lie on the diagonal"
    if groups is not None and total > right:
        inside = counts[np.equal.outer(group, group)].sum() - right
        message += f"; {percent(inside / (total - right), 0)} of the mistakes stay in the superclass"
    plotly_card(figure, message, left=120 if few else 44)
    for edge in np.flatnonzero(np.diff(group[order])) + 0.5:
        line = {"color": "rgba(251,250,246,0.35)", "width": 1}
        figure.add_shape(type="line", x0=edge, x1=edge, y0=-0.5, y1=len(order) - 0.5, line=line)
        figure.add_shape(type="line", y0=edge, y1=edge, x0=-0.5, x1=len(order) - 0.5, line=line)
    return figure
