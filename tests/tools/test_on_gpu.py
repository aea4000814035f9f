"""The report of a GPU, tried on a processor with the demo set."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools import on_gpu


def test_images_come_out_of_small_pieces_as_they_went_in(tmp_path, monkeypatch):
    monkeypatch.setenv("CCTLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(on_gpu, "PIECE", 100_000)
    entry = tmp_path / "cache" / "demo-32-train"  # as a published set has one; the demo set itself keeps none
    entry.mkdir(parents=True)
    np.save(entry / "train.npy", np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), dtype=np.uint8))
    on_gpu.pack(tmp_path / "pieces", dataset="demo", wheels=False)
    pieces = sorted((tmp_path / "pieces").glob("piece-*"))
    assert len(pieces) > 3 and max(piece.stat().st_size for piece in pieces) <= 100_000
    on_gpu.unpack(tmp_path / "pieces", tmp_path / "home")
    packed = {path.relative_to(tmp_path / "cache"): path for path in (tmp_path / "cache").rglob("*.npy")}
    assert packed
    for name, path in packed.items():
        assert (tmp_path / "home" / "cache" / name).read_bytes() == path.read_bytes()
    pieces[1].write_bytes(pieces[1].read_bytes()[:-1])
    with pytest.raises(SystemExit, match="piece-01 is missing or damaged"):
        on_gpu.unpack(tmp_path / "pieces", tmp_path / "again")


def test_a_step_that_fails_or_takes_too_long_is_reported():
    failing = on_gpu._step("a", [sys.executable, "-c", "print('said'); raise SystemExit(3)"], 60, {})
    assert failing["status"] == 3 and failing["output"] == "said\n"
    slow = on_gpu._step("b", [sys.executable, "-c", "import time; time.sleep(60)"], 0.5, {})
    assert slow["status"] == 124 and slow["seconds"] < 30


@pytest.mark.slow
def test_the_whole_report_on_a_processor(tmp_path):
    """Slow: it starts seven Pythons, of which three train."""
    command = ["-m", "tools.on_gpu", "run", "--minutes", "2", "--home", str(tmp_path)]
    options = ["--recipe", "demo", "--dataset", "demo", "--device", "cpu"]
    subprocess.run([sys.executable, *command, *options], check=True, cwd=Path(on_gpu.ROOT))
    report = json.loads((tmp_path / "report.json").read_text())
    assert [step["name"] for step in report["steps"]] == ["tests", "bench_forward", "bench_train", "training"]
    assert report["steps"][-1]["status"] == 0 and report["training"][-1]["images_per_second"] > 0
    assert report["machine"]["memory"] == 0 and report["machine"]["commit"]
