"""The figures and tables that the book shows in several chapters, and what the chapters draw with. What one chapter
alone shows is drawn there.

    node           single nodes: their matrices and clusters
    along          quantities along the encoders
    specification  a claim at every equivalent reading
    tables         tables for a page, and the verdicts
    style, wording how figures look, and how numbers become words

A figure's title states what the data show, in words that comparisons choose. `stamp(figure, provenance)` notes where
it came from, which is shown below it.
"""

from cctlib.figures import along, node, specification, style, tables, wording  # noqa: F401
from cctlib.figures.provenance import stamp  # noqa: F401
from cctlib.figures.style import headline_of, to_png  # noqa: F401
