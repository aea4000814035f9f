"""The Slurm script, in an environment where `srun` and `scontrol` are stand-ins that note how they were called."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cctlib.model import manifest
from cctlib.training import recipes

TOOLS = Path(__file__).resolve().parents[2] / "tools"
STAND_INS = {"srun": 'exec "$@"', "scontrol": 'echo "$@" >> scontrol.log'}


@pytest.fixture
def cluster(tmp_path):
    """A folder to submit from, with a table of one tiny network, and the environment of a job of an array."""
    for name, does in STAND_INS.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    options = "--epochs 40 --per-label 12 --warmup-epochs 1"
    (tmp_path / "table.tsv").write_text(f"name\tdataset\trecipe\tseed\toptions\ntiny\tdemo\tdemo\t3\t{options}\n")
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "1"}
    return tmp_path, {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"} | job


def test_a_job_whose_time_is_up_queues_again_and_goes_on(cluster):
    folder, environment = cluster
    command = ["bash", str(TOOLS / "slurm_array.sh"), "table.tsv"]
    run = folder / "runs" / "campaign" / "tiny"
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True) as job:
        deadline = time.monotonic() + 120
        while not (run / "log.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        step = subprocess.run(["pgrep", "-g", str(job.pid), "-f", "cctlib"], capture_output=True, text=True).stdout
        os.kill(int(step.split()[-1]), signal.SIGTERM)  # as --signal=TERM@120 does to the step
        assert job.wait(120) == 0
    assert (run / "checkpoint.pt").exists() and not (run / "manifest.json").exists()
    assert (folder / "scontrol.log").read_text().split() == ["requeue", "70_1"]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=300)
    assert len((folder / "scontrol.log").read_text().splitlines()) == 1, "a finished job queues no more"
    assert manifest.open_model(run).manifest.seed == 3


def test_every_row_of_the_table_names_a_recipe_and_a_data_set_that_exist():
    from cctlib.data.datasets import DATASETS

    header, *rows = (line.split("\t") for line in (TOOLS / "networks.tsv").read_text().splitlines())
    assert header == ["name", "dataset", "recipe", "seed", "options"]
    script = (TOOLS / "slurm_array.sh").read_text()
    assert f"--array=1-{len(rows)}\n" in script
    for place, (_, dataset, recipe, seed, *options) in enumerate(rows):
        words = " ".join(options).split()
        changes = {
            name.removeprefix("--").replace("-", "_"): value
            for name, value in zip(words[::2], words[1::2], strict=True)
        }
        known = recipes.recipe(recipe)
        assert dataset in DATASETS and seed.isdigit()
        start = changes.pop("start", None)
        assert start is None or start in [f"runs/campaign/{name}" for name, *_ in rows[:place]]
        assert all(hasattr(known, name) for name in changes)
