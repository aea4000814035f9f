"""Timing forms of a pruned network: the arithmetic of ratios, and that a wrong answer is no answer."""

import copy

import pandas as pd
import pytest
import tiny_pruning as tiny
import torch

from cctlib.andc import latency, masks
from cctlib.andc.retrain import prune


@pytest.fixture
def pruned():
    return prune(tiny.network(), masks.andc_masks(tiny.diagonals(), tiny.CONFIG.encoders))


def test_every_form_is_timed_for_every_batch_beside_the_dense_one(pruned):
    found = latency.measure(pruned, (1, 3), seconds=0.1)
    expected = {"dense", "no silent nodes", "bags", "chosen"}
    for _, rows in found.groupby("batch"):
        assert set(rows.form) == expected and len(rows) == len(expected)
        dense = rows.set_index("form").loc["dense"]
        assert dense.ratio == dense.low == dense.high == 1
    assert (found.milliseconds > 0).all() and (found.low <= found.ratio).all() and (found.ratio <= found.high).all()
    weights = [pruned.get_parameter(layer.weight) for layer in masks.layers(tiny.CONFIG.encoders)]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert found.sparsity.unique() == pytest.approx(zeros)


def test_a_ratio_is_the_median_over_turns_of_the_time_over_that_of_the_dense_network():
    times = pd.DataFrame({"dense": [1.0, 2.0, 4.0], "bags": [3.0, 2.0, 2.0]})
    found = latency.ratios(times).set_index("form")
    assert found.loc["bags", "ratio"] == 1.0  # of 3, 1 and 0.5
    assert found.loc["bags", "milliseconds"] == 2000


def test_a_wrong_form_is_marked_and_the_rest_go_on(pruned, capsys):
    wrong, broken = copy.deepcopy(pruned), copy.deepcopy(pruned)
    wrong.classifier.fc.bias[0] += 1
    broken.classifier.fc.bias[0] = float("nan")
    networks = {"dense": pruned, "bags": wrong, "nan": broken, "chosen": copy.deepcopy(pruned)}
    times = latency.turns(networks, torch.randn(2, 3, 8, 8), seconds=0.0)
    assert times[["bags", "nan"]].isna().all(axis=None) and (times[["dense", "chosen"]] > 0).all(axis=None)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "form bags is not timed: its logits differ" in told[0] and "form nan" in told[1]
    table = latency.ratios(times).set_index("form")
    assert table.ratio.isna()["bags"] and table.ratio["chosen"] > 0


@pytest.mark.parametrize(("error", "right"), [(1e-5, True), (1e-2, False)])
def test_logits_may_differ_in_the_last_digits_of_their_precision(pruned, error, right):
    other = copy.deepcopy(pruned)
    other.classifier.fc.bias += error
    times = latency.turns({"dense": pruned, "bags": other}, torch.randn(2, 3, 8, 8), seconds=0.0)
    assert times.bags.notna().all() == right
