"""The figures and tables of the book: functions that take arrays and tables, and return a figure. What only one
chapter shows and no claim rests on is drawn in that chapter's notebook.

    node           single nodes: their matrices and clusters, also to hover over
    along          quantities along the encoders: beside controls, at every threshold, under other choices
    heads          which labels a head owns, and whether it is better at them
    andc           pruning
    specification  a claim at every equivalent reading
    tables         tables for a page, and the verdicts
    style, wording how figures look, and how numbers become words

A figure's title states what the data show, in words that comparisons choose. `stamp(figure, provenance)` adds the line
that says where it came from.
"""

from cctlib.figures import along, andc, heads, node, specification, style, tables, wording  # noqa: F401
from cctlib.figures.style import headline_of, stamp, to_png  # noqa: F401
