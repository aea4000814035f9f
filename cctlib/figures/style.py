"""One look for every figure: colours, type, a card with its message, and the line that says where it came from.

A static figure is a `Card`: a matplotlib Figure outside pyplot, so that no backend and no global state are involved,
and no setting of the user's matplotlibrc reaches it. It has an opaque off-white ground and looks the same in a light
and in a dark page. Interactive figures (plotly) get the same ground and ink from `plotly_card`.

    figure, [[axes]] = card(3.7)
    line(axes, rows, "noise", **look("ff"))
    encoder_axis(axes, rows.encoder)
    headline(figure, "Noise falls from 575 to 368", "Mean over the nodes of a site.")

A function that draws is decorated with `@theme()`; a notebook draws `with theme():`. A card is 7 inches wide and is
shown in a column of about 750 px, so type is never smaller than `SMALLEST` points.
"""

import io
import pickle
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, SupportsFloat, cast

import matplotlib
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import TextToPath
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import ScaledTranslation

from cctlib.errors import UserError
from cctlib.figures.provenance import under
from cctlib.figures.wording import typeset

# --------------------------------------------------------------------------------------------------------------------
# Colours. People with any of the common kinds of colour blindness can tell those of one group apart, and all have a
# contrast of at least 3 with the ground (both are tested), but for those of heads 4 and 5.

GROUND, INK, MUTED, RULE, PANEL = "#FBFAF6", "#1F2430", "#565D6B", "#DDD9CF", "#F3F1EA"
NEGATIVE = "#C9701B"  # a field below 0
SIGNAL, WARN, FOREIGN = "#0F4C81", "#CC7E1B", "#8B9099"  # ones inside blocks, column noise, foreign noise
KINDS = {"mha": "#0072B2", "trunk": "#8B9097", "ff_hidden": "#BF8400", "ff": "#B34700"}
KINDS |= {"filters": "#2F3440", "before_relu": "#9922DD"}
MARKERS = {"mha": "o", "trunk": "s", "ff_hidden": "^", "ff": "D", "filters": "P", "before_relu": "X"}
HEADS = ("#5A3FA3", "#409F8F", "#9A922E", "#7A1F3D", "#6496AF", "#CC6677")
METHODS = {"andc": "#882255", "shuffled": "#117733", "random": "#8B9097", "magnitude": "#2F8FCB", "wanda": "#C98011"}
SERIES = ("#1F2430", "#C2428A", "#2F8FCB", "#A19026", "#7F26D9")  # data sets, trials, alternatives: as they are given
DASHED = (0, (4, 3))
DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (5, 1.5, 1.2, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
LOOKS = [
    {"color": color, "marker": marker, "linestyle": dash}
    for color, marker, dash in zip(SERIES, "oD^sv", DASHES, strict=True)
]
BROWN_TO_BLUE = ["#7A3B06", "#C9701B", "#F0C48E", GROUND, "#9FC3E0", "#2F79B5", "#0B3C68"]
DIVERGING = LinearSegmentedColormap.from_list("field", BROWN_TO_BLUE)
COUNTS = LinearSegmentedColormap.from_list("counts", ["#EDF1F4", "#9DBBD6", "#2F79B5", "#0B2A4A"])  # few: light

SMALLEST, BODY, LABEL, HEADLINE = 9.0, 9.5, 10.5, 13.5  # points
WIDTH, NARROW = 7.0, 4.1  # inches; on a phone, text of a narrow card is as large as that of the page
MARGIN = 0.16  # inches, from the edge of the card to its text

DEFAULTS = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
THEME: dict[Any, Any] = DEFAULTS | {
    "font.size": BODY,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.titlesize": LABEL,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": BODY + 0.5,
    "xtick.labelsize": BODY,
    "ytick.labelsize": BODY,
    "legend.fontsize": BODY,
    "legend.frameon": False,
    "legend.columnspacing": 1.4,
    "legend.handletextpad": 0.5,
    "axes.facecolor": GROUND,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
    "lines.markeredgecolor": "white",
    "lines.markeredgewidth": 0.6,
    "lines.solid_capstyle": "round",
    "patch.linewidth": 0.8,
    "image.interpolation": "nearest",
    "image.cmap": "cividis",
    "savefig.dpi": 200,
}


def theme() -> Any:
    """The settings of matplotlib under which figures are drawn: `with theme():`, or `@theme()` before a function."""
    return matplotlib.rc_context(THEME)


def contrast(color: str, ground: str = GROUND) -> float:
    """Contrast ratio of two colours (WCAG): 1 to 21; text wants 4.5, lines 3."""
    lights = []
    for name in (color, ground):
        channels = np.array(to_rgb(name))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(lights) / min(lights)


def readable(color: str) -> str:
    """`color`, darkened towards the ink until text in it can be read on a card."""
    for share in np.linspace(0, 1, 21):
        mixed = to_hex((1 - share) * np.array(to_rgb(color)) + share * np.array(to_rgb(INK)))
        if contrast(mixed) >= 4.5:
            return mixed
    return INK


# --------------------------------------------------------------------------------------------------------------------
# Cards


class Card(Figure):
    """A matplotlib Figure that shows itself in a notebook, sharp on fine screens, without pyplot and under the theme.

    inner: height of the panels in inches. body: the part that holds the panels. said: message and detail of the
    headline. keys: entries and settings of each legend. columns: panels beside each other; there is a narrow form of
    cards with one or two. stamp: the line that says where it came from, which is shown below it.
    """

    inner = 0.0
    stamp = ""
    said = ("", "")
    keys: Sequence[tuple[list[Artist], dict[str, Any]]] = ()
    columns = 0
    body: SubFigure

    def draw(self, renderer: Any) -> None:
        with theme():
            super().draw(renderer)

    def savefig(self, *args: Any, **settings: Any) -> None:
        with theme():
            super().savefig(*args, **settings)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        picture = {"image/png": to_png(self), "text/plain": headline_of(self)}
        display(picture, metadata={"image/png": {"width": round(self.get_figwidth() * 100)}}, raw=True)
        display(under(self, phone=to_phone(self)), raw=True)


def card(
    height: float, rows: int = 1, columns: int = 1, width: float = WIDTH, **settings: Any
) -> tuple[Card, np.ndarray]:
    """A card with `rows` x `columns` panels, which are `width` x `height` inches together; a headline makes it taller.

    Returns the card and the panels as an array [row, column]; with 0 rows the card has none, and its `body` can be
    divided in other ways. `settings` are those of `Figure.subplots`.
    """
    figure = Card(figsize=(width, height), facecolor=GROUND, edgecolor=RULE, linewidth=1.2)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.04))
    figure.inner, figure.columns = height, columns if rows else 0
    _reserve(figure, 0.08)
    figure.body = cast(SubFigure, figure.subfigures(1, 1))
    panels = figure.body.subplots(rows, columns, squeeze=False, **settings) if rows else np.empty((0, columns), object)
    return figure, panels


def headline(figure: Card, message: str, detail: str = "") -> None:
    """Write the message above the panels, in bold, and below it how to read them; both are wrapped to the card."""
    figure.said = message, detail = typeset(message), typeset(detail)
    width = 0.97 * (figure.get_figwidth() - 2 * MARGIN)  # text on pixels is a little wider than its outlines
    used = MARGIN  # inches from the upper edge
    for text, size, weight, color in ((message, HEADLINE, "bold", INK), (detail, BODY + 0.5, "normal", MUTED)):
        if text:
            text = wrap(text, size, width, weight)
            look: dict[str, Any] = {"size": size, "weight": weight, "color": color, "va": "top", "linespacing": 1.25}
            corner = figure.transFigure + ScaledTranslation(MARGIN, -used, figure.dpi_scale_trans)  # of the grown card
            figure.text(0, 1, text, transform=corner, **look).set_in_layout(False)
            used += (text.count("\n") + 1) * size * 1.28 / 72 + 0.05
    _reserve(figure, used - 0.03)


def wrap(text: str, size: float, width: float, weight: str = "normal") -> str:
    """Break text into lines of at most `width` inches at `size` points, measured in the font used."""
    font = FontProperties(family="DejaVu Sans", weight=weight, size=size)
    measure = TextToPath()
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        fits = measure.get_text_width_height_descent(longer, font, ismath=False)[0] / 72 <= width
        lines = [*lines[:-1], longer] if lines and fits else [*lines, word]
    return "\n".join(lines)


def _reserve(figure: Card, above: float) -> None:
    """Keep inches free above the panels; the card grows, and the panels keep their size."""
    below = 0.08
    height = above + figure.inner + below
    figure.set_figheight(height)
    engine = cast(ConstrainedLayoutEngine, figure.get_layout_engine())
    engine.set(rect=(0.016, below / height, 0.968, figure.inner / height))


def headline_of(figure: Card) -> str:
    """The message a card states."""
    return figure.said[0]


def to_png(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as the bytes of a PNG; 200 dots an inch is twice what a 750 px column shows."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


@theme()
def to_phone(figure: Card) -> bytes | None:
    """The card as a phone shows it, as a PNG: `NARROW`, with headline, titles and legend wrapped anew; None where its
    `columns` do not allow it.
    """
    if not 1 <= figure.columns <= 2:
        return None
    card = cast(Card, pickle.loads(pickle.dumps(figure)))  # a copy; copy.deepcopy does not make one of a figure
    panels = card.body.axes
    room = (NARROW - 1.4) / card.columns  # inches
    breaks: dict[int, int] = {}  # of the titles in each row of panels
    for axes in panels:
        row = spec.rowspan.start if (spec := axes.get_subplotspec()) else 0
        for place in ("left", "center", "right"):
            axes.set_title(wrap(axes.get_title(loc=place), LABEL, room, "bold"), loc=place)
            breaks[row] = max(breaks.get(row, 0), axes.get_title(loc=place).count("\n"))
        axes.set_xlabel(wrap(axes.get_xlabel(), LABEL, min(room, 2.0)))
        fixed = isinstance(axes.xaxis.get_major_locator(), FixedLocator)  # other ticks become fewer by themselves
        if fixed and sum(len(label.get_text()) + 1 for label in axes.get_xticklabels()) * 0.08 > room:
            axes.tick_params(axis="x", labelrotation=90)
    if any(axes.get_aspect() == 1 for axes in panels):  # squares get smaller with the width
        card.inner *= 0.75
    card.inner += 1.25 * LABEL / 72 * sum(breaks.values())
    for written in card.body.legends:
        written.remove()
    for handles, settings in card.keys:
        columns = 1 if any(len(str(each.get_label())) > 24 for each in handles) else 2
        card.inner += 0.2 * (-(-len(handles) // columns) - -(-len(handles) // settings["ncols"]))
        card.body.legend(handles=handles, **settings | {"ncols": columns})
    for text in card.texts[:]:
        text.remove()
    card.set_figwidth(NARROW)
    headline(card, *card.said)
    return to_png(card, dpi=180)


# --------------------------------------------------------------------------------------------------------------------
# Panels


def line(axes: Axes, rows: pd.DataFrame, column: str, scale: float = 1, **settings: Any) -> None:
    """A column of a table along the encoders; a ratio that is infinite or missing leaves a gap."""
    rows = rows.sort_values("encoder")
    axes.plot(rows.encoder, scale * rows[column].replace([np.inf, -np.inf], np.nan), **settings)


def band(axes: Axes, x: Any, low: Any, high: Any, color: str = FOREIGN, **settings: Any) -> None:
    """A band between two curves, without an outline."""
    usual: dict[str, Any] = {"color": color, "alpha": 0.35, "linewidth": 0}
    axes.fill_between(x, low, high, **usual | settings)


def look(kind: str) -> dict[str, Any]:
    """Colour, marker and label of a kind of site."""
    return {"color": KINDS[kind], "marker": MARKERS[kind], "label": kind}


def key(label: str, **settings: Any) -> Line2D:
    """An entry of a legend: a line or a marker."""
    return Line2D([], [], label=label, **settings)


def swatch(label: str) -> Patch:
    """An entry of a legend: a band as `band` draws it."""
    return Patch(facecolor=FOREIGN, alpha=0.35, linewidth=0, label=label)


def legend(figure: Card, source: Axes | Sequence[Artist], where: str = "lower left", **settings: Any) -> None:
    """One legend for a whole card, outside of its panels: of given entries, or of what `source` draws under a label."""
    if isinstance(source, Axes):
        handles, labels = source.get_legend_handles_labels()
        source = list(dict(zip(labels, handles, strict=True)).values())
    usual: dict[str, Any] = {"loc": f"outside {where}", "ncols": min(len(source), 4), "handlelength": 1.8}
    figure.keys = [*figure.keys, (list(source), usual | settings)]
    figure.body.legend(handles=list(source), **usual | settings)


def bare(axes: Axes) -> None:
    """An image panel: no ticks, a hairline around it."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=RULE, linewidth=0.8)


def without_frame(axes: Axes) -> None:
    """A panel of cells: no spines and no tick marks, only their labels."""
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def colorbar(image: ScalarMappable, label: str, axes: Axes | Sequence[Axes], **settings: Any) -> Colorbar:
    """A slim colour bar with its quantity (and unit), beside `axes` or in the axes `cax` of `settings`."""
    part = axes.figure if isinstance(axes, Axes) else axes[0].figure
    if "cax" not in settings:
        settings = {"ax": axes, "shrink": 0.9, "aspect": 28, "pad": 0.02, **settings}
    bar = cast(Figure, part).colorbar(image, label=label, **settings)
    cast(Artist, bar.outline).set_visible(False)
    return bar


def encoder_axis(axes: Axes, encoders: Iterable[int], label: bool = True) -> None:
    """The axes of most figures: encoders 1 to L, each one named, and lines for about five values."""
    numbers = sorted({int(encoder) for encoder in encoders})
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set_xlim(numbers[0] - 0.45, numbers[-1] + 0.45)
    axes.grid(axis="y")
    axes.locator_params(axis="y", nbins=5)
    if label:
        axes.set_xlabel("encoder")


def kinds_in(kinds: Iterable[str]) -> list[str]:
    """The kinds of site that occur, as a token meets them. Raises `UserError` for an unknown kind."""
    present = set(kinds)
    if unknown := present - set(KINDS):
        raise UserError(f"figures: unknown kind of site {sorted(unknown)}, expected some of {list(KINDS)}")
    return [kind for kind in KINDS if kind in present]


# --------------------------------------------------------------------------------------------------------------------
# Interactive figures: plotly, without MathJax, fonts or scripts from elsewhere

PLOTLY_DIVERGING = [[step / 6, color] for step, color in enumerate(BROWN_TO_BLUE)]
PLOTLY_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
PHONE = 34  # characters of a line of the headline on a page of 390 px, in the widest of these fonts


def plotly_card(figure: go.Figure, message: str, height: int = 640, left: int = 64, above: int = 60) -> go.Figure:
    """Give a plotly figure the look of a card. Pixels: `above` is free space between headline and panel, for a colour
    bar or buttons. Plotly puts the headline's first line 33 px above the panel and its padding.
    """
    top = 18 + 21 * (plotly_headline(message).count("<br>") + 1) + above
    title = {"font": {"size": 15.5, "color": INK}, "x": 0, "xref": "container", "pad": {"l": 14, "b": top - 63}}
    figure.update_layout(
        title=title | {"text": plotly_headline(message), "y": 1, "yref": "paper", "yanchor": "bottom"},
        font={"family": PLOTLY_FONT, "size": 13, "color": INK},
        paper_bgcolor=GROUND,
        plot_bgcolor=GROUND,
        height=height,
        autosize=True,
        margin={"l": left, "r": 20, "t": top, "b": 70},
        hoverlabel={"font": {"size": 13}},
    )
    for axes in (figure.update_xaxes, figure.update_yaxes):
        axes(linecolor=MUTED, gridcolor=RULE, zeroline=False, title={"standoff": 10})
    return figure


def plotly_headline(message: str) -> str:
    """A headline in bold, broken for the narrowest page, a phone's."""
    return "<b>" + "<br>".join(textwrap.wrap(message, PHONE)) + "</b>"


def plotly_bar(label: str, values: Sequence[SupportsFloat], texts: Sequence[object]) -> dict:
    """A slim horizontal colour bar above the panel, which leaves a phone its width."""
    place = {"orientation": "h", "x": 0, "xanchor": "left", "len": 1, "y": 1.01, "yanchor": "bottom", "thickness": 9}
    ticks = {"tickvals": list(map(float, values)), "ticktext": list(map(str, texts)), "tickfont": {"size": 12}}
    return place | ticks | {"outlinewidth": 0, "title": {"text": label, "side": "top", "font": {"size": 12}}}


def plotly_names(names: Sequence[str], few: bool) -> dict:
    """Axis settings for labels: their names where they are few; else one unseen tick, which keeps the title off the
    panel.
    """
    if few:
        return {"tickvals": list(names)}
    unseen = {"ticks": "outside", "ticklen": 8, "tickcolor": GROUND, "tickfont": {"color": GROUND}, "tickangle": 0}
    return {"tickvals": [names[len(names) // 2]], "ticktext": ["."], **unseen}
