"""The claims that the book judges (Method, section 8): one function a claim, from tables to a `Verdict`.

What a function decides by is said in words in `rules.RULES`, and comes back with the verdict. Accuracies are
shares of 1 in tables, and points (hundredths) in the text of an effect. Where a claim has several parts, the
weakest stands first in the text, and the interval is its.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from cctlib.claims import rules
from cctlib.claims.rules import NOT_SUPPORTED, SUPPORTED, UNDETERMINED, State, Verdict, not_measured, percentiles
from cctlib.errors import UserError
from cctlib.model.sites import parse


class Part(NamedTuple):
    """One sub-block or one layer of a claim: its effect (the larger, the better for the claim), and its
    verdict."""

    effect: float
    state: State
    text: str
    interval: tuple[float, float]


def joined(claim: str, state: State, parts: Sequence[Part]) -> Verdict:
    """The verdict on a claim of several parts, the weakest first."""
    parts = sorted(parts, key=lambda part: part.effect)
    return rules.verdict(claim, state, "; ".join(part.text for part in parts), parts[0].interval)


def verdicts_table(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """One row a verdict: claim, statement, verdict, effect, low, high (NaN without an interval), rule."""
    columns = ["claim", "statement", "verdict", "effect", "low", "high", "rule"]
    rows = [(v.claim, v.statement, v.verdict, v.effect, *(v.interval or (np.nan, np.nan)), v.rule) for v in verdicts]
    return pd.DataFrame(rows, columns=columns)


# --------------------------------------------------------------------------------------------------------
# C1: probe accuracy progresses


def progress(
    predictions: Mapping[str, Integer[np.ndarray, "image"]],
    labels: Integer[np.ndarray, "image"],
    weights: Float[Tensor, "resample image"],
    kinds: Sequence[str] = rules.SUB_BLOCKS,
) -> Verdict:
    """C1 from the probes' predictions of the test images, by site, and `bootstrap.resample` of the labels.

    Raises `UserError` when a kind of site has no predictions.
    """
    sites = pd.DataFrame([(site, *parse(site)) for site in predictions], columns=["site", "encoder", "kind"])
    parts = []
    for kind in kinds:
        names = rules.by_encoder(sites, kind).site
        correct = np.stack([predictions[name] == labels for name in names], axis=1)
        parts.append(_progresses(kind, correct, weights))
    return joined("C1", rules.every(part.state for part in parts), parts)


def _progresses(kind: str, correct: np.ndarray, weights: Float[Tensor, "resample image"]) -> Part:
    values = correct.mean(axis=0)
    samples = (weights.cpu() @ torch.from_numpy(correct).float()).double().numpy() / len(correct)
    slope, (low, high) = rules.slope(values), percentiles(rules.slope(samples))
    text = (
        f"{100 * slope:+.2f} points an encoder at {kind} "
        f"({values[0]:.1%} to {values[-1]:.1%}, Kendall's tau {rules.kendall(values):.2f})"
    )
    return Part(float(slope), rules.trend(values, samples), text, (100 * low, 100 * high))


# --------------------------------------------------------------------------------------------------------
# C2: small clusters


def small_clusters(
    nodes: pd.DataFrame,
    null: pd.DataFrame,
    num_labels: int,
    generator: torch.Generator,
    kinds: Sequence[str] = rules.SUB_BLOCKS,
) -> Verdict:
    """C2 from the nodes, and from the sites with labels shuffled across images, both at theta 0.3.

    nodes: site, encoder, kind, silent, labels, clusters (one row a node). null: site, clusters, cluster_size
    (means of the site, one row a site and draw). Raises `UserError` when a kind of site has no nodes.
    """
    nodes, null = (rules.central(table) for table in (nodes, null))
    states, rows = [], []
    for kind in kinds:
        found = [
            _site_clusters(group, null[null.site == site], num_labels, generator)
            for site, group in rules.by_encoder(nodes, kind).groupby("site", sort=False)
        ]
        states.append(rules.majority([state for state, _ in found]))
        rows += [row for _, row in found]
    table = pd.DataFrame(rows)
    span = {name: f"{table[name].min():.1f} to {table[name].max():.1f}" for name in ("size", "count", "shuffled")}
    text = (
        f"{table.ratio.mean():.2f} times the cluster size of shuffled labels (mean over {len(table)} sites); "
        f"clusters of {span['size']} labels of {num_labels}, {span['count']} a node against "
        f"{span['shuffled']} shuffled; at least {table.share.min():.0%} of the nodes have a cluster"
    )
    return rules.verdict("C2", rules.every(states), text, percentiles(np.mean(table.ratios.to_list(), axis=0)))


def _site_clusters(
    nodes: pd.DataFrame, draws: pd.DataFrame, num_labels: int, generator: torch.Generator
) -> tuple[State, dict[str, object]]:
    """The rule of C2 at one site, and its numbers. Cluster size is pooled over clusters, the number of
    clusters is a mean over non-empty nodes."""
    columns = np.stack([nodes.labels, nodes.clusters, ~nodes.silent.astype(bool)], axis=1).astype(float)
    resampled = rules.draw(len(nodes), generator) @ columns
    labels, clusters, full = np.concatenate([columns.sum(axis=0)[None], resampled]).T
    with np.errstate(invalid="ignore", divide="ignore"):
        sizes, counts = labels / clusters, clusters / full
    share, shuffled_size = float((nodes.clusters > 0).mean()), draws.cluster_size.mean()
    state = _small(draws, percentiles(sizes[1:]), percentiles(counts[1:]), share, num_labels)
    row = {"size": sizes[0], "count": counts[0], "share": share, "shuffled": draws.clusters.mean()}
    return state, row | {"ratio": sizes[0] / shuffled_size, "ratios": sizes[1:] / shuffled_size}


def _small(
    draws: pd.DataFrame, size: tuple[float, float], count: tuple[float, float], share: float, num_labels: int
) -> State:
    if share < rules.EACH:
        return NOT_SUPPORTED
    if draws.empty:
        return UNDETERMINED
    most = rules.SMALL * num_labels
    if size[1] < min(draws.cluster_size.min(), most) and count[0] > draws.clusters.max():
        return SUPPORTED
    wrong = size[0] >= min(draws.cluster_size.max(), most) or count[1] <= draws.clusters.min()
    return NOT_SUPPORTED if wrong else UNDETERMINED


# --------------------------------------------------------------------------------------------------------
# C3: sharpening


def sharpening(
    by_theta: pd.DataFrame, nodes: pd.DataFrame, generator: torch.Generator, kinds: Sequence[str] = rules.SUB_BLOCKS
) -> Verdict:
    """C3 from the sites at each theta, and from the nodes for the bootstrap.

    by_theta: site, encoder, kind, theta, noise and the SNR variants. nodes: site, encoder, kind, silent,
    ones,
    labels, signal, noise; of theta 0.3, or of the thetas in a column theta. At other thresholds, and for
    snr_field, which is no function of counts, the measurement alone decides. Raises `UserError` when a kind
    of site is missing.
    """
    inside = by_theta[by_theta.theta.between(rules.THETAS[0] - 1e-9, rules.THETAS[1] + 1e-9)]
    spanned = np.isclose([inside.theta.min(), inside.theta.max()], rules.THETAS).all()
    nodes = nodes if "theta" in nodes else nodes.assign(theta=rules.THETA)
    parts = [
        _sharpens(kind, rules.by_encoder(inside, kind), rules.by_encoder(nodes, kind), generator) for kind in kinds
    ]
    return joined("C3", rules.every(part.state for part in parts) if spanned else UNDETERMINED, parts)


def _sharpens(kind: str, sites: pd.DataFrame, nodes: pd.DataFrame, generator: torch.Generator) -> Part:
    """One kind of site. The effect is the SNR of the last encoder over that of the first, at the theta
    nearest 0.3."""
    states: dict[str, list[State]] = {name: [] for name in ("noise", *rules.SNR_VARIANTS)}
    central = sites.theta.iloc[(sites.theta - rules.THETA).abs().argmin()]
    ends = (np.nan, np.nan)
    weights: dict[str, np.ndarray] = {}  # the same resamples of a site's nodes at all thresholds
    for theta, at in sites.groupby("theta"):
        of_theta = nodes[np.isclose(nodes.theta, theta)]
        samples = _resampled(of_theta, weights, generator) if len(of_theta) else {}
        for name, found in states.items():
            sign = -1 if name == "noise" else 1
            resampled = sign * samples[name] if name in samples else None
            found.append(rules.trend(sign * at[name].to_numpy(float), resampled))
        if theta == central and samples:
            ends = percentiles(samples["snr"][:, -1] / samples["snr"][:, 0])
    at = sites[sites.theta == central]
    gain, noise = (at[name].iloc[-1] / at[name].iloc[0] for name in ("snr", "noise"))
    rise, fall = (rules.kendall(at[name].to_numpy(float)) for name in ("snr", "noise"))
    counts = ", ".join(f"{name} {found.count(SUPPORTED)}" for name, found in states.items())
    text = (
        f"SNR x{gain:.2f} and noise x{noise:.2f} from the first to the last encoder at {kind} "
        f"(theta {central:.2g}; Kendall's tau {rise:.2f} and {fall:.2f}; "
        f"of {len(states['noise'])} thresholds the trend holds at: {counts})"
    )
    rising = rules.majority([rules.majority(states[name]) for name in rules.SNR_VARIANTS])
    return Part(float(gain), rules.every([rules.majority(states["noise"]), rising]), text, ends)


def _resampled(
    nodes: pd.DataFrame, weights: dict[str, np.ndarray], generator: torch.Generator
) -> dict[str, Float[np.ndarray, "resample encoder"]]:
    """Node-bootstrap samples of what follows from counts of nodes, as in `snp.SiteStatistics.summary` up to
    factors that all encoders share. `weights` by site; those not there yet are drawn and put there."""
    sites = []
    for name, site in nodes.groupby("site", sort=False):
        full, ratio = ~site.silent.astype(bool), site.signal / site.noise.clip(lower=1)
        columns = np.stack([site.noise, site.labels, site.ones - site.labels, ratio, full], axis=1)
        if name not in weights:
            weights[name] = rules.draw(len(site), generator)
        sites.append(weights[name] @ columns.astype(float))
    noise, labels, off_diagonal, ratio, full = np.stack(sites, axis=1).transpose(2, 0, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "noise": noise / full,
            "snr": labels / off_diagonal,
            "snr_blocks": labels / noise,
            "snr_node": ratio / full,
        }


# --------------------------------------------------------------------------------------------------------
# C4: pruning


def pruning(table: pd.DataFrame) -> Verdict:
    """C4 from pruned networks at theta 0.3: target, method, seed, epochs, density, accuracy, accuracy_dense,
    low, high.

    target: the layers pruned. method: "andc", "random" or another, which is not looked at. epochs: of
    retraining. density: share of weights kept. low, high: 95% interval of the accuracy, from the resamples in
    which the dense network's accuracy is accuracy_dense, so that low - accuracy_dense and high -
    accuracy_dense bound the change.
    Raises `UserError` when a target has no retraining length at which ANDC and random masks were both
    measured.
    """
    table = rules.central(table)
    if table.empty:
        return not_measured("C4")
    parts = []
    for target, rows in table.groupby("target", sort=False):
        own, random = rows[rows.method == "andc"], rows[rows.method == "random"]
        epochs = set(own.epochs) & set(random.epochs)
        if not epochs:
            raise UserError(
                f"pruning of {target!r} has no number of retraining epochs at which both andc and random "
                "masks were measured; measure both with the same retraining"
            )
        own, random = (part[part.epochs == max(epochs)] for part in (own, random))
        equal = (random.density - own.density.mean()).abs() <= rules.SAME_DENSITY
        parts.append(_pruned(str(target), own, random[equal]))
    return joined("C4", rules.majority([part.state for part in parts]), parts)


def _pruned(target: str, own: pd.DataFrame, random: pd.DataFrame) -> Part:
    """One target. The effect is the change of accuracy, in points."""
    change, low, high = (100 * (own[name] - own.accuracy_dense).mean() for name in ("accuracy", "low", "high"))
    kept: State = UNDETERMINED
    if low >= -rules.TOLERANCE:
        kept = SUPPORTED
    elif high < -rules.TOLERANCE:
        kept = NOT_SUPPORTED
    above: State = UNDETERMINED
    if random.seed.nunique() >= rules.RANDOM_MASKS:
        if own.accuracy.mean() > random.accuracy.max():
            above = SUPPORTED
        elif own.accuracy.mean() < random.accuracy.mean():
            above = NOT_SUPPORTED
    chance = f"{100 * (random.accuracy - random.accuracy_dense).mean():+.2f}" if len(random) else "not measured"
    text = (
        f"{change:+.2f} points at {target} (random masks {chance}; "
        f"{own.density.mean():.0%} of the weights kept, {own.epochs.iloc[0]:g} epochs of retraining)"
    )
    return Part(float(change), rules.every([kept, above]), text, (float(low), float(high)))


# --------------------------------------------------------------------------------------------------------
# C5: expert heads


def experts(
    symmetry: pd.DataFrame, gaps: pd.DataFrame, generator: torch.Generator, agreement: pd.DataFrame | None = None
) -> Verdict:
    """C5 from the site tables of `heads.symmetry` and `experts.expert_accuracy`, one row an encoder.

    For several models: `symmetry` with a column model, and the pairs of `heads.agreement`. Without, the part
    over seeds is undetermined, says so, and decides nothing.
    """
    models = [group for _, group in symmetry.groupby("model")] if "model" in symmetry else [symmetry]
    broken = rules.every(rules.majority([_broken(row, len(rows)) for _, row in rows.iterrows()]) for rows in models)
    able = rules.majority([_expert(row) for _, row in gaps.iterrows()])
    states, between = [broken, able], "over seeds: undetermined, one model"
    values = np.array([]) if agreement is None else agreement.rand.dropna().to_numpy(float)
    if len(values) > 1:
        unrelated, (low, high) = _unrelated(values, generator)
        states.append(unrelated)
        between = f"divisions of labels unrelated over {len(models)} models: {unrelated}, adjusted Rand index "
        between += f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"
    weakest = gaps.sort_values("gap").iloc[0]
    text = (
        f"{100 * weakest.gap:+.1f} points for own labels at encoder {weakest.encoder:g}, the smallest gap of "
        f"{len(gaps)} (mean {100 * gaps.gap.mean():+.1f}, dealt nodes {100 * gaps.dealt_mean.mean():+.1f}); "
        f"experts: {able}; "
        f"concentration {symmetry.concentration.mean():.3f} against {symmetry.dealt_mean.mean():.3f} dealt, "
        f"{symmetry.broken.mean():.0%} of labels beyond the null's 95%: {broken}; {between}"
    )
    return rules.verdict("C5", rules.every(states), text, (100 * weakest.gap_low, 100 * weakest.gap_high))


def _broken(row: pd.Series, encoders: int) -> State:
    """Concentration at one encoder. Too few deals for the corrected p to reach significance leave it
    undetermined."""
    if row.p_holm < rules.SIGNIFICANT:
        return SUPPORTED
    return UNDETERMINED if encoders / (row.deals + 1) >= rules.SIGNIFICANT else NOT_SUPPORTED


def _expert(row: pd.Series) -> State:
    """Expert gap at one encoder. Without dealt nodes to compare with, or with too few, it can only fail."""
    if row.gap_high <= 0:
        return NOT_SUPPORTED
    if 1 / (row.deals + 1) >= rules.SIGNIFICANT or not np.isfinite(row.gap):
        return UNDETERMINED
    if row.p >= rules.SIGNIFICANT:
        return NOT_SUPPORTED
    return SUPPORTED if row.gap_low > 0 else UNDETERMINED


def _unrelated(values: Float[np.ndarray, "pair"], generator: torch.Generator) -> tuple[State, tuple[float, float]]:
    """Is the mean agreement of models near 0? With the bootstrap interval of the mean over pairs."""
    low, high = percentiles(rules.draw(len(values), generator) @ values / len(values))
    if low >= -rules.UNRELATED and high <= rules.UNRELATED:
        return SUPPORTED, (low, high)
    outside = low > rules.UNRELATED or high < -rules.UNRELATED
    return NOT_SUPPORTED if outside else UNDETERMINED, (low, high)


# --------------------------------------------------------------------------------------------------------
# C6, C7: the same elsewhere


def both_data_sets(verdicts: Mapping[str, Sequence[Verdict]] | None) -> Verdict:
    """C6 from the verdicts C1 to C5 on each data set, by name. Undetermined with fewer than two data sets."""
    if not verdicts or len(verdicts) < 2:
        return not_measured("C6")
    return _elsewhere("C6", verdicts, ("C1", "C2", "C3", "C4", "C5"))


def shared_mechanism(transformer: Sequence[Verdict], convolutional: Sequence[Verdict] | None) -> Verdict:
    """C7 from the verdicts C2 and C3 on a transformer and on a convolutional network (kinds=("filters",)).

    Undetermined without the latter.
    """
    if not convolutional:
        return not_measured("C7")
    return _elsewhere("C7", {"transformer": transformer, "convolutional": convolutional}, ("C2", "C3"))


def _elsewhere(claim: str, verdicts: Mapping[str, Sequence[Verdict]], wanted: Sequence[str]) -> Verdict:
    """All wanted claims everywhere; one without a verdict is undetermined."""
    states: list[State] = []
    texts = []
    for place, found in verdicts.items():
        known = {verdict.claim: verdict.verdict for verdict in found}
        here = {name: known.get(name, UNDETERMINED) for name in wanted}
        states += here.values()
        texts.append(f"{place}: " + ", ".join(f"{name} {state}" for name, state in here.items()))
    return rules.verdict(claim, rules.every(states), "; ".join(texts))
