"""Field sums under torchrun: two processes with unequal shares measure what one does (Method, section 5)."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from cctlib.snp import fields

LABELS, NODES, IMAGES, REPEATS = 5, 7, 64, 3


def images():
    """Pooled values, labels, and the shuffled labels that every process draws from the same seed."""
    generator = torch.Generator().manual_seed(7)
    pooled, labels = torch.randn(IMAGES, NODES, generator=generator), torch.arange(IMAGES) % LABELS
    return pooled, labels, fields.shuffled(labels, REPEATS, generator)


def measured(positions):
    """Sums of the images at these positions, and of the same under shuffled labels."""
    pooled, labels, rows = images()
    sums, null = fields.FieldSums.zeros(LABELS, NODES), fields.FieldSums.zeros(LABELS, NODES, repeats=REPEATS)
    for batch in positions.split(9):
        sums.add(pooled[batch], labels[batch])
        null.add(pooled[batch], rows[:, batch])
    return sums, null


def process(folder):
    """What torchrun runs: process 0 sees 11 images, of which none has label 4; process 1 sees the others."""
    dist.init_process_group("gloo")
    few = torch.arange(IMAGES)[torch.arange(IMAGES) % LABELS != 4][:11]
    rest = torch.tensor([position for position in range(IMAGES) if position not in few.tolist()])
    sums, null = measured(few if dist.get_rank() == 0 else rest)
    sums.all_reduce()  # a second call must not count anything twice
    mu, counts, null_mu = sums.all_reduce().mean(), sums.all_reduce().counts, null.all_reduce().mean()
    torch.save({"mu": mu, "counts": counts, "null": null_mu}, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


def test_two_processes_measure_what_one_does(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", __file__, tmp_path]
    root = str(Path(__file__).parents[2])
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sums, null = measured(torch.arange(IMAGES))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["counts"], sums.counts)
        torch.testing.assert_close(found["mu"], sums.mean(), rtol=0, atol=1e-7)
        torch.testing.assert_close(found["null"], null.mean(), rtol=0, atol=1e-7)


def test_without_processes_the_totals_are_a_copy():
    sums, _ = measured(torch.arange(IMAGES))
    totals = sums.all_reduce()
    totals.sums.zero_()
    assert totals.counts.tolist() == sums.counts.tolist() and sums.sums.any()


if __name__ == "__main__":
    process(Path(sys.argv[1]))
