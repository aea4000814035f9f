"""The plan of the house, read from the imports: rooms stand in one order, and nobody imports from a room above."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import cctlib
from cctlib import stages

PACKAGE = Path(cctlib.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
DOOR = ["notebook", "cli", "__main__"]
ORDER = [*stages.FOUNDATION, *stages.ROOMS, *DOOR]


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Modules of this package that a module imports, late imports included."""
    names = {name_of(module) for module in MODULES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in names else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def edges():
    for path in MODULES:
        for target in imports(path):
            if target.partition(".")[0] == "cctlib" and target != "cctlib":
                yield name_of(path), target


def place(module):
    return ORDER.index(module.split(".")[1])


def test_every_module_has_a_place():
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"} == set(ORDER)


def test_arrows_point_down():
    assert not [(source, target) for source, target in edges() if place(source) < place(target)]


def test_no_module_imports_itself_by_a_detour():
    graph = {}
    for source, target in edges():
        graph.setdefault(source, set()).add(target)
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def test_nothing_in_the_package_needs_the_tools_of_a_clone():
    importing = {path.name for path in MODULES for target in imports(path) if target.partition(".")[0] == "tools"}
    assert importing <= {"cli.py"}  # `cctlib reproduce` refuses outside of a clone


def test_every_public_name_is_there():
    for name in cctlib.__all__:
        assert getattr(cctlib, name).__doc__, name


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, cctlib, cctlib.errors; sys.exit(bool({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(PACKAGE.parent)})
