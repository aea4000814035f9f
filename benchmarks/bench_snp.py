"""Speed of SNP at all sites of a network, always against the slow and obvious way, in the same run.

    python benchmarks/bench_snp.py [--measurement FOLDER] [--images 3000] [--threads 1] [--out snp.json]

Measured are the fields (against silencing the probe's weights node by node), the clusters and counts (against
the definition written as plain loops, over the elements of arrays and, a stronger rival, over Python lists),
and the whole of SNP from mu and W. Results are compared first: a fast wrong answer ends the run. Silencing is
timed on a few nodes of each kind of site and extrapolated to all; everything else is run in full. From
images, one pass replaces one pass per node, so no ratio can exceed the number of nodes by much. Loops in
Python have one thread, so that everything else has one too, unless told otherwise. The arrays are those of a
measurement (by default the one that ships with the CIFAR-100 model), or drawn at random where there is none.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from cctlib.model import cct, manifest, sites
from cctlib.snp import fields as snp
from cctlib.snp import measure
from cctlib.snp.probe import Probe
from cctlib.stages import device_name

FIELDS_GOAL, CLUSTERS_GOAL, SECONDS_GOAL = 300, 50, 10
BATCH, SAMPLED, TURNS = 250, 6, 3
ELEMENTS, LISTS = "loops over array elements", "loops over Python lists"

Site = tuple[Tensor, Tensor]  # mu and W, [label, node]


def measured_sites(folder: Path | None) -> tuple[str, dict[str, Site]]:
    """Where the arrays come from, and mu and W of every site."""
    shipped = manifest.find("cifar100")
    folder = folder or (shipped.folder if shipped else None)
    if folder and (folder / measure.FILE).is_file():
        found = measure.load(folder)
        return f"measurement {folder.name}", {site: found[site].tensors() for site in found.sites}
    return "random arrays", drawn_sites(cct.config("cct_7_3x2"))


def drawn_sites(config: cct.CCTConfig, groups: int = 20) -> dict[str, Site]:
    """Random mu and W whose labels resemble each other in groups; clusters and noise like measured ones."""
    draw = torch.Generator().manual_seed(0)
    group = torch.arange(config.num_classes) * groups // config.num_classes
    found = {}
    for site in sites.site_names(config.encoders):
        shape = (config.num_classes, config.nodes(site))
        alike = torch.randn(groups, shape[1], generator=draw)[group]
        liked = torch.randn(shape, generator=draw) + 0.7 * alike
        mu, W = 0.35 * liked, liked + 0.8 * torch.randn(shape, generator=draw)
        found[site] = (mu + 0.25 * torch.randn(shape, generator=draw), W)
    return found


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# fields: against silencing ----------------------------------------------------------------------------------


def silenced_field(probe: Probe, W: Tensor, node: int, tokens: Tensor, labels: Tensor) -> Tensor:
    """M_n by the definition: zero all weights but the node's, run the images, average outputs by label."""
    probe.fc.weight.zero_()
    probe.fc.weight[:, node] = W[:, node]
    sums = torch.zeros(len(W), len(W))
    for x, y in zip(tokens.split(BATCH), labels.split(BATCH), strict=True):
        sums.index_add_(0, y, probe(x))
    return sums / labels.bincount(minlength=len(W))[:, None]


def all_fields(mu: Tensor, W: Tensor) -> Tensor:
    """M_n of all nodes, [node, true_label, output]."""
    return torch.vmap(snp.field, in_dims=1)(mu, W)


def pooled_fields(probe: Probe, W: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
    """The same for all nodes, from the same tokens, in one pass."""
    pooled = torch.cat([probe.pool(x) for x in tokens.split(BATCH)])
    return all_fields(snp.mean_by_label(pooled, labels, len(W)), W)


def time_fields(kind: str, W: Tensor, images: int) -> dict[str, float]:
    """Seconds for all nodes of one site: by silencing (extrapolated), from tokens, and from mu and W."""
    torch.manual_seed(0)
    num_labels, nodes = W.shape
    labels = torch.arange(images) % num_labels
    tokens = torch.randn(images, 64, nodes) + torch.randn(num_labels, 1, nodes)[labels]
    probe = Probe(nodes, num_labels, normalised=kind == "ff").requires_grad_(False)
    expected = pooled_fields(probe, W, tokens, labels)
    mu, turns = snp.mean_by_label(probe.pool(tokens), labels, num_labels), []
    for number in range(TURNS):
        sample = range(number, nodes, nodes // SAMPLED)
        slow = [seconds(lambda n=n: silenced_field(probe, W, n, tokens, labels)) for n in sample]
        fast = seconds(lambda: pooled_fields(probe, W, tokens, labels)), seconds(lambda: all_fields(mu, W))
        turns.append((median(slow) * nodes, *fast))
    for n in sample:
        slow_field = silenced_field(probe, W, n, tokens, labels)
        torch.testing.assert_close(slow_field, expected[n], rtol=1e-3, atol=1e-5)
    names = ("silencing", "one pass", "outer product")
    return {name: median(turn[i] for turn in turns) for i, name in enumerate(names)}


# clusters: against plain loops ------------------------------------------------------------------------------


def is_block(B, members: list[int]) -> bool:
    """Whether all entries of these rows and columns are ones."""
    ones = 0
    for i in members:
        for j in members:
            ones += B[i][j]
    return ones == len(members) ** 2


def looped_node(B) -> tuple[int, ...]:
    """|B|, |D|, N_c, sum C^2 and the column noise of one node, by the definition, entry by entry."""
    diagonal = [label for label in range(len(B)) if B[label][label]]
    blocks, left = [], list(diagonal)
    while left:
        block = [left[0]]
        for label in left[1:]:
            if is_block(B, [*block, label]):
                block.append(label)
        left = [label for label in left if label not in block]
        blocks.append(block)
    block_of = {label: number for number, block in enumerate(blocks) for label in block}
    ones = column_noise = 0
    for i in range(len(B)):
        for j in range(len(B)):
            if B[i][j]:
                ones += 1
                column_noise += j in block_of and block_of.get(i) != block_of[j]
    return ones, len(diagonal), len(blocks), sum(len(block) ** 2 for block in blocks), column_noise


def counted(found: dict[str, Tensor]) -> np.ndarray:
    """The same numbers from `snp.node_statistics`, [node, 5]."""
    names = ("ones", "labels", "clusters", "signal", "column_noise")
    return torch.stack([found[name] for name in names], dim=1).numpy()


def time_clusters(arrays: dict[str, Site]) -> dict[str, float]:
    """Seconds for all nodes of all sites, from their Boolean matrices. Raises when a single count differs."""
    times = {ELEMENTS: 0.0, LISTS: 0.0, "snp": 0.0}
    for mu, W in arrays.values():
        B = snp.boolean(mu, W)
        found = counted(snp.node_statistics(B))
        times["snp"] += median(seconds(lambda: snp.node_statistics(B)) for _ in range(TURNS))  # noqa: B023
        for name, nodes in ((ELEMENTS, B.numpy()), (LISTS, B.tolist())):
            start = time.perf_counter()
            looped = [looped_node(node) for node in nodes]
            times[name] += time.perf_counter() - start
            np.testing.assert_array_equal(np.array(looped), found)
    return times


def time_all(arrays: dict[str, Site]) -> float:
    """Seconds of the whole of SNP, from mu and W to every number of every site."""
    whole = lambda: [snp.measure(*pair).summary() for pair in arrays.values()]  # noqa: E731
    return median(seconds(whole) for _ in range(TURNS))


# ------------------------------------------------------------------------------------------------------------


def report(arrays: dict[str, Site], images: int) -> dict[str, dict[str, float]]:
    """All seconds, by what was timed. Sites of a kind have the same shape, so one stands for all."""
    kinds: dict[str, list[str]] = {}
    for site in arrays:
        kinds.setdefault(sites.parse(site)[1], []).append(site)
    fields = dict.fromkeys(("silencing", "one pass", "outer product"), 0.0)
    for kind, of_kind in kinds.items():
        for name, time_of_one in time_fields(kind, arrays[of_kind[0]][1], images).items():
            fields[name] += time_of_one * len(of_kind)
    return {"fields": fields, "clusters": time_clusters(arrays), "SNP": {"snp": time_all(arrays)}}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measurement", type=Path, help="a folder with measurement.npz")
    parser.add_argument("--images", type=int, default=3000, help="images, of 64 tokens each")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, help="write the seconds and ratios as JSON")
    options = parser.parse_args()
    source, arrays = measured_sites(options.measurement)
    nodes = sum(W.shape[1] for _, W in arrays.values())
    torch.set_num_threads(options.threads)
    where = f"{device_name('cpu')}, torch {torch.__version__}"
    print(f"{source}: {len(arrays)} sites, {nodes} nodes; {where}")
    times = report(arrays, options.images)
    fields, clusters, whole = times["fields"], times["clusters"], times["SNP"]["snp"]
    rows = [
        (f"fields, from tokens of {options.images} images", "silencing", fields["one pass"], fields, ""),
        ("fields, from mu and W", "silencing", fields["outer product"], fields, f"goal {FIELDS_GOAL}"),
        ("clusters and counts", ELEMENTS, clusters["snp"], clusters, f"goal {CLUSTERS_GOAL}"),
        ("clusters and counts", LISTS, clusters["snp"], clusters, ""),
    ]
    ratios = {f"{what}, against {slow}": of[slow] / fast for what, slow, fast, of, _ in rows}
    for what, slow, fast, of, goal in rows:
        ratio = f"{of[slow] / fast:6.0f} times  {goal}".rstrip()
        print(f"{what:38} {fast:7.3f} s {of[slow]:8.1f} s by {slow:26} {ratio}")
    print(f"{'all of SNP, from mu and W':38} {whole:7.3f} s  goal {SECONDS_GOAL} s")
    print(f"Silencing: extrapolated from {SAMPLED} nodes of each kind of site, the median of {TURNS} turns.")
    if options.out:
        about = {"source": source, "where": where, "nodes": nodes, "images": options.images}
        found = {**about, "extrapolated": ["silencing"], "seconds": times, "times faster": ratios}
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
