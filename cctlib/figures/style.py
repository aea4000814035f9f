"""One look for every figure: its card, type, headline, and the line that says where it came from.

A static figure is a `Card`: a matplotlib Figure outside pyplot, so that no backend and no global state are
involved. It has an opaque off-white ground, and reads the same in a light and in a dark page. Interactive
figures (plotly) get the same ground and ink from `interactive.plotly_card`.

Sizes: a card is 7 inches wide and shown in a column of about 750 px, so type is never smaller than `SMALLEST`
points.
"""

import functools
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.textpath import TextToPath
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from cctlib.errors import UserError
from cctlib.figures.interactive import stamp_below
from cctlib.figures.palette import GROUND, INK, KINDS, MARKERS, MUTED, RULE, SEQUENTIAL

Array = np.ndarray | Tensor

SMALLEST, BODY, LABEL, HEADLINE = 9.0, 9.5, 10.5, 13.5
WIDTH = 7.0  # inches
MARGIN = 0.16  # inches, from the edge of the card to its text

STAMP_KEYS = ("dataset", "model", "weights", "commit", "profile", "device")


class Card(Figure):
    """A matplotlib Figure that shows itself in a notebook, sharp on fine screens, without pyplot.

    inner, above, below: inches of the panels, of the headline, and of the stamp.
    """

    inner, above, below = 0.0, 0.0, 0.0

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        width = round(self.get_figwidth() * 100)
        return {"image/png": to_png(self), "text/plain": headline_of(self)}, {"image/png": {"width": width}}


Drawn = TypeVar("Drawn", Card, go.Figure)


def theme() -> dict[Any, Any]:
    """Settings of matplotlib shared by all figures, for `matplotlib.rc_context(theme())`."""
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
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
        "axes.titlepad": 6,
        "axes.labelsize": BODY + 0.5,
        "xtick.labelsize": BODY,
        "ytick.labelsize": BODY,
        "legend.fontsize": BODY,
        "legend.frameon": False,
        "figure.facecolor": GROUND,
        "savefig.facecolor": GROUND,
        "axes.facecolor": GROUND,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "grid.color": RULE,
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "lines.linewidth": 2.0,
        "lines.markersize": 5.5,
        "lines.solid_capstyle": "round",
        "patch.linewidth": 0.8,
        "image.interpolation": "nearest",
        "image.cmap": SEQUENTIAL,
        "hatch.linewidth": 0.6,
        "savefig.dpi": 200,
    }


def themed(draw: Callable[..., Card]) -> Callable[..., Card]:
    """Decorate a function that draws a card: it runs under `theme()`, and leaves nothing to be styled "
    "later."""

    @functools.wraps(draw)
    def drawn(*args: Any, **settings: Any) -> Card:
        with matplotlib.rc_context(theme()):
            figure = draw(*args, **settings)
            figure.draw_without_rendering()  # ticks are made here, while the theme holds
        return figure

    return drawn


def card(height: float, width: float = WIDTH) -> Card:
    """An empty card, `width` x `height` inches before headline and stamp make it taller."""
    figure = Card(figsize=(width, height), facecolor=GROUND, edgecolor=RULE, linewidth=1.2)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.04))
    figure.inner = height
    _reserve(figure, top=0.08, bottom=0.08)
    return figure


def parts(figure: Figure, heights: Sequence[float]) -> list[SubFigure]:
    """The card between headline and stamp, divided into bands of these relative heights."""
    return list(np.ravel(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights), dtype=object)))


def body(figure: Figure) -> SubFigure:
    """The card between headline and stamp as one part, for figures with a legend outside their panels."""
    return parts(figure, [1.0])[0]


def headline(figure: Card, message: str, detail: str = "") -> None:
    """Write the message above the panels, in bold, and below it what is shown; both wrapped to the card.
    Panels keep their size.
    """
    width = figure.get_figwidth() - 2 * MARGIN
    message, detail = wrap(message, HEADLINE, width, bold=True), wrap(detail, BODY + 0.5, width)
    first, second = _lines_height(message, HEADLINE), _lines_height(detail, BODY + 0.5)
    _anchored(figure, message, (0, 1), (MARGIN, -MARGIN), size=HEADLINE, weight="bold", va="top", gid="headline")
    if detail:
        _anchored(
            figure,
            detail,
            (0, 1),
            (MARGIN, -MARGIN - first - 0.05),
            size=BODY + 0.5,
            color=MUTED,
            va="top",
            gid="detail",
        )
    _reserve(figure, top=MARGIN + first + second + (0.05 if detail else 0) + 0.02)


def stamp(figure: Drawn, provenance: Mapping[str, object]) -> Drawn:
    """Write the line that says where a figure came from, on a matplotlib or plotly figure; returns the
    figure.

    `provenance`: data set, model, weights (hash, or several with commas between), commit, profile and device, and optionally `note` (for
    example that the shipped measurement is shown); an absent entry is written as "not recorded", so that a
    figure never passes as better documented than it is.
    """
    recorded: dict[str, str] = {key: str(provenance.get(key) or "not recorded") for key in STAMP_KEYS}
    recorded["weights"] = ", ".join(
        of_model[:12] for of_model in recorded["weights"].split(", ")
    )  # enough of a hash to find it
    phrases = [recorded["dataset"], recorded["model"], *(f"{key} {recorded[key]}" for key in STAMP_KEYS[2:])]
    if provenance.get("note"):
        phrases.append(str(provenance["note"]))
    if isinstance(figure, go.Figure):
        return stamp_below(figure, phrases)
    line = wrap(phrases, SMALLEST, figure.get_figwidth() - 2 * MARGIN)
    for old in [text for text in figure.texts if text.get_gid() == "stamp"]:
        old.remove()
    _anchored(figure, line, (0, 0), (MARGIN, 0.11), size=SMALLEST, color=MUTED, va="bottom", gid="stamp")
    _reserve(figure, bottom=0.11 + _lines_height(line, SMALLEST) + 0.06)
    return figure


def wrap(words: str | Sequence[str], size: float, width: float, bold: bool = False, between: str = "  ·  ") -> str:
    """Break text into lines of at most `width` inches at `size` points, measured in the font used.

    A string breaks at spaces; a sequence of phrases is joined with `between` and breaks only there.
    """
    separator = " " if isinstance(words, str) else between
    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal", size=size)
    measure = TextToPath()
    lines: list[str] = []
    for word in words.split() if isinstance(words, str) else words:
        longer = f"{lines[-1]}{separator}{word}" if lines else word
        fits = measure.get_text_width_height_descent(longer, font, ismath=False)[0] / 72 <= width
        lines = [*lines[:-1], longer] if lines and fits else [*lines, word]
    return "\n".join(lines)


def _lines_height(text: str, size: float) -> float:
    return (text.count("\n") + 1) * size * 1.28 / 72 if text else 0.0


def _anchored(figure: Figure, text: str, corner: tuple[int, int], offset: tuple[float, float], **style: Any) -> Text:
    """Text at a corner of the card plus an offset in inches, which stays there when the card grows."""
    place = figure.transFigure + ScaledTranslation(*offset, figure.dpi_scale_trans)
    written = figure.text(*corner, text, transform=place, linespacing=1.25, **style)
    written.set_in_layout(False)
    return written


def _reserve(figure: Card, top: float | None = None, bottom: float | None = None) -> None:
    """Keep inches free above and below the panels; the card grows, and the panels keep their size."""
    figure.above = figure.above if top is None else top
    figure.below = figure.below if bottom is None else bottom
    height = figure.above + figure.inner + figure.below
    figure.set_figheight(height)
    engine = cast(ConstrainedLayoutEngine, figure.get_layout_engine())
    engine.set(rect=(0.016, figure.below / height, 0.968, figure.inner / height))


def headline_of(figure: Figure | go.Figure) -> str:
    """The message a figure states, on one line."""
    if isinstance(figure, go.Figure):
        return (figure.layout.title.text or "").replace("<br>", " ").replace("<b>", "").replace("</b>", "")
    return next((text.get_text().replace("\n", " ") for text in figure.texts if text.get_gid() == "headline"), "")


def to_png(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as the bytes of a PNG; 200 dots an inch is twice what a 750 px column shows."""
    stream = io.BytesIO()
    figure.savefig(
        stream, format="png", dpi=dpi, facecolor=figure.get_facecolor(), edgecolor=RULE, metadata={"Software": None}
    )
    return stream.getvalue()


def panel_title(axes: Axes, text: str, color: str = INK) -> None:
    """A panel's title, left-aligned and bold."""
    axes.set_title(text, loc="left", color=color)


def bare(axes: Axes) -> None:
    """An image panel: no ticks, a hairline around it."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=RULE, linewidth=0.8)


def colorbar(
    figure: Figure | SubFigure,
    image: ScalarMappable,
    label: str,
    axes: Axes | Sequence[Axes] | None = None,
    **settings: Any,
) -> Colorbar:
    """A slim colour bar with its quantity (and unit), beside `axes` or in the axes `cax` of `settings`."""
    if "cax" not in settings:
        settings = {"ax": axes, "shrink": 0.9, "aspect": 28, "pad": 0.02, **settings}
    bar = figure.colorbar(image, label=label, **settings)
    bar.outline.set_visible(False)
    return bar


def encoder_axis(axes: Axes, encoders: Iterable[int], label: bool = True) -> None:
    """The axis shared by most figures: encoders 1 to L, each one named."""
    numbers = sorted({int(encoder) for encoder in encoders})
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set_xlim(numbers[0] - 0.45, numbers[-1] + 0.45)
    if label:
        axes.set_xlabel("encoder")


def kinds_in(kinds: Iterable[str]) -> list[str]:
    """The kinds of site that occur, in the order in which a token meets them; unknown kinds raise
    `UserError`.
    """
    present = set(kinds)
    if unknown := present - set(KINDS):
        raise UserError(f"figures: unknown kind of site {sorted(unknown)}, expected some of {list(KINDS)}")
    return [kind for kind in KINDS if kind in present]


def kind_legend(part: SubFigure, kinds: Sequence[str]) -> None:
    """One legend for all panels of a card's `body`, above them: a coloured marker per kind of site."""
    keys = [Line2D([], [], color=KINDS[kind], marker=MARKERS[kind], label=kind) for kind in kinds]
    part.legend(handles=keys, loc="outside upper left", ncols=len(keys), columnspacing=1.8, handlelength=1.8)


def as_array(values: Array) -> np.ndarray:
    """An array or a tensor of any device, as NumPy."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
