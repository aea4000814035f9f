"""Pruning: accuracy against density for all methods, what retraining does, and speed.

The table of runs has one row a pruned network: target (the layers pruned), method ("andc", "shuffled", "random",
"magnitude", "wanda"), seed, epochs (of retraining), density (share of the targeted weights kept), accuracy, low, high
(95% over test images) and accuracy_dense (shares of 1).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cctlib.claims.rules import TOLERANCE
from cctlib.errors import UserError
from cctlib.figures.style import DASHED, INK, METHODS, MUTED, RULE, Card, card, headline, key, legend, theme
from cctlib.figures.wording import count, listing

TITLES = {
    "andc": "ANDC",
    "shuffled": "shuffled nodes",
    "random": "random mask",
    "magnitude": "magnitude",
    "wanda": "Wanda",
}
POINTS = {"andc": "D", "shuffled": "v", "random": "s", "magnitude": "o", "wanda": "^"}
BARS = "bars: from the lowest to the highest end of the seeds' 95% intervals over test images"  # an envelope


def over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a target, method, epochs and density (to a hundredth): mean accuracy in percent over seeds, and the
    envelope of their intervals (the lowest low, the highest high); sorted by density. Raises `UserError` for an
    unknown method.
    """
    if unknown := set(runs.method) - set(METHODS):
        raise UserError(f"figures: unknown pruning method {sorted(unknown)}, expected some of {list(METHODS)}")
    percents = {name: 100 * runs[name] for name in ("accuracy", "low", "high", "accuracy_dense")}
    grouped = runs.assign(level=runs.density.round(2), **percents).groupby(
        ["target", "method", "epochs", "level"], sort=False
    )
    columns = {"density": "mean", "accuracy": "mean", "low": "min", "high": "max", "accuracy_dense": "mean"}
    return grouped.agg(columns).reset_index().sort_values("density")


def _look(method: str) -> dict:
    return {"color": METHODS[method], "marker": POINTS[method], "linewidth": 2.4 if method == "andc" else 1.5}


def _method_legend(figure: Card, methods: Sequence[str], lines: bool = True) -> None:
    style = {} if lines else {"linestyle": ""}
    keys = [key(TITLES[method], **_look(method), **style) for method in METHODS if method in set(methods)]
    keys.append(key(f"dense, ± {TOLERANCE:g} points", color=INK, linewidth=1, linestyle=DASHED))
    legend(figure, keys, ncols=5 if len(keys) <= 5 else 3)


@theme()
def accuracy_density(runs: pd.DataFrame, epochs: int | float | None = None) -> Card:
    """Accuracy against density, one panel a target, all methods, after `epochs` of retraining (by default the longest
    that all targets have).
    """
    table = over_seeds(runs)
    if epochs is None:
        epochs = min(table.groupby("target").epochs.max())
    table = table[np.isclose(table.epochs, epochs)]
    if table.empty:
        measured = sorted(set(runs.epochs))
        raise UserError(f"figures: no pruned network with {epochs:g} epochs of retraining; measured are {measured}")
    targets = list(dict.fromkeys(runs.target[runs.target.isin(table.target)]))
    across = min(len(targets), 2)
    down = -(-len(targets) // across)
    figure, panels = card(0.5 + 2.05 * down, down, across)
    for panel, target in zip(panels.flat, targets, strict=False):
        rows = table[table.target == target]
        step = 0.7 * (rows.density.max() - rows.density.min())  # bars of different methods are drawn side by side
        for place, (method, of_method) in enumerate(rows.groupby("method")):
            x = 100 * of_method.density + (place - 1.5) * step
            panel.plot(x, of_method.accuracy, **_look(method), zorder=3 if method == "andc" else 2)
            panel.vlines(x, of_method.low, of_method.high, color=METHODS[method], alpha=0.7)
        dense = rows.accuracy_dense.mean()
        panel.axhspan(dense - TOLERANCE, dense + TOLERANCE, color=RULE, alpha=0.7, linewidth=0, zorder=0)
        panel.axhline(dense, color=INK, linewidth=1, linestyle=DASHED, zorder=1)
        panel.grid(axis="y")
        panel.locator_params(axis="y", nbins=5)
        panel.set(title=target, xlabel="weights kept (%)")
    for panel in panels.flat[len(targets) :]:
        panel.set_visible(False)
    for row in panels:
        row[0].set_ylabel("test accuracy (%)")
    _method_legend(figure, list(table.method))
    after = f"After {epochs:g} epochs of retraining" if epochs else "Without retraining"
    headline(figure, _density_message(table), f"{after}; points: mean over seeds, {BARS}.")
    return figure


def _density_message(table: pd.DataFrame) -> str:
    """How ANDC compares with each other method, counted over target and density."""
    wide = table.pivot_table(index=["target", "level"], columns="method", values="accuracy")
    if "andc" not in wide:
        return "ANDC was not measured here"
    parts = []
    for method in [method for method in METHODS if method != "andc" and method in wide]:
        pairs = wide[["andc", method]].dropna()
        parts.append(f"{TITLES[method]} in {(pairs.andc > pairs[method]).sum()} of {len(pairs)}")
    kept = table[table.method == "andc"]
    near = int((kept.accuracy >= kept.accuracy_dense - TOLERANCE).sum())
    message = f"ANDC stays within {TOLERANCE:g} points in {near} of {len(kept)} cases"
    return message + (f"; it beats {listing(parts)}" if parts else "")


@theme()
def retraining(runs: pd.DataFrame) -> Card:
    """What retraining gives back: accuracy before it and after the longest one, a row a target, a mark a method; at
    the density nearest to that of ANDC at theta 0.3.

    runs: the table of runs; where several densities are given per target, that of ANDC with `theta` 0.3 (or its
    median) counts.
    """
    targets = list(dict.fromkeys(runs.target))
    table = pd.concat([_at_own_density(runs[runs.target == target]) for target in targets]).sort_values("epochs")
    before = table.groupby(["target", "method"], as_index=False).nth(0)
    after = table[table.epochs > 0].groupby(["target", "method"], as_index=False).nth(-1)
    figure, [panels] = card(0.9 + 0.52 * len(targets), 1, 2, sharex=True, sharey=True)
    titles = {"before retraining": before, "after the longest retraining": after}
    for panel, (title, rows) in zip(panels, titles.items(), strict=True):
        for place, target in enumerate(targets):
            of_target = rows[rows.target == target].set_index("method")
            methods = [method for method in METHODS if method in of_target.index]
            for step, method in enumerate(methods):
                row, y = of_target.loc[method], place + 0.13 * (step - (len(methods) - 1) / 2)
                panel.hlines(y, row.low, row.high, color=METHODS[method], linewidth=1.5)
                panel.plot(row.accuracy, y, **_look(method))
            if of_target.empty:
                where = {"transform": panel.get_yaxis_transform(), "va": "center", "color": MUTED}
                panel.text(0.02, place, "not retrained", **where)
        panel.axvline(table.accuracy_dense.mean(), color=INK, linewidth=1, linestyle=DASHED, zorder=1)
        panel.set(title=title, xlabel="test accuracy (%)")
        panel.grid(axis="x")
    levels = table.groupby("target")["level"].first()
    panels[0].set_yticks(range(len(targets)), [f"{target}\n{100 * levels[target]:.0f}% kept" for target in targets])
    panels[0].set_ylim(len(targets) - 0.5, -0.5)
    _method_legend(figure, list(table.method), lines=False)
    ours = [rows[rows.method == "andc"].set_index("target").accuracy for rows in (before, after)]
    headline(
        figure,
        _retrained_message((ours[1] - ours[0]).dropna(), len(targets)),
        f"Masks stay applied. Marks: mean over seeds, {BARS}.",
    )
    return figure


def _retrained_message(gains: pd.Series, targets: int) -> str:
    """In how many targets retraining raises ANDC's accuracy. gains: points, by target."""
    if gains.empty:
        return "No target of ANDC was retrained here"
    without = targets - len(gains)
    rest = f"; {count(without, 'target was', 'targets were')} not retrained" if without else ""
    return (
        f"Retraining raises ANDC's accuracy in {(gains > 0).sum()} of {len(gains)} retrained targets, most at "
        f"{gains.idxmax()} ({gains.max():+.1f} points){rest}"
    )


def _at_own_density(runs: pd.DataFrame) -> pd.DataFrame:
    """`over_seeds` of one target, at the density nearest to that of ANDC."""
    table, andc = over_seeds(runs), runs[runs.method == "andc"]
    central = andc[np.isclose(andc.theta, 0.3)] if "theta" in andc else andc
    density = (central if len(central) else andc).density.median()
    level = table.level.iloc[(table.level - density).abs().argmin()]
    return table[np.isclose(table.level, level, atol=0.011)]
