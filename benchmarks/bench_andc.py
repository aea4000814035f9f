"""Speed of pruned networks, always against torch's dense layers with the same zeros in the same run.

    python benchmarks/bench_andc.py [--sparsities 0.5 0.7 0.9 0.95] [--thetas 0.5] [--batches 1 128]
                                    [--seconds 8] [--threads 1]

Two kinds of zeros: a share of the weights of every prunable layer at random, the hardest case for forms
that live on structure; and ANDC's masks, where a model with a measurement ships; fc keeps all weights where its own
read-out was not measured. For each batch size the network runs as it is (dense), without its silent nodes, then with
every sparse layer as bags, and with the form that `compact` measured to be fastest for each. Rows take turns, so that
other load of the machine falls on all alike.
Printed are milliseconds of the median turn, and the median over turns of dense time / time: above 1 is
faster than dense. Logits are compared with the dense form first: a fast wrong answer is not timed.

One thread by default: several wait for each other, so that on a machine with other work they measure that
work.
"""

import argparse
from collections import Counter

import torch

from cctlib.andc import compact, latency
from cctlib.andc import masks as andc
from cctlib.andc.retrain import prune
from cctlib.model import cct, manifest
from cctlib.snp import measure
from cctlib.snp.probe import READOUT
from cctlib.stages import device_name

GOAL = 0.9  # the sparsity at which pruned must be faster than dense


def random_zeros(sparsity: float) -> cct.CCT:
    """A network whose prunable layers have lost a share of their weights at random."""
    config = cct.config("cct_7_3x2")
    network = cct.CCT(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for layer in andc.layers(config.encoders):
        chance = torch.rand(network.get_parameter(layer.weight).shape, generator=generator)
        masks[layer.weight] = andc.keep_largest(chance, max(1, round((1 - sparsity) * chance.numel())))
    return prune(network, masks)


def andc_zeros(theta: float) -> cct.CCT | None:
    """The shipped CIFAR-100 model under ANDC's masks, without fc's where the network's own read-out was not measured.

    None where no measurement ships with it.
    """
    model = manifest.find("cifar100")
    if model is None or not (model.folder / measure.FILE).is_file():
        return None
    network = model.network("cpu")
    sets, encoders = measure.diagonals(measure.load(model.folder), theta), network.config.encoders
    masks = {}
    for target in andc.KINDS:
        if target != "fc" or f"enc{encoders}/{READOUT}" in sets:
            masks |= andc.andc_masks(sets, encoders, target)
    return prune(network, masks)


def report(title: str, network: cct.CCT, batch: int, budget: float) -> float:
    """Print one block of the table; returns the ratio of the chosen forms."""
    config, masks = network.config, compact.masks_of(network)
    rows, chosen = latency.variants(network, batch)
    forms = Counter(chosen.values())
    times = latency.turns(rows, torch.randn(batch, 3, config.image_size, config.image_size), budget)
    dense, cost = compact.count(network, {}), compact.count(network, masks)
    print(
        f"\n{title}, batch {batch}: left are {andc.density(masks):.0%} of the weights of pruned layers; of the "
        f"network, {cost.parameters / dense.parameters:.0%} of parameters, {cost.macs / dense.macs:.0%} of "
        f"multiplications, {cost.bytes / dense.bytes:.0%} of the bytes in fp16"
    )
    ratios = 1 / latency.ratios(times).set_index("form").ratio
    for name, ratio in ratios.items():
        note = ", ".join(f"{number} {form}" for form, number in forms.most_common()) if name == "chosen" else ""
        print(f"  {name:15} {1000 * times[name].median():9.2f} ms {ratio:6.2f} times as fast as dense  {note}".rstrip())
    return float(ratios["chosen"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsities", type=float, nargs="*", default=[0.5, 0.7, 0.9, 0.95])
    parser.add_argument("--thetas", type=float, nargs="*", default=[0.5])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"CCT-7/3x2, fp32, {device_name('cpu')}, torch {torch.__version__}")
    goals = {}
    for sparsity in options.sparsities:
        network = random_zeros(sparsity)
        for batch in options.batches:
            ratio = report(f"random zeros, {sparsity:.0%}", network, batch, options.seconds)
            if sparsity == GOAL:
                goals[batch] = ratio
    for theta in options.thetas:
        network = andc_zeros(theta)
        if network is None:
            print("\nANDC's masks: left out, no CIFAR-100 model with a measurement ships here")
            break
        for batch in options.batches:
            report(f"ANDC at theta {theta:g}", network, batch, options.seconds)
    for batch, ratio in goals.items():
        verdict = "reached" if ratio > 1 else "missed"
        print(f"\ngoal, faster than dense with {GOAL:.0%} zeros, batch {batch}: {verdict} ({ratio:.2f} times)")


if __name__ == "__main__":
    main()
