"""Tables for a page: one style for all of them, and the claims with their verdicts."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from cctlib.errors import UserError
from cctlib.figures.wording import number, typeset

STYLES = [
    {"selector": "th, td", "props": "padding: 0.25em 0.45em; text-align: right; border: 0; font-size: 0.92em"},
    {"selector": "th", "props": "font-weight: 600; border-bottom: 1px solid currentColor"},
    {"selector": "th:first-child, td:first-child", "props": "text-align: left"},
    {"selector": "caption", "props": "caption-side: bottom; text-align: left; padding-top: 0.5em; color: inherit"},
]
WORDS: Any = [{"selector": "", "props": "text-align: left; min-width: 6.5em; white-space: normal"}]
SIGNS = {"holds": "✓", "holds in part": "~", "does not hold": "✗", "not tested": "?"}


class Table(Styler):
    """A pandas Styler whose header cells say that they head a column, for those who hear a table read."""

    def to_html(self, *args: Any, **settings: Any) -> str:
        return (super().to_html(*args, **settings) or "").replace("<th ", '<th scope="col" ')


def styled(
    table: pd.DataFrame, formats: Mapping[str, str] | None = None, caption: str = "", prose: Sequence[str] = ()
) -> Table:
    """A table for a page: numbers formatted (`formats`: column -> format, e.g. "{:.1%}"), missing ones as a dash, and
    the columns of `prose` set as text. It sets no colour, so it fits light and dark pages.
    """
    written: dict[Any, Any] = {
        name: lambda value, form=form: typeset(form.format(value)) for name, form in (formats or {}).items()
    }
    style = Table(table).format(written, na_rep="–").hide(axis="index").set_table_styles(STYLES)
    style = style.set_table_attributes('class="dataframe"')  # the theme's name for a table of its own design
    style = style.set_table_styles(dict.fromkeys(prose, WORDS), overwrite=False)
    return style.set_caption(typeset(caption)) if caption else style


def verdict_cell(verdict: str) -> str:
    """A verdict with its sign. Raises `UserError` for a verdict that has none."""
    if verdict not in SIGNS:
        raise UserError(f"figures: unknown verdict {verdict!r}, expected one of {list(SIGNS)}")
    return f"{SIGNS[verdict]} {verdict}"


def verdicts(table: pd.DataFrame) -> Table:
    """The claims with their three answers: as stated with the effect and its interval, how robust, is it about nodes.

    table: claim, statement, verdict, effect, low, high, robust, nodes (`rules.verdicts_table`).
    """
    effects = [
        f"{row.effect} (95%: {number(row.low)} to {number(row.high)})"
        if np.isfinite([row.low, row.high]).all()
        else row.effect
        for row in table.itertuples()
    ]
    words = {"effect": effects, "how robust": table.robust, "about nodes?": table.nodes}
    shown = {
        "claim": "<b>" + table.claim + "</b> " + table.statement.map(html.escape),
        "as stated": "<b>" + table.verdict.map(verdict_cell) + "</b>",
        **{title: [html.escape(typeset(text)) for text in texts] for title, texts in words.items()},
    }
    caption = (
        "Each verdict follows from a rule that is code. The 95% interval is that of the first number; "
        "tau is Kendall's rank correlation with the order of the encoders."
    )
    return styled(pd.DataFrame(shown), caption=caption, prose=list(shown))


def verdicts_by_dataset(table: pd.DataFrame) -> Table:
    """Which claim holds on which data set: a row a claim, a column a data set.

    table: dataset, claim, statement, verdict, one row a claim and data set.
    """
    cells = table.assign(cell=table.verdict.map(verdict_cell), claim=table.claim + " " + table.statement)
    wide = cells.pivot(index="claim", columns="dataset", values="cell")[list(dict.fromkeys(table.dataset))]
    by_claim = table.groupby("claim").verdict
    tested = ~by_claim.agg(lambda words: "not tested" in set(words))
    agree = f"{(tested & (by_claim.nunique() == 1)).sum()} of the {tested.sum()} claims that were tested on all of them"
    caption = f"The data sets agree on {agree}." if len(wide.columns) > 1 else ""
    return styled(wide.reset_index(), caption=caption, prose=["claim", *wide.columns])
