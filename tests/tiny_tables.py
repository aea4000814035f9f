"""Synthetic inputs of the figures: arrays and tables as the measurements give them, with their awkward cases."""

import numpy as np
import pandas as pd
import torch

KINDS = ("mha", "trunk", "ff_hidden", "ff")
NAMES = ("aquarium_fish", "bee", "lawn_mower", "sweet_pepper", "prince of wales feathers", "oak_tree", "cup")
PROVENANCE = {
    "dataset": "CIFAR-100",
    "model": "cct_7_3x2",
    "weights": "9c950856a34c437e483bf8de3b257ee2",
    "commit": "8fba6ea12f-dirty",
    "profile": "quick",
    "device": "Intel(R) Xeon(R) Processor @ 2.90GHz, 2 threads",
}


def names(labels: int) -> list[str]:
    """Label names of different lengths, all different."""
    return [f"{NAMES[label % len(NAMES)]} {label}" for label in range(labels)]


def groups(labels: int) -> tuple[list[int], list[str]]:
    """The superclass of each label, five labels each and not in order, and the superclasses' names."""
    count = -(-labels // 5)
    return [label % count for label in range(labels)], [f"large man-made outdoor things {n}" for n in range(count)]


def site(labels: int, nodes: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(mu, W) of a site; node 0 is silent, and node 1 has no label on its diagonal."""
    generator = torch.Generator().manual_seed(seed)
    liking = torch.randn(labels, nodes, generator=generator)
    mu = liking + 0.1 * torch.randn(labels, nodes, generator=generator)
    W = 0.1 * liking + 0.05 * torch.randn(labels, nodes, generator=generator)
    mu[:, 0], W[:, 0] = -mu[:, 0].abs() - 0.1, W[:, 0].abs() + 0.1
    half = torch.arange(labels) < labels // 2
    mu[:, 1], W[:, 1] = torch.where(half, 1.0, -0.1), torch.where(half, -0.1, 1.0)
    return mu, W


def by_site(extra: str, values: int, encoders: int = 7, kinds: tuple[str, ...] = KINDS, **also: object) -> pd.DataFrame:
    """Site means, one row a site and value of `extra` (theta, draw, order, ...), with a NaN and an infinite ratio."""
    rng, rows = np.random.default_rng(0), []
    for kind in kinds:
        for encoder in range(1, encoders + 1):
            for value in range(values):
                noise, size = 400 - 40 * encoder + 10 * rng.normal(), 2.5 + 0.1 * rng.normal()
                ratio = 2 + 0.4 * encoder + 0.1 * rng.normal()
                row = {"site": f"enc{encoder}/{kind}", "encoder": encoder, "kind": kind, "nodes": 64, "silent": encoder}
                row |= {"clusters": 4.2, "cluster_size": size, "labels": 4.2 * size, "noise": noise, "snr": ratio}
                row |= {"column_noise": 0.4 * noise, "foreign_noise": 0.6 * noise, "snr_field": 0.8 * ratio}
                row |= {"snr_node": np.nan if encoder == 2 else ratio / 9, "snr_blocks": 1.2 * ratio}
                rows.append(row | {extra: value} | also)
    table = pd.DataFrame(rows)
    table.loc[table.index[-1], "snr_blocks"] = np.inf
    return table


def by_theta(encoders: int = 7, kinds: tuple[str, ...] = KINDS) -> pd.DataFrame:
    """Site means at the thresholds 0.1 to 0.7."""
    table = by_site("theta", 7, encoders, kinds)
    return table.assign(theta=(table.theta + 1) / 10)


def study_tables() -> dict[str, pd.DataFrame]:
    """Draws with labels shuffled, far off, and draws of a random basis, among controls that no figure knows."""
    null, basis = (by_site("draw", draws).assign(theta=0.3) for draws in (5, 4))
    rows = {"random basis": basis, "another one": basis, "labels shuffled": null.assign(noise=null.noise + 500)}
    return {"controls": pd.concat([table.assign(control=name) for name, table in rows.items()])}


def accuracy(encoders: int = 7) -> pd.DataFrame:
    """Progressive accuracy with intervals."""
    rows = [(f"enc{m}/{kind}", m, kind, 0.4 + 0.03 * m) for kind in KINDS for m in range(1, encoders + 1)]
    table = pd.DataFrame(rows, columns=["site", "encoder", "kind", "accuracy"])
    return table.assign(low=table.accuracy - 0.01, high=table.accuracy + 0.01)


def symmetry(encoders: int = 7) -> pd.DataFrame:
    """As `heads.symmetry`: the first encoder is as chance has it."""
    m = np.arange(1, encoders + 1)
    table = pd.DataFrame({"site": [f"enc{n}/mha" for n in m], "encoder": m, "heads": 4, "deals": 1000})
    table = table.assign(concentration=0.35 + 0.01 * (m - 1), dealt_mean=0.35, dealt_95=0.36, broken_dealt=0.04)
    for name, mean in (("within", 0.012 * (m - 1)), ("across", 0.0)):
        ends = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "draws": 20}
        table = table.assign(**{f"excess_{name}_{end}": value for end, value in ends.items()})
    table["excess"] = table.concentration - table.dealt_mean
    return table.assign(broken=0.04 + 0.03 * (m - 1), p_holm=np.where(m == 1, 0.6, 0.007))


def experts(encoders: int = 7, number: int = 4) -> tuple[pd.DataFrame, pd.DataFrame]:
    """As `experts.expert_accuracy`; one head owns no label."""
    rows = []
    for m in range(1, encoders + 1):
        for head in range(number):
            own = np.nan if (m, head) == (1, 0) else 0.1 + 0.02 * m + 0.01 * head
            row = {"site": f"enc{m}/mha", "encoder": m, "head": head, "labels": 20, "own": own, "others": own / 2}
            rows.append(row | {"own_low": own - 0.01, "own_high": own + 0.01, "gap": own / 2})
    table = pd.DataFrame(rows)
    sites = table.groupby(["site", "encoder"], as_index=False).gap.mean()
    sites = sites.assign(gap_low=sites.gap - 0.01, gap_high=sites.gap + 0.01, dealt_mean=0.05, dealt_95=0.06, p=0.01)
    return table, sites


def ablation(number: int = 4, encoders: int = 7) -> tuple[pd.DataFrame, pd.DataFrame]:
    """As `experts.ablation` (sites, heads): the effect grows to the last encoder but one; the last head has none."""
    rows = []
    for encoder in range(1, encoders + 1):
        for head in range(number):
            own = 0.0 if head == number - 1 else 0.01 * (encoder if encoder < encoders else 1)
            drops = {"drop_own": own, "drop_others": 0.03, "random_own": 0.03, "random_others": 0.031}
            row = {"site": f"enc{encoder}/mha", "encoder": encoder, "head": head, "labels": 25, "draws": 10}
            for name, value in (drops | {"excess": own}).items():
                row |= {name: value, f"{name}_low": value - 0.01, f"{name}_high": value + 0.01}
            rows.append(row)
    table = pd.DataFrame(rows)
    columns = ["excess", "excess_low", "excess_high"]
    return table.groupby(["site", "encoder"], as_index=False)[columns].mean(), table


def pruned() -> pd.DataFrame:
    """Pruned networks: five targets, all methods, several densities and lengths of retraining."""
    rng, rows = np.random.default_rng(0), []
    for target in ("linear1", "linear2", "proj", "fc", "all"):
        for theta, density in ((0.1, 0.7), (0.3, 0.35), (0.7, 0.1)):
            for epochs in (0, 1, 3):
                for method, price in (
                    ("andc", 0.2),
                    ("shuffled", 0.3),
                    ("random", 0.4),
                    ("magnitude", 0.05),
                    ("wanda", 0.04),
                ):
                    for seed in range(3 if method in ("random", "shuffled") else 1):
                        value = 0.63 - price * (1 - density) ** 2 / (1 + epochs) + 0.002 * rng.normal()
                        row = {"target": target, "method": method, "seed": seed, "epochs": epochs, "theta": theta}
                        row |= {"density": density, "accuracy": value, "low": value - 0.01, "high": value + 0.01}
                        rows.append(row | {"accuracy_dense": 0.63})
    return pd.DataFrame(rows)


def verdicts() -> pd.DataFrame:
    """As `rules.verdicts_table`: a long effect, one without an interval."""
    long = "; ".join(["SNR x1.08 and noise x0.95 from the first to the last encoder at mha (Kendall's tau 0.05)"] * 4)
    statement = "The signal sharpens along the encoders: noise falls and the signal-to-noise ratio rises."
    rows = [
        ("C1", "Accuracy progresses.", "holds", "+2.6 points an encoder", 2.4, 2.8, "4 of 4 readings", "not asked"),
        ("C3", statement, "does not hold", long, 1.02, 1.13, "7 of 8 readings", "not of nodes"),
        ("C7", "A shared mechanism.", "not tested", "not measured", np.nan, np.nan, "not judged", "not judged"),
    ]
    return pd.DataFrame(rows, columns=["claim", "statement", "verdict", "effect", "low", "high", "robust", "nodes"])


def claims(datasets: tuple[str, ...]) -> pd.DataFrame:
    """Verdicts by data set: one claim that all agree on, and others."""
    states = ("holds", "does not hold", "not tested")
    statement = "The signal sharpens along the encoders: noise falls and the signal-to-noise ratio rises."
    rows = [
        (name, claim, statement, states[(line * place) % 3])
        for line, claim in enumerate(("C1", "C2", "C3"))
        for place, name in enumerate(datasets)
    ]
    return pd.DataFrame(rows, columns=["dataset", "claim", "statement", "verdict"])
