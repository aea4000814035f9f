"""Timing forms of a pruned network: the arithmetic of ratios, and that a wrong answer is no answer."""

import copy

import pandas as pd
import pytest
import tiny_pruning as tiny
import torch

from cctlib.andc import latency, masks
from cctlib.andc.compact import FORMS


@pytest.fixture
def pruned():
    network = tiny.network()
    for name, mask in masks.andc_masks(tiny.diagonals(), tiny.CONFIG.encoders).items():
        network.get_parameter(name).masked_fill_(~mask, 0)
    return network


def test_every_form_is_timed_for_every_batch_beside_the_dense_one(pruned):
    found = latency.measure(pruned, (1, 3), seconds=0.1)
    expected = {"no silent nodes", "chosen", *FORMS}
    for _, rows in found.groupby("batch"):
        assert set(rows.form) == expected and len(rows) == len(expected)
        dense = rows.set_index("form").loc["dense"]
        assert dense.ratio == dense.low == dense.high == 1
    assert (found.milliseconds > 0).all() and (found.low <= found.ratio).all() and (found.ratio <= found.high).all()
    weights = [pruned.get_parameter(layer.weight) for layer in masks.layers(tiny.CONFIG.encoders)]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert found.sparsity.unique() == pytest.approx(zeros)


def test_a_ratio_is_the_median_over_turns_of_the_time_over_that_of_the_dense_network():
    times = pd.DataFrame({"dense": [1.0, 2.0, 4.0], "csr": [3.0, 2.0, 2.0]})
    found = latency.ratios(times).set_index("form")
    assert found.loc["csr", "ratio"] == 1.0  # of 3, 1 and 0.5
    assert found.loc["csr", "milliseconds"] == 2000


def test_a_wrong_or_failing_form_is_marked_and_the_rest_go_on(pruned, capsys):
    wrong, failing = copy.deepcopy(pruned), copy.deepcopy(pruned)
    wrong.classifier.fc.bias[0] += 1
    failing.classifier.fc.weight = torch.nn.Parameter(failing.classifier.fc.weight.half())
    networks = {"dense": pruned, "csr": wrong, "bags": failing, "chosen": copy.deepcopy(pruned)}
    times = latency.turns(networks, torch.randn(2, 3, 8, 8), seconds=0.0)
    assert times.csr.isna().all() and times.bags.isna().all() and (times[["dense", "chosen"]] > 0).all().all()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "form csr is not timed: its logits differ" in told[0] and "form bags" in told[1]
    table = latency.ratios(times).set_index("form")
    assert table.ratio.isna()["csr"] and table.ratio["chosen"] > 0


@pytest.mark.parametrize(("error", "right"), [(1e-5, True), (1e-2, False)])
def test_logits_may_differ_in_the_last_digits_of_their_precision(pruned, error, right):
    other = copy.deepcopy(pruned)
    other.classifier.fc.bias += error
    times = latency.turns({"dense": pruned, "csr": other}, torch.randn(2, 3, 8, 8), seconds=0.0)
    assert times.csr.notna().all() == right
