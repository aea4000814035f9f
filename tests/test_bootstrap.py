"""The bootstrap: stratified, reproducible, and right about the spread of a mean."""

import math

import torch

from cctlib.bootstrap import estimate, interval, resample

LABELS = torch.tensor([2, 0, 0, 2, 2, 1, 0, 2])


def test_each_label_keeps_its_number_of_images():
    weights = resample(LABELS, 50)
    assert weights.shape == (50, len(LABELS))
    for label in range(3):
        drawn = weights[:, label == LABELS].sum(1)
        assert drawn.eq((label == LABELS).sum()).all()
    assert (weights[:, 5] == 1).all()  # the only image of label 1


def test_each_image_of_a_label_is_drawn_equally_often():
    weights = resample(LABELS, 20_000)
    assert torch.allclose(weights.mean(0), torch.ones(len(LABELS)), atol=0.03)


def test_same_seed_same_weights():
    first, second = (resample(LABELS, 5, seed=3) for _ in range(2))
    assert torch.equal(first, second)


def test_a_label_without_images_is_no_obstacle():
    weights = resample(torch.tensor([0, 3, 3]), 4)
    assert (weights.sum(1) == 3).all()


def test_interval_of_an_accuracy_agrees_with_the_binomial():
    images, correct = 400, 300
    contributions = (torch.arange(images) < correct).float()[:, None] / images
    one_label = torch.zeros(images, dtype=torch.int64)
    weights = resample(one_label, 4000)
    value, low, high = estimate(contributions, weights)[:, 0].tolist()
    half = 1.96 * math.sqrt(0.75 * 0.25 / images)
    assert abs(value - 0.75) < 1e-5
    assert abs(low - (0.75 - half)) < 0.005
    assert abs(high - (0.75 + half)) < 0.005


def test_stratification_removes_the_spread_between_labels():
    """One label always right, the other always wrong: no resample changes the accuracy."""
    labels = torch.tensor([0, 1] * 20)
    weights = resample(labels, 100)
    low, high = interval(weights @ (labels == 0).float() / 40)
    assert low == high == 0.5
