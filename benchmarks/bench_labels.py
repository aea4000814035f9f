"""How SNP grows with the number of labels: without K x K matrices, against the same counts with them, in one run.

    python benchmarks/bench_labels.py [--threads 2] [--out labels.svg]

mu and W are drawn at random, with labels that resemble each other in groups of 50. Both ways must agree to the last
count. The matrices of 64 nodes are written out up to 3,000 labels; the goals are whole sites, by the way that ships.
`--out` draws the growth, and writes the seconds beside the picture as JSON.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cctlib.snp import fields
from cctlib.stages import device_name

LABELS, WITH_MATRICES, NODES = (100, 300, 1000, 3000, 10_000, 21_841), 3000, 64
GOALS = {(1000, 4096): 10, (21_841, 1024): 60}  # (labels, nodes): seconds


def drawn(labels: int, nodes: int) -> tuple[Tensor, Tensor]:
    """mu and W, [label, node]."""
    draw = torch.Generator().manual_seed(0)
    liked = (
        torch.randn(labels, nodes, generator=draw)
        + torch.randn(-(-labels // 50), nodes, generator=draw)[torch.arange(labels) // 50]
    )
    mu = 0.35 * liked + 0.25 * torch.randn(labels, nodes, generator=draw)
    return mu, liked + 0.8 * torch.randn(labels, nodes, generator=draw)


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def growth() -> list[dict[str, float]]:
    """One row a number of labels: seconds of either way for `NODES` nodes."""
    rows = []
    for labels in LABELS:
        mu, W = drawn(labels, NODES)
        seconds, found = timed(lambda: fields.measure(mu, W))  # noqa: B023
        row = {"labels": labels, "without matrices": seconds}
        if labels <= WITH_MATRICES:
            row["with matrices"], counts = timed(lambda: fields.node_statistics(fields.boolean(mu, W)))  # noqa: B023
            for name, values in counts.items():
                assert torch.equal(values, getattr(found, name)), f"{labels} labels: {name} differs"
        rows.append(row)
        print("  ".join(f"{name} {value:9.3f}" for name, value in row.items()), flush=True)
    return rows


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Seconds against labels, both logarithmic."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in ("without matrices", "with matrices"):
        points = [(row["labels"], row[name]) for row in rows if name in row]
        axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="labels", ylabel=f"seconds for {NODES} nodes", title="Counts of a site against its labels")
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--out", type=Path, help="draw the growth here, with a .json beside it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{device_name('cpu')}, torch {torch.__version__}, {NODES} nodes")
    goals = []  # before the matrices, for memory counts from the start of the run
    for (labels, nodes), goal in GOALS.items():
        site = drawn(labels, nodes)
        seconds, _ = timed(lambda: fields.measure(*site))  # noqa: B023
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB,
        goals.append({"labels": labels, "nodes": nodes, "seconds": seconds, "goal": goal, "peak_gib": peak})
        print(f"{labels} labels, {nodes} nodes: {seconds:.1f} s (goal {goal}), memory up to {peak:.1f} GiB")
    rows = growth()
    if options.out:
        draw(rows, options.out)
        options.out.with_suffix(".json").write_text(json.dumps({"growth": rows, "goals": goals}, indent=2) + "\n")


if __name__ == "__main__":
    main()
