"""How a network was trained: accuracy, loss, learning rate and speed, drawn from the log of the run;
and several trainings side by side."""

from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cctlib.errors import UserError
from cctlib.figures.palette import LOOKS, MUTED, SIGNAL
from cctlib.figures.style import Card, body, card, headline, themed
from cctlib.figures.wording import listing, number, percent, sentence

Corner = Literal["lower right", "lower left"]
JUDGED = "held_out_accuracy"
ACCURACY = {
    JUDGED: ("held-out images", SIGNAL, "-"),
    "accuracy": ("training images, augmented (running median)", MUTED, (0, (1.5, 1.5))),
}
LOSS = {
    "held_out_loss": ("held-out images", SIGNAL, "-"),
    "loss": ("training images, augmented (running median)", MUTED, (0, (1.5, 1.5))),
}
ROUGH = (
    "accuracy",
    "loss",
    "images_per_second",
)  # since the row before: of few batches, on a clock that is set right now and then
SINGLE = {  # panels of one curve
    "lr": ("learning rate", "learning rate"),
    "images_per_second": ("images/s", "speed (running median)"),
}


@themed
def curves(log: pd.DataFrame) -> Card:
    """Accuracy and loss along training and, where the log has them, learning rate and speed.

    log: a row per logged step, with `epoch`, `loss` and `held_out_accuracy` (a share of 1; NaN where it was not measured);
    optionally `accuracy` (of the training images), `held_out_loss`, `lr`, `images_per_second`.
    Raises `UserError` when the accuracy of held-out images is not there.
    """
    known = [name for name in log if log[name].notna().any()]
    if JUDGED not in known:
        raise UserError(f"training log has no {JUDGED}: columns {list(log.columns)}; train it for an epoch at least")
    single = [name for name in SINGLE if name in known]
    heights = [1.7, 1.2] + [0.7] * len(single)
    figure = card(0.5 + 1.45 * sum(heights))
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    smooth = log.assign(
        **{name: log[name].rolling(7, center=True, min_periods=1).median() for name in ROUGH if name in known}
    )
    percents = smooth.assign(**{name: 100 * smooth[name] for name in ACCURACY if name in known})
    _lines(panels[0], percents, ACCURACY, "accuracy (%)", "lower right")
    _lines(panels[1], smooth, LOSS, "loss (nats)", "lower left")
    for name, panel in zip(single, panels[2:], strict=True):
        _lines(panel, smooth, {name: ("", SIGNAL, "-")}, SINGLE[name][0])
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    headline(figure, _message(log, panels[0]), f"{listing(_drawn(single)).capitalize()} along training.")
    return figure


@themed
def race(courses: pd.DataFrame) -> Card:
    """Accuracy of held-out images against the time that each of several trainings had taken.

    courses: a row per epoch, with `trial`, `minutes` and `held_out_accuracy` (a share of 1).
    Raises `UserError` for more trials than can be told apart, and for fewer than two.
    """
    ends = courses.groupby("trial").held_out_accuracy.last().sort_values(ascending=False)
    if not 2 <= len(ends) <= len(LOOKS):
        raise UserError(f"{len(ends)} trials: a figure compares 2 to {len(LOOKS)} of them")
    figure = card(4.0)
    part = body(figure)
    axes = part.subplots()
    for name, look in zip(ends.index, LOOKS, strict=False):
        own = courses[courses.trial == name]
        axes.plot(own.minutes, 100 * own.held_out_accuracy, **look, label=f"{spoken(name)}, {percent(ends[name])}")
    axes.set(xlabel="time since the start (minutes)", ylabel="held-out accuracy (%)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    part.legend(loc="outside upper left", ncols=2, columnspacing=1.8, handlelength=2.6)
    headline(figure, _winner(ends), "A mark where an epoch ended; the time counts everything, judging included.")
    return figure


def spoken(trial: str) -> str:
    """The name of a trial in words."""
    return trial.replace("-", " ")


def _winner(ends: pd.Series) -> str:
    """Who is ahead in the end, and by how much."""
    (first, second), ahead = ends.index[:2], 100 * (ends.iloc[0] - ends.iloc[1])
    return f"“{sentence(spoken(first))}” ends at {percent(ends.iloc[0])}, {number(ahead, 2)} points ahead of “{spoken(second)}”"


def _lines(axes: Axes, log: pd.DataFrame, names: dict[str, tuple], unit: str, legend: Corner | None = None) -> None:
    for name, (label, color, style) in names.items():
        if name in log and log[name].notna().any():
            measured = log[log[name].notna()]
            axes.plot(measured["epoch"], measured[name], color=color, linestyle=style, label=label)
    axes.set_ylabel(unit)
    axes.grid(axis="y")
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", nbins=5 if legend else 3)
    if legend:
        axes.legend(loc=legend)


def _message(log: pd.DataFrame, axes: Axes) -> str:
    """What the best epoch was; a dot marks it."""
    measured = log[log[JUDGED].notna()]
    best, last = measured.loc[measured[JUDGED].idxmax()], measured.iloc[-1]
    title, color, _ = ACCURACY[JUDGED]
    axes.plot(best["epoch"], 100 * best[JUDGED], "o", color=color)
    after = f"at epoch {best['epoch']:g}, and ends at {percent(last[JUDGED])}"
    same = best[JUDGED] == last[JUDGED]
    return f"Accuracy on {title} is highest, {percent(best[JUDGED])}, {'at the last epoch' if same else after}"


def _drawn(single: list[str]) -> list[str]:
    return ["accuracy", "loss", *(SINGLE[name][1] for name in single)]
