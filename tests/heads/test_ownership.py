"""Heads: counts, designation, the null and its p-values against plain loops written from the definitions."""

from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from cctlib.errors import UserError
from cctlib.heads import ownership
from cctlib.heads.ownership import NOBODY
from cctlib.snp import controls, fields

HEADS = 4


def random_diagonal(nodes=32, labels=10, density=0.3, seed=0):
    return torch.rand(nodes, labels, generator=torch.Generator().manual_seed(seed)) < density


def broken_diagonal(nodes=256, labels=100, seed=0):
    """Label i is on many diagonals of head i % 4 and on few of the other heads."""
    home = ownership.owners(nodes, HEADS)[:, None] == torch.arange(labels) % HEADS
    uniform = torch.rand(nodes, labels, generator=torch.Generator().manual_seed(seed))
    return uniform < torch.where(home, 0.2, 0.03)


@st.composite
def diagonals(draw):
    """(diagonal sets, number of heads) of a small site."""
    number, per_head, labels = draw(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)))
    flat = draw(st.lists(st.booleans(), min_size=number * per_head * labels, max_size=number * per_head * labels))
    return torch.tensor(flat).view(number * per_head, labels), number


def slow_counts(diagonal, owner, number):
    """d_h(i) by plain loops."""
    counts = [[0] * diagonal.shape[1] for _ in range(number)]
    for node in range(len(diagonal)):
        for label in range(diagonal.shape[1]):
            if diagonal[node][label]:
                counts[int(owner[node])][label] += 1
    return counts


# ---- counts, designation, concentration


@given(diagonals())
def test_counts_by_plain_loops(case):
    diagonal, number = case
    owner = [node // (len(diagonal) // number) for node in range(len(diagonal))]
    assert ownership.count(diagonal, number).tolist() == slow_counts(diagonal, owner, number)


@given(diagonals())
def test_counts_of_all_heads_add_up_to_the_nodes_with_the_label(case):
    diagonal, number = case
    assert torch.equal(ownership.count(diagonal, number).sum(0), diagonal.sum(0))


@given(diagonals())
def test_concentration_lies_between_even_and_one_head_only(case):
    diagonal, number = case
    counts = ownership.count(diagonal, number)
    value = ownership.concentration(counts)
    some = diagonal.any(0)
    assert value[~some].isnan().all()
    assert ((value[some] >= 1 / number - 1e-12) & (value[some] <= 1)).all()


def test_a_head_owns_a_contiguous_block():
    assert ownership.owners(8, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    diagonal = torch.zeros(256, 3, dtype=torch.bool)
    diagonal[64, 1] = True  # the first node of head 1
    assert ownership.count(diagonal, 4)[:, 1].tolist() == [0, 1, 0, 0]


def test_designation_of_ties_and_of_labels_that_no_node_has():
    counts = torch.tensor([[3, 2, 0, 1], [1, 2, 0, 0], [0, 0, 0, 5]])
    assert ownership.designate(counts).tolist() == [0, NOBODY, NOBODY, 2]
    assert ownership.concentration(counts)[:2].tolist() == [0.75, 0.5]  # a tie is undecided, and still concentrated


@given(diagonals())
def test_the_designated_head_has_strictly_more_than_any_other(case):
    diagonal, number = case
    counts = ownership.count(diagonal, number)
    for label, head in enumerate(ownership.designate(counts).tolist()):
        column = counts[:, label].tolist()
        best = [h for h in range(number) if column[h] == max(column)]
        assert head == (best[0] if len(best) == 1 and max(column) > 0 else NOBODY)


@pytest.mark.parametrize(("nodes", "number"), [(256, 3), (256, 0), (10, 4)])
def test_heads_that_cannot_share_the_nodes_are_refused_in_one_line(nodes, number):
    with pytest.raises(UserError, match="heads") as refused:
        ownership.count(torch.zeros(nodes, 2, dtype=torch.bool), number)
    assert "\n" not in str(refused.value)


# ---- the null


def test_a_deal_gives_each_head_its_share_of_the_nodes():
    dealt = ownership.deal(256, 4, 20, torch.Generator().manual_seed(0))
    assert dealt.shape == (20, 256)
    assert all(Counter(row.tolist()) == {0: 64, 1: 64, 2: 64, 3: 64} for row in dealt)
    assert not torch.equal(dealt[0], dealt[1])


def test_every_node_is_dealt_to_every_head_equally_often():
    dealt = ownership.deal(8, 4, 4000, torch.Generator().manual_seed(0))
    shares = torch.stack([(dealt == head).float().mean(0) for head in range(4)])
    assert torch.allclose(shares, torch.full((4, 8), 0.25), atol=0.03)


def test_dealt_counts_by_plain_loops():
    diagonal = random_diagonal()
    dealt = ownership.deal(32, HEADS, 7, torch.Generator().manual_seed(1))
    expected = [slow_counts(diagonal, owner, HEADS) for owner in dealt]
    assert ownership.count_dealt(diagonal, dealt, HEADS).tolist() == expected


def plain_concentrations(counts):
    """c_i of the labels that some node has, by plain loops."""
    columns = [[of_head[i] for of_head in counts] for i in range(len(counts[0]))]
    return [max(column) / sum(column) for column in columns if sum(column)]


def test_symmetry_against_a_slow_plain_loop_with_the_same_deals():
    """Everything recomputed from the deals themselves, without tensors."""
    site, deals, generator = "enc2/mha", 200, torch.Generator().manual_seed(5)
    diagonal = random_diagonal(labels=8)
    diagonal[:, 3] = torch.arange(32) < 6  # a label of head 0 alone
    diagonal[:, 6] = False  # a label that no node has
    null = ownership.null_counts({site: diagonal}, HEADS, generator, deals)
    row = ownership.symmetry({site: ownership.count(diagonal, HEADS)}, null).iloc[0]

    dealt = ownership.deal(32, HEADS, deals, torch.Generator().manual_seed(5))
    values = plain_concentrations(slow_counts(diagonal, ownership.owners(32, HEADS), HEADS))
    nulls = [plain_concentrations(slow_counts(diagonal, owner, HEADS)) for owner in dealt]
    limits = [np.percentile([other[place] for other in nulls], 95) for place in range(7)]
    means = [sum(other) / 7 for other in nulls]
    assert row["labels"] == 7
    assert row.concentration == pytest.approx(sum(values) / 7)
    assert row.dealt_mean == pytest.approx(np.mean(means))
    assert row.dealt_95 == pytest.approx(np.percentile(means, 95))
    assert row.excess == pytest.approx(sum(values) / 7 - np.mean(means))
    assert row.broken == pytest.approx(np.mean([value > limit for value, limit in zip(values, limits, strict=True)]))
    beyond = [value > limit for other in nulls for value, limit in zip(other, limits, strict=True)]
    assert row.broken_dealt == pytest.approx(np.mean(beyond))
    reached = sum(other >= sum(values) / 7 - 1e-12 for other in means)
    assert row.p == pytest.approx((1 + reached) / (1 + deals), abs=1e-12)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**20), data=st.data())
def test_symmetry_does_not_depend_on_the_names_of_labels(seed, data):
    diagonal = random_diagonal(seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(10))))
    rows = []
    for renamed in (diagonal, diagonal[:, order]):
        null = ownership.null_counts({"enc1/mha": renamed}, HEADS, torch.Generator().manual_seed(seed), 50)
        rows.append(ownership.symmetry({"enc1/mha": ownership.count(renamed, HEADS)}, null).iloc[0, 2:].astype(float))
    assert rows[0].to_numpy() == pytest.approx(rows[1].to_numpy())


def test_a_p_value_counts_the_observation_in_and_reads_no_evidence_from_nan():
    null = torch.tensor([1.0, 2.0, 3.0])
    assert ownership.p_value(torch.tensor(9.0), null).item() == 1 / 4
    assert ownership.p_value(torch.tensor(2.0), null).item() == 3 / 4
    assert ownership.p_value(torch.tensor(torch.nan), null).item() == 1
    assert ownership.p_value(torch.tensor(9.0), torch.tensor([torch.nan, 1.0, 1.0])).item() == 2 / 4


def test_broken_symmetry_is_found_and_dealt_nodes_are_not_suspected():
    sites = {"enc1/mha": broken_diagonal()}
    shuffled = broken_diagonal()[torch.randperm(256, generator=torch.Generator().manual_seed(2))]
    sites["enc2/mha"] = shuffled
    null = ownership.null_counts(sites, HEADS, torch.Generator().manual_seed(0), 400)
    table = ownership.symmetry({site: ownership.count(d, HEADS) for site, d in sites.items()}, null)
    assert table.encoder.tolist() == [1, 2]
    assert table.p[0] == pytest.approx(1 / 401)
    assert table.broken[0] > 0.9
    assert table.excess[0] > 0.2
    assert table.p[1] > 0.02
    assert table.broken[1] < 0.15
    assert (table.broken_dealt <= 0.05 + 1e-12).all()


@settings(max_examples=10)  # statsmodels collects garbage at each call, which takes it half a second here
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_that_of_statsmodels(p):
    table = ownership.with_holm(pd.DataFrame({"p": p, "other": 0}), "p")
    assert list(table) == ["p", "p_holm", "other"]
    assert table.p_holm.tolist() == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_is_taken_over_the_sites():
    sites = {f"enc{m}/mha": random_diagonal(seed=m, labels=6) for m in (1, 2, 3)}
    null = ownership.null_counts(sites, HEADS, torch.Generator().manual_seed(0), 99)
    table = ownership.symmetry({site: ownership.count(d, HEADS) for site, d in sites.items()}, null)
    assert table.p_holm.tolist() == pytest.approx(multipletests(table.p, method="holm")[1])


def test_a_site_without_a_single_label_has_no_evidence_and_leaves_the_others_theirs():
    sites = {"enc3/mha": broken_diagonal(), "enc4/mha": torch.zeros(256, 100, dtype=torch.bool)}
    null = ownership.null_counts(sites, HEADS, torch.Generator().manual_seed(0), 50)
    counts = {site: ownership.count(diagonal, HEADS) for site, diagonal in sites.items()}
    draw = torch.Generator().manual_seed(1)
    turned = {site: ownership.excess([diagonal], HEADS, draw) for site, diagonal in sites.items()}
    table = ownership.symmetry(counts, null, turned=turned)
    some, none = table.iloc[0], table.iloc[1]
    assert (some.p, some["labels"]) == (1 / 51, 100) and some.p_holm == pytest.approx(2 / 51)
    assert (none.p, none.p_holm, none["labels"], none.undesignated) == (1, 1, 0, 100)
    assert none[["concentration", "excess", "broken", "turned_mean"]].isna().all()
    assert len(ownership.overlap(counts, null)) == 12


# ---- rotated sites


def rotating_probe(seed=0):
    """A site of 4 heads of 8 nodes and 12 labels, [label, node]: head h alone tells apart labels 3h to 3h + 2."""
    generator = torch.Generator().manual_seed(seed)
    home = torch.arange(12)[:, None] // 3 == torch.arange(32) // 8
    mu = torch.where(home, torch.randn(12, 32, generator=generator), 0.1 * torch.randn(12, 32, generator=generator))
    return mu, torch.where(home, mu, 0.0)


@pytest.mark.parametrize(("control", "stays"), [(controls.WITHIN, True), (controls.ACROSS, False)])
def test_rotation_within_heads_keeps_their_labels_and_across_heads_spreads_them(control, stays):
    mu, W = rotating_probe()
    groups = controls.groups_of(32, "mha", HEADS)[control]
    sets = list(ownership.rotated_diagonals(mu, W, groups, 10, torch.Generator().manual_seed(1)))
    counts = torch.stack([ownership.count(diagonal, HEADS) for diagonal in sets])
    assert counts.shape == (10, HEADS, 12)
    designation = ownership.designate(counts)
    kept = (designation == torch.arange(12) // 3).double().mean()
    assert (kept > 0.9) == stays
    null = ownership.null_counts({"enc1/mha": random_diagonal(labels=12)}, HEADS, torch.Generator().manual_seed(0), 5)
    beyond = ownership.excess(sets, HEADS, torch.Generator().manual_seed(2), deals=50)
    row = ownership.symmetry({"enc1/mha": counts[0]}, null, turned={"enc1/mha": beyond}).iloc[0]
    numbers = (beyond.mean().item(), beyond.min().item(), beyond.max().item(), 10)
    assert (row.turned_mean, row.turned_low, row.turned_high, row.turned_draws) == pytest.approx(numbers)
    draw, plain = torch.Generator().manual_seed(2), []
    for diagonal, of_heads in zip(sets, counts.tolist(), strict=True):
        dealt = ownership.count_dealt(diagonal, ownership.deal(32, HEADS, 50, draw), HEADS)
        by_chance = [share for deal in dealt.tolist() for share in plain_concentrations(deal)]
        plain.append(np.mean(plain_concentrations(of_heads)) - np.mean(by_chance))
    assert beyond.tolist() == pytest.approx(plain)
    assert (beyond.min() > 0.2) == stays


def test_a_rotation_by_the_identity_leaves_all_counts_as_they_are():
    mu, W = rotating_probe()
    alone = torch.arange(32)[:, None]  # a node that is rotated by itself at most changes the sign of both its columns
    [turned] = ownership.rotated_diagonals(mu, W, alone, 1, torch.Generator())
    counts = ownership.count(turned, HEADS)[None]
    assert torch.equal(counts[0], ownership.count(fields.diagonals(mu, W), HEADS)) and counts.any()


# ---- sets, overlap, agreement


def test_head_sets_and_overlap_by_hand():
    diagonal = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]).bool()  # two heads of two nodes
    counts = {"enc1/mha": ownership.count(diagonal, 2)}
    null = ownership.null_counts({"enc1/mha": diagonal}, 2, torch.Generator().manual_seed(0), 20)
    assert ownership.head_sets(counts).designated.tolist() == [2, 0]
    row = ownership.overlap(counts, null).iloc[0]
    assert (row.head_a, row.head_b, row.shared, row.jaccard) == (0, 1, 1, 0.5)
    assert row.weighted == pytest.approx(1 / 3)  # (min(2,1) + min(1,0)) / (max(2,1) + max(1,0))
    expected = [
        sum(min(a, b) for a, b in zip(*deal, strict=True)) / sum(max(a, b) for a, b in zip(*deal, strict=True))
        for deal in null["enc1/mha"].tolist()
    ]
    assert row.weighted_dealt == pytest.approx(np.mean(expected))
    assert row.p == pytest.approx((1 + sum(value <= 1 / 3 + 1e-12 for value in expected)) / 21)


def test_specialised_heads_overlap_less_than_dealt_nodes():
    diagonal = {"enc1/mha": broken_diagonal()}
    null = ownership.null_counts(diagonal, HEADS, torch.Generator().manual_seed(0), 100)
    table = ownership.overlap({"enc1/mha": ownership.count(diagonal["enc1/mha"], HEADS)}, null)
    assert len(table) == 6
    assert (table.weighted < table.weighted_dealt).all()
    assert (table.p < 0.05).all()


def plain_rand_index(a, b):
    """Adjusted Rand index from its definition, by pairs."""
    pairs = list(combinations(range(len(a)), 2))
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    in_a, in_b = (sum(x[i] == x[j] for i, j in pairs) for x in (a, b))
    expected, most = in_a * in_b / len(pairs), (in_a + in_b) / 2
    return (both - expected) / (most - expected)


def test_agreement_of_models():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(4, (100,), generator=generator)
    renamed = (first + 1) % 4
    unrelated = torch.randint(4, (100,), generator=generator)
    undecided = first.clone()
    undecided[:40] = NOBODY
    models = {"a": first, "b": renamed, "c": unrelated, "d": undecided}
    table = ownership.agreement("enc1/mha", models).set_index(["model_a", "model_b"])
    assert len(table) == 6
    assert table.rand["a", "b"] == pytest.approx(1)
    assert abs(table.rand["a", "c"]) < 0.05
    assert table.rand["a", "c"] == pytest.approx(plain_rand_index(first.tolist(), unrelated.tolist()))
    assert table["labels"]["a", "d"] == 60
    assert table.rand["a", "d"] == pytest.approx(1)


def test_agreement_of_fewer_than_two_labels_or_models():
    nobody = torch.tensor([NOBODY, NOBODY, 1])
    assert np.isnan(ownership.agreement("enc1/mha", {"a": nobody, "b": nobody}).rand[0])
    assert ownership.agreement("enc1/mha", {"a": nobody}).empty


# ---- meaning


GROUPS = tuple(label // 5 for label in range(100))


def semantic_counts(by_group: bool):
    """Every label belongs clearly to one head; labels of a group to the same one, or to all in turn."""
    home = torch.tensor(GROUPS) % HEADS if by_group else torch.arange(100) % HEADS
    return torch.where(home == torch.arange(HEADS)[:, None], 10, 1)


@pytest.mark.parametrize("by_group", [True, False])
def test_semantics_finds_heads_that_own_whole_groups(by_group):
    counts = {"enc1/mha": semantic_counts(by_group)}
    null = ownership.null_counts({"enc1/mha": random_diagonal(256, 100)}, HEADS, torch.Generator().manual_seed(0), 100)
    table = ownership.semantics(counts, null, GROUPS, torch.Generator().manual_seed(0), 500)
    row = table.iloc[0]
    assert list(table) == [
        "site",
        "encoder",
        "pairs",
        "same",
        "shuffled_mean",
        "shuffled_95",
        "p",
        "p_holm",
        "dealt_mean",
        "dealt_95",
        "p_dealt",
        "p_dealt_holm",
    ]
    assert row.pairs == 20 * comb(5, 2)
    plain = [
        (counts["enc1/mha"][:, i].argmax() == counts["enc1/mha"][:, j].argmax()).item()
        for i, j in combinations(range(100), 2)
        if GROUPS[i] == GROUPS[j]
    ]
    assert row.same == pytest.approx(np.mean(plain))
    assert row.shuffled_mean == pytest.approx(24 / 99, abs=0.01)  # 25 labels each: 24 of the 99 others
    assert (row.p < 0.01) == by_group
    assert (row.p_dealt < 0.05) == by_group


def test_semantics_without_designated_labels_has_no_evidence():
    tied = {"enc1/mha": torch.ones(HEADS, 100, dtype=torch.int64)}
    null = {"enc1/mha": torch.ones(10, HEADS, 100, dtype=torch.int64)}
    row = ownership.semantics(tied, null, GROUPS, torch.Generator().manual_seed(0), 10).iloc[0]
    assert (row.pairs, row.p, row.p_dealt) == (0, 1, 1)


def test_enrichment_against_the_hypergeometric_distribution_by_hand():
    counts = semantic_counts(by_group=True)
    counts[:, 7] = 3  # a tie: 99 labels are designated, group 1 keeps 4
    names = [f"group {g}" for g in range(20)]
    table = ownership.enrichment({"enc3/mha": counts}, GROUPS, names).set_index(["head", "group_name"])
    assert len(table) == HEADS * 20
    row = table.loc[0, "group 0"]  # group 0 belongs to head 0, which owns the 25 labels of groups 0, 4, 8, 12, 16
    assert (row.group_labels, row.shared) == (5, 5)
    assert row.expected == pytest.approx(25 * 5 / 99)
    assert row.p == pytest.approx(comb(94, 20) / comb(99, 25))
    none = table.loc[1, "group 0"]
    assert (none.shared, none.p) == (0, 1)
    assert table.loc[1, "group 1"].group_labels == 4
    p = sorted(table.p)
    assert table.p_holm.min() == pytest.approx(p[0] * len(table))


def test_tables_have_their_documented_columns():
    diagonal = {"enc1/mha": random_diagonal()}
    counts = {site: ownership.count(d, HEADS) for site, d in diagonal.items()}
    null = ownership.null_counts(diagonal, HEADS, torch.Generator().manual_seed(0), 10)
    rotated = {site: ownership.excess([d], HEADS, torch.Generator()) for site, d in diagonal.items()}
    assert " ".join(ownership.symmetry(counts, null, excess_across=rotated)) == (
        "site encoder heads labels undesignated concentration dealt_mean dealt_95 excess broken "
        "broken_dealt deals p p_holm excess_across_mean excess_across_low excess_across_high excess_across_draws"
    )
    assert " ".join(ownership.head_sets(counts)) == "site encoder head designated"
    assert " ".join(ownership.overlap(counts, null)) == (
        "site encoder head_a head_b shared jaccard weighted weighted_dealt p"
    )
