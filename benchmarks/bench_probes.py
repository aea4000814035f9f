"""Speed of training the probes of a CCT, against the siblings' published way, in the same run and at equal result.

    python benchmarks/bench_probes.py [--compared 450] [--per-label 100] [--threads 2] [--out probes.json]

The published way goes site by site, and runs the network again on every batch of every epoch: SGD with Nesterov
momentum and weight decay, 50 epochs (code of arXiv:2501.12880). Ours keeps the tokens of one pass and solves. First
both are compared at six sites (the published one on kept tokens here, which gives the same numbers sooner): a fast
wrong answer ends the run. Then the published way is timed on a few steps at every site and extrapolated to all of them;
ours is run in full. The network is the one that ships for CIFAR-100, on its training images.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cctlib.data import images as data
from cctlib.data.images import Images
from cctlib.model import manifest
from cctlib.model.cct import CCT
from cctlib.model.forward import forward
from cctlib.model.manifest import Model
from cctlib.snp import fields
from cctlib.snp.maps import BATCH, FALL, MOMENTUM, RATE
from cctlib.snp.probe import Probe, Probes, ProbeSettings, kept_tokens, make_probes, train_probes
from cctlib.stages import device_name

GOAL = 100  # times faster
SITES = tuple(f"enc{m}/{kind}" for m in (1, 4, 7) for kind in ("mha", "ff"))
EPOCHS, STEPS = 50, 3  # of the published way; steps that are timed at each site
SETTINGS = ProbeSettings(swapped=(), short=())
POINTS, SHARE = 0.5, 0.03  # that accuracy may be behind, and that the other numbers may differ: Method, section 4
NUMBERS = ("cluster_size", "clusters", "noise", "snr")


def published(probe: Probe) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer and schedule of the siblings, for a probe with weights started as theirs are."""
    bound = probe.fc.in_features**-0.5
    for weight in (probe.fc.weight, probe.attention_pool.weight):
        torch.nn.init.uniform_(weight, -bound, bound)
    how = {"lr": RATE, "momentum": MOMENTUM, "nesterov": True, "weight_decay": SETTINGS.penalty}
    optimizer = torch.optim.SGD(probe.parameters(), **how)
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, FALL)


def step(probe: Probe, optimizer: torch.optim.Optimizer, tokens: Tensor, labels: Tensor) -> None:
    """One step of it."""
    loss = F.cross_entropy(probe(tokens), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def trained_as_published(probe: Probe, tokens: Tensor, labels: Tensor) -> Probe:
    """The probe after `EPOCHS` of the published recipe, on kept tokens."""
    optimizer, schedule = published(probe)
    order = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=order).split(BATCH):
            step(probe, optimizer, tokens[rows], labels[rows])
        schedule.step()
    return probe.requires_grad_(False)


def read(probe: Probe, tokens: Tensor, labels: Tensor) -> dict[str, float]:
    """What a probe says of a site: accuracy in percent, and `NUMBERS`."""
    pooled = torch.cat([probe.pool(part) for part in tokens.split(500)])
    found = fields.measure(fields.mean_by_label(pooled, labels, probe.fc.out_features), probe.fc.weight).summary()
    right = ((pooled @ probe.fc.weight.T).argmax(1) == labels).double().mean()
    return {"accuracy": 100 * right.item()} | {name: found[name].item() for name in NUMBERS}


def compared(model: Model, train: Images, test: Images, sites: Sequence[str]) -> Iterator[tuple[str, dict, dict]]:
    """Each of the sites, with what our probe and the published one say on test images. Raises where they differ."""
    network, how = model.network("cpu"), {"device": "cpu", "precision": "auto"}
    for site in sites:
        ours = make_probes({site: model.config.nodes(site)}, train.num_labels, SETTINGS)
        theirs = make_probes({site: model.config.nodes(site)}, train.num_labels, SETTINGS)[site]
        train_probes(network, model.normalise, ours, train, SETTINGS, device="cpu")
        kept, judged = (kept_tokens(network, model.normalise, images, [site], **how)[site] for images in (train, test))
        trained_as_published(theirs, kept.values, kept.labels)
        found = [read(probe, judged.values, judged.labels) for probe in (ours[site].requires_grad_(False), theirs)]
        off = {name: found[0][name] / found[1][name] - 1 for name in NUMBERS}
        behind = found[1]["accuracy"] - found[0]["accuracy"]  # SGD is behind where 50 epochs do not reach the minimum
        if behind > POINTS or max(map(abs, off.values())) > SHARE:
            raise AssertionError(f"{site}: ours {found[0]}, published {found[1]}")
        yield site, *found


def published_seconds(network: CCT, model: Model, images: Images, probes: Probes) -> float:
    """Seconds of the published way at all sites, from `STEPS` steps at each."""
    total = 0.0
    for site in probes.sites:
        optimizer, _ = published(probes[site])
        passes = forward(
            network, model.normalise, images.subset(BATCH * (STEPS + 1) // images.num_labels), taps=[site],
            device="cpu", batch=BATCH, to_the_end=False,
        )  # fmt: skip
        times, start = [], time.perf_counter()
        for _, labels, _, nodes in passes:
            step(probes[site], optimizer, nodes[site], labels)
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
        total += sum(times[1:]) / (len(times) - 1) * EPOCHS * len(images) / BATCH
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compared", type=int, default=450, help="training images of each label, where compared")
    parser.add_argument("--sites", nargs="*", default=SITES, help="that are compared")
    parser.add_argument("--per-label", type=int, default=100, help="training images of each label, to be timed")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--out", type=Path, help="write what was found as JSON")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = manifest.find("cifar100")
    assert model is not None, "the network for CIFAR-100 ships with cctlib"
    images, test = data.load("cifar100", "train"), data.load("cifar100", "test").subset(30)
    where = f"{device_name('cpu')}, torch {torch.__version__}"
    print(f"{model.name}; {where}")
    rows = []
    for site, ours, theirs in compared(model, images.subset(options.compared), test, options.sites):
        rows.append({"site": site, "ours": ours, "published": theirs})
        print(f"{site:9}" + "".join(f"  {name} {ours[name]:.4g} ({theirs[name]:.4g})" for name in ours), flush=True)
    network, train = model.network("cpu"), images.subset(options.per_label)
    sites = {site: model.config.nodes(site) for site in network.nodes}
    slow = published_seconds(network, model, train, make_probes(sites, train.num_labels, SETTINGS))
    start = time.perf_counter()
    train_probes(
        network, model.normalise, make_probes(sites, train.num_labels, SETTINGS), train, SETTINGS, device="cpu"
    )
    fast = time.perf_counter() - start
    print(f"{len(sites)} probes: {fast:.1f} s; published way {slow:,.0f} s (extrapolated from {STEPS} steps a site)")
    print(f"{slow / fast:.0f} times as fast; goal {GOAL}")
    if options.out:
        found = {"where": where, "images": len(train), "epochs": EPOCHS, "sites": rows}
        found |= {"seconds": fast, "published, extrapolated": slow, "times faster": slow / fast}
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
