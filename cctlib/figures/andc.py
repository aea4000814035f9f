"""Pruning: accuracy against density for all methods, what retraining does, speed, and tables.

The table of runs has one row a pruned network: target (the layers pruned), method ("andc", "shuffled",
"random", "magnitude", "wanda"), seed, epochs (of retraining), density (share of the targeted weights kept),
accuracy, low, high (95%) and accuracy_dense (shares of 1).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from pandas.io.formats.style import Styler

from cctlib.claims.rules import TOLERANCE
from cctlib.errors import UserError
from cctlib.figures.palette import INK, METHODS, MUTED, PANEL, RULE, SIGNAL
from cctlib.figures.style import Card, body, card, headline, panel_title, themed
from cctlib.figures.wording import count, listing, sentence

TITLES = {
    "andc": "ANDC",
    "shuffled": "shuffled nodes",
    "random": "random mask",
    "magnitude": "magnitude",
    "wanda": "Wanda",
}
POINTS = {"andc": "D", "shuffled": "v", "random": "s", "magnitude": "o", "wanda": "^"}


def over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a target, method, epochs and density (to a hundredth): mean accuracy in percent over seeds, and
    the ends of all their intervals; sorted by density. Raises `UserError` for an unknown method.
    """
    if unknown := set(runs.method) - set(METHODS):
        raise UserError(f"figures: unknown pruning method {sorted(unknown)}, expected some of {list(METHODS)}")
    runs = runs.assign(
        level=runs.density.round(2),
        **{name: 100 * runs[name] for name in ("accuracy", "low", "high", "accuracy_dense")},
    )
    grouped = runs.groupby(["target", "method", "epochs", "level"], sort=False)
    table = grouped.agg(
        density=("density", "mean"),
        accuracy=("accuracy", "mean"),
        low=("low", "min"),
        high=("high", "max"),
        accuracy_dense=("accuracy_dense", "mean"),
        seeds=("seed", "nunique"),
    ).reset_index()
    return table.sort_values("density")


def _methods(axes: Axes, table: pd.DataFrame, x: str) -> None:
    step = 0.007 * (table[x].max() - table[x].min())  # bars of different methods stand side by side
    for place, method in enumerate(METHODS):
        rows = table[table.method == method].sort_values(x)
        if len(rows):
            wide = 2.4 if method == "andc" else 1.5
            rows = rows.assign(**{x: rows[x] + (place - 1.5) * step})
            axes.plot(
                rows[x],
                rows.accuracy,
                color=METHODS[method],
                linewidth=wide,
                marker=POINTS[method],
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=3 if method == "andc" else 2,
            )
            axes.vlines(rows[x], rows.low, rows.high, color=METHODS[method], linewidth=wide, alpha=0.7)
    dense = table.accuracy_dense.mean()
    axes.axhspan(dense - TOLERANCE, dense + TOLERANCE, color=RULE, alpha=0.7, linewidth=0, zorder=0)
    axes.axhline(dense, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.grid(axis="y")
    axes.locator_params(axis="y", nbins=5)


def _facets(figure: Card, targets: Sequence[str]) -> tuple[SubFigure, list[Axes]]:
    """One panel a target, two in a row, on the card's body."""
    part, across = body(figure), min(len(targets), 2)
    panels = part.subplots(-(-len(targets) // across), across, squeeze=False)
    for panel in panels.flat[len(targets) :]:
        panel.set_visible(False)
    for row in panels:
        row[0].set_ylabel("test accuracy (%)")
    return part, list(panels.flat)


def _method_legend(part: SubFigure, methods: Iterable[str]) -> None:
    keys = [
        Line2D([], [], color=METHODS[method], marker=POINTS[method], label=TITLES[method])
        for method in METHODS
        if method in set(methods)
    ]
    keys.append(Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"dense, ± {TOLERANCE:g} points"))
    part.legend(
        handles=keys,
        loc="outside lower left",
        ncols=5 if len(keys) <= 5 else 3,
        columnspacing=1.2,
        handletextpad=0.5,
        handlelength=1.7,
    )


@themed
def accuracy_density(runs: pd.DataFrame, epochs: int | float | None = None) -> Card:
    """Accuracy against density, one panel a target, all methods; after `epochs` of retraining (default: the
    longest that all have).
    """
    table = over_seeds(runs)
    if epochs is None:
        epochs = min(table.groupby("target").epochs.max())
    table = table[np.isclose(table.epochs, epochs)]
    if table.empty:
        raise UserError(
            f"figures: no pruned network with {epochs:g} epochs of retraining; measured are {sorted(set(runs.epochs))}"
        )
    targets = [target for target in dict.fromkeys(runs.target) if target in set(table.target)]
    figure = card(0.5 + 2.05 * -(-len(targets) // min(len(targets), 2)))
    part, panels = _facets(figure, targets)
    for panel, target in zip(panels, targets, strict=False):
        rows = table[table.target == target].assign(percent=lambda frame: 100 * frame.density)
        _methods(panel, rows, "percent")
        panel.set_xlabel("weights kept (%)")
        panel_title(panel, target)
    _method_legend(part, table.method)
    headline(
        figure,
        _density_message(table),
        f"{_after(epochs)}; points: mean over seeds, bars: 95% over test images and seeds.",
    )
    return figure


def _after(epochs: SupportsFloat) -> str:
    number_of = float(epochs)
    if not number_of:
        return "Without retraining"
    return (
        f"After {count(int(number_of), 'epoch') if number_of.is_integer() else f'{number_of:g} epochs'} of retraining"
    )


def _density_message(table: pd.DataFrame) -> str:
    """How ANDC stands against each other method, counted over target and density."""
    wide = table.pivot_table(index=["target", "level"], columns="method", values="accuracy")
    if "andc" not in wide:
        return "ANDC was not measured here"
    others = [method for method in METHODS if method != "andc" and method in wide]
    parts = []
    for method in others:
        pairs = wide[["andc", method]].dropna()
        parts.append(f"{TITLES[method]} in {(pairs.andc > pairs[method]).sum()} of {len(pairs)}")
    kept = table[table.method == "andc"]
    near = int((kept.accuracy >= kept.accuracy_dense - TOLERANCE).sum())
    message = f"ANDC stays within {TOLERANCE:g} points in {near} of {len(kept)} cases"
    return message + (f"; it beats {listing(parts)}" if parts else "")


@themed
def retraining(runs: pd.DataFrame) -> Card:
    """What a short retraining gives back: accuracy against its epochs, at the density nearest to that of ANDC
    at theta 0.3.

    runs: the table of runs; where several densities are given per target, that of ANDC with `theta` 0.3 (or
    its median) is taken.
    """
    table = over_seeds(runs)
    targets = [target for target in dict.fromkeys(runs.target) if target in set(table.target)]
    figure = card(0.5 + 2.05 * -(-len(targets) // min(len(targets), 2)))
    part, panels = _facets(figure, targets)
    gains = {}
    for panel, target in zip(panels, targets, strict=False):
        rows, own = table[table.target == target], runs[(runs.target == target) & (runs.method == "andc")]
        at = own[np.isclose(own.theta, 0.3)] if "theta" in own and np.isclose(own.theta, 0.3).any() else own
        level = rows.level.iloc[(rows.level - at.density.median()).abs().argmin()]
        rows = rows[np.isclose(rows.level, level, atol=0.011)]
        _methods(panel, rows, "epochs")
        panel.set_xlabel("epochs of retraining")
        panel.set_xticks(sorted(set(rows.epochs)))
        panel_title(panel, f"{target}, {100 * level:.0f}% kept")
        ours = rows[rows.method == "andc"].sort_values("epochs")
        gains[target] = ours.accuracy.iloc[-1] - ours.accuracy.iloc[0] if len(ours) else np.nan
    _method_legend(part, table.method)
    best = max(gains, key=lambda target: np.nan_to_num(gains[target], nan=-np.inf))
    up = sum(gain > 0 for gain in gains.values())
    headline(
        figure,
        f"Retraining raises ANDC's accuracy in {up} of {len(gains)} targets, most at {best} ({gains[best]:+.1f} points)",
        "Masks stay applied while the masked layers are retrained. Bars: 95% over test images and seeds.",
    )
    return figure


@themed
def latency(table: pd.DataFrame) -> Card:
    """Is the compact network faster? Latency over that of the dense network, against sparsity, one panel a
    batch size.

    table: form (how it is stored), batch (images), sparsity (share of weights removed), ratio (latency /
    dense latency, median), and optionally low, high (its spread).
    """
    batches, forms = sorted(table.batch.unique()), list(dict.fromkeys(table.form))
    if len(forms) > len(SHADES):
        raise UserError(f"figures: {len(forms)} forms to draw, at most {len(SHADES)} can be told apart")
    figure = card(3.3)
    part = body(figure)
    panels = part.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        panel.axhspan(0.01, 1, color=PANEL, linewidth=0, zorder=0)
        panel.axhline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for place, form in enumerate(forms):
            rows = table[(table.batch == batch) & (table.form == form)].sort_values("sparsity")
            panel.plot(
                100 * rows.sparsity,
                rows.ratio,
                color=SHADES[place],
                marker="osD^Pv"[place],
                markeredgecolor="white",
                markeredgewidth=0.6,
            )
            if {"low", "high"} <= set(rows):
                panel.vlines(100 * rows.sparsity, rows.low, rows.high, color=SHADES[place], linewidth=1.5)
        panel_title(panel, f"batch {batch:g}")
        panel.set_xlabel("weights removed (%)")
    panels[0].set(yscale="log", ylabel="latency / dense latency")
    low, high = 0.8 * min(0.9, table.ratio.min()), 1.25 * max(1.1, table.ratio.max())
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 3, 5, 10, 20, 50) if low <= tick <= high]
    panels[0].set(ylim=(low, high), yticks=ticks, yticklabels=[f"{tick:g}" for tick in ticks])
    panels[0].minorticks_off()
    keys = [
        Line2D([], [], color=SHADES[place], marker="osD^Pv"[place], label=FORMS.get(form, form))
        for place, form in enumerate(forms)
    ]
    part.legend(handles=keys, loc="outside lower left", ncols=min(len(keys), 3))
    verdicts = [_fastest(table[table.batch == batch], batch) for batch in batches]
    headline(
        figure,
        sentence("; ".join(verdicts)),
        "Below the dashed line: faster than dense. All forms that were tried are shown.",
    )
    return figure


FORMS = {"csr": "CSR matrices", "bags": "weighted bags", "blocks": "dense blocks", "chosen": "best form per layer"}
SHADES = (SIGNAL, *[METHODS[method] for method in ("wanda", "andc", "magnitude")], MUTED, INK)


def _fastest(rows: pd.DataFrame, batch: SupportsFloat) -> str:
    best = rows.loc[rows.ratio.idxmin()]
    if best.ratio < 1:
        name = FORMS.get(best.form, best.form)
        return f"at batch {float(batch):g}, {name}: {best.ratio:.2f} of the dense latency at {100 * best.sparsity:.0f}% sparsity"
    return f"at batch {float(batch):g}, no form is faster than dense"


def styled(
    table: pd.DataFrame,
    formats: Mapping[str, str] | None = None,
    caption: str = "",
    best: Mapping[str, str] | None = None,
    prose: Sequence[str] = (),
) -> Styler:
    """A table for a page: numbers formatted (`formats`: column -> format, e.g. "{:.1%}"), missing ones as a
    dash, in the columns of `best` ("max" or "min") the best value bold, and those of `prose` set as text.
    Returns a pandas Styler; it reads in light and dark themes, as it sets no colour.
    """
    style = table.style.format(dict(formats or {}), na_rep="–").hide(axis="index")
    style = style.set_table_styles(
        [
            {"selector": "th, td", "props": "padding: 0.25em 0.6em; text-align: right; border: 0; font-size: 0.92em"},
            {"selector": "th", "props": "font-weight: 600; border-bottom: 1px solid currentColor"},
            {"selector": "th:first-child, td:first-child", "props": "text-align: left"},
            {"selector": "caption", "props": "caption-side: bottom; text-align: left; padding-top: 0.5em"},
        ]
    )
    for column, end in (best or {}).items():
        highlight = style.highlight_max if end == "max" else style.highlight_min
        style = highlight(subset=[column], props="font-weight: 700")
    words: Any = {
        column: [{"selector": "", "props": "text-align: left; min-width: 8em; white-space: normal"}] for column in prose
    }
    style = style.set_table_styles(words, overwrite=False)
    return style.set_caption(caption) if caption else style
