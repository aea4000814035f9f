"""The claims judged as stated: one function a claim, from tables to a `Verdict` (Method, section 8).

`rules.RULES` says in words what each function decides by. Accuracies are shares of 1 in tables and points (hundredths)
in the text of an effect. `judge` puts a study's tables into the functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from cctlib.claims import rules
from cctlib.claims.rules import FAILS, HOLDS, IN_PART, NOT_TESTED, State, Verdict
from cctlib.model.sites import parse


def graded(all_hold: bool, some_hold: bool) -> State:
    """The state of a claim from its whole condition and its weaker one."""
    return HOLDS if all_hold else IN_PART if some_hold else FAILS


# C1: the accuracy of probes grows --------------------------------------------------------------------------


def progress(
    predictions: Mapping[str, Integer[np.ndarray, "image"]],
    labels: Integer[np.ndarray, "image"],
    weights: Float[Tensor, "resample image"],
    kinds: Sequence[str] = rules.SUB_BLOCKS,
) -> Verdict:
    """C1 from the probes' predictions of the test images, by site, and `bootstrap.resample` of their labels."""
    sites = pd.DataFrame([(site, *parse(site)) for site in predictions], columns=["site", "encoder", "kind"])
    gains, trends, texts, intervals = [], [], [], []
    for kind in kinds:
        correct = np.stack([predictions[name] == labels for name in rules.by_encoder(sites, kind).site], axis=1)
        accuracy, interval = correct.mean(axis=0), gain_interval(correct, weights)
        tau, rises = rules.trend(accuracy)
        gains.append(interval[0] > 0)
        trends.append(rises)
        intervals.append(interval)
        change = f"{100 * (accuracy[-1] - accuracy[0]):+.1f} points at {kind}"
        texts.append(f"{change} ({accuracy[0]:.1%} to {accuracy[-1]:.1%}, tau {tau:.2f})")
    one_site = any(gain and rises for gain, rises in zip(gains, trends, strict=True))
    state = graded(all(gains) and all(trends), all(gains) or one_site)
    return Verdict("C1", state, "; ".join(texts), intervals[0], nodes=SITE_ONLY)


SITE_ONLY = "no: a rotation of the nodes changes no probe's accuracy, so progress is a property of the site"


def gain_interval(
    correct: Float[np.ndarray, "image encoder"] | np.ndarray, weights: Float[Tensor, "resample image"]
) -> tuple[float, float]:
    """95% interval, in points, of the last encoder's accuracy less the first's; paired over images."""
    difference = torch.from_numpy(correct[:, -1].astype(np.float32) - correct[:, 0].astype(np.float32))
    return rules.percentiles(100 * (weights.cpu() @ difference).double().numpy() / len(correct))


# C2: small clusters ----------------------------------------------------------------------------------------


def small_clusters(
    nodes: pd.DataFrame, shuffled: pd.DataFrame, num_labels: int, kinds: Sequence[str] = rules.SUB_BLOCKS
) -> Verdict:
    """C2 at theta 0.3.

    nodes: site, encoder, kind, silent, labels, clusters, noise (one row a node). shuffled: site, draw, noise (means of
    the site with labels shuffled across images). Raises `UserError` when a kind of site has no nodes.
    """
    nodes, shuffled = rules.at_theta(nodes), rules.at_theta(shuffled)
    sites = pd.concat([_cluster_rows(rules.by_encoder(nodes, kind), shuffled, num_labels) for kind in kinds])
    conditions = {name: _at_most_sites(sites, name) for name in ("each", "small", "quiet")}
    draws = int(shuffled.groupby("site").draw.nunique().min()) if len(shuffled) else 0
    sure = conditions["each"] + conditions["small"]
    if draws < rules.DRAWS:
        state = NOT_TESTED if sure else FAILS
    else:
        state = graded(sure + conditions["quiet"] == 3, sure + conditions["quiet"] == 2)
    span = {name: f"{sites[name].min():.1f} to {sites[name].max():.1f}" for name in ("size", "count")}
    noise = f"noise {sites.ratio.min():.2f} to {sites.ratio.max():.2f} times that of shuffled labels" if draws else ""
    text = (
        f"clusters of {span['size']} labels of {num_labels}; {span['count']} clusters a node; "
        f"at least {sites.share.min():.0%} of the nodes have one; {noise or 'no labels were shuffled'}"
    )
    open_ = f"; {draws} draws of shuffled labels, {rules.DRAWS} decide" if state == NOT_TESTED else ""
    return Verdict("C2", state, text + open_, _mean_size_interval(nodes, kinds))


def _cluster_rows(nodes: pd.DataFrame, shuffled: pd.DataFrame, num_labels: int) -> pd.DataFrame:
    """The three conditions of C2 at each site of a kind, and its numbers."""
    rows = []
    for (site, kind), group in nodes.groupby(["site", "kind"], sort=False):
        filled, chance = group[~group.silent.astype(bool)], shuffled[shuffled.site == site].noise
        share = float((group.clusters > 0).mean())
        size = group.labels.sum() / group.clusters.sum() if group.clusters.sum() else np.nan
        numbers = {
            "share": share,
            "size": size,
            "count": filled.clusters.mean(),
            "ratio": filled.noise.mean() / chance.mean(),
        }
        conditions = {
            "each": share >= rules.EACH,
            "small": bool(size <= rules.SMALL * num_labels),
            "quiet": bool(len(chance) and filled.noise.mean() < chance.min()),
        }
        rows.append({"site": site, "kind": kind, **numbers, **conditions})
    return pd.DataFrame(rows)


def _at_most_sites(sites: pd.DataFrame, condition: str) -> bool:
    """Whether a condition holds at most encoders of every kind of site."""
    return bool((sites.groupby("kind")[condition].mean() >= rules.MOST).all())


def _mean_size_interval(nodes: pd.DataFrame, kinds: Sequence[str]) -> tuple[float, float]:
    """95% interval over nodes of the mean cluster size, averaged over the sites of these kinds."""
    sizes = []
    for number, (_, group) in enumerate(nodes[nodes.kind.isin(kinds)].groupby("site", sort=False)):
        weights = rules.node_weights(len(group), number)
        with np.errstate(invalid="ignore", divide="ignore"):
            sizes.append((weights @ group.labels.to_numpy(float)) / (weights @ group.clusters.to_numpy(float)))
    return rules.percentiles(np.mean(sizes, axis=0))


# C3: sharpening --------------------------------------------------------------------------------------------


def sharpening(nodes: pd.DataFrame, kinds: Sequence[str] = rules.SUB_BLOCKS) -> Verdict:
    """C3 at theta 0.3 from the nodes: site, encoder, kind, silent, ones, labels, signal, noise.

    Raises `UserError` when a kind of site has no nodes.
    """
    nodes, ends, trends, texts, intervals = rules.at_theta(nodes), [], [], [], []
    for kind in kinds:
        samples = resampled(rules.by_encoder(nodes, kind))
        parts = []
        for name, sign in (("noise", -1), ("snr", 1)):
            values = samples[name]
            tau, holds = rules.trend(values[0], sign)
            low, high = rules.percentiles(values[1:, -1] / values[1:, 0])
            ends.append(high < 1 if sign < 0 else low > 1)
            trends.append(holds)
            parts.append(f"{name if sign < 0 else 'SNR'} x{values[0, -1] / values[0, 0]:.2f} (tau {tau:+.2f})")
            intervals.append((low, high))
        texts.append(f"{' and '.join(parts)} at {kind}")
    state = graded(all(ends) and all(trends), all(ends))
    return Verdict("C3", state, "; ".join(texts) + ", last encoder against first", intervals[0])


def resampled(nodes: pd.DataFrame) -> dict[str, Float[np.ndarray, "sample encoder"]]:
    """Numbers of the sites of one kind that follow from counts of nodes (Method, section 5), by name.

    Row 0 has every node once; the other rows are bootstrap samples of the nodes. Ratios are as in
    `snp.SiteStatistics.summary`, but for a factor that all encoders share.
    """
    sites = []
    for number, (_, site) in enumerate(nodes.groupby("site", sort=False)):
        full, ratio = ~site.silent.astype(bool), site.signal / site.noise.clip(lower=1)
        columns = [site.noise, site.labels, site.ones - site.labels, ratio, full, site.clusters, site.clusters > 0]
        counts = np.stack(columns, axis=1).astype(float)
        sites.append(np.concatenate([counts.sum(axis=0)[None], rules.node_weights(len(site), number) @ counts]))
    noise, labels, wrong, ratio, full, clusters, having = np.stack(sites, axis=1).transpose(2, 0, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "noise": noise / full,
            "snr": labels / wrong,
            "snr_blocks": labels / noise,
            "snr_node": ratio / full,
            "cluster_size": labels / clusters,
            "share": having / np.array([len(site) for _, site in nodes.groupby("site", sort=False)]),
        }


# C4: pruning -----------------------------------------------------------------------------------------------


def pruning(saturated: pd.DataFrame | None, short: pd.DataFrame | None = None) -> Verdict:
    """C4 from networks that were pruned and retrained until they stopped gaining; `short` is told where there are none.

    saturated: target, method, theta, seed, density, accuracy, low, high, accuracy_dense; the last is that of the dense
    network trained as long, and low and high bound the accuracy by the paired bootstrap against it. None when no
    network was retrained so long. short: the same columns and epochs, after a part of an epoch.
    """
    if saturated is None or saturated.empty:
        return Verdict("C4", NOT_TESTED, f"no network was retrained until it stopped gaining{_after_little(short)}")
    states, texts, intervals = [], [], []
    for target, rows in saturated[saturated.density <= rules.HALF].groupby("target", sort=False):
        densest = rows[np.isclose(rows.density, rows.density.max(), atol=0.01)]
        andc, random = densest[densest.method == "andc"], densest[densest.method == "random"]
        if andc.empty or random.empty:
            continue
        change, low, high = (100 * (andc[name] - andc.accuracy_dense).mean() for name in ("accuracy", "low", "high"))
        chance = 100 * (random.accuracy - random.accuracy_dense).mean()
        states.append(change >= -rules.TOLERANCE and change > chance)
        intervals.append((float(low), float(high)))
        texts.append(f"{change:+.1f} points at {target}, {andc.density.mean():.0%} kept (random masks {chance:+.1f})")
    if not states:
        return Verdict("C4", NOT_TESTED, f"no layer was pruned to {rules.HALF:.0%} of its weights and retrained")
    return Verdict("C4", graded(all(states), any(states)), "; ".join(texts), intervals[0])


def _after_little(short: pd.DataFrame | None) -> str:
    """What ANDC loses at each target after the longest retraining there was, which does not decide."""
    if short is None or short.empty:
        return ""
    andc = rules.at_theta(short)[rules.at_theta(short).method == "andc"]
    longest = andc[andc.epochs == andc.groupby("target").epochs.transform("max")]
    change = 100 * (longest.accuracy - longest.accuracy_dense).groupby(longest.target, sort=False).mean()
    changes = ", ".join(f"{target} {value:+.1f}" for target, value in change.items())
    return f"; after {longest.epochs.max():g} epochs, points against the dense network: {changes}"


# C5: expert heads ------------------------------------------------------------------------------------------


def experts(
    symmetry: Sequence[pd.DataFrame], gaps: Sequence[pd.DataFrame], agreement: pd.DataFrame | None = None
) -> Verdict:
    """C5 from the site tables of `heads.symmetry` and `experts.expert_accuracy`, a pair of them for each network.

    agreement: pairs of networks with their adjusted Rand index `rand`; needed from three networks on.
    """
    broken = [_most(table.p_holm < rules.SIGNIFICANT) for table in symmetry]
    able = [_most((table.p < rules.SIGNIFICANT) & (table.gap_low > 0)) for table in gaps]
    each = all(broken) and all(able)
    seeds, rand = len(symmetry), np.nan if agreement is None else float(agreement.rand.mean())
    over_seeds = seeds >= rules.SEEDS and abs(rand) <= rules.UNRELATED
    first, concentration = gaps[0], symmetry[0]
    text = (
        f"{100 * first.gap.mean():+.1f} points on own labels (dealt nodes {100 * first.dealt_mean.mean():+.1f}); "
        f"concentration {concentration.concentration.mean():.3f} (dealt nodes {concentration.dealt_mean.mean():.3f}); "
        + (f"adjusted Rand index {rand:+.2f} over {seeds} networks" if seeds >= rules.SEEDS else _too_few(seeds))
    )
    interval = (100 * float(first.gap_low.mean()), 100 * float(first.gap_high.mean()))
    return Verdict("C5", graded(each and over_seeds, each), text, interval)


def _most(conditions: pd.Series) -> bool:
    return bool(conditions.mean() >= rules.MOST)


def _too_few(seeds: int) -> str:
    return f"{seeds} network{'s' if seeds > 1 else ''}, so the part over networks is not tested"


# C7: convolutional networks --------------------------------------------------------------------------------


def shared_mechanism(convolutional: Sequence[Verdict] | None) -> Verdict:
    """C7 from the verdicts C1, C2 and C3 along the layers of a convolutional network; None when none was measured."""
    if not convolutional:
        return Verdict("C7", NOT_TESTED, "no convolutional network was measured")
    states = [verdict.state == HOLDS for verdict in convolutional]
    text = ", ".join(f"{verdict.claim} {verdict.state}" for verdict in convolutional)
    return Verdict("C7", graded(all(states), any(states)), text)


# Is it about nodes? ----------------------------------------------------------------------------------------


def clusters_beyond_basis(nodes: pd.DataFrame, rotated: pd.DataFrame, kinds: Sequence[str] = rules.SUB_BLOCKS) -> str:
    """C2: at how many sites a node's noise lies below that of every random basis.

    nodes: rows of `by_theta`; rotated: site, encoder, kind, draw, noise, snr with the site's basis drawn at random.
    """
    nodes = rules.at_theta(nodes)
    nodes = nodes[nodes.kind.isin(kinds)]
    lowest = rotated[rotated.kind.isin(kinds)].groupby("site").noise.min()
    below = nodes.noise.to_numpy() < nodes.site.map(lowest).to_numpy()
    answer = "yes" if below.mean() >= rules.MOST else "in part" if below.any() else "no"
    return f"{answer}: less noise than in every random basis at {below.sum()} of {len(below)} sites"


def sharpening_beyond_basis(nodes: pd.DataFrame, rotated: pd.DataFrame, kinds: Sequence[str] = rules.SUB_BLOCKS) -> str:
    """C3: at which sub-blocks SNR gains more from the first to the last encoder than in every random basis."""
    nodes, beyond, texts = rules.at_theta(nodes), [], []
    for kind in kinds:
        gain = _gain(rules.by_encoder(nodes, kind).snr.to_numpy(float))
        draws = [_gain(rows.snr.to_numpy(float)) for _, rows in rules.by_encoder(rotated, kind).groupby("draw")]
        beyond.append(gain > max(draws))
        texts.append(f"SNR x{gain:.2f} at {kind} (random bases x{min(draws):.2f} to x{max(draws):.2f})")
    answer = "yes" if all(beyond) else "in part" if any(beyond) else "no"
    return f"{answer}: {'; '.join(texts)}"


def _gain(values: Float[np.ndarray, "encoder"]) -> float:
    return float(values[-1] / values[0])


def heads_beyond_basis(sites: pd.DataFrame) -> str:
    """C5: whether what is concentrated survives a rotation within heads, which keeps each head's subspace.

    sites: rows of `heads.symmetry` with the controls within and across heads. Labels are compared at most encoders.
    """
    if "within_low" not in sites or "across_high" not in sites:
        return "not tested"
    subspace = _most(sites.within_low > sites.across_high)
    nodes = _most(sites.concentration > sites.within_high)
    answer = "yes" if nodes else "in part" if subspace else "no"
    about = "the subspaces of heads and their nodes" if nodes else "the subspaces of heads" if subspace else "neither"
    means = f"{sites.within_mean.mean():.3f} within heads, {sites.across_mean.mean():.3f} across"
    return f"{answer}: about {about} (concentration {sites.concentration.mean():.3f}; rotated {means})"


def with_basis(verdicts: Sequence[Verdict], by_theta: pd.DataFrame, rotated: pd.DataFrame) -> list[Verdict]:
    """The verdicts C2 and C3 with their answers about nodes; as they are where no basis was rotated."""
    if rotated.empty:
        return list(verdicts)
    answers = {"C2": clusters_beyond_basis, "C3": sharpening_beyond_basis}
    return [
        replace(verdict, nodes=answers[verdict.claim](by_theta, rotated)) if verdict.claim in answers else verdict
        for verdict in verdicts
    ]
