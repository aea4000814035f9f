"""The claims judged as stated: one function a claim, from tables to a `Verdict` (Method, section 8).

`rules.RULES` says in words what each function decides by. Where a claim has readings (`specifications`), the reading
at the method's own choices decides. Accuracies are shares of 1 in tables and points (hundredths)
in the text of an effect. `judge` puts a study's tables into the functions.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from cctlib import bootstrap
from cctlib.andc import masks
from cctlib.claims import rules, specifications
from cctlib.claims.rules import FAILS, HOLDS, IN_PART, NOT_TESTED, State, Verdict


def graded(all_hold: bool, some_hold: bool) -> State:
    """The state of a claim from its whole condition and its weaker one."""
    return HOLDS if all_hold else IN_PART if some_hold else FAILS


def progress(readings: pd.DataFrame, accuracy: pd.DataFrame, kinds: Sequence[str] = rules.SUB_BLOCKS) -> Verdict:
    """C1 from its readings (`specifications.progress`) on test images, and the probes' accuracy along the encoders.

    accuracy: encoder, kind, accuracy (a share of 1). Raises `UserError` when a kind of site has no probes.
    """
    gains = readings[readings.images == "test"].set_index("sub-block")
    trends, texts = [], []
    for kind in kinds:
        values = rules.by_encoder(accuracy, kind).accuracy.to_numpy(float)
        tau, rises = rules.trend(values)
        trends.append(rises)
        ends = f"{values[0]:.1%} to {values[-1]:.1%}"
        texts.append(f"{gains.effect[kind]:+.1f} points at {kind} ({ends}, tau {tau:.2f})")
    grown = [gains.agrees[kind] for kind in kinds]
    one_site = any(gain and rises for gain, rises in zip(grown, trends, strict=True))
    state = graded(all(grown) and all(trends), all(grown) or one_site)
    interval = (gains.low[kinds[0]], gains.high[kinds[0]])
    return Verdict("C1", state, "; ".join(texts), interval)


def small_clusters(
    nodes: pd.DataFrame, shuffled: pd.DataFrame, num_labels: int, kinds: Sequence[str] = rules.SUB_BLOCKS
) -> Verdict:
    """C2 at theta 0.3.

    nodes: site, encoder, kind, silent, labels, clusters, noise (one row a node). shuffled: site, draw, noise (means of
    the site with labels shuffled across images). The interval is that of the mean cluster size over the sites.
    """
    nodes, shuffled = rules.at_theta(nodes), rules.at_theta(shuffled)
    nodes = nodes[nodes.kind.isin(kinds)]
    samples = specifications.resampled(nodes)
    sites = nodes.groupby("site", sort=False)[["kind"]].first()
    sites = sites.assign(**{name: samples[name][0] for name in ("share", "clusters", "cluster_size", "noise")})
    chance = shuffled.noise.astype(float).groupby(shuffled.site)
    ratio = sites.noise / chance.mean().reindex(sites.index)
    conditions = {
        "each": sites.share >= rules.EACH,
        "small": sites.cluster_size <= rules.SMALL * num_labels,
        "quiet": sites.noise < chance.min().reindex(sites.index),
    }
    each, small, quiet = (pd.DataFrame(conditions).groupby(sites.kind).mean() >= rules.MOST).all()
    draws = int(shuffled.groupby("site").draw.nunique().min()) if len(shuffled) else 0
    too_few = rules.SMALL * num_labels < 2  # labels, for a cluster of several to be small
    if too_few:
        state = NOT_TESTED
    elif draws < rules.DRAWS:
        state = NOT_TESTED if each or small else FAILS
    else:
        state = graded(each and small and quiet, sum((each, small, quiet)) == 2)
    size, count = (f"{sites[name].min():.1f} to {sites[name].max():.1f}" for name in ("cluster_size", "clusters"))
    least = np.floor(100 * sites.share.min())  # not rounded up to all of them
    having = "every node has" if least == 100 else f"at least {least:.0f}% of the nodes have"
    noise = f"noise {ratio.min():.2f} to {ratio.max():.2f} times that of shuffled labels" if draws else ""
    text = (
        f"clusters of {sites.cluster_size.mean():.2f} of {num_labels} labels on average ({size} by site); {count} "
        f"clusters per node; {having} one; {noise or 'no labels were shuffled'}"
    )
    why = (
        "so few labels have no small cluster" if too_few else f"{draws} draws of shuffled labels, {rules.DRAWS} decide"
    )
    open_ = f"; {why}" if state == NOT_TESTED else ""
    low, high = bootstrap.interval(torch.from_numpy(samples["cluster_size"][1:].mean(axis=1))).tolist()
    return Verdict("C2", state, text + open_, (low, high))


def sharpening(readings: pd.DataFrame, by_theta: pd.DataFrame, kinds: Sequence[str] = rules.SUB_BLOCKS) -> Verdict:
    """C3 at theta 0.3 from its readings (`specifications.sharpening`), and site means along the encoders.

    by_theta: encoder, kind, theta, noise, snr. Raises `UserError` when a kind of site has no row.
    """
    means, at = rules.at_theta(by_theta), rules.at_theta(readings)
    stated = at[at.SNR.isna() | at.SNR.isin([specifications.SNR["snr"]])].set_index(["sub-block", "quantity"])
    ends, trends, texts = [], [], []
    for kind in kinds:
        parts = []
        for quantity, column, sign in (("noise", "noise", -1), ("SNR", "snr", 1)):
            reading = stated.loc[(kind, quantity)]
            tau, holds = rules.trend(rules.by_encoder(means, kind)[column].to_numpy(float), sign)
            ends.append(reading.agrees)
            trends.append(holds)
            parts.append(f"{quantity} x{reading.effect:.2f} (tau {tau:+.2f})")
        texts.append(f"{' and '.join(parts)} at {kind}")
    first = stated.loc[(kinds[0], "noise")]
    state = graded(all(ends) and all(trends), all(ends))
    return Verdict("C3", state, "; ".join(texts) + ", last against first", (first.low, first.high))


def pruning(saturated: pd.DataFrame | None, short: pd.DataFrame) -> Verdict:
    """C4 from networks that were pruned and retrained until they stopped gaining; `short` is told where there are none.

    saturated: target, method, theta, seed, density, accuracy, low, high, accuracy_dense; the last is that of the dense
    network trained as long, and low and high bound the accuracy by the paired bootstrap against it. None when no
    network was retrained so long. short: the same columns and epochs, after a part of an epoch.
    """
    if saturated is None:
        return Verdict("C4", NOT_TESTED, f"no network was retrained until it stopped gaining{_after_little(short)}")
    states, texts, intervals = {}, [], []
    judged = rules.at_one_theta(saturated)
    for target, rows in judged[rules.decides(judged)].groupby("target", sort=False):
        andc, random = rows[rows.method == "andc"], rows[rows.method == "random"]
        if andc.empty or random.empty:
            continue
        change, low, high = (100 * (andc[name] - andc.accuracy_dense).mean() for name in ("accuracy", "low", "high"))
        chance = 100 * (random.accuracy - random.accuracy_dense).mean()
        states[target] = bool(change >= -rules.TOLERANCE and change > chance)
        intervals.append((float(low), float(high)))
        kept = f"{andc.density.mean():.0%} kept"
        texts.append(f"{change:+.1f} points in {masks.titled(target)}, {kept} (random masks {chance:+.1f})")
    if not states:
        why = f"no layer was pruned to {rules.HALF:.0%} of its weights and retrained until all methods stopped gaining"
        return Verdict("C4", NOT_TESTED, f"{why}{_after_little(saturated)}")
    if open_targets := [target for target in masks.TARGETS if target not in states]:
        texts.append(f"not judged: {', '.join(open_targets)}")
    state = graded(all(states.values()) and not open_targets, any(states.values()))
    return Verdict("C4", state, "; ".join(texts), intervals[0])


def _after_little(short: pd.DataFrame) -> str:
    """What ANDC loses at each target after the longest retraining there was, which does not decide."""
    andc = rules.at_theta(short).query("method == 'andc'")
    longest = andc[andc.epochs == andc.groupby("target").epochs.transform("max")]
    change = 100 * (longest.accuracy - longest.accuracy_dense).groupby(longest.target, sort=False).mean()
    changes = ", ".join(f"{target} {value:+.1f}" for target, value in change.items())
    return f"; after {longest.epochs.max():g} epochs, points against the dense network: {changes}"


def experts(
    own: tuple[pd.DataFrame, pd.DataFrame],
    networks: Sequence[tuple[pd.DataFrame, pd.DataFrame]],
    agreement: pd.DataFrame,
) -> Verdict:
    """C5 from site tables of `heads.symmetry` and `experts.expert_accuracy`: the study's own pair, and a pair of each
    network that differs from the others in its seed alone. The own pair decides what does not ask for several.

    agreement: pairs of networks with their adjusted Rand index `rand`; none for a single one.
    """
    (concentration, gap), rand = own, float(agreement.rand.mean())
    specialised = [_specialised(*pair) for pair in networks]
    if len(networks) >= rules.SEEDS:
        other = "" if any(symmetry is concentration for symmetry, _ in networks) else " other"
        count = f"{sum(specialised)} of {len(networks)}{other} networks"
        seeds = f"heads specialise in {count}, adjusted Rand index {rand:+.2f}"
    else:
        count = f"{len(networks)} network{'s' if len(networks) > 1 else ''}"
        seeds = f"{count}, so the part over networks is not tested"
    over_seeds = len(networks) >= rules.SEEDS and all(specialised) and abs(rand) <= rules.UNRELATED
    text = (
        f"{100 * gap.gap.mean():+.1f} points on own labels (dealt nodes {100 * gap.dealt_mean.mean():+.1f}); "
        f"concentration {concentration.concentration.mean():.3f} (dealt nodes {concentration.dealt_mean.mean():.3f}); "
        + seeds
    )
    interval = (100 * float(gap.gap_low.mean()), 100 * float(gap.gap_high.mean()))
    holds = _specialised(*own)
    return Verdict("C5", graded(holds and over_seeds, holds), text, interval)


def _specialised(symmetry: pd.DataFrame, gaps: pd.DataFrame) -> bool:
    """Whether labels are concentrated on heads, and heads better on their own labels, each at most encoders.

    Where no label has an owner, an encoder has no row in `gaps`.
    """
    better = (gaps.p < rules.SIGNIFICANT) & (gaps.gap_low > 0)
    return _most(symmetry.p_holm < rules.SIGNIFICANT) and bool(better.sum() / len(symmetry) >= rules.MOST)


def _most(conditions: pd.Series) -> bool:
    return bool(conditions.mean() >= rules.MOST)


def shared_mechanism(convolutional: Sequence[Verdict] | None) -> Verdict:
    """C7 from the verdicts C1, C2 and C3 along the layers of a convolutional network; None when none was measured."""
    if not convolutional:
        return Verdict("C7", NOT_TESTED, "no convolutional network was measured")
    states = [verdict.state for verdict in convolutional]
    some, decided = HOLDS in states, {IN_PART, FAILS} & set(states)
    is_open = NOT_TESTED in states and not (some and decided)
    state = NOT_TESTED if is_open else graded(all(each == HOLDS for each in states), some)
    text = "; ".join(f"{verdict.claim} {verdict.state}" for verdict in convolutional)
    robust = "; ".join(f"{verdict.claim} {verdict.robust.partition(';')[0]}" for verdict in convolutional)
    nodes = "; ".join(f"{verdict.claim} {verdict.nodes.partition(':')[0]}" for verdict in convolutional)
    return Verdict("C7", state, text, robust=robust, nodes=nodes)


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
    """C3: at which sub-blocks noise and SNR, last encoder over first, move further than in every random basis."""
    nodes, beyond, texts = rules.at_theta(nodes), [], []
    for kind in kinds:
        means = rules.by_encoder(nodes, kind)[["noise", "snr"]]
        drawn = rules.by_encoder(rotated, kind).set_index("draw")[["noise", "snr"]].groupby("draw")
        move, moves = means.iloc[-1] / means.iloc[0], drawn.nth(-1) / drawn.nth(0)
        beyond.append(move.noise < min(1, moves.noise.min()) and move.snr > max(1, moves.snr.max()))
        parts = [
            f"{title} x{move[name]:.2f} (random bases x{moves[name].min():.2f} to x{moves[name].max():.2f})"
            for name, title in (("noise", "noise"), ("snr", "SNR"))
        ]
        texts.append(f"{' and '.join(parts)} at {kind}")
    answer = "yes" if all(beyond) else "in part" if any(beyond) else "no"
    return f"{answer}: {'; '.join(texts)}"


def heads_beyond_basis(sites: pd.DataFrame) -> str:
    """C5: whether what is concentrated survives a rotation within heads, which keeps each head's subspace.

    sites: rows of `heads.symmetry` with the controls within and across heads. What labels are concentrated beyond dealt
    nodes is compared, each basis with its own, at most encoders.
    """
    subspace = _most(sites.excess_within_low > sites.excess_across_high)
    nodes = _most(sites.excess > sites.excess_within_high)
    answer = "yes" if nodes else "in part" if subspace else "no"
    found = {"the subspaces of heads": subspace, "their nodes": nodes}
    about = " and ".join(what for what, special in found.items() if special) or "neither"
    means = f"{sites.excess_within_mean.mean():+.3f} within heads, {sites.excess_across_mean.mean():+.3f} across"
    return f"{answer}: about {about} (beyond dealt nodes {sites.excess.mean():+.3f}; rotated {means})"
