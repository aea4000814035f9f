"""Specification curves: a claim at every combination of equivalent choices (Simonsohn, Simmons and Nelson 2020).

A *reading* is one combination: a sub-block, a threshold, a form of SNR, the images. Only readings that ask the same
question are pooled (Del Giudice and Gangestad 2021); choices that ask another one, such as silencing nodes before
SeqPool, are shown apart. There is no p-value over a curve.

Each function returns a table with one row a reading: quantity, effect, low, high (95%, NaN where there is no interval),
agrees (whether the reading supports the claim), and one column for each choice of `CHOICES` that it varies.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from cctlib import bootstrap
from cctlib.claims import rules
from cctlib.model.sites import parse

CHOICES = ("sub-block", "theta", "SNR", "images", "evidence", "encoder")
SNR = {
    "snr": "diagonal / rest",
    "snr_blocks": "diagonal / outside blocks",
    "snr_node": "mean over nodes",
    "snr_field": "fields",
}


def progress(predictions: pd.DataFrame, kinds: Sequence[str] = rules.SUB_BLOCKS) -> pd.DataFrame:
    """C1: the last encoder's accuracy less the first's, in points.

    predictions: split, label, and the predicted label at each site; one row an image.
    """
    sites = pd.DataFrame(
        [(site, *parse(site)) for site in predictions.columns[2:]], columns=["site", "encoder", "kind"]
    )
    rows = []
    for split, of_split in predictions.groupby("split", sort=False):
        labels = of_split.label.to_numpy()
        weights = bootstrap.resample(labels)
        for kind in kinds:
            names = rules.by_encoder(sites, kind).site
            first, last = (of_split[names.iloc[end]].to_numpy() == labels for end in (0, -1))
            gain = torch.from_numpy(last.astype(np.float32) - first.astype(np.float32))  # paired over images
            low, high = bootstrap.interval(100 * (weights @ gain).double() / len(gain)).tolist()
            effect = 100 * float(last.mean() - first.mean())
            rows.append(_row("accuracy", effect, low, high, low > 0, **{"sub-block": kind, "images": split}))
    return pd.DataFrame(rows)


def small_clusters(nodes: pd.DataFrame, num_labels: int, kinds: Sequence[str] = rules.SUB_BLOCKS) -> pd.DataFrame:
    """C2: the mean cluster size over the encoders, as a share of the labels, at every threshold of `nodes`."""
    rows = []
    for kind, theta, samples in _resampled_at(nodes, kinds):
        sizes = samples["cluster_size"] / num_labels
        low, high = bootstrap.interval(torch.from_numpy(sizes[1:].mean(axis=1))).tolist()
        small = (sizes[0] <= rules.SMALL) & (samples["share"][0] >= rules.EACH)
        agrees = bool(small.mean() >= rules.MOST)
        rows.append(_row("cluster size", sizes[0].mean(), low, high, agrees, **{"sub-block": kind, "theta": theta}))
    return pd.DataFrame(rows)


def sharpening(nodes: pd.DataFrame, by_theta: pd.DataFrame, kinds: Sequence[str] = rules.SUB_BLOCKS) -> pd.DataFrame:
    """C3: noise and every form of SNR, last encoder over first, at every threshold of `nodes`.

    The ratio of fields depends on no threshold and has no interval over nodes: it is one reading a sub-block.
    """
    rows = []
    for kind, theta, samples in _resampled_at(nodes, kinds):
        choice = {"sub-block": kind, "theta": theta}
        for name in ("noise", "snr", "snr_blocks", "snr_node"):
            ratio = samples[name][:, -1] / samples[name][:, 0]
            low, high = bootstrap.interval(torch.from_numpy(ratio[1:])).tolist()
            if name == "noise":
                rows.append(_row("noise", ratio[0], low, high, high < 1, **choice))
            else:
                rows.append(_row("SNR", ratio[0], low, high, low > 1, **choice, SNR=SNR[name]))
    for kind in kinds:
        values = rules.by_encoder(rules.at_theta(by_theta), kind).snr_field.to_numpy(float)
        ratio = values[-1] / values[0]
        rows.append(_row("SNR", ratio, np.nan, np.nan, ratio > 1, **{"sub-block": kind, "SNR": SNR["snr_field"]}))
    return pd.DataFrame(rows)


def experts(symmetry: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """C5: how far heads exceed dealt nodes, in hundredths: concentration and expert gap, at every encoder."""
    rows = []
    for row in symmetry.itertuples():
        effect, agrees = 100 * (row.concentration - row.dealt_mean), row.p_holm < rules.SIGNIFICANT
        rows.append(_row("experts", effect, np.nan, np.nan, agrees, evidence="concentration", encoder=row.encoder))
    for row in gaps.itertuples():
        effect, low, high = (100 * (value - row.dealt_mean) for value in (row.gap, row.gap_low, row.gap_high))
        agrees = row.p < rules.SIGNIFICANT and row.gap_low > 0
        rows.append(_row("experts", effect, low, high, agrees, evidence="expert gap", encoder=row.encoder))
    return pd.DataFrame(rows)


def in_words(readings: pd.DataFrame) -> str:
    """How robust: how many readings agree, and the choice that at least half of the others have, if it is one."""
    agree, total = int(readings.agrees.sum()), len(readings)
    text = f"{agree} of {total} readings agree"
    failing = total - agree
    if not failing or not agree:
        return text
    found = []
    for choice in [name for name in ("quantity", *CHOICES) if name in readings and readings[name].nunique() > 1]:
        for value, rows in readings.groupby(choice):
            missed = int((~rows.agrees).sum())
            if 2 * missed >= failing and missed / len(rows) >= 1.5 * failing / total:
                name = f"{choice} {value:g}" if isinstance(value, float) else f"{choice} {value}"
                found.append((missed, len(rows), name))
    if not found:
        return text
    missed, of_choice, name = max(found, key=lambda entry: entry[0] ** 2 / entry[1])  # many, and much of the choice
    share = "all" if missed == failing else f"{missed} of the"
    who = "the one that disagrees has" if failing == 1 else f"{share} {failing} that disagree have"
    return f"{text}; {who} {name} ({missed} of its {of_choice} readings)"


def _row(quantity: str, effect: float, low: float, high: float, agrees: object, **choices: object) -> dict[str, object]:
    return {"quantity": quantity, "effect": float(effect), "low": low, "high": high, "agrees": bool(agrees), **choices}


def _resampled_at(
    nodes: pd.DataFrame, kinds: Sequence[str]
) -> Iterator[tuple[str, float, dict[str, Float[np.ndarray, "sample encoder"]]]]:
    """Kind, threshold and bootstrap samples, over the thresholds of a table of nodes; equal resamples at each."""
    for kind in kinds:
        for theta, rows in rules.by_encoder(nodes, kind).groupby("theta"):
            yield kind, float(theta), resampled(rows)


def resampled(nodes: pd.DataFrame) -> dict[str, Float[np.ndarray, "sample encoder"]]:
    """Numbers of sites that follow from counts of their nodes (Method, section 5), by name.

    Row 0 has every node once; the other rows are bootstrap samples of the nodes. Ratios are as in
    `snp.SiteStatistics.summary`, but for a factor that all encoders share.
    """
    sites = []
    for number, (_, site) in enumerate(nodes.groupby("site", sort=False)):
        full, ratio = ~site.silent.astype(bool), site.signal / site.noise.clip(lower=1)
        columns = [site.noise, site.labels, site.ones - site.labels, ratio, full, site.clusters, site.clusters > 0]
        counts = np.stack(columns, axis=1).astype(float)
        sites.append(np.concatenate([counts.sum(axis=0)[None], _node_weights(len(site), number) @ counts]))
    noise, labels, wrong, ratio, full, clusters, having = np.stack(sites, axis=1).transpose(2, 0, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "noise": noise / full,
            "snr": labels / wrong,
            "snr_blocks": labels / noise,
            "snr_node": ratio / full,
            "clusters": clusters / full,
            "cluster_size": labels / clusters,
            "share": having / nodes.groupby("site", sort=False).size().to_numpy(),
        }


@lru_cache(maxsize=32)
def _node_weights(nodes: int, site: int) -> Float[np.ndarray, "resample node"]:
    """Bootstrap weights of the nodes of a site; sites of other numbers get other weights, each the same every time."""
    return bootstrap.resample(np.zeros(nodes, dtype=int), seed=site).double().numpy()
