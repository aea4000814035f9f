"""SNP against the definition, written out with plain loops (Method, section 5)."""

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cctlib.errors import UserError
from cctlib.snp import fields

SQUARES = st.integers(1, 9).flatmap(lambda size: arrays.arrays(bool, (3, size, size)))


def plain_clusters(B, order=None):
    """The walk of the definition: open, fill, close, repeat."""
    left = [label for label in (order or range(len(B))) if B[label, label]]
    found = []
    while left:
        cluster = [left[0]]
        for label in left[1:]:
            if all(B[label, member] and B[member, label] for member in cluster):
                cluster.append(label)
        left = [label for label in left if label not in cluster]
        found.append(set(cluster))
    return found


def as_sets(assignment):
    return [set(np.flatnonzero(assignment == cluster)) for cluster in range(assignment.max() + 1)]


@settings(deadline=None, max_examples=150)
@given(SQUARES)
def test_clusters_are_those_of_the_walk(B):
    for matrix, assignment in zip(B, fields.clusters(torch.from_numpy(B)).numpy(), strict=True):
        assert as_sets(assignment) == plain_clusters(matrix)


@settings(deadline=None, max_examples=60)
@given(SQUARES, st.randoms(use_true_random=False))
def test_the_order_of_the_walk_changes_clusters_and_not_their_union(B, random):
    order = list(range(B.shape[1]))
    random.shuffle(order)
    walked = fields.clusters(torch.from_numpy(B), torch.tensor(order)).numpy()
    for matrix, assignment in zip(B, walked, strict=True):
        assert as_sets(assignment) == plain_clusters(matrix, order)
        assert set(np.flatnonzero(assignment >= 0)) == set(np.flatnonzero(matrix.diagonal()))


@settings(deadline=None, max_examples=100)
@given(SQUARES)
def test_counts_are_those_of_plain_counting(B):
    found = fields.node_statistics(torch.from_numpy(B))
    for n, matrix in enumerate(B):
        blocks = plain_clusters(matrix)
        own = set().union(*blocks) if blocks else set()
        inside = {(i, j) for block in blocks for i in block for j in block}
        ones = {(i, j) for i, j in zip(*np.nonzero(matrix), strict=True)}
        assert inside <= ones
        assert found["signal"][n] == len(inside) and found["noise"][n] == len(ones - inside)
        assert found["column_noise"][n] == sum(j in own for _, j in ones - inside)
        assert found["foreign_noise"][n] == sum(j not in own for _, j in ones - inside)
        assert found["labels"][n] == len(own) and found["clusters"][n] == len(blocks)


@pytest.fixture
def site():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 30, generator=generator), torch.randn(12, 30, generator=generator)


def test_the_boolean_matrix_is_that_of_the_written_out_field(site):
    mu, W = site
    B = fields.boolean(mu, W, 0.3)
    for n in range(mu.shape[1]):
        M = np.outer(mu[:, n].double(), W[:, n].double())
        assert np.array_equal(B[n].numpy(), M / M.max() > 0.3 if M.max() > 0 else np.zeros_like(M, bool))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 8), st.integers(1, 6), st.integers(0, 2**32), st.sampled_from([0.1, 0.3, 0.7]))
def test_diagonal_sets_are_the_diagonals_of_the_boolean_matrices(num_labels, nodes, seed, theta):
    draw = torch.Generator().manual_seed(seed)
    mu, W = (torch.randn(num_labels, nodes, generator=draw).mul(4).round() for _ in range(2))  # with ties
    assert torch.equal(fields.diagonals(mu, W, theta), fields.boolean(mu, W, theta).diagonal(dim1=1, dim2=2))


def test_rounding_is_to_the_nearest_float16_and_happens_once():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    once = fields.rounded(values)
    assert torch.equal(fields.rounded(once), once) and not torch.equal(once, values)
    assert ((once - values).abs() <= values.abs() * 2**-11).all()
    with pytest.raises(UserError, match="65,504"):
        fields.rounded(torch.tensor([7e4]))


def test_a_node_without_a_positive_entry_is_silent():
    mu, W = torch.ones(4, 2), torch.stack([-torch.ones(4), torch.ones(4)], dim=1)
    found = fields.measure(mu, W)
    assert found.silent.tolist() == [True, False]
    assert found.summary()["noise_all"] == found.noise.float().mean()


def test_theta_near_one_leaves_one_entry_at_most(site):
    assert fields.boolean(*site, 1 - 1e-9).flatten(1).sum(1).max() <= 1


def test_relabelling_relabels_the_diagonal_sets(site):
    mu, W = site
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    before, after = (fields.boolean(*pair).diagonal(dim1=1, dim2=2) for pair in ((mu, W), (mu[order], W[order])))
    assert torch.equal(before[:, order], after)


def test_summary_is_that_of_the_summed_boolean_matrix(site):
    mu, W = site
    A = fields.boolean(mu, W).double().sum(0)
    off = A[~torch.eye(12, dtype=torch.bool)]
    found = fields.measure(mu, W)
    assert found.summary()["snr"].item() == pytest.approx((A.diagonal().mean() / off.mean()).item())
    total = sum(torch.outer(m, w) / torch.outer(m, w).max() for m, w in zip(mu.double().T, W.double().T, strict=True))
    off = total[~torch.eye(12, dtype=torch.bool)].abs()
    assert found.snr_field.item() == pytest.approx((total.diagonal().mean() / off.mean()).item())


def test_mu_is_the_mean_over_the_images_of_each_label():
    pooled, labels = torch.randn(50, 7), torch.arange(50) % 5
    for label, mean in enumerate(fields.mean_by_label(pooled, labels, 5)):
        torch.testing.assert_close(mean, pooled[labels == label].mean(0))


def test_shuffled_labels_keep_their_numbers():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    rows = fields.shuffled(labels, 5, torch.Generator().manual_seed(0))
    assert all(torch.equal(row.sort().values, labels) for row in rows) and len(torch.stack(rows).unique(dim=0)) > 1


def test_sums_do_not_drift():
    """A million images of one value: float32 sums would be off by far more than a rounding."""
    mu = fields.mean_by_label(torch.full((1_000_000, 1), 0.1), torch.zeros(1_000_000, dtype=torch.int64), 1)
    assert mu.item() == torch.tensor(0.1).item()


class PlainProbe(torch.nn.Module):
    """A probe as its definition reads: SeqPool, then a linear layer without bias (Method, section 4)."""

    def __init__(self, nodes, labels):
        super().__init__()
        self.attention = torch.nn.Linear(nodes, 1)
        self.fc = torch.nn.Linear(nodes, labels, bias=False)

    def pool(self, tokens):
        return (self.attention(tokens).softmax(dim=1) * tokens).sum(dim=1)

    def forward(self, tokens):
        return self.fc(self.pool(tokens))


@torch.no_grad()
def test_fields_are_those_of_literal_silencing():
    """Zero all weights of a real probe but node n's, run the images, average the outputs of each label."""
    torch.manual_seed(3)
    nodes, num_labels = 10, 6
    labels = torch.arange(90) % num_labels
    tokens = torch.randn(90, 8, nodes) + torch.randn(num_labels, 1, nodes)[labels]
    probe = PlainProbe(nodes, num_labels)
    mu, W = fields.mean_by_label(probe.pool(tokens), labels, num_labels), probe.fc.weight.clone()
    B = fields.boolean(mu, W)
    for n in range(nodes):
        probe.fc.weight.zero_()
        probe.fc.weight[:, n] = W[:, n]
        outputs = probe(tokens)
        M = torch.stack([outputs[labels == label].mean(0) for label in range(num_labels)])
        torch.testing.assert_close(fields.field(mu[:, n], W[:, n]), M)
        assert torch.equal(B[n], M / M.max() > 0.3)


@torch.no_grad()
def test_head_fields_are_those_of_silencing_the_other_heads(site):
    mu, W = site
    found = fields.measure_heads(mu, W, heads=3)
    for h in range(3):
        alone = torch.zeros(30)
        alone[10 * h : 10 * (h + 1)] = 1
        M = (mu * alone).double() @ W.double().T
        blocks = plain_clusters((M / M.max() > 0.3).numpy())
        assert found.ones[h] == (M / M.max() > 0.3).sum()
        assert found.signal[h] == sum(len(block) ** 2 for block in blocks)


def test_the_threshold_is_strict_where_decimals_tie():
    """6 of 20 is 0.3 and not above it, though 6 > 0.3 * 20 or 0.29 * 100 < 29 in floating point."""
    column, ones = torch.tensor([20.0, 6.0, 7.0]), torch.ones(3)
    assert fields.boolean(column[:, None], ones[:, None], 0.3)[0, :, 0].tolist() == [True, False, True]
    column = torch.tensor([100.0, 29.0, 30.0])
    assert fields.boolean(column[:, None], ones[:, None], 0.29)[0, :, 0].tolist() == [True, False, True]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.integers(1, 6), st.integers(0, 2**32), st.sampled_from([0.1, 0.3, 0.5, 0.7]))
def test_ones_are_blocks_and_two_kinds_of_noise(num_labels, nodes, seed, theta):
    """Of any mu and W: blocks all ones and disjoint, their union D_n, and no one is counted twice or lost."""
    draw = torch.Generator().manual_seed(seed)
    mu, W = (torch.randn(num_labels, nodes, generator=draw) for _ in range(2))
    B, found = fields.boolean(mu, W, theta), fields.measure(mu, W, theta)
    assert torch.equal(found.assignment >= 0, B.diagonal(dim1=1, dim2=2))
    assert torch.equal(found.signal + found.column_noise + found.foreign_noise, B.flatten(1).sum(1))
    assert torch.equal(found.silent, fields.peaks(mu, W) <= 0) and torch.equal(found.silent, found.ones == 0)
    assert (found.noise >= 0).all() and (found.column_noise >= 0).all() and (found.foreign_noise >= 0).all()
    for n in range(nodes):
        for members in as_sets(found.assignment[n].numpy()):
            rows = torch.tensor(sorted(members))
            assert B[n][rows][:, rows].all()


def test_the_worst_case_has_as_many_clusters_as_labels():
    B = torch.eye(7, dtype=torch.bool)[None]
    assert fields.clusters(B).tolist() == [list(range(7))]
    assert fields.clusters(~B).tolist() == [[-1] * 7]
    assert fields.clusters(B | ~B).tolist() == [[0] * 7]


def test_chunks_change_nothing(site, monkeypatch):
    whole = fields.measure(*site)
    monkeypatch.setattr(fields, "CHUNK", 7 * 12**2)
    parts = fields.measure(*site)
    for name in ("silent", "ones", "signal", "column_noise", "assignment", "snr_field"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_the_summary_is_that_of_plain_averages(site):
    """Both conventions, pooled cluster sizes, S/E from the ones outside every block, and ratios."""
    mu, W = site
    W = W.clone()
    mu, W[:, :3] = mu.abs(), -W[:, :3].abs()  # three silent nodes
    found, B = fields.measure(mu, W), fields.boolean(mu, W).numpy()
    walks = [plain_clusters(matrix) for matrix in B]
    sizes = [len(block) for blocks in walks for block in blocks]
    noise = [matrix.sum() - sum(len(b) ** 2 for b in blocks) for matrix, blocks in zip(B, walks, strict=True)]
    ratios = [sum(len(b) ** 2 for b in blocks) / max(n, 1) for blocks, n in zip(walks[3:], noise[3:], strict=True)]
    numbers = {name: value.item() for name, value in found.summary().items()}
    expected = {
        "nodes": 30,
        "silent": 3,
        "clusters": sum(map(len, walks)) / 27,
        "clusters_all": sum(map(len, walks)) / 30,
        "labels": sum(sizes) / 27,
        "labels_all": sum(sizes) / 30,
        "noise": sum(noise) / 27,
        "noise_all": sum(noise) / 30,
        "cluster_size": np.mean(sizes),
        "snr_node": np.mean(ratios),
        "snr_blocks": (sum(sizes) / 12) / (sum(noise) / (12 * 11)),
    }
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)
    assert numbers["noise"] == pytest.approx(numbers["column_noise"] + numbers["foreign_noise"])


def test_ratios_without_noise_are_infinite_and_of_nothing_are_nan():
    alone = fields.measure(torch.eye(3), torch.eye(3)).summary()  # each node lights one diagonal entry
    assert alone["snr"] == alone["snr_blocks"] == torch.inf and alone["snr_node"] == 1
    nothing = fields.measure(-torch.ones(3, 2), torch.ones(3, 2)).summary()
    assert nothing["silent"] == 2 and nothing["noise_all"] == 0
    assert all(nothing[name].isnan() for name in ("snr", "snr_blocks", "snr_node", "noise", "cluster_size"))


def test_everything_stays_on_the_gpu(monkeypatch):
    """On fake CUDA tensors nothing can be read back; where values are looked at, the answer is told."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(fields, "is_finite", lambda values: True)
    monkeypatch.setattr(fields, "most", lambda counts: 5)
    with FakeTensorMode():
        mu, W = torch.randn(5, 4, device="cuda"), torch.randn(5, 4, device="cuda")
        found, heads = fields.measure(mu, W), fields.measure_heads(mu, W, heads=2)
        made = [fields.field(mu[:, 0], W[:, 0]), fields.boolean(mu, W)]
        for statistics in (found, heads):
            made += [value for value in vars(statistics).values() if isinstance(value, torch.Tensor)]
            made += statistics.summary().values()
        assert {value.device.type for value in made} == {"cuda"}


@pytest.fixture
def unchecked():
    """As outside the tests, where a wrong shape is met by our own words and not by jaxtyping's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda mu, W: (mu[:3], W, 0.3), "both must be"),
        (lambda mu, W: (mu[:1], W[:1], 0.3), "2 labels and 1 node at least"),
        (lambda mu, W: (mu[:, :0], W[:, :0], 0.3), "2 labels and 1 node at least"),
        (lambda mu, W: (mu[0], W[0], 0.3), "both must be"),
        (lambda mu, W: (mu.long(), W, 0.3), "floating point"),
        (lambda mu, W: (mu.to("meta"), W, 0.3), "one device"),
        (lambda mu, W: (mu, W, 1.0), "theta is 1.0"),
        (lambda mu, W: (mu, W, 0.0), "theta is 0.0"),
        (lambda mu, W: (mu, W, float("nan")), "theta is nan"),
        (lambda mu, W: (mu * torch.nan, W, 0.3), "NaN or infinity"),
        (lambda mu, W: (mu, W / 0, 0.3), "NaN or infinity"),
        (lambda mu, W: (mu, W, 0.3, torch.zeros(12, dtype=torch.int64)), "no permutation"),
    ],
)
def test_bad_input_is_one_line(site, unchecked, change, words):
    with pytest.raises(UserError, match=words) as caught:
        fields.measure(*change(*site))
    assert "\n" not in str(caught.value)


def test_heads_must_divide_the_nodes(site):
    with pytest.raises(UserError, match="30 nodes do not divide into 4 heads"):
        fields.measure_heads(*site, heads=4)


@pytest.mark.parametrize(
    ("pooled", "labels", "words"),
    [
        (torch.ones(4, 2), [0, 1, 2, 3], r"1 labels are outside 0 \.\. 2"),
        (torch.full((3, 2), torch.inf), [0, 1, 2], "NaN or infinity"),
        (torch.ones(2, 2), [0, 2], "no image of label 1"),
    ],
)
def test_values_and_labels_that_give_no_mean_are_one_line(pooled, labels, words):
    with pytest.raises(UserError, match=words) as caught:
        fields.mean_by_label(pooled, torch.tensor(labels), 3)
    assert "\n" not in str(caught.value)
