"""The claims as stated: every rule, on made-up measurements in which each verdict must come out each way."""

from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from cctlib.andc.masks import TARGETS
from cctlib.claims import judge, rules, specifications, verdicts
from cctlib.claims.rules import FAILS, HOLDS, IN_PART, NOT_TESTED, RULES, STATEMENTS
from cctlib.errors import UserError
from cctlib.model.sites import FILTERS, parse
from cctlib.snp import fields, tables
from cctlib.study import open_layers, open_study

ENCODERS = range(1, 8)
RISING = np.arange(7.0)
FALLING, UP, FLAT = 400 - 30 * RISING, 2 + 0.3 * RISING, np.full(7, 300.0)
HUMP = np.array([2.0, 3.2, 3.4, 3.3, 3.4, 2.9, 2.8])  # ends above its start, without a trend


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def both(values):
    return {"mha": values, "ff": values}


# What the rules share -------------------------------------------------------------------------------------


@given(st.permutations(range(7)))
def test_a_trend_is_kendalls_exact_test(order):
    values = np.array(order, float)
    rising = kendalltau(range(7), values, method="exact", alternative="greater")
    tau, significant = rules.trend(values)
    assert tau == pytest.approx(rising.statistic) and significant == (rising.pvalue < 0.05)
    assert rules.trend(-values, -1) == (pytest.approx(-tau), significant)


@pytest.mark.parametrize("values", [np.arange(3.0), np.zeros(7), np.full(7, np.nan)])
def test_too_few_equal_or_missing_values_are_no_trend(values):
    assert not rules.trend(values)[1]


def test_a_table_of_verdicts_has_all_three_answers():
    table = rules.verdicts_table(
        [
            rules.Verdict("C1", HOLDS, "+1", (0.5, 1.5), "7 of 8 agree", "yes"),
            rules.Verdict("C7", NOT_TESTED, "nothing was measured"),
        ]
    )
    assert list(table.verdict) == [HOLDS, NOT_TESTED]
    assert list(table.statement) == [STATEMENTS["C1"], STATEMENTS["C7"]] and table.rule[0] == RULES["C1"]
    assert (table.low[0], table.high[0], table.robust[0], table.nodes[0]) == (0.5, 1.5, "7 of 8 agree", "yes")
    assert np.isnan(table.low[1]) and table.nodes[1] == "not tested"


# C1 -------------------------------------------------------------------------------------------------------


def predictions_of(curves, images=3000):
    """Predictions of a site a curve of accuracies, and labels: the same images are classified first."""
    labels, order = np.arange(images) % 10, np.random.default_rng(0).permutation(images)
    predictions = {}
    for kind, curve in curves.items():
        for m, accuracy in enumerate(curve, start=1):
            right = np.isin(np.arange(images), order[: round(accuracy * images)])
            predictions[f"enc{m}/{kind}"] = np.where(right, labels, (labels + 1) % 10).astype(np.uint8)
    return predictions, labels


def progress_of(predictions, labels):
    """The verdict, where held-out images would say the opposite."""
    others = {site: np.where(values == labels, (labels + 1) % 10, labels) for site, values in predictions.items()}
    splits = {"held-out": others, "test": predictions}.items()
    tables = [pd.DataFrame({"split": split, "label": labels, **of_split}) for split, of_split in splits]
    readings = specifications.progress(pd.concat(tables))
    rows = [(site, *parse(site), (values == labels).mean()) for site, values in predictions.items()]
    return verdicts.progress(readings, pd.DataFrame(rows, columns=["site", "encoder", "kind", "accuracy"]))


GROWING, PEAK = 0.4 + 0.04 * RISING, 0.4 + 0.02 * np.array([0, 6, 5, 4, 3, 2, 1])


@pytest.mark.parametrize(
    ("mha", "ff", "state"),
    [
        (GROWING, GROWING, HOLDS),
        (GROWING, PEAK, IN_PART),  # last above first at both, a trend at one
        (PEAK, PEAK, IN_PART),
        (GROWING, GROWING[::-1], IN_PART),  # at one of the two sub-blocks
        (PEAK, GROWING[::-1], FAILS),
        (GROWING[::-1], GROWING[::-1], FAILS),
        (GROWING[:3], GROWING[:3], IN_PART),  # three encoders are no trend
    ],
)
def test_progress(mha, ff, state):
    predictions, labels = predictions_of({"mha": mha, "ff": ff})
    verdict = progress_of(predictions, labels)
    change = 100 * (mha[-1] - mha[0])
    assert verdict.state == state
    assert verdict.effect.startswith(f"{change:+.1f} points at mha ({mha[0]:.1%} to {mha[-1]:.1%}")
    assert verdict.interval[0] - 0.1 <= change <= verdict.interval[1] + 0.1
    assert verdict == progress_of(dict(reversed(predictions.items())), labels)


def test_a_sub_block_that_was_not_measured_is_named_in_one_line():
    predictions, labels = predictions_of({"mha": GROWING}, 100)
    with pytest.raises(UserError, match="'ff'") as refused:
        progress_of(predictions, labels)
    assert "\n" not in str(refused.value)


# C2 -------------------------------------------------------------------------------------------------------


def cluster_nodes(size, count, noise=100.0, empty=0, kinds=("mha", "ff"), encoders=ENCODERS, nodes=20):
    """Nodes with `count` clusters of `size` labels each, of which the first `empty` have none."""
    rows = []
    for kind in kinds:
        for m in encoders:
            for node in range(nodes):
                n = 0 if node < empty else count
                rows.append((f"enc{m}/{kind}", m, kind, node, n == 0, round(size * n), n, noise if n else 0.0))
    columns = ["site", "encoder", "kind", "node", "silent", "labels", "clusters", "noise"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(theta=0.3, signal=table["labels"], ones=table["labels"] + table.noise)


def shuffled(noise, draws=20, kinds=("mha", "ff"), encoders=ENCODERS):
    rows = [(f"enc{m}/{kind}", d, noise + d) for kind in kinds for m in encoders for d in range(draws)]
    return pd.DataFrame(rows, columns=["site", "draw", "noise"])


@pytest.mark.parametrize(
    ("nodes", "null", "state"),
    [
        (cluster_nodes(2.5, 4), shuffled(500), HOLDS),
        (cluster_nodes(2.5, 4), shuffled(90), IN_PART),  # no quieter than chance
        (cluster_nodes(12, 4), shuffled(500), IN_PART),  # not small
        (cluster_nodes(2.5, 4, empty=3), shuffled(500), IN_PART),  # not each node
        (cluster_nodes(12, 4, empty=3), shuffled(500), FAILS),
        (cluster_nodes(12, 4), shuffled(90), FAILS),
        (cluster_nodes(2.5, 4), shuffled(500, draws=19), NOT_TESTED),  # too few draws decide nothing
        (cluster_nodes(12, 4, empty=3), shuffled(500, draws=4), FAILS),  # whatever the draws would say
        (cluster_nodes(2.5, 4), shuffled(500, draws=0), NOT_TESTED),
    ],
)
def test_small_clusters(nodes, null, state):
    assert verdicts.small_clusters(nodes, null, 100).state == state


@pytest.mark.parametrize(("failing", "state"), [(1, HOLDS), (2, IN_PART)])
@pytest.mark.parametrize("kind", ["mha", "ff"])
def test_small_clusters_at_most_encoders_of_both_sub_blocks(kind, failing, state):
    large = cluster_nodes(15, 4, kinds=[kind], encoders=range(1, failing + 1))
    nodes = pd.concat([large, cluster_nodes(2.5, 4)]).drop_duplicates(["site", "node"])
    assert verdicts.small_clusters(nodes, shuffled(500), 100).state == state


def test_few_labels_have_no_small_cluster():
    verdict = verdicts.small_clusters(cluster_nodes(1.5, 4), shuffled(500), 19)
    assert verdict.state == NOT_TESTED and verdict.effect.endswith("; so few labels have no small cluster")


def test_small_clusters_in_numbers():
    nodes = pd.concat([cluster_nodes(9, 4).assign(theta=0.1), cluster_nodes(2.5, 4, empty=1)])
    verdict = verdicts.small_clusters(nodes, shuffled(400), 100)
    assert verdict.effect == (
        "clusters of 2.50 of 100 labels on average (2.5 to 2.5 by site); 4.0 to 4.0 clusters per node; "
        "at least 95% of the nodes have one; "
        "noise 0.24 to 0.24 times that of shuffled labels"
    )
    assert verdict.interval == pytest.approx((2.5, 2.5))


def test_the_rules_apply_to_filters_of_a_convolutional_network():
    nodes, null = cluster_nodes(2.5, 4, kinds=["filters"]), shuffled(500, kinds=["filters"])
    assert verdicts.small_clusters(nodes, null, 100, kinds=("filters",)).state == HOLDS


# C3 -------------------------------------------------------------------------------------------------------


def sharp_nodes(noise, snr, nodes=60, spread=0.0, thetas=(0.3,)):
    """Nodes whose site means are the noise and (up to a factor) the SNR of each encoder, by kind."""
    rng, rows = np.random.default_rng(0), []
    for kind in noise:
        for m, (n, s) in enumerate(zip(noise[kind], snr[kind], strict=True), start=1):
            for node, factor in enumerate(np.exp(spread * rng.normal(size=nodes))):
                value = n * factor
                counts = {"noise": value, "labels": s * n, "signal": s * value, "ones": s * n + value, "clusters": 2}
                where = {"site": f"enc{m}/{kind}", "encoder": m, "kind": kind, "node": node, "silent": False}
                rows += [where | counts | {"theta": theta} for theta in thetas]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("noise", "snr", "spread", "state"),
    [
        (both(FALLING), both(UP), 0.0, HOLDS),
        (both(FALLING), both(HUMP), 0.0, IN_PART),  # SNR ends higher, without a trend
        (both(FLAT), both(UP), 0.0, FAILS),
        (both(FALLING[::-1]), both(UP), 0.0, FAILS),
        ({"mha": FALLING, "ff": FLAT}, both(UP), 0.0, FAILS),
        (both(300 - 2 * RISING), both(2 + 0.02 * RISING), 1.0, FAILS),  # nodes differ too much
        (both(FALLING[:3]), both(UP[:3]), 0.0, IN_PART),
    ],
)
def test_sharpening(noise, snr, spread, state):
    nodes = sharp_nodes(noise, snr, spread=spread, thetas=(0.1, 0.3))
    means = nodes.groupby(["site", "encoder", "kind", "theta"], as_index=False)[["noise", "labels", "ones"]].mean()
    means = means.assign(snr=means["labels"] / (means.ones - means["labels"]), snr_field=1.0)
    verdict = verdicts.sharpening(specifications.sharpening(nodes, means), means)
    assert verdict.state == state
    if not spread:
        assert verdict.effect.startswith(f"noise x{noise['mha'][-1] / noise['mha'][0]:.2f}")


def test_node_resamples_follow_the_statistics_of_a_site():
    """With every node counted once, the resampled quantities are those of snp, up to a common factor."""
    mu, W = (torch.randn(12, 40, generator=seeded(seed)) for seed in (0, 1))
    row = pd.Series(fields.site_row("enc1/mha", fields.measure(mu, W)))
    samples = specifications.resampled(tables.nodes_table("enc1/mha", fields.measure(mu, W)))
    once = {name: values[0].item() for name, values in samples.items()}
    for name in ("noise", "snr_node", "cluster_size"):
        assert once[name] == pytest.approx(row[name])
    assert 11 * once["snr"] == pytest.approx(row.snr) and 11 * once["snr_blocks"] == pytest.approx(row.snr_blocks)


# C4 -------------------------------------------------------------------------------------------------------


def pruned(target="linear1", change=-0.001, random=-0.05, density=0.35, saturated=True, theta=0.3):
    """Rows of one target at one threshold, as changes against a dense accuracy of 0.63."""
    rows = [("andc", 0, 0.63 + change), *(("random", seed, 0.63 + random) for seed in range(3))]
    table = pd.DataFrame(rows, columns=["method", "seed", "accuracy"])
    return table.assign(
        target=target,
        density=density,
        saturated=saturated,
        theta=theta,
        epochs=4.0,
        accuracy_dense=0.63,
        low=table.accuracy - 0.002,
        high=table.accuracy + 0.002,
    )


def everywhere(**changes):
    """Rows of all targets; `changes` against the dense accuracy, by target."""
    return pd.concat([pruned(target, change=changes.get(target, -0.001)) for target in TARGETS])


@pytest.mark.parametrize(
    ("table", "state"),
    [
        (everywhere(), HOLDS),
        (everywhere(fc=0.02), HOLDS),  # a gain is no loss
        (everywhere(all=-0.03), IN_PART),
        (pruned(), IN_PART),  # the other targets were not retrained
        (pruned(change=-0.03), FAILS),
        (pruned(random=0.01), FAILS),  # random masks do better
        (pd.concat([pruned("proj"), pruned("fc", change=-0.1)]), IN_PART),
        (pd.concat([pruned(density=0.6, change=-0.1, theta=0.1), everywhere()]), HOLDS),  # more than half
        (pruned(density=0.6), NOT_TESTED),
        (pruned(saturated=False), NOT_TESTED),  # was still gaining
        (pd.concat([everywhere(), pruned("fc", change=-0.1, density=0.4, saturated=False, theta=0.2)]), HOLDS),
        (pd.concat([everywhere(), pruned("fc", change=-0.1, density=0.1, theta=0.5)]), HOLDS),  # one that keeps more
        (pruned().query("method == 'andc'"), NOT_TESTED),
        (None, NOT_TESTED),
    ],
)
def test_pruning(table, state):
    verdict = verdicts.pruning(table, short=pruned())
    assert verdict.state == state
    if table is not None and state == IN_PART:
        assert ("not judged: proj, linear2, fc, all" in verdict.effect) == (len(table) == 4)


def test_each_target_is_shown_at_the_threshold_it_is_judged_at():
    rows = [
        pruned("fc", theta=0.1, density=0.6),  # keeps too much
        pruned("fc", theta=0.2, density=0.4, saturated=False),  # was still gaining
        pruned("fc", theta=0.3, density=0.3),
        pruned("fc", theta=0.5, density=0.1),
        pruned("all", theta=0.3, density=0.3, saturated=False),  # no threshold decides
        pruned("all", theta=0.5, density=0.1, saturated=False),
    ]
    shown = rules.at_one_theta(pd.concat(rows, ignore_index=True))
    assert shown.groupby("target").theta.unique().map(list).to_dict() == {"fc": [0.3], "all": [0.3]}
    assert len(shown) == len(rows[2]) + len(rows[4])


def test_networks_that_were_still_gaining_are_told_and_decide_nothing():
    gaining = pruned("fc", change=-0.02, saturated=False)
    verdict = verdicts.pruning(gaining, short=pruned())
    assert verdict.state == NOT_TESTED
    assert verdict.effect.endswith("after 4 epochs, points against the dense network: fc -2.0")


def test_short_retraining_is_told_and_decides_nothing():
    short = pd.concat([pruned(change=c).assign(epochs=e) for c, e in ((-0.3, 0.0), (-0.1, 0.5))])
    verdict = verdicts.pruning(None, short)
    assert verdict.state == NOT_TESTED
    assert verdict.effect.endswith("after 0.5 epochs, points against the dense network: linear1 -10.0")


# C5, C7 ---------------------------------------------------------------------------------------------------


def symmetry(p=0.001):
    return pd.DataFrame({"encoder": ENCODERS, "p_holm": p, "concentration": 0.43, "dealt_mean": 0.35})


def gaps(gap=0.2, half=0.05, p=0.01):
    table = pd.DataFrame({"encoder": ENCODERS, "gap": gap, "p": p, "dealt_mean": 0.05})
    return table.assign(gap_low=table.gap - half, gap_high=table.gap + half)


SIX, FIVE = [0.001] * 6 + [0.9], [0.001] * 5 + [0.9] * 2


@pytest.mark.parametrize(
    ("networks", "rand", "state"),
    [
        (3 * [(symmetry(), gaps())], [0.01, -0.02, 0.03], HOLDS),
        (3 * [(symmetry(SIX), gaps(p=SIX))], [0.0], HOLDS),
        (3 * [(symmetry(), gaps())], [0.5, 0.6, 0.4], IN_PART),  # the networks agree on the division
        ([(symmetry(), gaps())], None, IN_PART),  # one network says nothing of seeds
        ([(symmetry(FIVE), gaps())], None, FAILS),
        ([(symmetry(), gaps(p=0.5))], None, FAILS),  # dealt nodes are as good
        ([(symmetry(), gaps(gap=0.02))], None, FAILS),  # the interval includes zero
        ([(symmetry(), gaps(gap=np.nan))], None, FAILS),
        ([*2 * [(symmetry(), gaps())], (symmetry(0.9), gaps())], [0.0], IN_PART),  # another network does not
        ([(symmetry(0.9), gaps()), *2 * [(symmetry(), gaps())]], [0.0], FAILS),  # its own does not
    ],
)
def test_experts(networks, rand, state):
    agreement = pd.DataFrame({"rand": rand or []}, dtype=float)
    verdict = verdicts.experts(networks[0], networks, agreement)
    assert verdict.state == state
    assert ("not tested" in verdict.effect) == (len(networks) == 1)


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ([HOLDS] * 3, HOLDS),
        ([HOLDS, IN_PART, FAILS], IN_PART),
        ([FAILS] * 3, FAILS),
        ([FAILS, NOT_TESTED, FAILS], NOT_TESTED),
        ([HOLDS, NOT_TESTED, HOLDS], NOT_TESTED),
        ([HOLDS, NOT_TESTED, FAILS], IN_PART),
        (None, NOT_TESTED),
    ],
)
def test_shared_mechanism(states, state):
    judged = states and [rules.Verdict(f"C{n}", s, "") for n, s in enumerate(states, 1)]
    assert verdicts.shared_mechanism(judged).state == state


# Is it about nodes? ---------------------------------------------------------------------------------------


def rotated(noise, snr, draws=5):
    rows = [
        {"site": f"enc{m}/{kind}", "encoder": m, "kind": kind, "draw": d, "noise": noise + d, "snr": 1 + (snr + d) * m}
        for kind in ("mha", "ff")
        for m in ENCODERS
        for d in range(draws)
    ]
    return pd.DataFrame(rows)


def sites(noise, snr):
    rows = [(f"enc{m}/{kind}", m, kind, noise, 1 + snr[kind] * m) for kind in ("mha", "ff") for m in ENCODERS]
    return pd.DataFrame(rows, columns=["site", "encoder", "kind", "noise", "snr"]).assign(theta=0.3)


@pytest.mark.parametrize(("noise", "answer"), [(99, "yes"), (100, "no")])
def test_clusters_are_about_nodes_when_they_are_quieter_than_every_basis(noise, answer):
    text = verdicts.clusters_beyond_basis(sites(noise, both(1.0)), rotated(100, 1))
    assert text.startswith(f"{answer}: ") and ("at 14 of 14" in text) == (answer == "yes")


@pytest.mark.parametrize(
    ("snr", "falling", "answer"),
    [
        (both(9.0), ("mha", "ff"), "yes"),
        ({"mha": 9.0, "ff": 0.1}, ("mha", "ff"), "in part"),
        (both(9.0), ("mha",), "in part"),
        (both(9.0), (), "no"),
        (both(0.1), ("mha", "ff"), "no"),
    ],
)
def test_sharpening_is_about_nodes_when_both_quantities_move_further_than_in_every_basis(snr, falling, answer):
    nodes = sites(50.0, snr)
    nodes["noise"] = nodes.noise.where(~nodes.kind.isin(falling), 50.0 / nodes.encoder)  # that of every basis is level
    text = verdicts.sharpening_beyond_basis(nodes, rotated(100, 1))
    assert text.startswith(f"{answer}: ") and "(random bases x1.00 to x1.00)" in text
    assert ("noise x0.14" in text) == bool(falling)


@pytest.mark.parametrize(
    ("within", "across", "answer"), [(0.05, 0.01, "yes"), (0.15, 0.01, "in part"), (0.15, 0.14, "no")]
)
def test_experts_are_about_nodes_subspaces_or_neither(within, across, answer):
    bands = {f"excess_{n}_{end}": v + d for n, v in (("within", within), ("across", across)) for end, d in ENDS.items()}
    assert verdicts.heads_beyond_basis(symmetry().assign(excess=0.08, **bands)).startswith(f"{answer}: ")


def test_nothing_is_about_nodes_that_gets_worse_along_the_encoders():
    nodes, bases = sites(50.0, both(0.0)), rotated(100, 1)
    nodes["noise"], bases["noise"] = 50.0 * nodes.encoder, 50.0 * bases.encoder**2  # both rise, the nodes' less
    nodes["snr"], bases["snr"] = 10.0 - nodes.encoder, (10.0 - bases.encoder) ** 2  # both fall
    assert verdicts.sharpening_beyond_basis(nodes, bases).startswith("no: ")


ENDS = {"low": -0.02, "mean": 0.0, "high": 0.02}


# Specifications -------------------------------------------------------------------------------------------


def test_a_specification_curve_has_every_reading_once():
    thetas = (0.1, 0.3, 0.5)
    nodes = sharp_nodes(both(FALLING), both(UP), thetas=thetas)
    by_theta = nodes.groupby(["site", "encoder", "kind", "theta"], as_index=False).noise.mean()
    curve = specifications.sharpening(nodes, by_theta.assign(snr_field=by_theta.encoder.astype(float)))
    assert len(curve) == 2 * (3 * 4 + 1)  # noise and three forms of SNR a threshold, the fields once
    assert curve.agrees[curve.quantity == "noise"].all() and curve.agrees[curve.SNR == "fields"].all()
    noise = curve[curve.quantity == "noise"]
    assert noise.effect.tolist() == pytest.approx([FALLING[-1] / FALLING[0]] * 6)
    assert (noise.low <= noise.effect + 1e-9).all() and (noise.high >= noise.effect - 1e-9).all()
    sizes = specifications.small_clusters(nodes, num_labels=1000)
    assert len(sizes) == 6 and not sizes.agrees[sizes.theta == 0.1].any()  # some 200 labels a cluster: not small


def test_the_choice_that_breaks_a_claim_is_named():
    rows = [(kind, theta, theta < 0.5) for kind in ("mha", "ff") for theta in (0.1, 0.3, 0.5)]
    curve = pd.DataFrame(rows, columns=["sub-block", "theta", "agrees"]).assign(quantity="noise")
    assert specifications.in_words(curve) == (
        "4 of 6 readings agree; all 2 that disagree have theta 0.5 (2 of its 2 readings)"
    )
    one = curve.assign(agrees=curve.index != 5)
    assert specifications.in_words(one).endswith("; the one that disagrees has theta 0.5 (1 of its 2 readings)")
    spread = curve.assign(agrees=curve.theta.isin([7.0]), quantity=list("abcdef"), **{"sub-block": list("uvwxyz")})
    spread = spread.assign(theta=range(6), agrees=[True, True, True, False, False, False])
    assert specifications.in_words(spread) == "3 of 6 readings agree", "no choice explains half of those that disagree"
    assert specifications.in_words(curve.assign(agrees=True)) == "6 of 6 readings agree"


# Whole studies --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return open_study("cifar100", profile="shipped", device="cpu")


def test_every_claim_of_a_study_is_judged(shipped):
    judged = judge.all_claims(shipped)
    assert [verdict.claim for verdict in judged] == ["C1", "C2", "C3", "C4", "C5", "C7"]
    accuracy = shipped.tables["accuracy"].set_index("site").accuracy
    first, last = accuracy["enc1/mha"], accuracy["enc7/mha"]
    assert judged[0].effect.startswith(f"{100 * (last - first):+.1f} points at mha ({first:.1%} to {last:.1%}")
    table = judge.table({"a": judged, "b": judged[:1]})
    assert list(table.dataset) == 6 * ["a"] + ["b"] and set(table.verdict) <= set(get_args(rules.State))


def test_the_layers_of_a_convolutional_network_are_judged_by_the_same_rules(shipped):
    tables = open_layers("cifar100", profile="shipped", device="cpu").tables
    judged = judge.along(tables, [FILTERS])
    assert [verdict.claim for verdict in judged] == ["C1", "C2", "C3"]
    accuracy = tables["accuracy"].set_index("site").accuracy
    first, last = accuracy["layer1/filters"], accuracy["layer10/filters"]
    assert judged[0].effect.startswith(f"{100 * (last - first):+.1f} points at filters ({first:.1%} to {last:.1%}")
    assert all("filters" in verdict.effect or verdict.claim == "C2" for verdict in judged)
    shared = judge.shared_mechanism(shipped)
    assert shared.state == verdicts.shared_mechanism(judged).state != rules.NOT_TESTED
    assert judge.shared_mechanism(open_study("flowers102", profile="shipped")).state == rules.NOT_TESTED
