"""The figures and tables that the book shows in several chapters, and what the chapters draw with. What one chapter
alone shows is drawn there. A figure's title states what the data show, in words that comparisons choose.
`stamp(figure, provenance)` notes where it came from, which is shown below it.
"""

from cctlib.figures import along, node, specification, style, tables, wording  # noqa: F401
from cctlib.figures.provenance import stamp  # noqa: F401
from cctlib.figures.style import headline_of, to_png  # noqa: F401
