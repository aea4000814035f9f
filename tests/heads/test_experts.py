"""Experts: accuracies of heads alone and losses by ablation, against plain counting; and their nulls."""

import numpy as np
import pytest
import torch

from cctlib.bootstrap import resample
from cctlib.errors import UserError
from cctlib.heads import experts, ownership
from cctlib.heads.ownership import NOBODY

HEADS, LABELS, PER_LABEL = 4, 8, 25
DEALT = torch.zeros(3)
SITE = "enc3/mha"
DESIGNATION = torch.tensor([0, 0, 1, 1, 2, 2, 3, NOBODY])
IMAGES = torch.arange(LABELS).repeat_interleave(PER_LABEL)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def weights():
    return resample(IMAGES, 300)


def guesses(own: float, others: float, seed=0):
    """Predictions [head, image]: right with probability `own` on the head's labels, `others` elsewhere."""
    home = DESIGNATION[IMAGES] == torch.arange(HEADS)[:, None]
    right = torch.rand(home.shape, generator=seeded(seed)) < torch.where(home, own, others)
    return torch.where(right, IMAGES, (IMAGES + 1) % LABELS).to(torch.uint8)


def plain_accuracy(prediction, wanted):
    """Share of the images with a wanted label that are predicted right, by counting."""
    places = [x for x in range(len(IMAGES)) if wanted(int(DESIGNATION[IMAGES[x]]))]
    return sum(int(prediction[x]) == int(IMAGES[x]) for x in places) / len(places)


# ---- heads alone


def test_alone_is_the_probe_with_the_other_heads_silenced():
    pooled, W = torch.randn(20, 16, generator=seeded(1)), torch.randn(LABELS, 16, generator=seeded(2))
    owner = ownership.owners(16, HEADS)
    found = experts.alone(pooled, W, owner, HEADS)
    for head in range(HEADS):
        silenced = W.clone()
        silenced[:, owner != head] = 0
        assert torch.equal(found[head], (pooled @ silenced.T).argmax(1))


def test_accuracies_by_plain_counting(weights):
    predictions = guesses(0.8, 0.3)
    per_head, mean = experts.expert_accuracy(SITE, predictions, IMAGES, DESIGNATION, weights, DEALT)
    for row in per_head.itertuples():
        prediction = predictions[row.head]
        own = plain_accuracy(prediction, lambda head, h=row.head: head == h)
        others = plain_accuracy(prediction, lambda head, h=row.head: head not in (h, NOBODY))
        assert (row.own, row.others, row.gap) == pytest.approx((own, others, own - others), abs=1e-5)
        assert row.gap_low < row.gap < row.gap_high
    assert per_head["labels"].tolist() == [2, 2, 2, 1]
    assert per_head.images.tolist() == [50, 50, 50, 25]
    assert mean.gap[0] == pytest.approx(per_head.gap.mean(), abs=1e-5)
    assert (mean.heads[0], mean.images[0], mean.encoder[0]) == (4, 175, 3)
    assert mean.gap_low[0] > 0


def test_interval_of_the_gap_against_a_slow_bootstrap(weights):
    """The same resamples drawn out image by image."""
    predictions = guesses(0.7, 0.5)
    per_head, _ = experts.expert_accuracy(SITE, predictions, IMAGES, DESIGNATION, weights, DEALT)
    right = (predictions[0] == IMAGES).numpy()
    owner = DESIGNATION[IMAGES].numpy()
    gaps = []
    for row in weights.long().numpy():
        drawn = np.repeat(np.arange(len(IMAGES)), row)
        own, others = (drawn[owner[drawn] == 0], drawn[owner[drawn] > 0])
        gaps.append(right[own].mean() - right[others].mean())
    low, high = np.percentile(gaps, [2.5, 97.5])
    assert (per_head.gap_low[0], per_head.gap_high[0]) == pytest.approx((low, high), abs=1e-5)


def test_heads_without_expertise_have_no_gap(weights):
    _, mean = experts.expert_accuracy(SITE, guesses(0.5, 0.5, seed=4), IMAGES, DESIGNATION, weights, DEALT)
    assert mean.gap_low[0] < 0 < mean.gap_high[0]


def test_a_head_without_labels_is_left_out_of_the_mean(weights):
    designation = DESIGNATION.clone()
    designation[6] = 0  # head 3 owns nothing
    per_head, mean = experts.expert_accuracy(SITE, guesses(0.8, 0.3), IMAGES, designation, weights, DEALT)
    assert np.isnan(per_head.gap[3])
    assert per_head.images[3] == 0
    assert mean.heads[0] == 3
    assert mean.gap[0] == pytest.approx(per_head.gap[:3].mean(), abs=1e-5)
    assert np.isfinite(mean.gap_low[0])


def test_images_without_designated_labels_are_refused_in_one_line(weights):
    with pytest.raises(UserError, match="designated") as refused:
        experts.expert_accuracy(SITE, guesses(1, 0), IMAGES, torch.full((LABELS,), NOBODY), weights, DEALT)
    assert "\n" not in str(refused.value)


# ---- dealt nodes


def probe_case(broken: bool):
    """A probe of 64 nodes, each for one label; with `broken`, the nodes of a label are all in one head."""
    label = torch.arange(64) // 8 if broken else torch.randint(8, (64,), generator=seeded(5))
    W = (torch.arange(LABELS)[:, None] == label).float()
    pooled = W.T[:, IMAGES].T + 1.5 * torch.randn(len(IMAGES), 64, generator=seeded(7))
    return pooled, W, (W.T > 0)


def test_dealt_gaps_against_a_plain_loop():
    pooled, W, diagonal = probe_case(broken=True)
    gaps = experts.dealt_gaps(pooled, W, diagonal, IMAGES, HEADS, seeded(3), deals=5)
    for gap, owner in zip(gaps.tolist(), ownership.deal(64, HEADS, 5, seeded(3)), strict=True):
        counts = [[int(diagonal[owner == h, i].sum()) for i in range(LABELS)] for h in range(HEADS)]
        head_of = []
        for i in range(LABELS):
            column = [counts[h][i] for h in range(HEADS)]
            head_of.append(column.index(max(column)) if column.count(max(column)) == 1 else None)
        per_head = []
        for h in range(HEADS):
            answer = (pooled[:, owner == h] @ W[:, owner == h].T).argmax(1) == IMAGES
            own = [x for x in range(len(IMAGES)) if head_of[IMAGES[x]] == h]
            others = [x for x in range(len(IMAGES)) if head_of[IMAGES[x]] not in (h, None)]
            if own:
                per_head.append(answer[own].float().mean() - answer[others].float().mean())
        assert gap == pytest.approx(float(np.mean(per_head)), abs=1e-5)


@pytest.mark.parametrize("broken", [True, False])
def test_the_gap_of_real_heads_is_judged_by_that_of_dealt_nodes(weights, broken):
    pooled, W, diagonal = probe_case(broken)
    owner = ownership.owners(64, HEADS)
    designation = ownership.designate(ownership.count(diagonal, HEADS))
    predictions = experts.alone(pooled, W, owner, HEADS)
    dealt = experts.dealt_gaps(pooled, W, diagonal, IMAGES, HEADS, seeded(3), deals=60)
    _, mean = experts.expert_accuracy(SITE, predictions, IMAGES, designation, weights, dealt)
    assert mean.deals[0] == 60
    assert mean.p[0] == pytest.approx((1 + int((dealt >= mean.gap[0]).sum())) / 61, abs=1e-9)
    assert (mean.p[0] < 0.05) == broken
    if broken:
        assert mean.gap[0] > mean.dealt_95[0]
        assert dealt.mean() > 0.05  # a random group of nodes is an expert, too: zero is the wrong null


# ---- ablation


def ablation_case(harm_own: float, harm_others: float, harm_random: float):
    """A baseline that is right 9 times in 10, and silencings that spoil answers with given probabilities."""
    uniform = torch.rand(len(IMAGES), generator=seeded(0))
    baseline = torch.where(uniform < 0.9, IMAGES, (IMAGES + 1) % LABELS)
    home = DESIGNATION[IMAGES] == torch.arange(HEADS)[:, None]
    spoil = torch.rand(home.shape, generator=seeded(1)) < torch.where(home, harm_own, harm_others)
    silenced = torch.where(spoil, (IMAGES + 2) % LABELS, baseline)
    by_chance = torch.rand(6, len(IMAGES), generator=seeded(2)) < harm_random
    random = torch.where(by_chance, (IMAGES + 2) % LABELS, baseline)
    return baseline.to(torch.uint8), silenced.to(torch.uint8), random.to(torch.uint8)


def test_ablation_by_plain_counting(weights):
    baseline, silenced, random = ablation_case(0.5, 0.1, 0.2)
    per_head, mean = experts.ablation(SITE, baseline, silenced, random, IMAGES, DESIGNATION, weights)
    for row in per_head.itertuples():

        def drop(prediction, h=row.head):
            own, others = (lambda head: head == h), (lambda head: head not in (h, NOBODY))
            return tuple(plain_accuracy(baseline, who) - plain_accuracy(prediction, who) for who in (own, others))

        own, others = drop(silenced[row.head])
        by_draw = [drop(prediction) for prediction in random]
        random_difference = np.mean([a - b for a, b in by_draw])
        assert (row.drop_own, row.drop_others) == pytest.approx((own, others), abs=1e-5)
        assert row.difference == pytest.approx(own - others, abs=1e-5)
        assert row.random_own == pytest.approx(np.mean([a for a, _ in by_draw]), abs=1e-5)
        assert row.random_difference == pytest.approx(random_difference, abs=1e-5)
        assert row.excess == pytest.approx(own - others - random_difference, abs=1e-5)
        assert row.draws == 6
    assert mean.excess[0] == pytest.approx(per_head.excess.mean(), abs=1e-5)
    assert mean.excess_low[0] > 0


def test_a_head_that_harms_all_labels_alike_is_no_expert(weights):
    _, mean = experts.ablation(SITE, *ablation_case(0.3, 0.3, 0.3), IMAGES, DESIGNATION, weights)
    assert mean.excess_low[0] < 0 < mean.excess_high[0]
    assert mean.drop_own[0] > 0.1


def test_silencing_nothing_changes_nothing(weights):
    per_head, mean = experts.ablation(SITE, *ablation_case(0, 0, 0), IMAGES, DESIGNATION, weights)
    quantities = [name for name in per_head if name.startswith(("drop", "difference", "random", "excess"))]
    assert (per_head[quantities] == 0).all().all()
    assert (mean[quantities] == 0).all().all()


def test_a_gain_is_a_negative_drop(weights):
    """The difference of two accuracies, not the number of changed answers."""
    wrong = ((IMAGES + 1) % LABELS).to(torch.uint8)
    right = IMAGES.to(torch.uint8).expand(HEADS, -1)
    per_head, _ = experts.ablation(SITE, wrong, right, right[:2], IMAGES, DESIGNATION, weights)
    assert per_head.drop_own.tolist() == pytest.approx([-1] * 4)


def test_ablation_without_random_draws_is_refused_in_one_line(weights):
    baseline, silenced, random = ablation_case(0.5, 0.1, 0.2)
    with pytest.raises(UserError, match="random draw") as refused:
        experts.ablation(SITE, baseline, silenced, random[:0], IMAGES, DESIGNATION, weights)
    assert "\n" not in str(refused.value)
