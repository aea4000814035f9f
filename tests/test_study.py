"""The flow as users meet it: without data, with wrong words, and killed in the middle."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cctlib import open_study, stages
from cctlib.errors import UserError


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without data and without a network."""
    monkeypatch.delenv("CCTLIB_DATA", raising=False)
    monkeypatch.setenv("CCTLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CCTLIB_OFFLINE", "1")
    return tmp_path


def test_without_data_and_network_the_shipped_measurement_is_shown_and_says_so(nowhere, capsys):
    study = open_study("cifar100", profile="quick", runs=nowhere / "runs", device="cpu")
    assert study.source == "shipped" and "shipped" in study.provenance["note"]
    assert "CIFAR-100" in capsys.readouterr().err
    assert study.images() is None
    assert len(study.tables["nodes"].query("theta == 0.3")) == 8960


def test_nothing_ships_for_folders(nowhere):
    with pytest.raises(UserError, match=r"does not exist|no folder") as caught:
        open_study(f"folder:{nowhere / 'none'}", profile="quick", runs=nowhere / "runs", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"dataset": "cifar10"}, "cifar10"),
        ({"model": "cct_8"}, "cct_7_3x2"),
        ({"profile": "fast"}, "quick, full"),
        ({"device": "tpu9"}, "tpu9"),
    ],
)
def test_wrong_words_are_one_line(tmp_path, words, said):
    with pytest.raises(UserError, match=said) as caught:
        open_study(**{"profile": "quick", "device": "cpu", "runs": tmp_path} | words)
    assert "\n" not in str(caught.value)


def test_the_command_line_answers_a_mistake_in_one_line(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "cctlib", "snp", "--profile", "shipped", "--theta", "0.33"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("cctlib: theta 0.33 was not measured") and run.stderr.count("\n") == 1


def test_help_reads_well(tmp_path):
    for command in ("data", "train", "probe", "snp", "heads", "andc", "reproduce"):
        run = subprocess.run(
            [sys.executable, "-m", "cctlib", command, "--help"], capture_output=True, text=True, cwd=tmp_path
        )
        assert run.returncode == 0 and "usage: cctlib" in run.stdout


def hashes(runs):
    """Hash of every result of every finished stage; when, where and how fast it was made is no result."""
    return {
        f"{path.parent.name}/{path.name}": stages.sha256_file(path)
        for path in sorted(runs.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and path.name not in (stages.PROVENANCE, stages.LOG, stages.RUN)
    }


@pytest.mark.slow
def test_killed_anywhere_the_study_ends_with_the_same_files(tmp_path):
    """The demo set trained, probed, measured and tabled; killed again and again; hash for hash as one that was left alone."""
    environment = {**os.environ, "CCTLIB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "cctlib",
        "probe",
        "--dataset",
        "demo",
        "--profile",
        "quick",
        "--device",
        "cpu",
        "--runs",
    ]
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    kills = 0
    for seconds in (8, 20, 30, 45, 60, 90):
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], env=environment, check=True, capture_output=True)
    assert kills >= 2
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
