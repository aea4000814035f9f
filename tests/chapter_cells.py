"""Figures of the chapters' notebooks, drawn from made-up tables instead of a study."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def drawn(chapter: str, name: str = "", **given: object) -> SimpleNamespace:
    """What the cell of a figure leaves behind when `given` stands for what it takes from a study; `figure` among it.

    Of the cells before it, imports, functions and constants (in capitals) are run, and nothing that reads a study; of
    all cells where no figure is named.
    """
    space = {"stamp": lambda figure: figure, **given}
    for cell in json.loads((NOTEBOOKS / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "%pip" in source:
            continue
        parts = ast.parse(source, f"{chapter}, cell {cell['id']}")
        wanted = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name", "none") == name
        if not wanted:
            parts.body = [part for part in parts.body if is_definition(part)]
        exec(compile(parts, f"{chapter}, cell {cell['id']}", "exec"), space)
        if wanted:
            break
    return SimpleNamespace(**space)


def is_definition(part: ast.stmt) -> bool:
    """An import, a function, or a constant."""
    constant = isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name) and part.targets[0].id.isupper()
    return constant or isinstance(part, ast.Import | ast.ImportFrom | ast.FunctionDef)
