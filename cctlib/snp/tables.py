"""The tables of SNP: what figures, claims and the command line read (Method, section 5).

accuracy      one row a site: progressive accuracy on test images, with a 95% bootstrap interval
nodes         one row a node and threshold: silent, ones, labels |D|, clusters N_c, signal, noise and its two parts
by_theta      one row a site and threshold: means over nodes, under both conventions, and every signal-to-noise ratio
orders        the same at 0.3, with the clusters walked in random label orders; one row a site and order
controls      the same at 0.3, with the labels shuffled across images (from `measure`), and in random bases (see
              `controls`); one row a site, control and draw
alternatives  the same at 0.3, with a choice of the method made otherwise, and the probe's accuracy (NaN where the
              alternative leaves the probe as it is); one row a site and alternative
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Integer

from cctlib import bootstrap, stages
from cctlib.model import sites
from cctlib.snp import controls, fields, measure, probe
from cctlib.snp.fields import site_row
from cctlib.snp.measure import Measurement, SiteMeasurement

NAMES = ("accuracy", "nodes", "by_theta", "orders", "controls", "alternatives")
AS_DEFINED = "as chosen"  # the row that the alternatives are compared with
SPLITS = {  # alternatives that leave the probe as it is, by the averages that they use
    AS_DEFINED: "test",
    "silenced before SeqPool": measure.NODEWISE,
    "averaged over held-out images": "held-out",
}
PROBES = {  # alternatives with a probe of their own, by its variant
    probe.SWAPPED: "LayerNorm at mha, none at ff",
    probe.SHORT: "probes of the first version",
}
COUNTS = ("ones", "labels", "clusters", "signal", "noise", "column_noise", "foreign_noise")


def compute(
    result: Measurement,
    shuffled: pd.DataFrame,
    thetas: Sequence[float],
    label_orders: int,
    rotations: int,
    heads: int,
    folder: Path,
    device: torch.device,
) -> None:
    """Write the tables into `folder`, as Parquet. shuffled: the rows of `controls` that `measure` made."""
    in_order, draw = torch.arange(len(result.names), device=device), torch.Generator().manual_seed(0)
    drawn = fields.shuffled(in_order, label_orders, draw)
    by_theta, nodes, orders = [], [], []
    for site in result.sites:
        mu, W = (array.to(device) for array in result[site].tensors())
        for theta in thetas:
            statistics = fields.measure(mu, W, theta)
            by_theta.append(site_row(site, statistics))
            nodes.append(nodes_table(site, statistics))
        orders += [site_row(site, fields.measure(mu, W, order=order), order=at) for at, order in enumerate(drawn)]
    made = {
        "accuracy": accuracy_table(
            {site: values.predictions["test"] for site, values in result.sites.items()}, result.labels["test"]
        ),
        "nodes": pd.concat(nodes, ignore_index=True),
        "by_theta": pd.DataFrame(by_theta),
        "orders": pd.DataFrame(orders),
        "controls": pd.concat([shuffled, controls.table(result, rotations, heads)], ignore_index=True),
        "alternatives": alternatives_table(result, device),
    }
    stages.write_tables(made, folder)


def nodes_table(site: str, statistics: fields.SiteStatistics) -> pd.DataFrame:
    """Rows of `nodes` for one site and threshold."""
    encoder, kind = sites.parse(site)
    counts = {name: getattr(statistics, name).cpu().numpy().astype(np.int32) for name in COUNTS}
    silent = statistics.silent.cpu().numpy()
    where = {
        "site": site,
        "encoder": encoder,
        "kind": kind,
        "theta": statistics.theta,
        "node": np.arange(len(silent)),
        "silent": silent,
    }
    return pd.DataFrame(where | counts)


def accuracy_table(
    predictions: Mapping[str, Integer[np.ndarray, "image"]], labels: Integer[np.ndarray, "image"]
) -> pd.DataFrame:
    """Progressive accuracy: site, encoder, kind, accuracy, low, high, as shares of 1. predictions: by site."""
    weights = bootstrap.resample(labels)
    correct = np.stack([of_site == labels for of_site in predictions.values()], axis=1)
    accuracy, low, high = bootstrap.estimate(torch.from_numpy(correct) / len(labels), weights).numpy()
    where = pd.DataFrame([sites.parse(site) for site in predictions], columns=["encoder", "kind"])
    where.insert(0, "site", list(predictions))
    return where.assign(accuracy=accuracy, low=low, high=high)


def alternatives_table(result: Measurement, device: torch.device) -> pd.DataFrame:
    """What the numbers would be, had a choice been made otherwise: rows as `by_theta`, with the `alternative` and the
    `accuracy` of the probe on test images, as a share of 1. Only what was measured has rows.
    """

    def row(alternative: str, site: str, measured: SiteMeasurement, split: str = "test") -> dict[str, object]:
        mu, W = (array.to(device) for array in measured.tensors(split))
        right = (measured.predictions["test"] == result.labels["test"]).mean() if split == "test" else np.nan
        return site_row(site, fields.measure(mu, W), alternative=alternative, accuracy=float(right))

    rows = [
        row(alternative, site, measured, split)
        for site, measured in result.sites.items()
        for alternative, split in SPLITS.items()
        if split in measured.mu
    ]
    for variant, alternative in PROBES.items():
        probed = result.alternatives.get(variant, {})
        rows += [row(alternative, site, measured) for site, measured in probed.items()]
    return pd.DataFrame(rows)
