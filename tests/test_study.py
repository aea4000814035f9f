"""The flow as users meet it: without data, with wrong words, and killed in the middle."""

import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny_data import write_folder
from tiny_study import untrained

from cctlib import cli, open_study, stages, study
from cctlib.andc import latency, sweep
from cctlib.andc.stage import pruning_tables
from cctlib.claims import judge
from cctlib.errors import UserError
from cctlib.heads import silence
from cctlib.heads.stage import heads_tables
from cctlib.profiles import resolve_profile
from cctlib.study import open_layers
from tools.reproduce import later_stages


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without data and without a network."""
    monkeypatch.delenv("CCTLIB_DATA", raising=False)
    monkeypatch.setenv("CCTLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CCTLIB_OFFLINE", "1")
    return tmp_path


def test_without_data_and_network_the_shipped_measurement_is_shown_and_says_so(nowhere, capsys):
    opened = open_study("cifar100", profile="quick", runs=nowhere / "runs", device="cpu")
    assert opened.source == "shipped" and "shipped" in opened.provenance["note"]
    assert "CIFAR-100" in capsys.readouterr().err
    assert opened.images() is None
    assert len(opened.tables["nodes"].query("theta == 0.3")) == 8960


def test_nothing_ships_for_folders(nowhere):
    with pytest.raises(UserError, match=r"does not exist|no folder") as caught:
        open_study(f"folder:{nowhere / 'none'}", profile="quick", runs=nowhere / "runs", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"dataset": "cifar10"}, "no data set is called 'cifar10'"),
        ({"dataset": "cifar10", "profile": "shipped"}, "no data set is called 'cifar10'"),
        ({"model": "cct_8"}, "cct_7_3x2-continued"),
        ({"profile": "fast"}, "quick, full"),
        ({"device": "tpu9"}, "tpu9"),
        ({"device": "meta"}, "meta"),
    ],
)
def test_wrong_words_are_one_line(tmp_path, words, said):
    with pytest.raises(UserError, match=said) as caught:
        open_study(**{"profile": "quick", "device": "cpu", "runs": tmp_path} | words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("profile", ["shipped", "quick"])
def test_a_network_of_the_other_kind_is_refused_with_its_own_command(tmp_path, profile):
    how = {"profile": profile, "device": "cpu", "runs": tmp_path}
    with pytest.raises(UserError, match=r"is a vgg_11, .* cctlib layers --model vgg_11"):
        open_study("cifar100", "vgg_11", **how)
    with pytest.raises(UserError, match=r"is a cct_7_3x2-continued, .* cctlib snp --model cct_7_3x2-continued"):
        open_layers("cifar100", "cct_7_3x2-continued", **how)


def test_the_command_line_answers_a_mistake_in_one_line(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "cctlib", "snp", "--profile", "shipped", "--theta", "0.33"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("cctlib: theta 0.33 was not measured") and run.stderr.count("\n") == 1


@pytest.mark.parametrize("command", sorted(cli.commands()))
def test_help_says_what_a_command_and_each_of_its_settings_is(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert left.value.code == 0 and said.startswith(f"usage: cctlib {command}")
    if "--profile" in said:
        shown = {"dataset": "cifar100", "model": "a shipped", "profile": "quick", "device": "cpu"}
        for setting, words in shown.items():
            assert re.search(rf"--{setting} \w+ {words}", said), setting


UNEQUAL = {
    "train": {"aster": 11, "iris": 14, "lily": 25, "rose": 18},
    "test": {"aster": 2, "iris": 7, "lily": 1, "rose": 9},
}


def test_labels_with_unequal_numbers_of_images_are_judged_as_others(tmp_path):
    root = write_folder(tmp_path / "garden", UNEQUAL, side=32)
    found = untrained(f"folder:{root}", tmp_path / "model")
    result, counts = found.measurement, np.bincount(found.measurement.labels["test"])
    assert counts.tolist() == [2, 4, 1, 4]  # the profile takes four at most
    network, images = found.network(), found.images("test")
    right = (network(found.model.normalise(images.pixels)).argmax(1) == images.labels).numpy()
    each = [right[result.labels["test"] == label].mean() for label in range(4)]
    assert result.accuracy() == pytest.approx(right.mean()) and result.accuracy_per_label() == pytest.approx(
        np.mean(each)
    )
    accuracy = found.tables["accuracy"]
    assert ((accuracy.low <= accuracy.accuracy) & (accuracy.accuracy <= accuracy.high)).all()
    assert [verdict.claim for verdict in judge.along(judge.encoders(found))] == ["C1", "C2", "C3"]


def test_a_label_without_test_images_is_named(tmp_path):
    missing = UNEQUAL | {"test": UNEQUAL["test"] | {"iris": 0}}
    with pytest.raises(UserError, match="test has too few images: 0 of 'iris'; needed are at least 1"):
        untrained(f"folder:{write_folder(tmp_path / 'garden', missing, side=32)}", tmp_path / "model")


@pytest.mark.cuda
def test_a_gpu_measures_and_prunes_as_the_processor_does(tmp_path):
    """The whole flow on either device, in fp32: equal up to the order of sums, which moves few images and entries."""
    on_cpu, on_gpu = (untrained("demo", tmp_path / device / "model", device) for device in ("cpu", "cuda"))
    for site, values in on_cpu.measurement.sites.items():
        np.testing.assert_allclose(on_gpu.measurement[site].mu["test"], values.mu["test"], atol=2e-3)
        assert (on_gpu.measurement[site].predictions["test"] == values.predictions["test"]).mean() > 0.9
    both = on_cpu.tables["by_theta"].merge(on_gpu.tables["by_theta"], on=["site", "theta"])
    np.testing.assert_allclose(both.noise_y, both.noise_x, rtol=0.1)
    for made in (heads_tables, pruning_tables):
        tables = [made(one) for one in (on_cpu, on_gpu)]
        assert [set(one) for one in tables] == [set(tables[0])] * 2
    keys = ["target", "method", "theta", "seed", "epochs"]
    pruned = tables[0]["pruning"].merge(tables[1]["pruning"], on=keys)
    assert len(pruned) == len(tables[0]["pruning"])
    np.testing.assert_allclose(pruned.accuracy_y, pruned.accuracy_x, atol=0.1)


def test_finished_stages_are_not_done_again(tiny_study, monkeypatch):
    first = later_stages(tiny_study)
    monkeypatch.setattr(sweep, "sweep", None)
    monkeypatch.setattr(silence, "predict", None)
    monkeypatch.setattr(latency, "measure", None)
    assert later_stages(tiny_study) == first and set(first) == {"heads", "andc", "latency"}


def test_what_ships_with_a_model_is_read_and_what_does_not_is_named(tiny_study):
    from tools.ship import ship_study

    bare = replace(tiny_study, source="shipped", profile=None, folders={})
    for tables in (heads_tables, pruning_tables):
        with pytest.raises(study.Missing, match="did not ship with cct_2_3x2 of demo") as caught:
            tables(bare)
        assert "\n" not in str(caught.value)
    ship_study(tiny_study)
    shipped = study.shipped_study("demo", str(tiny_study.model.folder), torch.device("cpu"))
    assert later_stages(shipped) == {}
    for name, table in pruning_tables(tiny_study).items():
        assert pruning_tables(shipped)[name].equals(table)
    assert heads_tables(shipped)["expert_sites"].equals(heads_tables(tiny_study)["expert_sites"])


def test_a_figure_names_every_commit_that_made_it(tiny_study, tmp_path):
    """One commit where all stages have the same, else each with the stages that have it; likewise the precision."""
    folders = {}
    for name in ("probe", "measure", "tables"):  # other tests may have added stages of another precision
        folders[name] = tmp_path / name
        shutil.copytree(tiny_study.folders[name], tmp_path / name)
    moved = replace(tiny_study, folders=folders)
    assert moved.provenance["commit"] == stages.commit() and moved.provenance["precision"] in ("fp32", "bf16")
    record = folders["tables"] / stages.PROVENANCE
    stages.write_json(record, stages.read_json(record) | {"commit": "0123456789"})
    said = moved.provenance["commit"]
    assert "0123456789 (tables)" in said and f"{stages.commit()} (probe, measure)" in said


def test_a_reduced_profile_says_so():
    cpu, full = torch.device("cpu"), resolve_profile("full", torch.device("cuda"))
    assert full.title == "full" and resolve_profile("quick", cpu).title == "quick"
    assert resolve_profile("full", cpu).title == "full, reduced for a processor"
    assert resolve_profile("auto", cpu).name == "quick" and resolve_profile("shipped", cpu) is None


def test_a_notebook_finds_the_runs_of_the_repository(monkeypatch, tmp_path):
    """JupyterLab starts a kernel in notebooks/, papermill in the root."""
    root = stages.PACKAGE.parent
    monkeypatch.chdir(root / "notebooks")
    assert stages.from_here("runs") == root / "runs" and stages.from_here("/data/x") == stages.Path("/data/x").resolve()
    monkeypatch.chdir(tmp_path)
    assert stages.from_here("runs") == tmp_path.resolve() / "runs"


def hashes(runs):
    """Hash of every result of every finished stage; when, where and how fast it was made is no result."""
    return {
        f"{path.parent.name}/{path.name}": stages.sha256_file(path)
        for path in sorted(runs.rglob("*"))
        if path.is_file()
        and path.suffix != ".lock"
        and path.name not in (stages.PROVENANCE, stages.LOG, stages.RUN)
        and not path.parent.name.startswith("latency")
    }


@pytest.mark.slow
def test_killed_thirty_times_the_study_ends_with_the_same_files(tmp_path):
    """The demo set through all stages, killed at random moments: hash for hash as one left alone."""
    environment = {**os.environ, "CCTLIB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    script = (
        "import sys; from cctlib.study import open_study; from tools.reproduce import later_stages;"
        "later_stages(open_study('demo', profile='quick', runs=sys.argv[1], device='cpu'))"
    )
    command, quiet = [sys.executable, "-c", script], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = partial(subprocess.run, env=environment, cwd=stages.PACKAGE.parent, check=True, capture_output=True)
    run([*command, str(tmp_path / "whole")])
    kills, moments = 0, random.Random(0)
    for _ in range(30):
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")], env=environment, cwd=stages.PACKAGE.parent, **quiet
        )
        try:
            process.wait(moments.uniform(4, 16))  # an import alone takes some four seconds
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
            process.wait()
    run([*command, str(tmp_path / "killed")])
    assert kills >= 10, "the study was whole before it was killed often"
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")


def test_torchrun_is_refused_where_one_process_computes(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="train runs in one process, which torchrun multiplies"):
        study.open_study("demo", profile="quick", runs=tmp_path)
    assert not any(tmp_path.iterdir())
