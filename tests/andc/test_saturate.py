"""Whole networks retrained under masks: zeros that stay, equal lengths, campaigns that go on where they were killed."""

import copy
import math

import numpy as np
import pytest
import tiny_pruning as tiny
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cctlib.andc import masks as andc
from cctlib.andc import retrain, sweep
from cctlib.andc.retrain import gain_of_last_quarter, prune, retrain_whole, retraining_recipe
from cctlib.training.recipes import recipe
from cctlib.training.trainer import CHECKPOINT

RECIPE = recipe("demo", batch=10, optimizer="muon", mixup=0.2, precision="fp32")
CONFIG = RECIPE.config(tiny.LABELS)
IMAGES = {
    split: tiny.images(count, seed, split, side=CONFIG.image_size)
    for seed, (split, count) in enumerate({"train": 20, "held-out": 15, "test": 25}.items())
}


def retrained(folder, masks, epochs=2, network=None):
    network = network or tiny.network(config=CONFIG)
    how = retraining_recipe(RECIPE, epochs)
    retrain_whole(network, masks, IMAGES["train"], IMAGES["held-out"], how, folder)
    return network.state_dict()


def test_retraining_goes_at_a_low_rate_that_falls_to_zero_on_augmented_images_of_full_size():
    how = retraining_recipe(recipe("cpu"), 8, seed=3)
    rates = [how.learning_rate(epoch / 2) for epoch in range(17)]
    assert rates[0] == pytest.approx(0.1 * recipe("cpu").lr) and rates[-1] == 0
    assert np.diff(rates) == pytest.approx(np.full(16, -rates[0] / 16))
    assert {how.size(epoch) for epoch in range(8)} == {32}
    kept = ("shift", "flip", "mixup", "cutmix", "optimizer", "weight_decay")
    assert all(getattr(how, name) == getattr(recipe("cpu"), name) for name in kept) and how.seed == 3
    assert recipe("cpu-long").ema > 0 and retraining_recipe(recipe("cpu-long"), 8).ema == 0


@pytest.mark.parametrize("target", ["all", None])
def test_masked_weights_are_zero_at_every_step_and_all_others_learn(tmp_path, target):
    masks = andc.andc_masks(tiny.diagonals(0.3, config=CONFIG), CONFIG.encoders, target) if target else {}
    zero_before_step = []

    def check(optimizer, *_):
        weights = {p.shape: p for group in optimizer.param_groups for p in group["params"]}
        cut = masks.get("classifier.fc.weight")
        if cut is not None and cut.shape in weights:  # fc is AdamW's, the encoders are Muon's
            zero_before_step.append(bool((weights[cut.shape][~cut] == 0).all()))

    handle = register_optimizer_step_pre_hook(check)
    try:
        after = retrained(tmp_path, masks)
    finally:
        handle.remove()
    before = tiny.network(config=CONFIG).state_dict()
    for name, weight in after.items():
        kept = masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert (weight[~kept] == 0).all()
        assert (weight != before[name])[kept].float().mean() > 0.5, (
            name
        )  # a node whose outgoing weights are all cut does not learn
    assert zero_before_step == [True] * (4 if target else 0), "2 epochs of 2 steps"


def test_a_retraining_that_was_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    masks = andc.andc_masks(tiny.diagonals(0.3, config=CONFIG), CONFIG.encoders, "fc")
    whole = retrained(tmp_path / "whole", masks, epochs=3)
    learn, steps = retrain.Trainer.learn, []

    def dies(self):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(self.step)
        learn(self)

    monkeypatch.setattr(retrain.Trainer, "learn", dies)
    network = tiny.network(config=CONFIG)
    with pytest.raises(KeyboardInterrupt):
        retrained(tmp_path / "killed", masks, 3, network)
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), tiny.network(config=CONFIG).state_dict().values(), strict=True)
    )
    monkeypatch.setattr(retrain.Trainer, "learn", lambda self: steps.append(self.step) or learn(self))
    resumed = retrained(tmp_path / "killed", masks, 3, network)
    assert steps == [0, 1, 2, 2, 3, 4, 5], "from the end of the first epoch on"
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
    assert gain_of_last_quarter(tmp_path / "killed") == gain_of_last_quarter(tmp_path / "whole")


@pytest.mark.parametrize(
    ("accuracies", "gain"),
    [([0.5], math.nan), ([0.5, 0.6], 0.1), ([0.1, 0.2, 0.4, 0.7], 0.3), ([0, 0, 0.5, 0.6, 0.8], 0.3)],
)
def test_the_gain_of_the_last_quarter_is_that_of_its_epochs(tmp_path, accuracies, gain):
    rows = [f'{{"step": {10 * n}, "held_out_accuracy": {value}}}\n' for n, value in enumerate(accuracies)]
    (tmp_path / "log.jsonl").write_text("".join(rows))
    assert gain_of_last_quarter(tmp_path) == pytest.approx(gain, nan_ok=True)


def campaign(folder, network=None):
    return sweep.Campaign(network or tiny.network(config=CONFIG), tiny.normalise, IMAGES, DIAGONALS, folder, RECIPE)


PRUNINGS = [andc.Pruning("fc", "andc"), andc.Pruning("fc", "random", seed=1), andc.Pruning("linear1", "wanda")]
DIAGONALS = {0.3: tiny.diagonals(0.3, config=CONFIG)}


def test_all_of_a_target_and_the_dense_network_are_retrained_until_none_gains(tmp_path, monkeypatch):
    """A network of fc still gains after both lengths, none of linear1 after the first."""
    gains = lambda folder: 0.01 if folder.name.startswith("checkpoint-fc-random") else 0.001  # noqa: E731
    monkeypatch.setattr(retrain, "gain_of_last_quarter", gains)
    table = sweep.saturate(campaign(tmp_path), PRUNINGS, lengths=(1, 2))
    assert " ".join(table.columns) == (
        "target method theta seed epochs density accuracy accuracy_dense low high parameters macs bytes "
        "dense_parameters dense_macs dense_bytes images trained_images gain gain_dense accuracy_before "
        "accuracy_dense_before saturated"
    )
    assert table.epochs.tolist() == [2, 2, 1] and table.saturated.tolist() == [False, False, True]
    names = ["dense", "fc-andc-0.3-0", "fc-random-0.3-1", "linear1-wanda-0.3-0"]
    assert sorted(path.name[:-13] for path in tmp_path.iterdir() if path.is_dir()) == [
        f"checkpoint-{name}-pixels-{epochs}" for name in names for epochs in (1, 2) if (name, epochs) != (names[3], 2)
    ]
    assert not list(tmp_path.glob(f"*/{CHECKPOINT}"))


def test_accuracies_are_those_of_networks_retrained_by_hand_and_nothing_is_done_twice(tmp_path, monkeypatch):
    first = sweep.saturate(campaign(tmp_path / "a"), PRUNINGS[:1], lengths=(2,))
    masks = andc.andc_masks(DIAGONALS[0.3], CONFIG.encoders, "fc")
    pixels, labels = tiny.normalise(IMAGES["test"].pixels), IMAGES["test"].labels
    row = first.iloc[0]
    for column, given in {"accuracy": masks, "accuracy_dense": {}}.items():
        network = prune(tiny.network(config=CONFIG), given)
        before = (network(pixels).argmax(1) == labels).double().mean().item()
        retrained(tmp_path / column, given, 2, network)
        assert row[column] == pytest.approx((network(pixels).argmax(1) == labels).double().mean().item())
        assert row[f"{column}_before"] == pytest.approx(before)
    monkeypatch.setattr(retrain, "retrain_whole", lambda *_, **__: pytest.fail("retrained again"))
    again = sweep.saturate(campaign(tmp_path / "a"), PRUNINGS[:1], lengths=(2,))
    assert again.equals(first)
    other = copy.deepcopy(campaign(tmp_path / "a").network)
    other.classifier.fc.bias += 1
    with pytest.raises(pytest.fail.Exception, match="retrained again"):
        sweep.saturate(campaign(tmp_path / "a", other), PRUNINGS[:1], lengths=(2,))
    monkeypatch.setattr(retrain, "LOW_RATE", 0.2)
    with pytest.raises(pytest.fail.Exception, match="retrained again"):
        sweep.saturate(campaign(tmp_path / "a"), PRUNINGS[:1], lengths=(2,))
