"""The book: executed notebooks and prose, put together, checked, and built so that it asks the network for nothing.

`make book` calls `make`:
`assemble` lays everything out under `_build/source`, with the paths of the repository (so that links to Colab and to
the source are right), and `build` runs Jupyter Book on it.
"""

import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import metadata
from pathlib import Path

from cctlib import cli, stages
from cctlib.claims.rules import ABOUT_NODES, NOT_TESTED, RULES, STATEMENTS
from cctlib.errors import UserError
from tools import explore
from tools.executed import as_page, glued, read_executed, run_of

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "https://github.com/cctlib/cctlib"  # as in pyproject.toml, README and the notebooks: a test compares

SHOWN = {  # commands whose output is a part of their page
    "snp": ("--profile", "shipped"),
    "layers": ("--profile", "shipped"),
    "andc": ("--profile", "shipped"),
}
CHAPTERS = {  # that draw what a stage measured
    "measure": "02_snp",
    "tables": "03_snr",
    "heads": "04_heads",
    **dict.fromkeys(("andc", "latency", "repaired", "saturated"), "05_andc"),
    "seed": "06_datasets",
    **dict.fromkeys(("layers", "filters"), "07_cnn"),
}


# --- the book ---


def make(executed: Sequence[Path], explored: Path, destination: Path) -> Path:
    """Assemble the book under `destination`/source, build it in `destination`/html, and return the page to open.

    executed: one executed copy for every notebook that `_toc.yml` names, by file name. explored: the folder with the
    data of the page that shows all nodes (`tools.explore`). Raises `UserError` when one is
    missing, was not executed, or holds an error, and when Jupyter Book finds anything to complain of.
    """
    assemble(executed, explored, destination / "source")
    build(destination / "source", destination / "html")
    return destination / "html" / "index.html"


def assemble(executed: Sequence[Path], explored: Path, out: Path) -> None:
    """Lay out under `out` everything that Jupyter Book reads: settings, prose, static files, executed notebooks, data.

    Raises `UserError` for a notebook that is missing, was not executed by papermill, holds an error output, or shows a
    figure that no words describe. Whatever stood in `out` before is replaced.
    """
    if not (ROOT / "_toc.yml").is_file():
        raise UserError(
            f"{ROOT} holds no _toc.yml; the book can only be built from a clone of the repository: {ADDRESS}"
        )
    copies = {path.name: path for path in executed}
    wanted = [ROOT / f"{page}.ipynb" for page in _pages(ROOT / "_toc.yml") if page.startswith("notebooks/")]
    missing = [path.name for path in wanted if path.name not in copies]
    if missing:
        raise UserError(f"the book needs executed copies of {', '.join(missing)}; run: make reproduce")
    notebooks = {path.name: read_executed(copies[path.name]) for path in wanted}

    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "book", out / "book", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "_toc.yml", out)
    settings = (ROOT / "_config.yml").read_text(encoding="utf-8")
    repository = f'\nrepository: {{url: "{ADDRESS}", branch: main, path_to_book: ""}}\n'
    (out / "_config.yml").write_text(settings + repository, encoding="utf-8")
    records = shutil.ignore_patterns(stages.RECORD, stages.PROVENANCE)  # these stay with the stage
    shutil.copytree(explored, out / "book" / "_static" / "explore", ignore=records)
    runs = {name: run_of(copies[name], notebook) for name, notebook in notebooks.items()}
    stages.write_json(out / "book" / "found.json", glued(notebooks))
    _fill(out / "book" / "runs.md", "<!-- runs -->", _runs_table(runs))
    _fill(out / "book" / "commands.md", "<!-- commands -->", _commands())
    _fill(out / "book" / "methods.md", "<!-- rules -->", _rules())
    _fill(out / "book" / "methods.md", "<!-- first version -->", _first_version())
    for name, notebook in notebooks.items():
        stages.write_json(
            out / "notebooks" / name, as_page(notebook, name, runs[name], out / "book" / "_static", ADDRESS)
        )


def build(source: Path, html: Path) -> None:
    """Run Jupyter Book on `source`; any warning is an error. The finished pages replace the folder `html` in one step.

    Nothing is done when `html` was built from the same inputs. Raises `UserError`; the whole output is then in
    `book.log` beside `html`, and the complaints are printed.
    """
    inputs = _hash(source)
    if (html / ".inputs").is_file() and (html / ".inputs").read_text(encoding="utf-8") == inputs:
        return
    html.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".book-", dir=html.parent) as work:
        _jupyter_book(source, Path(work), html.with_name("book.log"))
        made = Path(work) / "_build" / "html"
        (made / ".inputs").write_text(inputs, encoding="utf-8")
        old = html.with_name(f"{html.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if html.exists():
            html.rename(old)
        made.rename(html)
        shutil.rmtree(old, ignore_errors=True)


def _jupyter_book(source: Path, out: Path, log: Path, *options: str) -> None:
    """Run `jupyter-book build`; raise `UserError` with the complaints printed when there are any."""
    try:
        metadata.version("jupyter-book")
    except metadata.PackageNotFoundError:
        raise UserError('jupyter-book is not installed; run: pip install -e ".[book]" -c constraints.txt') from None
    main = "from jupyter_book.cli.main import main; main()"
    options = ("--path-output", str(out), "-W", "-n", "--keep-going", *options)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", main, "build", str(source), *options],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": paths, "NO_COLOR": "1"},
    )
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)  # colours
    log.write_text(said, encoding="utf-8")
    if done.returncode:
        complaints = [line for line in said.splitlines() if re.search(r"WARNING|ERROR|Error:|broken", line)]
        print("\n".join(complaints or said.splitlines()[-20:]), file=sys.stderr)
        raise UserError(
            f"the book was not built: {len(complaints)} complaints, printed above; the whole output is in {log}"
        )


def _hash(source: Path) -> str:
    """SHA-256 over the assembled files, the package (its docstrings are a page), and the versions of the builders."""
    paths = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {path.relative_to(source).as_posix(): stages.sha256_file(path) for path in paths}
    builders = _versions("jupyter-book", "sphinx", "sphinx-book-theme", "myst-nb")
    return stages.sha256_json([stages.CODE["everything"], builders, files])


# --- pages that are written by the build ---


def _runs_table(runs: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown: a table of the notebooks' runs, and one of the versions that the book was built with."""
    lines = ["| page | run | seconds | device | versions | commit |", "|---|---|---|---|---|---|"]
    for name, run in runs.items():
        facts = " | ".join(run[key] for key in ("made", "seconds", "device", "versions", "commit"))
        lines.append(f"| [](../notebooks/{name}) | {facts} |")
    settings = sorted({run["parameters"] for run in runs.values()} - {""})
    if settings:
        lines += ["", "Settings: " + "; ".join(f"`{text}`" for text in settings) + "."]
    lines += [
        "",
        "What the measurements that ship took, each with a link to the chapter that draws it:",
        "",
        "| network | stage | seconds | device | commit |",
        "|---" * 5 + "|",
    ]
    for path in sorted((ROOT / "artifacts").glob(f"*/*/*.{stages.PROVENANCE}")):
        made, stage = stages.read_json(path), path.name.removesuffix(f".{stages.PROVENANCE}")
        facts = " | ".join(str(made.get(key, "not recorded")) for key in ("seconds", "device", "commit"))
        drawn = f"[{stage}](../notebooks/{CHAPTERS[stage]}.ipynb)"
        lines.append(f"| {path.parent.parent.name}/{path.parent.name} | {drawn} | {facts} |")
    versions = _versions(*sorted({re.split(r"[\s<>=!~;\[]", line)[0] for line in metadata.requires("cctlib") or []}))
    lines += ["", "| package | version |", "|---|---|"]
    lines += [f"| {name} | {version} |" for name, version in versions.items()]
    return "\n".join(lines)


def _commands() -> str:
    """Markdown: the help of every command, and what some of them print of the measurements that ship."""
    sections = []
    for name, command in cli.commands().items():
        said = _printed([name, "--help"])
        sections.append(f"## `cctlib {name}`\n\n{inspect.getdoc(getattr(command, 'func', command))}\n")
        if name in SHOWN:
            arguments = [name, *SHOWN[name]]
            sections.append(f"```text\n$ cctlib {' '.join(arguments)}\n{_printed(arguments)}\n```\n")
        sections.append(f"````{{dropdown}} Options of cctlib {name}\n```text\n{said}\n```\n````\n")
    return "\n".join(sections)


def _printed(arguments: Sequence[str]) -> str:
    """What a command prints on standard output."""
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):  # a help ends so
        cli.main(list(arguments))
    return re.sub(r"\x1b\[[\d;]*m", "", printed.getvalue()).strip("\n")


def _rules() -> str:
    """Markdown: a table of the claims and of the rules that judge them as stated, and whether they are about nodes."""
    lines = ["| | claim | holds as stated when | is about nodes when |", "|---|---|---|---|"]
    rows = [(claim, STATEMENTS[claim], rule, ABOUT_NODES.get(claim, NOT_TESTED)) for claim, rule in RULES.items()]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _first_version() -> str:
    """Markdown: what the rules of the first version said of the first measurement, with what it was made from."""
    judged = json.loads((ROOT / "artifacts" / "first_version.json").read_text(encoding="utf-8"))["data_sets"]
    lines = [f"| | {' | '.join(judged)} |", "|---" * (len(judged) + 1) + "|"]
    for claim in ("C1", "C2", "C3", "C4", "C5"):
        words = " | ".join(entry["verdicts"][claim]["verdict"] for entry in judged.values())
        lines.append(f"| {claim} | {words} |")
    made = [f"commit {v['commit']}, profile {v['profile']}, weights {v['weights'][:10]}" for v in judged.values()]
    return "\n".join([*lines, f"| measured at | {' | '.join(made)} |"])


def _fill(page: Path, mark: str, text: str) -> None:
    written = page.read_text(encoding="utf-8")
    if mark not in written:
        raise UserError(f"{page.name} has lost its line {mark}, which says where the build writes; put it back")
    page.write_text(written.replace(mark, text), encoding="utf-8")


def _versions(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _pages(toc: Path) -> list[str]:
    """The pages that a table of contents names, in its order."""
    return re.findall(r"^\s*(?:- )?(?:root|file):\s*(\S+)", toc.read_text(encoding="utf-8"), flags=re.M)


# --- the jobs of the Makefile ---


@contextmanager
def _built_by(builder: str, log: str, lacking: str) -> Iterator[Path]:
    """The folder of what another builder of Sphinx makes of the book that was assembled last, until the block ends.

    Raises `UserError` where there is no such book; `lacking` says what for.
    """
    source = ROOT / "_build" / "source"
    if not source.is_dir():
        raise UserError(f"there is no book yet {lacking}; run: make reproduce")
    with tempfile.TemporaryDirectory() as work:
        _jupyter_book(source, Path(work), ROOT / "_build" / log, "--builder", builder)
        yield Path(work)


def check_links() -> None:
    """Try every external link of the book that was assembled last. Raises `UserError`, with the broken ones printed."""
    with _built_by("linkcheck", "links.log", "whose links could be tried"):
        pass


def pdf() -> None:
    """Print the book that was assembled last to `_build/book.pdf`, all pages, by a headless Chromium (playwright's)."""
    with _built_by("pdfhtml", "pdf.log", "that could be printed") as work:
        made = next(work.rglob("*.pdf"), None)
        if made is None:
            raise UserError(f"no PDF was made; the whole output is in {ROOT / '_build' / 'pdf.log'}")
        shutil.copyfile(made, ROOT / "_build" / "book.pdf")
    print(f"The book is printed: open {ROOT / '_build' / 'book.pdf'}")


def make_again() -> None:
    """Build the book from the notebooks that were executed last and the data of all nodes that were written last,
    whatever has changed since.

    Only those with equal parameters make one book. Raises `UserError` where there are none.
    """
    runs: dict[str, list[Path]] = {}
    for record in (ROOT / "runs" / "notebooks").glob(f"*/{stages.RECORD}"):
        parameters = json.dumps(json.loads(record.read_text(encoding="utf-8"))["inputs"]["settings"])
        runs.setdefault(parameters, []).append(record)
    if not runs:
        raise UserError("no notebook was executed yet; run: make reproduce")
    latest = max(runs.values(), key=lambda records: max(record.stat().st_mtime for record in records))
    by_age = [record.parent for record in sorted(latest, key=lambda record: record.stat().st_mtime)]
    copies = {copy.name: copy for folder in by_age for copy in folder.glob("*.ipynb")}
    explored = [folder for folder in by_age if (folder / explore.INDEX).is_file()]
    if not explored:
        raise UserError("the data of the page that shows all nodes were not written yet; run: make reproduce")
    print(f"The book is built: open {make(list(copies.values()), explored[-1], ROOT / '_build')}")


def main() -> None:
    """`python -m tools.book make|links|pdf`, called by the Makefile."""
    jobs: dict[str, Callable] = {"make": make_again, "links": check_links, "pdf": pdf}
    try:
        jobs[sys.argv[1]]()
    except UserError as error:
        sys.exit(f"cctlib: {error}")


if __name__ == "__main__":
    main()
