"""The project's own files: pins held together, notebooks clean, pages there, one address."""

import ast
import hashlib
import json
import re
import subprocess
import tomllib
from pathlib import Path

import plotly.offline
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from cctlib.claims.rules import STATEMENTS

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        Requirement(line).name.lower().replace("_", "-"): Requirement(line)
        for line in lines
        if line and line[0] not in "#-"
    }


def test_every_direct_dependency_is_pinned_within_its_bounds():
    wanted = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    pinned = pins()
    for requirement in map(Requirement, wanted):
        pin = pinned[requirement.name.lower().replace("_", "-")]
        version = next(iter(pin.specifier)).version
        assert requirement.specifier.contains(version), f"{pin} is outside {requirement}"


def test_conda_takes_the_same_pins():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    by_pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    assert "--constraint constraints.txt" in by_pip
    extras = re.search(r"--editable \.\[(.+)\]", " ".join(by_pip))[1].split(",")
    assert set(extras) == set(PROJECT["optional-dependencies"])
    assert set(extras) == set(
        re.search(r"^EXTRAS := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split(",")
    )


def test_the_books_plotly_js_is_the_version_that_plotly_writes_figures_for():
    """Where plotly is pinned anew, take the file and its licence from npm's package plotly.js-cartesian-dist-min."""
    begins = (ROOT / "book/_static/plotly/plotly-cartesian.min.js").read_text(encoding="utf-8")[:200]
    assert f"v{plotly.offline.get_plotlyjs_version()}\n" in begins


def test_every_page_of_the_book_is_there():
    pages = re.findall(r"(?:root|file):\s*(\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert len(pages) > 5
    for page in pages:
        assert any((ROOT / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb")), page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_source(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])] == [code[1]]
    condition = 'if "google.colab" in sys.modules and find_spec("cctlib") is None:'
    install = f"{condition}\n    %pip install -q git+{PROJECT['urls']['Repository']}"
    assert "".join(code[0]["source"]).endswith(install)
    assert all(len("".join(cell["source"]).splitlines()) <= 30 for cell in code)


def test_the_address_of_the_repository_is_the_same_everywhere():
    address = PROJECT["urls"]["Repository"]
    for name in (
        "README.md",
        "CITATION.cff",
        "tools/book.py",
        "cctlib/cli.py",
        *(str(path.relative_to(ROOT)) for path in NOTEBOOKS),
    ):
        found = set(re.findall(r"https://github\.com/[\w.-]+/cctlib\b", (ROOT / name).read_text(encoding="utf-8")))
        assert found == {address}, f"{name}: {found}"


def test_the_readme_opens_with_the_two_commands():
    opening = (ROOT / "README.md").read_text(encoding="utf-8")[:400]
    assert "make reproduce" in opening and "make test" in opening


def test_the_landing_page_states_the_claims_as_the_chapters_do():
    text = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| (C\d) \| ([^|]+) \|", text, re.M)) == STATEMENTS


def test_every_named_number_is_shown_somewhere():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb")]
    pages = "".join([*sources, *(path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md"))])
    shown = set(re.findall(r"\{(?:glue:text|found)\}`(\w+)`", pages))
    assert shown >= {name for source in sources for name in re.findall(r'glue\(\\"(\w+)\\"', source)}


def test_the_picture_in_the_readme_is_drawn_from_what_ships():
    found = re.search(r"!\[([^]]{80,})\]\((\S+\.png)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert found, "the README shows no picture with words for those who don't see it"
    picture = ROOT / found[2]
    assert picture.stat().st_size < 300_000
    manifests = (ROOT / "artifacts" / "cifar100").glob("*/manifest.json")
    [default] = [path.parent for path in manifests if json.loads(path.read_text(encoding="utf-8")).get("default")]
    drawn = hashlib.sha256((default / "measurement.npz").read_bytes()).hexdigest()
    with Image.open(picture) as opened:
        assert opened.info["Source"] == drawn, 'run: python -c "from tools.ship import draw_hero; draw_hero()"'


def test_no_file_in_git_is_too_large():
    files = [path for path in (ROOT / "artifacts").rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 20_000_000 for path in files)
    assert sum(path.stat().st_size for path in files) < 150_000_000


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))], ids=lambda path: path.stem
)
def test_links_inside_the_project_lead_somewhere(path):
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    labels = {label for page in pages for label in re.findall(r"\(([\w-]+)\)=", page.read_text(encoding="utf-8"))}
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
        assert "://" in target or target in labels or (path.parent / target).is_file(), target


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_a_workflow_pins_its_actions_and_is_given_no_more_than_it_needs(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert re.search(r"@[0-9a-f]{40}$|^docker://\S+:[\d.]+$", step.get("uses", "@" + "0" * 40)), step
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"make ([a-z-]+)", path.read_text(encoding="utf-8"))) <= targets


def test_everything_is_installed():
    folders = {path.parent for path in (ROOT / "cctlib").rglob("__init__.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages | {"cctlib_artifacts"}


def test_make_alone_lists_every_target():
    listed = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split()
    assert all(re.search(rf"^  {target} +\S", listed, re.M) for target in phony)


def test_mathjax_is_the_published_file():
    script = ROOT / "book" / "_static" / "mathjax" / "tex-svg-full.js"  # of mathjax 3.2.2
    assert (
        hashlib.sha256(script.read_bytes()).hexdigest()
        == "a4354ff94fd868aea0cc6eaaa79a57fda0588646fc46ee3700a349ee0a11cbe6"
    )
    assert (script.parent / "LICENSE").is_file()


def test_text_is_read_and_written_as_utf8_whatever_the_locale():
    """`open`, `read_text` and `write_text` say their encoding, or handle bytes."""
    for path in sorted(path for folder in ("cctlib", "tools", "book/_ext") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            if name in ("read_text", "write_text"):
                said = any(keyword.arg == "encoding" for keyword in node.keywords) or _is_metadata(node)
            elif name == "open" and isinstance(node.func, ast.Attribute) and _mode(node) is not None:
                said = "b" in _mode(node) or any(keyword.arg == "encoding" for keyword in node.keywords)
            else:
                continue
            assert said, f"{path}, line {node.lineno}: name the encoding"


def _is_metadata(node):
    """`Distribution.read_text` takes no encoding."""
    return bool(node.args) and isinstance(node.args[0], ast.Constant) and node.args[0].value == "direct_url.json"


def _mode(node):
    modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return modes[0] if modes and isinstance(modes[0], str) and set(modes[0]) <= set("rwabx+t") else None
