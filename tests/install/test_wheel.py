"""cctlib as its users install it: a wheel in a clean environment, an empty folder, no network.

The environment's dependencies come from the one that runs the tests; cctlib itself comes from the wheel alone.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST = ROOT / "notebooks" / "01_model.ipynb"  # the one that is run in every test run
SLOW = [pytest.param(path, id=path.stem, marks=() if path == FIRST else pytest.mark.slow) for path in NOTEBOOKS]


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The Python of an environment into which the wheel was installed."""
    here = tmp_path_factory.mktemp("wheel")
    tree = here / "tree"
    for name in ("cctlib", "artifacts"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(here), str(tree)]
    subprocess.run(build, check=True)
    [wheel] = here.glob("*.whl")
    venv.create(here / "venv", with_pip=False)
    python = here / "venv" / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    [site] = (here / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def run(python, folder, *words, **settings):
    """Run Python in an empty folder without data and without a network."""
    folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CCTLIB_DATA")}
    environment |= {"CCTLIB_OFFLINE": "1", "CCTLIB_CACHE": str(folder / "cache"), "HOME": str(folder), **settings}
    return subprocess.run([str(python), *words], capture_output=True, text=True, cwd=folder, env=environment)


def executed(python, folder, notebook, **settings):
    """The cells of a notebook that papermill ran with profile shipped; the run has to end well."""
    words = ["-m", "papermill", str(notebook), "out.ipynb", "-p", "profile", "shipped", "--no-progress-bar"]
    done = run(python, folder, *words, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "out.ipynb").read_text(encoding="utf-8"))["cells"]


def test_the_wheel_is_what_is_imported(installed, tmp_path):
    code = "import cctlib, cctlib.stages; print(cctlib.__file__); print(cctlib.stages.shipped())"
    package, shipped = run(installed, tmp_path, "-c", code).stdout.split()
    assert installed.parents[1] in Path(package).parents and installed.parents[1] in Path(shipped).parents


def test_the_command_line_works_and_reproduce_asks_for_a_clone(installed, tmp_path):
    done = run(installed, tmp_path, "-m", "cctlib", "snp", "--profile", "shipped")
    assert done.returncode == 0 and "enc7/ff" in done.stdout
    refused = run(installed, tmp_path, "-m", "cctlib", "reproduce", "--profile", "shipped")
    assert refused.returncode == 2 and "git clone" in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "settings",
    [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONOPTIMIZE": "2"}],
    ids=("ascii", "optimized"),
)
def test_a_users_surroundings_do_not_matter(installed, tmp_path, settings):
    """A locale that is not UTF-8; docstrings that are stripped."""
    for words in (["snp", "--help"], ["probe", "--profile", "shipped"]):
        done = run(installed, tmp_path, "-m", "cctlib", *words, **settings)
        assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.notebooks
@pytest.mark.parametrize("notebook", SLOW)
def test_a_notebook_runs_from_an_empty_folder(installed, tmp_path, notebook):
    cells = executed(installed, tmp_path / "empty", notebook)
    assert any(output.get("data", {}).get("image/png") for cell in cells for output in cell.get("outputs", []))
    made = {path.name for path in (tmp_path / "empty").iterdir()}
    assert "runs" not in made  # a shipped measurement computes nothing


@pytest.mark.slow
@pytest.mark.notebooks
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_colab(installed, tmp_path, notebook):
    """Colab has a module google.colab and its own renderer; nothing is fetched where cctlib is installed."""
    stub = tmp_path / "stub" / "google" / "colab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "stub" / "sitecustomize.py").write_text("import google.colab\n", encoding="utf-8")
    cells = executed(installed, tmp_path / "empty", notebook, PYTHONPATH=str(tmp_path / "stub"), PIP_NO_INDEX="1")
    written = json.dumps(cells)
    assert "Successfully installed" not in written and "No matching distribution" not in written


def test_colab_does_not_train_for_hours_unasked(installed, tmp_path):
    code = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
    folder = tmp_path / "photos"
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
    code += f"import cctlib; cctlib.open_study('folder:{folder}', profile='quick')"
    done = run(installed, tmp_path, "-c", code)
    assert done.returncode and "training one takes hours" in done.stderr
