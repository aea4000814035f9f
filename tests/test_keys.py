"""Keys that cannot lie: what a stage reads, and nothing else, makes it stale; over the whole chain of a tiny study.

Nothing is computed: a fake stands in for the computing of a stage and leaves a record alone, from which the keys of the
stages after it are derived.
"""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from tiny_study import PROFILE, write_model

from cctlib import stages, study
from cctlib.data import images as data
from cctlib.model import precision
from cctlib.snp import measure
from tools import reproduce

EVERY = {"probe", "measure", "tables", "heads", "andc", "latency", "notebook"}
AFTER_MEASURE = EVERY - {"probe"}


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """A function that runs all stages of a study, and returns their folders' names."""

    def record(folder, name, inputs, compute, device):
        folder.mkdir()
        stages.write_json(folder / stages.RECORD, {"stage": name, "inputs": inputs, "outputs": {}})

    monkeypatch.setattr(stages, "_compute", record)
    empty = measure.Measurement({}, {}, {}, (), None, None, about={})
    monkeypatch.setattr(measure, "load", lambda folder: empty)
    monkeypatch.setattr(stages, "read_tables", lambda folder, names: {})
    shipped, source = tmp_path / "artifacts", tmp_path / "01_model.ipynb"
    shipped.mkdir()
    (shipped / "table.parquet").write_text("numbers", encoding="utf-8")
    source.write_text("{}", encoding="utf-8")
    monkeypatch.setattr(stages, "shipped", lambda: shipped)
    write_model("demo", tmp_path / "model")

    def run(profile=PROFILE):
        stages.sha256_folder.cache_clear()  # once a process is enough for a process that changes nothing
        opened = study.measured_study("demo", str(tmp_path / "model"), profile, tmp_path / "runs", torch.device("cpu"))
        reproduce.later_stages(opened)
        page = reproduce.execute(source, {"profile": profile.name}, opened, tmp_path / "runs")
        return {name: folder.name for name, folder in opened.folders.items()} | {"notebook": page.parent.name}

    return run


def stale(before, after):
    assert set(before) == set(after) == EVERY
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"probe": replace(PROFILE.probe, penalty=0.2)}, EVERY),
        ({"probe": replace(PROFILE.probe, precision="bf16")}, EVERY),
        ({"train": 5}, EVERY),
        ({"held_out": 2}, AFTER_MEASURE),
        ({"test": 3}, AFTER_MEASURE),
        ({"null_draws": 5}, AFTER_MEASURE),
        ({"thetas": (0.1, 0.3)}, {"tables", "notebook"}),
        ({"label_orders": 3}, {"tables", "notebook"}),
        ({"rotations": 3}, {"tables", "notebook"}),
        ({"heads": replace(PROFILE.heads, gap_deals=26)}, {"heads", "notebook"}),
        ({"heads": replace(PROFILE.heads, test=2)}, {"heads", "notebook"}),
        ({"pruning": replace(PROFILE.pruning, seeds=(0,))}, {"andc", "notebook"}),
        ({"pruning": replace(PROFILE.pruning, train=3)}, {"andc", "notebook"}),
        ({"pruning": replace(PROFILE.pruning, seconds=0.2)}, {"latency", "notebook"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_makes_stale_what_reads_it(chain, change, expected):
    assert stale(chain(), chain(replace(PROFILE, **change))) == expected


def test_without_a_change_nothing_is_stale(chain):
    assert stale(chain(), chain()) == set()


def test_the_number_of_threads_makes_nothing_stale(chain, monkeypatch):
    """A notebook's kernel has fewer threads than the study before it, and must not time the networks again."""
    before, threads = chain(), torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert stale(before, chain()) == set()


def test_the_form_of_attention_makes_stale_what_runs_the_network(chain, monkeypatch):
    before = chain()
    monkeypatch.setattr(precision, "attention", lambda device: "fused")
    assert stale(before, chain()) == EVERY  # the tables read the measurement


def test_the_normalisation_makes_stale_what_runs_the_network(chain, tmp_path):
    before = chain()
    shutil.rmtree(tmp_path / "model")
    write_model("demo", tmp_path / "model", mean=0.4)
    assert stale(before, chain()) == EVERY


def test_other_images_make_stale_what_reads_them(chain, monkeypatch):
    before, load = chain(), data.load

    def other(name, split, **how):
        images = load(name, split, **how)
        return replace(images, pixels=255 - images.pixels) if split == "test" else images

    monkeypatch.setattr(data, "load", other)
    assert stale(before, chain()) == AFTER_MEASURE


@pytest.mark.parametrize("name", ["artifacts/table.parquet", "artifacts/trials/log.jsonl", "model/log.jsonl"])
def test_files_that_notebooks_read_make_them_stale(chain, tmp_path, name):
    before = chain()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("others", encoding="utf-8")
    assert stale(before, chain()) == {"notebook"}


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        ("snp", {"probe", "measure", "tables", "heads", "andc", "latency"}),
        ("heads", {"heads"}),
        ("andc", {"andc", "latency"}),
        ("everything", {"notebook"}),
    ],
)
def test_code_makes_stale_what_it_computes(chain, monkeypatch, room, expected):
    before = chain()
    monkeypatch.setattr(stages, "CODE", stages.CODE | {room: "edited"})
    assert stale(before, chain()) - {"notebook"} == expected - {"notebook"}
    assert stale(before, chain()) >= {"notebook"}


@pytest.mark.parametrize(
    ("file", "first"),
    [("data/images.py", "data"), ("snp/fields.py", "snp"), ("study.py", "study"), ("andc/masks.py", "andc")],
)
def test_a_file_is_in_the_hash_of_its_room_and_of_those_above(tmp_path, monkeypatch, file, first):
    shutil.copytree(stages.PACKAGE, tmp_path / "cctlib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(stages, "PACKAGE", tmp_path / "cctlib")
    before = stages._code_hashes()
    with (tmp_path / "cctlib" / file).open("a", encoding="utf-8") as edited:
        edited.write("# edited\n")
    after, place = stages._code_hashes(), stages.ROOMS.index(first)
    assert {room for room in before if before[room] != after[room]} == {*stages.ROOMS[place:], "everything"}


EDITING = """
    import sys
    from pathlib import Path
    from cctlib import stages

    def edit(work):
        with (stages.PACKAGE / "snp" / "fields.py").open("a", encoding="utf-8") as file:
            file.write("# edited while a stage ran\\n")

    how = {"room": "snp", "settings": {}, "device": "cpu"}
    first = stages.stage(Path(sys.argv[1]), "first", edit, reads={}, **how)
    second = stages.stage(Path(sys.argv[1]), "second", lambda work: None, reads={"first": first}, **how)
    print(stages.read_json(first / stages.RECORD)["inputs"]["code"])
    print(stages.read_json(second / stages.RECORD)["inputs"]["code"])
"""


def test_a_file_edited_during_a_stage_does_not_poison_the_next(tmp_path):
    """Both stages ran the code as it was imported, and say so; the next process sees that they are stale."""
    shutil.copytree(stages.PACKAGE, tmp_path / "cctlib", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", textwrap.dedent(EDITING), str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    first, second, third = [
        subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
        ).stdout.split()
        for _ in range(3)
    ]
    assert first[0] == first[1] == stages.CODE["snp"]
    assert second[0] == second[1] != first[0] and third[0] != second[0]
    assert len(list((tmp_path / "runs").glob("first-*/stage.json"))) == 3


def test_seconds_are_summed_over_attempts(tmp_path):
    attempts = []

    def compute(work):
        (work / "half.txt").write_text("half", encoding="utf-8")
        if not attempts:
            attempts.append(work)
            clock = stages.read_json(work / stages.CLOCK)  # as if it had begun an hour ago
            stages.write_json(work / stages.CLOCK, clock | {"start": clock["start"] - 3600})
            raise KeyboardInterrupt

    how = {"room": "snp", "reads": {}, "settings": {}, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        stages.stage(tmp_path, "slow", compute, **how)
    folder = stages.stage(tmp_path, "slow", compute, **how)
    assert 3600 <= stages.read_json(folder / stages.PROVENANCE)["seconds"] < 3700
    assert json.loads((folder / stages.RECORD).read_text(encoding="utf-8"))["outputs"].keys() == {"half.txt"}
