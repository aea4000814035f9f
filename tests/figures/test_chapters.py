"""Chapters run where a model folder holds nothing but weights: they say what is missing instead of failing."""

import json
import re
from dataclasses import replace
from pathlib import Path

import IPython.display
import pytest

import cctlib
from cctlib import open_study

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Every study opens without a training record, a log and accuracies."""

    def opened(*settings):
        study = open_study("cifar100", profile="shipped", device="cpu")
        manifest = replace(study.model.manifest, training=None, accuracy=None, accuracy_per_label=None)
        return replace(study, model=replace(study.model, manifest=manifest, folder=tmp_path))

    monkeypatch.setattr(cctlib, "open_study", opened)
    monkeypatch.setattr("cctlib.study.beside", lambda study: {"bare": study, "again": study})


def run(name: str, monkeypatch, wanted=lambda source: True) -> str:
    """The text that the code cells of a chapter print, glue and display; those that install are left out."""
    shown: list[str] = []
    monkeypatch.setattr(IPython.display, "display", lambda *values: shown.extend(map(str, values)))
    monkeypatch.setattr("builtins.print", lambda *values: shown.extend(map(str, values)))
    monkeypatch.setattr("cctlib.notebook.glue", lambda name, value: shown.append(f"{name}: {value}"))
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    space = {"display": IPython.display.display}
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "%pip" not in source and wanted(source):
            exec(compile(source, f"{name}, cell {cell['id']}", "exec"), space)
    return "\n".join(shown)


def test_the_training_chapter_says_that_there_is_no_record(bare, monkeypatch):
    said = run("00_training", monkeypatch, lambda source: "trials.groups()" not in source)
    assert "This folder has no training record" in said
    assert "training_passes: an unknown number of" in said and "training_share: an unknown share" in said


def test_the_chapter_of_data_sets_leaves_out_what_is_not_known(bare, monkeypatch):
    said = run("06_datasets", monkeypatch, lambda source: not re.search(r"judge\.|alike|families", source))
    assert "needs a network on each split" in said


def test_the_training_chapter_counts_the_training_before_it(monkeypatch):
    """A network that began with the weights of another took as many image passes as both together."""
    own = open_study("cifar100", profile="shipped", device="cpu")
    start = {"weights": "0" * 64, "recipe": "cpu", "passes": 1_257_984, "minutes": 120.8}
    training = replace(own.model.manifest.training, start=start)
    study = replace(own, model=replace(own.model, manifest=replace(own.model.manifest, training=training)))
    monkeypatch.setattr(cctlib, "open_study", lambda *settings: study)
    said = run("00_training", monkeypatch, lambda source: "trials.groups()" not in source)
    assert f"training_passes: {own.model.manifest.training.passes + 1_257_984:,}" in said
