"""The claims: every rule, on made-up measurements in which each verdict must come out each way."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from cctlib.bootstrap import resample
from cctlib.claims import rules
from cctlib.claims import verdicts as claims
from cctlib.claims.rules import NOT_SUPPORTED, RULES, STATEMENTS, SUPPORTED, UNDETERMINED
from cctlib.errors import UserError

ENCODERS = range(1, 8)
THETAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
STATES = (SUPPORTED, NOT_SUPPORTED, UNDETERMINED)
RISING = np.arange(7.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- what the rules share


def test_every_part_is_needed():
    assert rules.every([SUPPORTED, SUPPORTED]) == SUPPORTED
    assert rules.every([SUPPORTED, UNDETERMINED]) == UNDETERMINED
    assert rules.every([SUPPORTED, UNDETERMINED, NOT_SUPPORTED]) == NOT_SUPPORTED
    assert rules.every([]) == UNDETERMINED


@given(st.lists(st.sampled_from(STATES), min_size=1, max_size=12))
def test_a_majority_is_what_no_outcome_of_the_undetermined_can_change(states):
    unknown = states.count(UNDETERMINED)
    sure = states.count(SUPPORTED)
    outcomes = {(sure + more) / len(states) >= 0.75 for more in range(unknown + 1)}
    expected = UNDETERMINED if len(outcomes) == 2 else SUPPORTED if outcomes == {True} else NOT_SUPPORTED
    assert rules.majority(states) == expected


@pytest.mark.parametrize("points", [2, 3, 4, 5, 6])
def test_critical_score_by_counting_permutations(points):
    """The exact test without scipy: the share of all orders with at least that many pairs in order."""
    scores = [int(rules.score(np.array(order, float))) for order in itertools.permutations(range(points))]
    significant = [s for s in set(scores) if sum(other >= s for other in scores) / len(scores) < 0.05]
    assert rules.critical_score(points) == (min(significant) if significant else np.inf)


@given(st.permutations(range(7)))
def test_kendalls_tau_and_significance_agree_with_scipy(order):
    values = np.array(order, float)
    expected = kendalltau(range(7), values, method="exact", alternative="greater")
    assert rules.kendall(values) == pytest.approx(expected.statistic)
    assert (rules.trend(values) == SUPPORTED) == (expected.pvalue < 0.05)


def test_slope_is_that_of_least_squares():
    values = np.random.default_rng(0).normal(size=(3, 7))
    expected = [np.polyfit(range(7), row, 1)[0] for row in values]
    assert rules.slope(values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "noise", "state"),
    [
        (RISING, 0.1, SUPPORTED),
        (-RISING, 0.1, NOT_SUPPORTED),
        (np.array([0, 2, 4, 4.1, 3.9, 2, 0.5]), 0.1, NOT_SUPPORTED),  # rises and falls again
        (RISING, 3.0, UNDETERMINED),
        (RISING, 1.2, UNDETERMINED),  # in nine of ten resamples, which is not enough
        (np.zeros(7), 0.0, NOT_SUPPORTED),
        (np.arange(3.0), 0.0, UNDETERMINED),  # three in order: p = 1/6
        (np.full(7, np.nan), 0.0, NOT_SUPPORTED),
    ],
)
def test_trend(values, noise, state):
    samples = values + noise * np.random.default_rng(0).normal(size=(500, len(values)))
    assert rules.trend(values, samples) == state


def test_a_verdict_carries_its_rule_and_leaves_out_a_meaningless_interval():
    verdict = rules.verdict("C1", SUPPORTED, "+1", (np.nan, 1.0))
    assert (verdict.interval, verdict.rule, verdict.statement) == (None, RULES["C1"], STATEMENTS["C1"])
    table = claims.verdicts_table([verdict, rules.verdict("C2", NOT_SUPPORTED, "0", (0.5, 1.0))])
    assert list(table) == ["claim", "statement", "verdict", "effect", "low", "high", "rule"]
    assert np.isnan(table.low[0])
    assert (table.low[1], table.high[1]) == (0.5, 1.0)


def test_every_claim_has_a_statement_and_a_rule_and_can_be_undetermined():
    assert list(STATEMENTS) == list(RULES) == [f"C{n}" for n in range(1, 8)]
    table = claims.verdicts_table(claims.not_measured(claim) for claim in STATEMENTS)
    assert set(table.verdict) == {UNDETERMINED}
    assert table.low.isna().all()


# ---- C1


def predictions_of(accuracies, images):
    """Predictions of a site a curve of accuracies, and labels: the first images are right."""
    labels = np.arange(images) % 10
    order = np.random.default_rng(0).permutation(images)
    found = {}
    for (kind, encoder), accuracy in accuracies.items():
        right = np.isin(np.arange(images), order[: round(accuracy * images)])
        found[f"enc{encoder}/{kind}"] = np.where(right, labels, (labels + 1) % 10).astype(np.uint8)
    return found, labels


@pytest.mark.parametrize(
    ("mha", "ff", "images", "state"),
    [
        (0.30 + 0.04 * RISING, 0.40 + 0.04 * RISING, 3000, SUPPORTED),
        (0.60 - 0.04 * RISING, 0.40 + 0.04 * RISING, 3000, NOT_SUPPORTED),  # one sub-block is enough to fail
        (0.50 + 0.02 * np.array([0, 1, 2, 3, 2, 1, 0.5]), 0.40 + 0.04 * RISING, 3000, NOT_SUPPORTED),
        (0.50 + 0.001 * RISING[[1, 0, 3, 2, 5, 4, 6]], 0.40 + 0.04 * RISING, 3000, UNDETERMINED),
        (0.30 + 0.04 * RISING[:3], 0.40 + 0.04 * RISING[:3], 3000, UNDETERMINED),
    ],
)
def test_progress(mha, ff, images, state):
    accuracies = {("mha", m + 1): a for m, a in enumerate(mha)} | {("ff", m + 1): a for m, a in enumerate(ff)}
    if state == UNDETERMINED and len(mha) == 7:  # images drawn anew at each site: neighbours change places
        found, labels = {}, np.zeros(images, int)
        for number, ((kind, encoder), accuracy) in enumerate(accuracies.items()):
            right = np.random.default_rng(number).permutation(images) < round(accuracy * images)
            found[f"enc{encoder}/{kind}"] = (~right).astype(np.uint8)
    else:
        found, labels = predictions_of(accuracies, images)
    weights = resample(torch.from_numpy(labels), 300, seeded())
    verdict = claims.progress(found, labels, weights)
    assert verdict.verdict == state
    low, high = verdict.interval
    slope = min(np.polyfit(range(len(curve)), curve, 1)[0] for curve in (mha, ff)) * 100
    assert low - 0.01 <= slope <= high + 0.01
    assert verdict.effect.startswith(f"{slope:+.2f} points")


def test_progress_does_not_mind_the_order_of_the_sites():
    accuracies = {(kind, m): 0.3 + 0.05 * m for kind in ("mha", "ff") for m in ENCODERS}
    found, labels = predictions_of(accuracies, 1000)
    weights = resample(torch.from_numpy(labels), 200, seeded())
    backwards = dict(reversed(found.items()))
    assert claims.progress(found, labels, weights) == claims.progress(backwards, labels, weights)


def test_progress_without_a_sub_block_is_refused_in_one_line():
    found, labels = predictions_of({("mha", m): 0.5 for m in ENCODERS}, 100)
    with pytest.raises(UserError, match="'ff'") as refused:
        claims.progress(found, labels, resample(torch.from_numpy(labels), 10, seeded()))
    assert "\n" not in str(refused.value)


# ---- C2


def cluster_nodes(size, count, nodes=64, spread=0, kinds=("mha", "ff"), encoders=ENCODERS):
    """Nodes with `count` clusters of `size` labels each; `spread` makes nodes differ."""
    rows = []
    for kind in kinds:
        for m in encoders:
            for node in range(nodes):
                n = count + (spread if node % 2 else -spread)
                rows.append((f"enc{m}/{kind}", m, kind, node, n == 0, round(size * n), n))
    return pd.DataFrame(rows, columns=["site", "encoder", "kind", "node", "silent", "labels", "clusters"])


def shuffled(size, count, draws=3, kinds=("mha", "ff"), encoders=ENCODERS):
    rows = [
        (f"enc{m}/{kind}", count + 0.1 * d, size + 0.1 * d) for kind in kinds for m in encoders for d in range(draws)
    ]
    return pd.DataFrame(rows, columns=["site", "clusters", "cluster_size"])


@pytest.mark.parametrize(
    ("nodes", "null", "state"),
    [
        (cluster_nodes(2.5, 4), shuffled(20, 1.2), SUPPORTED),
        (cluster_nodes(2.5, 4), shuffled(2.0, 1.2), NOT_SUPPORTED),  # no smaller than chance
        (cluster_nodes(2.5, 4), shuffled(20, 5.0), NOT_SUPPORTED),  # no more clusters than chance
        (cluster_nodes(12, 4), shuffled(20, 1.2), NOT_SUPPORTED),  # not small
        (cluster_nodes(2.5, 4, spread=4), shuffled(20, 1.2), NOT_SUPPORTED),  # half of the nodes have none
        (cluster_nodes(2.5, 4), shuffled(20, 1.2, draws=0), UNDETERMINED),
        (cluster_nodes(2.5, 4, nodes=6, spread=2), shuffled(20, 3.9), UNDETERMINED),  # too few nodes
        (cluster_nodes(2.5, 4), shuffled(20, 3.95), UNDETERMINED),  # more clusters than some draws, not all
        (cluster_nodes(0, 0), shuffled(20, 1.2), NOT_SUPPORTED),  # no cluster at all
    ],
)
def test_small_clusters(nodes, null, state):
    verdict = claims.small_clusters(nodes, null, 100, seeded())
    assert verdict.verdict == state
    assert verdict.rule == RULES["C2"]


def test_small_clusters_in_one_sub_block_only_are_not_enough():
    nodes = pd.concat([cluster_nodes(2.5, 4, kinds=["mha"]), cluster_nodes(15, 4, kinds=["ff"])])
    assert claims.small_clusters(nodes, shuffled(20, 1.2), 100, seeded()).verdict == NOT_SUPPORTED


@pytest.mark.parametrize(("failing", "state"), [(1, SUPPORTED), (2, NOT_SUPPORTED)])
def test_small_clusters_at_three_quarters_of_the_encoders(failing, state):
    good, bad = range(failing + 1, 8), range(1, failing + 1)
    nodes = pd.concat([cluster_nodes(2.5, 4, encoders=good), cluster_nodes(15, 4, encoders=bad)])
    assert claims.small_clusters(nodes, shuffled(20, 1.2), 100, seeded()).verdict == state


def test_small_clusters_are_looked_at_where_theta_is_0_3():
    many = pd.concat([cluster_nodes(15, 4).assign(theta=0.1), cluster_nodes(2.5, 4).assign(theta=0.3)])
    null = pd.concat([shuffled(1, 9).assign(theta=0.1), shuffled(20, 1.2).assign(theta=0.3)])
    found = claims.small_clusters(many, null, 100, seeded())
    assert found == claims.small_clusters(cluster_nodes(2.5, 4), shuffled(20, 1.2), 100, seeded())


def test_effect_of_small_clusters_by_hand():
    nodes = cluster_nodes(2.5, 4, spread=2)  # 2 and 6 clusters a node, of 2.5 labels each
    null = shuffled(10, 1.0, draws=1)
    verdict = claims.small_clusters(nodes, null, 100, seeded())
    assert verdict.effect.startswith("0.25 times the cluster size of shuffled labels (mean over 14 sites)")
    assert "2.5 to 2.5 labels of 100, 4.0 to 4.0 a node against 1.0 to 1.0" in verdict.effect
    assert verdict.interval == pytest.approx((0.25, 0.25))


# ---- C3


def sharpening_tables(noise, snr, kinds=("mha", "ff"), thetas=THETAS, nodes=80, spread=0.0, field=None):
    """Sites at each theta and nodes at theta 0.3, from the noise and the SNR of each encoder, by kind."""
    rng, sites, rows = np.random.default_rng(0), [], []
    for kind in kinds:
        for m, (n, s) in enumerate(zip(noise[kind], snr[kind], strict=True), start=1):
            where = {"site": f"enc{m}/{kind}", "encoder": m, "kind": kind}
            last = s if field is None else field[kind][m - 1]
            for theta in thetas:
                variants = {"snr": s, "snr_blocks": s, "snr_node": s, "snr_field": last}
                sites.append(where | {"theta": theta, "noise": n * (1 - theta)} | variants)
            factor = np.exp(spread * rng.normal(size=nodes))
            for f in factor:
                # labels / noise rises with s, as do labels / (ones - labels) and signal / noise
                value = max(1.0, n * f)
                rows.append(
                    where
                    | {"silent": False, "noise": value, "labels": s * n, "signal": s * value}
                    | {"ones": s * n + value}
                )
    return pd.DataFrame(sites), pd.DataFrame(rows)


FALLING, FLAT, UP = 400 - 30 * RISING, np.full(7, 300.0), 2 + 0.3 * RISING
HUMP = np.array([2.6, 3.2, 3.4, 3.3, 3.4, 2.9, 2.8])


def both(values):
    return {"mha": values, "ff": values}


@pytest.mark.parametrize(
    ("noise", "snr", "options", "state"),
    [
        (both(FALLING), both(UP), {}, SUPPORTED),
        (both(FALLING), both(HUMP), {}, NOT_SUPPORTED),
        (both(FLAT), both(UP), {}, NOT_SUPPORTED),  # noise must fall, too
        (both(-FALLING + 800), both(UP), {}, NOT_SUPPORTED),
        ({"mha": FLAT, "ff": FALLING}, {"mha": HUMP, "ff": UP}, {}, NOT_SUPPORTED),  # one sub-block fails
        (both(FALLING), both(UP), {"thetas": (0.2, 0.3, 0.4)}, UNDETERMINED),
        (both(FALLING[:3]), both(UP[:3]), {}, UNDETERMINED),
        (both(FALLING), both(UP), {"field": both(HUMP)}, SUPPORTED),  # three of four variants
    ],
)
def test_sharpening(noise, snr, options, state):
    by_theta, nodes = sharpening_tables(noise, snr, **options)
    verdict = claims.sharpening(by_theta, nodes, seeded())
    assert verdict.verdict == state
    assert verdict.interval is not None


def test_sharpening_is_undetermined_where_nodes_differ_too_much_at_every_theta():
    by_theta, nodes = sharpening_tables(both(300 - 2 * RISING), both(2 + 0.02 * RISING), spread=1.0)
    every_theta = pd.concat([nodes.assign(theta=theta) for theta in THETAS])
    assert claims.sharpening(by_theta, every_theta, seeded()).verdict == UNDETERMINED
    exact, one_noise = sharpening_tables(both(300 - 2 * RISING), both(2 + 0.02 * RISING))
    every_theta = pd.concat([one_noise.assign(theta=theta) for theta in THETAS])
    assert claims.sharpening(exact, every_theta, seeded()).verdict == SUPPORTED


@pytest.mark.parametrize(("failing", "state"), [(1, SUPPORTED), (2, NOT_SUPPORTED)])
def test_sharpening_at_three_quarters_of_the_thresholds(failing, state):
    by_theta, nodes = sharpening_tables(both(FALLING), both(UP))
    wrong = by_theta.theta.isin(THETAS[-failing:])
    by_theta.loc[wrong, "noise"] = 100.0
    assert claims.sharpening(by_theta, nodes, seeded()).verdict == state


def test_sharpening_looks_at_no_threshold_outside_its_range():
    by_theta, nodes = sharpening_tables(both(FALLING), both(UP))
    outside, _ = sharpening_tables(both(FALLING[::-1]), both(UP[::-1]), thetas=(0.05, 0.8, 0.85, 0.9, 0.95))
    assert claims.sharpening(pd.concat([by_theta, outside]), nodes, seeded()).verdict == SUPPORTED


def test_effect_of_sharpening_names_the_weaker_sub_block_first():
    by_theta, nodes = sharpening_tables(both(FALLING), {"mha": UP, "ff": HUMP})
    verdict = claims.sharpening(by_theta, nodes, seeded())
    assert verdict.effect.startswith(f"SNR x{2.8 / 2.6:.2f} and noise x{220 / 400:.2f} from the first")
    assert verdict.effect.index("at ff") < verdict.effect.index("at mha")
    assert "noise 7, snr 0, snr_blocks 0, snr_node 0, snr_field 0" in verdict.effect


def test_node_resamples_follow_the_statistics_of_a_site():
    """With every node counted once, the resampled quantities are those of snp, up to a common factor."""
    from cctlib.snp import fields, tables

    mu, W = (torch.randn(12, 40, generator=seeded(seed)) for seed in (0, 1))
    nodes = tables.nodes_table("enc1/mha", fields.measure(mu, W))
    row = pd.Series(tables.site_row("enc1/mha", fields.measure(mu, W)))
    once = torch.ones(1, len(nodes), dtype=torch.float64).numpy()
    found = claims._resampled(nodes, {"enc1/mha": once}, seeded())
    assert found["noise"].item() == pytest.approx(row.noise)
    assert found["snr_node"].item() == pytest.approx(row.snr_node)
    assert 11 * found["snr"].item() == pytest.approx(row.snr)
    assert 11 * found["snr_blocks"].item() == pytest.approx(row.snr_blocks)


# ---- C4


def pruned(target="linear1", change=-0.001, half=0.002, random=(-0.05, -0.06, -0.04), density=0.35, epochs=3):
    """Rows of one target, as changes against a dense accuracy of 0.63."""
    rows = [("andc", 0, epochs, density, 0.63 + change, 0.63 + change - half, 0.63 + change + half)]
    rows += [("random", s, epochs, density, 0.63 + r, 0.62 + r, 0.64 + r) for s, r in enumerate(random)]
    columns = ["method", "seed", "epochs", "density", "accuracy", "low", "high"]
    return pd.DataFrame(rows, columns=columns).assign(target=target, accuracy_dense=0.63)


@pytest.mark.parametrize(
    ("table", "state"),
    [
        (pruned(), SUPPORTED),
        (pruned(change=0.02), SUPPORTED),  # a gain is no loss
        (pruned(change=-0.03), NOT_SUPPORTED),  # too large a loss
        (pruned(change=-0.004), UNDETERMINED),  # the interval reaches beyond half a point
        (pruned(random=(0.01, 0.0, 0.02)), NOT_SUPPORTED),  # random masks do as well
        (pruned(random=(0.001, -0.02, -0.03)), UNDETERMINED),  # one random mask does
        (pruned(random=(-0.05, -0.06)), UNDETERMINED),  # too few random masks
        (pruned(random=()), UserError),
    ],
)
def test_pruning(table, state):
    if state is UserError:
        with pytest.raises(UserError, match="linear1") as refused:
            claims.pruning(table)
        assert "\n" not in str(refused.value)
        return
    verdict = claims.pruning(table)
    assert verdict.verdict == state
    change = 100 * (table.accuracy[0] - 0.63)
    assert verdict.effect.startswith(f"{change:+.2f} points at linear1")
    assert verdict.interval == pytest.approx((change - 0.2, change + 0.2))


def test_pruning_compares_only_equal_densities():
    other = pruned(random=(0.05, 0.05, 0.05)).query("method == 'random'").assign(density=0.9)
    assert claims.pruning(pd.concat([pruned(), other])).verdict == SUPPORTED
    only_other = pd.concat([pruned().query("method == 'andc'"), other])
    assert claims.pruning(only_other).verdict == UNDETERMINED


def test_pruning_is_judged_after_the_longest_retraining_that_both_have():
    early = pruned(change=-0.2, epochs=0)
    andc_alone = pruned(change=-0.2, epochs=9).query("method == 'andc'")
    assert claims.pruning(pd.concat([early, pruned(), andc_alone])).verdict == SUPPORTED


@pytest.mark.parametrize(("failing", "state"), [(1, SUPPORTED), (2, NOT_SUPPORTED)])
def test_pruning_of_three_quarters_of_the_targets(failing, state):
    targets = ["linear1", "linear2", "proj", "fc"]
    tables = [pruned(target, change=-0.05 if i < failing else 0.0) for i, target in enumerate(targets)]
    assert claims.pruning(pd.concat(tables)).verdict == state


def test_pruning_takes_the_mean_over_seeds():
    seeds = pd.concat([pruned(change=c).query("method == 'andc'") for c in (-0.05, 0.05)])
    verdict = claims.pruning(pd.concat([seeds, pruned().query("method == 'random'")]))
    assert verdict.verdict == SUPPORTED
    assert verdict.effect.startswith(("+0.00", "-0.00"))


def test_pruning_is_judged_where_theta_is_0_3():
    swept = pd.concat([pruned(change=-0.3).assign(theta=0.7), pruned().assign(theta=0.3)])
    assert claims.pruning(swept).verdict == SUPPORTED


def test_pruning_without_rows_is_undetermined():
    assert claims.pruning(pruned().iloc[:0]).verdict == UNDETERMINED


# ---- C5


def symmetry_table(p=0.001, deals=1000, **columns):
    table = pd.DataFrame({"encoder": ENCODERS, "p_holm": p, "deals": deals})
    return table.assign(**{"concentration": 0.43, "dealt_mean": 0.35, "broken": 0.3} | columns)


def gaps_table(gap=0.2, half=0.05, p=0.01, deals=100):
    table = pd.DataFrame({"encoder": ENCODERS, "gap": gap, "p": p, "deals": deals, "dealt_mean": 0.05})
    return table.assign(gap_low=table.gap - half, gap_high=table.gap + half)


def pairs(values):
    return pd.DataFrame({"rand": values})


SIX_OF_SEVEN, FIVE_OF_SEVEN = [0.001] * 6 + [0.9], [0.001] * 5 + [0.9] * 2


@pytest.mark.parametrize(
    ("symmetry", "gaps", "state"),
    [
        (symmetry_table(), gaps_table(), SUPPORTED),
        (symmetry_table(p=0.4), gaps_table(), NOT_SUPPORTED),  # no more concentrated than dealt nodes
        (symmetry_table(p=SIX_OF_SEVEN), gaps_table(p=SIX_OF_SEVEN), SUPPORTED),
        (symmetry_table(p=FIVE_OF_SEVEN), gaps_table(), NOT_SUPPORTED),
        (symmetry_table(), gaps_table(gap=-0.2), NOT_SUPPORTED),
        (symmetry_table(), gaps_table(p=0.5), NOT_SUPPORTED),  # dealt nodes are as good
        (symmetry_table(), gaps_table(gap=0.02), UNDETERMINED),  # the interval includes zero
        (symmetry_table(), gaps_table(p=np.nan, deals=0), UNDETERMINED),  # not compared with dealt nodes
        (symmetry_table(p=1.0, deals=100), gaps_table(), UNDETERMINED),  # 100 deals cannot reach 0.05 / 7
        (symmetry_table(), gaps_table(gap=np.nan), UNDETERMINED),
    ],
)
def test_experts(symmetry, gaps, state):
    verdict = claims.experts(symmetry, gaps, seeded())
    assert verdict.verdict == state
    assert "over seeds: undetermined, one model" in verdict.effect


@pytest.mark.parametrize(
    ("rand", "state"),
    [
        ([0.01, -0.02, 0.03, 0.0, 0.02, -0.01], SUPPORTED),
        ([0.5, 0.6, 0.55, 0.5, 0.6, 0.5], NOT_SUPPORTED),  # the models agree
        ([0.0, 0.3, -0.1, 0.25, 0.0, 0.1], UNDETERMINED),
        ([0.5], SUPPORTED),  # a single pair says nothing of seeds
    ],
)
def test_experts_over_seeds(rand, state):
    symmetry = pd.concat([symmetry_table(model=name) for name in "abc"])
    verdict = claims.experts(symmetry, gaps_table(), seeded(), pairs(rand))
    assert verdict.verdict == state
    assert ("over seeds: undetermined" in verdict.effect) == (len(rand) == 1)


def test_symmetry_must_be_broken_in_every_model():
    symmetry = pd.concat([symmetry_table(model="a"), symmetry_table(model="b", p=0.9)])
    assert claims.experts(symmetry, gaps_table(), seeded(), pairs([0.0, 0.01])).verdict == NOT_SUPPORTED


def test_effect_of_experts_names_the_smallest_gap():
    gaps = gaps_table(gap=np.linspace(0.3, 0.1, 7))
    verdict = claims.experts(symmetry_table(), gaps, seeded())
    assert verdict.effect.startswith("+10.0 points for own labels at encoder 7, the smallest gap of 7")
    assert verdict.interval == pytest.approx((5, 15))


# ---- C6, C7


def verdicts(*states):
    return [rules.verdict(f"C{n}", state, "") for n, state in enumerate(states, start=1)]


ALL = (SUPPORTED,) * 5


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({"CIFAR-100": verdicts(*ALL), "Flowers-102": verdicts(*ALL)}, SUPPORTED),
        ({"CIFAR-100": verdicts(*ALL), "Flowers-102": verdicts(NOT_SUPPORTED, *ALL[1:])}, NOT_SUPPORTED),
        ({"CIFAR-100": verdicts(*ALL), "Flowers-102": verdicts(UNDETERMINED, *ALL[1:])}, UNDETERMINED),
        ({"CIFAR-100": verdicts(*ALL), "Flowers-102": verdicts(*ALL[:3])}, UNDETERMINED),  # C4, C5 not measured
        ({"CIFAR-100": verdicts(*ALL)}, UNDETERMINED),
        (None, UNDETERMINED),
    ],
)
def test_both_data_sets(found, state):
    verdict = claims.both_data_sets(found)
    assert verdict.verdict == state
    assert (verdict.effect == "not measured") == (not found or len(found) < 2)


@pytest.mark.parametrize(
    ("convolutional", "state"),
    [
        (verdicts(*ALL[:3]), SUPPORTED),
        (verdicts(NOT_SUPPORTED, SUPPORTED, SUPPORTED), SUPPORTED),  # accuracy is not the mechanism
        (verdicts(SUPPORTED, SUPPORTED, NOT_SUPPORTED), NOT_SUPPORTED),
        (verdicts(SUPPORTED, SUPPORTED), UNDETERMINED),
        (None, UNDETERMINED),
    ],
)
def test_shared_mechanism(convolutional, state):
    assert claims.shared_mechanism(verdicts(*ALL), convolutional).verdict == state


def test_the_rules_apply_to_filters_of_a_convolutional_network():
    names = {f"enc{m}/mha": f"layer{m}/filters" for m in ENCODERS}
    nodes = cluster_nodes(2.5, 4, kinds=["mha"]).assign(kind="filters").replace({"site": names})
    null = shuffled(20, 1.2, kinds=["mha"]).replace({"site": names})
    assert claims.small_clusters(nodes, null, 100, seeded(), kinds=("filters",)).verdict == SUPPORTED
