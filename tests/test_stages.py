"""Stages: whole or absent, keyed by what went in, and never lost to a kill."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from cctlib import stages
from cctlib.errors import UserError


def run(runs, calls, inputs=None):
    def compute(work):
        calls.append(work)
        (work / "result.txt").write_text("42")
        (work / "checkpoint.pt").write_text("half")

    settings = {"seed": 0} if inputs is None else inputs
    return stages.stage(runs, "probe", compute, room="snp", reads={}, settings=settings, device="cpu")


def test_a_finished_stage_is_not_computed_again(tmp_path):
    calls = []
    first, second = run(tmp_path, calls), run(tmp_path, calls)
    assert first == second and len(calls) == 1
    assert not (first / "checkpoint.pt").exists() and stages.is_whole(first)


def test_other_inputs_are_another_stage(tmp_path):
    calls = []
    assert run(tmp_path, calls) != run(tmp_path, calls, {"seed": 1}) and len(calls) == 2


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_stage_is_made_again(tmp_path, damage):
    calls = []
    result = run(tmp_path, calls) / "result.txt"
    result.unlink() if damage == "remove" else result.write_text("4")
    assert (run(tmp_path, calls) / "result.txt").read_text() == "42" and len(calls) == 2


def test_the_record_says_what_made_the_result(tmp_path):
    folder = run(tmp_path, [])
    record, provenance = (stages.read_json(folder / name) for name in (stages.RECORD, stages.PROVENANCE))
    assert record["inputs"]["settings"] == {"seed": 0} and record["inputs"]["code"] == stages.CODE["snp"]
    assert record["outputs"] == {"result.txt": stages.sha256_file(folder / "result.txt")}
    assert {"made", "seconds", "torch", "device", "commit"} <= set(provenance)


SLOW_STAGE = """
    import sys, time
    from pathlib import Path
    from cctlib import stages

    def compute(work):
        checkpoint = work / "checkpoint.txt"
        done = int(checkpoint.read_text()) if checkpoint.exists() else 0
        for step in range(done, 40):
            with stages.replacing(checkpoint) as temporary:
                temporary.write_text(str(step + 1))
            time.sleep(0.02)
        (work / "resumed.txt").write_text("yes" if done else "no")
        (work / "result.txt").write_text("".join(map(str, range(40))))

    print(stages.stage(Path(sys.argv[1]), "slow", compute, room="snp", reads={}, settings={}, device="cpu"))
"""


def test_a_stage_killed_at_any_moment_goes_on(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(SLOW_STAGE), str(tmp_path)]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.partial/checkpoint.txt")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not [path for path in tmp_path.glob("slow-*") if path.is_dir() and path.suffix != ".partial"]
    folder = stages.Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert (folder / "resumed.txt").read_text() == "yes"
    assert (folder / "result.txt").read_text() == "".join(map(str, range(40)))
    assert sorted(path.name for path in folder.iterdir()) == [
        "provenance.json",
        "result.txt",
        "resumed.txt",
        "stage.json",
    ]


def test_replacing_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), stages.replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("no space")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_broken_json_is_one_line(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json is not valid JSON") as caught:
        stages.read_json(tmp_path / "manifest.json")
    assert "\n" not in str(caught.value)


def test_who_waits_is_told_who_computes_and_gets_the_same_result(tmp_path, capsys):
    begun, go_on, results, computed = threading.Event(), threading.Event(), [], []

    def compute(work):
        begun.set()
        assert go_on.wait(60)
        computed.append(work)
        (work / "result.txt").write_text("42", encoding="utf-8")

    def wait():
        how = {"room": "snp", "reads": {}, "settings": {}, "device": "cpu"}
        results.append(stages.stage(tmp_path, "slow", compute, **how))

    first, second = threading.Thread(target=wait), threading.Thread(target=wait)
    first.start()
    assert begun.wait(60)
    second.start()
    said = ""
    while "waiting" not in said:
        assert second.is_alive()
        time.sleep(0.01)
        said += capsys.readouterr().err
    assert f"which process {os.getpid()} on " in said
    go_on.set()
    first.join(60)
    second.join(60)
    assert len(results) == 2 and results[0] == results[1] and len(computed) == 1
