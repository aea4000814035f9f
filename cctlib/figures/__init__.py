"""Every picture of the book: one function a figure, which reads arrays and tables only, and returns the
figure.

    network, model       the network drawn; an image going through it; accuracy by label
    training             the course of the training
    confusions           what it confuses
    snp, browse          single nodes; the same to hover over
    snr, theta, null     along the encoders; at every threshold; against chance and other choices
    heads, experts       which labels a head owns; whether it is better at them
    andc                 pruning
    overview, datasets   the story in one picture, the verdicts; several data sets side by side
    style, palette, interactive, wording    how figures look, and how messages are put into words

A figure's title states what the data show, in words that comparisons choose. `stamp(figure, provenance)` adds
the line that says where it came from; `to_html` embeds an interactive figure so that it asks the network for
nothing; a static one shows itself.
"""

from cctlib.figures import (
    andc,
    browse,
    confusions,
    datasets,
    experts,
    heads,
    model,
    network,
    null,
    overview,
    snp,
    snr,
    style,
    theta,
    training,
    wording,
)
from cctlib.figures.interactive import to_html
from cctlib.figures.style import headline_of, stamp, to_png

__all__ = [
    "andc",
    "browse",
    "confusions",
    "datasets",
    "experts",
    "headline_of",
    "heads",
    "model",
    "network",
    "null",
    "overview",
    "snp",
    "snr",
    "stamp",
    "style",
    "theta",
    "to_html",
    "to_png",
    "training",
    "wording",
]
