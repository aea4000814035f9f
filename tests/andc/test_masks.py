"""Masks, their rivals, pruned networks and sweeps, against plain loops and Python sets."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny_pruning as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cctlib.andc import compact, sweep
from cctlib.andc import masks as andc
from cctlib.andc.masks import Pruning
from cctlib.andc.retrain import Retraining, predict, prune, reduce, retrain_layers
from cctlib.andc.sweep import plan
from cctlib.errors import UserError
from cctlib.model.precision import autocast

ENCODERS = tiny.CONFIG.encoders
FP32 = {"precision": "fp32"}


def label_sets(sets: torch.Tensor) -> list[set[int]]:
    return [{label for label in range(sets.shape[1]) if sets[node, label]} for node in range(len(sets))]


# Masks


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_masks_join_the_nodes_whose_label_sets_meet(share):
    found = tiny.diagonals(share)
    masks = andc.andc_masks(found, ENCODERS)
    state = tiny.network().state_dict()
    ends = {"self_attn.proj": ("mha", "trunk"), "linear1": ("trunk", "ff_hidden"), "linear2": ("ff_hidden", "ff")}
    expected = {}
    for m in (1, 2):
        for module, (source, target) in ends.items():
            before, after = (label_sets(found[f"enc{m}/{kind}"]) for kind in (source, target))
            name = f"classifier.blocks.{m - 1}.{module}.weight"
            expected[name] = [[not a.isdisjoint(b) for a in before] for b in after]
    last = label_sets(found["enc2/readout"])
    expected["classifier.fc.weight"] = [[label in a for a in last] for label in range(tiny.LABELS)]
    assert {name: mask.tolist() for name, mask in masks.items()} == expected
    assert all(mask.shape == state[name].shape for name, mask in masks.items())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_connection_is_symmetric_monotone_and_blind_to_the_names_of_labels(data):
    labels, nodes, others = (data.draw(st.integers(1, 6)) for _ in range(3))
    draw = lambda count: torch.tensor(  # noqa: E731
        data.draw(st.lists(st.lists(st.booleans(), min_size=labels, max_size=labels), min_size=count, max_size=count))
    )
    a, b, more = draw(nodes), draw(others), draw(nodes)
    mask = andc.connected(a, b)
    assert torch.equal(mask, andc.connected(b, a).T)
    assert not (mask & ~andc.connected(a | more, b)).any(), "more labels never cut a connection"
    order = torch.randperm(labels)
    assert torch.equal(mask, andc.connected(a[:, order], b[:, order]))
    assert bool(mask.any()) == bool((a.any(0) & b.any(0)).any())
    own = andc.connected(a, a)
    assert torch.equal(own.diagonal(), a.any(1)), "a node meets itself iff it has a label"


def test_targets_select_layers():
    names = {target: [layer.module for layer in andc.layers(2, target)] for target in andc.TARGETS}
    assert names["fc"] == ["classifier.fc"]
    assert names["linear1"] == ["classifier.blocks.0.linear1", "classifier.blocks.1.linear1"]
    assert sorted(names["all"]) == sorted(name for kind in andc.KINDS for name in names[kind])
    assert andc.andc_masks(tiny.diagonals(), 2, "proj").keys() == {f"{name}.weight" for name in names["proj"]}


def test_what_cannot_be_pruned_is_said_in_one_line():
    with pytest.raises(UserError, match="target 'qkv' is not known; use one of proj, linear1"):
        andc.layers(2, "qkv")
    found = tiny.diagonals()
    del found["enc2/trunk"]
    with pytest.raises(
        UserError, match=r"site enc2/trunk was not measured, and classifier\.blocks\.1\.self_attn\.proj"
    ):
        andc.andc_masks(found, 2)
    assert andc.andc_masks(found, 2, "linear2"), "linear2 does not need the trunk"
    found = tiny.diagonals()
    found["enc1/ff_hidden"][:] = False
    with pytest.raises(UserError, match=r"blocks.0.linear1.weight would lose every weight.*use a smaller theta"):
        andc.andc_masks(found, 2, "linear1")
    with pytest.raises(UserError, match="no pruning by 'luck'"):
        Pruning("fc", "luck")


# Rivals of equal density


def dealt_anew(sets: dict, seed: int) -> dict:
    """The diagonal sets of each site in the order that the seed gives."""
    generator = torch.Generator().manual_seed(seed)
    return {site: of_site[torch.randperm(len(of_site), generator=generator)] for site, of_site in sets.items()}


def best_of_each_row(scores: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether the mask keeps the largest scores of each row, and equally many of each, or one more."""
    each = mask.sum(1)
    ranks = scores.argsort(dim=1, descending=True).argsort(dim=1)
    return bool((mask == (ranks < each[:, None])).all()) and int(each.max() - each.min()) <= 1


# What a method's mask of one layer has to be: (weight, mask, ANDC's mask, norms, mask of the sets dealt anew).
ORACLES = {
    "andc": lambda weight, mask, own, norms, dealt: torch.equal(mask, own),
    "shuffled": lambda weight, mask, own, norms, dealt: torch.equal(mask, dealt),
    "random": lambda weight, mask, own, norms, dealt: not torch.equal(mask, own),
    "magnitude": lambda weight, mask, own, norms, dealt: weight[mask].min() >= weight[~mask].max(),
    "wanda": lambda weight, mask, own, norms, dealt: best_of_each_row(weight * norms, mask),
}


@pytest.mark.parametrize("target", andc.TARGETS)
@pytest.mark.parametrize("method", andc.METHODS)
def test_every_method_keeps_what_it_promises_and_as_many_weights_of_each_layer_as_andc(method, target):
    network, sets, seed = tiny.network(), tiny.diagonals(), 3
    inputs = {
        layer.weight: torch.rand(network.get_submodule(layer.module).in_features) for layer in andc.layers(ENCODERS)
    }
    masks = andc.make_masks(Pruning(target, method, seed=seed), network, sets, inputs)
    own, dealt = (andc.andc_masks(of, ENCODERS, target) for of in (sets, dealt_anew(sets, seed)))
    assert masks.keys() == own.keys() == {layer.weight for layer in andc.layers(ENCODERS, target)}
    for name, mask in masks.items():
        weight = network.get_parameter(name).abs()
        assert int(mask.sum()) == int(own[name].sum())
        assert ORACLES[method](weight, mask, own[name], inputs[name], dealt[name]), name
    assert andc.density(masks) == sum(int(m.sum()) for m in own.values()) / sum(m.numel() for m in own.values())


def test_masks_by_chance_differ_by_seed_alone():
    network, found = tiny.network(), tiny.diagonals()
    for method in andc.BY_CHANCE:
        first, again, other = (andc.make_masks(Pruning("proj", method, seed=s), network, found) for s in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)


@given(st.integers(1, 6), st.integers(1, 7), st.data())
@settings(max_examples=80, deadline=None)
def test_kept_are_the_largest_exactly_so_many_ties_or_not(rows, columns, data):
    count = data.draw(st.integers(1, rows * columns))
    values = data.draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns))
    scores = torch.tensor(values, dtype=torch.float32).view(rows, columns)
    mask = andc.keep_largest(scores, count)
    assert int(mask.sum()) == count
    assert sorted(scores[mask].tolist(), reverse=True) == sorted(values, reverse=True)[:count]
    each = andc.keep_largest(scores, count, each_row=True)
    assert int(each.sum()) == count
    assert int(each.sum(1).max()) - int(each.sum(1).min()) <= 1
    for row in range(rows):
        kept = each[row].sum()
        assert sorted(scores[row][each[row]].tolist()) == sorted(sorted(scores[row].tolist(), reverse=True)[:kept])


def test_norms_of_inputs_are_those_of_the_taps():
    network = tiny.network()
    images = tiny.images(150, split="held-out")  # two batches
    inputs = andc.input_norms(network, tiny.normalise, images, **FP32)
    _, taps = network(tiny.normalise(images.pixels), taps=["enc1/mha", "enc2/trunk", "enc2/ff_hidden", "enc2/ff"])
    x = network.classifier.norm(taps["enc2/ff"])
    read = {
        "classifier.blocks.0.self_attn.proj": taps["enc1/mha"],
        "classifier.blocks.1.linear1": taps["enc2/trunk"],
        "classifier.blocks.1.linear2": taps["enc2/ff_hidden"],
        "classifier.fc": (network.classifier.attention_pool(x).softmax(1) * x).sum(1),
    }
    for name, nodes in read.items():
        nodes = nodes.double().flatten(0, -2)
        torch.testing.assert_close(inputs[f"{name}.weight"].double(), nodes.norm(dim=0), rtol=1e-4, atol=0)
    assert not any(module._forward_pre_hooks for module in network.modules())
    none = andc.input_norms(network, tiny.normalise, tiny.images(0, split="held-out"))
    for norms in (none, None):
        with pytest.raises(UserError, match="Wanda needs norms of the layers' inputs, from held-out images"):
            andc.make_masks(Pruning("fc", "wanda"), network, tiny.diagonals(), norms)


# Pruned networks


def test_a_mask_acts_and_the_network_is_left_alone():
    network, images = tiny.network(), tiny.normalise(tiny.images(8).pixels)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    masks = andc.andc_masks(tiny.diagonals(), ENCODERS)
    pruned = prune(network, masks)
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, before[name] * masks[name] if name in masks else before[name])
    assert not torch.allclose(pruned(images), network(images), atol=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_cut_connections_carry_nothing():
    """A node of which all outgoing weights are cut can be set to anything; one with a kept weight cannot."""
    network, images = tiny.network(), tiny.normalise(tiny.images(8).pixels)
    found = tiny.diagonals(0.5)
    found["enc2/readout"][3], found["enc1/ff_hidden"][7] = False, False
    network = prune(network, andc.andc_masks(found, ENCODERS))
    logits = network(images)
    for site, node in (("enc1/ff_hidden", 7), ("enc1/mha", 2)):
        gains = torch.ones(network.config.hidden if "hidden" in site else network.config.width)
        gains[node] = 1000
        assert torch.equal(network(images, gains={site: gains}), logits) == (site == "enc1/ff_hidden")
    # fc reads nothing of node 3: the derivative of every logit by its pooled value is zero.
    pooled = torch.randn(2, network.config.width, requires_grad=True)
    network.classifier.fc(pooled).sum().backward()
    assert (pooled.grad[:, 3] == 0).all() and (pooled.grad != 0).any()


STARTS = {"fc": "pooled", "linear1": "tokens", "all": "tokens", "proj": "tokens"}


@pytest.mark.parametrize("target", ["fc", "linear1", "all"])
@pytest.mark.parametrize("held", [0, 2**30], ids=["from pixels", "from tokens"])
def test_retraining_moves_kept_weights_only(monkeypatch, target, held):
    monkeypatch.setattr("cctlib.andc.retrain.TOKENS_HELD", held)
    masks = andc.andc_masks(tiny.diagonals(), ENCODERS, target)
    network = prune(tiny.network(), masks)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    zero_before_step = []

    def check(*_):
        zero_before_step.append(all((network.get_parameter(name)[~mask] == 0).all() for name, mask in masks.items()))

    handle = register_optimizer_step_pre_hook(check)
    try:
        train = reduce(network, tiny.normalise, tiny.images(40, split="train"), STARTS[target])
        retrain_layers(network, masks, train, 2.4, Retraining(batch=8), torch.Generator().manual_seed(0))
    finally:
        handle.remove()
    assert zero_before_step == [True] * 12, "2.4 passes of 5 batches"
    for name, tensor in network.state_dict().items():
        if name in masks:
            assert (tensor[~masks[name]] == 0).all()
            assert (tensor != before[name])[masks[name]].float().mean() > 0.9
        elif name.removesuffix("bias") + "weight" not in masks:
            assert torch.equal(tensor, before[name])
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_retraining_learns_and_repeats():
    """Random images, learned by heart: the loss falls; the same generator gives the same weights."""
    images, masks = tiny.images(40, split="train"), andc.andc_masks(tiny.diagonals(0.4), ENCODERS)
    results = []
    for _ in range(2):
        network = prune(tiny.network(), masks)
        train = reduce(network, tiny.normalise, images, "tokens")
        first = float(F.cross_entropy(network(tiny.normalise(images.pixels)), images.labels))
        settings = Retraining(batch=10, learning_rate=1e-2)
        retrain_layers(network, masks, train, 30.0, settings, torch.Generator().manual_seed(1))
        results.append(network.classifier.fc.weight)
    assert float(F.cross_entropy(network(tiny.normalise(images.pixels)), images.labels)) < 0.8 * first
    assert torch.equal(*results)


@pytest.mark.parametrize(("epochs", "steps"), [(0.01, 1), (0.5, 5), (1.0, 10), (2.0, 20)])
def test_so_many_steps_of_retraining(epochs, steps):
    masks, taken = andc.andc_masks(tiny.diagonals(), ENCODERS, "fc"), []
    network = prune(tiny.network(), masks)
    train = reduce(network, tiny.normalise, tiny.images(95), "pooled")
    handle = register_optimizer_step_pre_hook(lambda *_: taken.append(1))
    try:
        retrain_layers(network, masks, train, epochs, Retraining(batch=10), torch.Generator())
    finally:
        handle.remove()
    assert len(taken) == steps


def test_a_retraining_that_diverges_is_refused():
    masks = andc.andc_masks(tiny.diagonals(), ENCODERS, "fc")
    network = prune(tiny.network(), masks)
    train = reduce(network, tiny.normalise, tiny.images(20), "pooled")
    broken = replace(train, values=train.values * torch.inf)
    with pytest.raises(UserError, match=r"diverged \(loss nan\)"):
        retrain_layers(network, masks, broken, 2.0, Retraining(), torch.Generator())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("target", ["fc", "proj"])
def test_predictions_do_not_depend_on_where_the_masks_begin(monkeypatch, target, precision):
    network, images = tiny.network(), tiny.images(150)  # two batches
    pruned = prune(network, andc.andc_masks(tiny.diagonals(), ENCODERS, target))
    with autocast("cpu", precision):
        expected = pruned(tiny.normalise(images.pixels)).argmax(1)
    for held in (0, 2**30):
        monkeypatch.setattr("cctlib.andc.retrain.TOKENS_HELD", held)
        reduced = reduce(network, tiny.normalise, images, STARTS[target], precision=precision)
        assert torch.equal(predict(pruned, reduced, precision), expected)
    kept = torch.bfloat16 if precision == "bf16" else torch.float32
    assert reduced.values.dtype == kept, "what was computed in two bytes is kept in two"


def test_wrong_masks_and_missing_images_are_refused():
    network = tiny.network()
    name = "classifier.fc.weight"
    shape = network.state_dict()[name].shape
    for masks, message in (
        ({"classifier.fd.weight": torch.ones(2, 2, dtype=torch.bool)}, "no such weight"),
        ({name: torch.ones(*reversed(shape), dtype=torch.bool)}, r"weight is \[output, input, \.\.\.\]"),
    ):
        with pytest.raises(UserError, match=message):
            prune(network, masks)
    with pytest.raises(UserError, match="no test images"):
        reduce(network, tiny.normalise, tiny.images(0), "pooled")


# Sweeps

DIAGONALS = {theta: tiny.diagonals(share) for theta, share in ((0.3, 0.3), (0.5, 0.15))}
IMAGES = {
    "test": tiny.images(30),
    "held-out": tiny.images(10, seed=1, split="held-out"),
    "train": tiny.images(20, seed=2, split="train"),
}
SETTINGS = Retraining(batch=8, precision="fp32")


def run(folder, network=None, epochs=(0.0, 0.5)):
    campaign = sweep.Campaign(network or tiny.network(), tiny.normalise, IMAGES, DIAGONALS, folder, SETTINGS)
    prunings = plan(["fc", "linear1"], andc.METHODS, (0, 1), DIAGONALS, ENCODERS)
    return sweep.sweep(campaign, prunings, epochs)


def test_a_sweep_is_what_single_prunings_are(tmp_path):
    network = tiny.network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    table, images = run(tmp_path, network), IMAGES["test"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert " ".join(table.columns) == (
        "target method theta seed epochs density accuracy accuracy_dense low high parameters macs bytes "
        "dense_parameters dense_macs dense_bytes images trained_images"
    )
    assert len(table) == 2 * 2 * 7 * 2, "targets, thetas, five methods of which two have two seeds, epochs"
    dense = (network(tiny.normalise(images.pixels)).argmax(1) == images.labels).double().mean().item()
    assert np.allclose(table.accuracy_dense, dense)
    assert (table.images == 30).all() and (table.trained_images == 20).all()
    inputs = andc.input_norms(network, tiny.normalise, IMAGES["held-out"], **FP32)
    for number in (0, 6, 9, 27, 40, 55):
        row = table.iloc[number]
        pruning = Pruning(row.target, row.method, row.theta, int(row.seed))
        masks = andc.make_masks(pruning, network, DIAGONALS[row.theta], inputs)
        pruned = prune(network, masks)
        if row.epochs:
            train = reduce(network, tiny.normalise, IMAGES["train"], STARTS[row.target], **FP32)
            generator = torch.Generator().manual_seed(pruning.seed)
            retrain_layers(pruned, masks, train, row.epochs, SETTINGS, generator)
        expected = pruned(tiny.normalise(images.pixels)).argmax(1)
        assert row.accuracy == pytest.approx((expected == images.labels).double().mean().item())
        assert row.density == andc.density(masks)
        assert (row.parameters, row.macs, row.bytes) == tuple(vars(compact.count(network, masks)).values())
        assert (row.dense_parameters, row.dense_macs) == tuple(vars(compact.count(network, {})).values())[:2]
    equal = table.groupby(["target", "theta"]).density.nunique()
    assert (equal == 1).all()
    assert (table.low <= table.accuracy).all() and (table.accuracy <= table.high).all()


def test_the_dense_network_is_predicted_once_for_each_way_to_prepare_the_images(tmp_path):
    """Rows of fc and of other targets are each compared with the dense network from images prepared alike."""
    run(tmp_path, epochs=(0.0,))
    for start in ("pooled", "tokens"):
        assert len(list(tmp_path.glob(f"checkpoint-dense-{start}-*"))) == 1


def test_a_sweep_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    compute, calls = sweep.Campaign._compute, []

    def dies(self, *arguments):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(arguments)
        return compute(self, *arguments)

    monkeypatch.setattr(sweep.Campaign, "_compute", dies)
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    assert len(list(killed.iterdir())) == 5
    next(iter(sorted(killed.iterdir()))).write_bytes(b"\x93NUMPY half a file")  # as after a power cut
    monkeypatch.setattr(sweep.Campaign, "_compute", lambda self, *given: calls.append(given) or compute(self, *given))
    calls.clear()
    pd.testing.assert_frame_equal(run(killed), whole)
    everything = len(whole) + 2  # and the dense network, for fc and for the others
    assert len(calls) == everything - 4
    calls.clear()
    pd.testing.assert_frame_equal(run(killed), whole)
    assert not calls
    run(killed, network=tiny.network(seed=1))
    assert len(calls) == everything, "another network is another sweep"


def test_intervals_are_of_the_change_against_the_dense_network():
    labels = np.repeat(np.arange(5), 80)
    draw = np.random.default_rng(0)
    dense = np.where(draw.random(400) < 0.7, labels, 9)
    same, worse = dense.copy(), np.where(draw.random(400) < 0.1, 9, dense)
    table = sweep.accuracies(np.stack([same, worse]), dense, torch.from_numpy(labels))
    assert list(table.columns) == ["accuracy", "accuracy_dense", "low", "high"]
    first, second = table.iloc[0], table.iloc[1]
    assert first.low == first.high == first.accuracy == first.accuracy_dense == pytest.approx((dense == labels).mean())
    # Against the textbook: a difference of paired shares has this standard error, and 95% is 1.96 of them either side.
    change = (worse == labels).astype(float) - (dense == labels)
    error = change.std() / np.sqrt(400)
    assert second.low == pytest.approx(second.accuracy - 1.96 * error, abs=0.25 * error)
    assert second.high == pytest.approx(second.accuracy + 1.96 * error, abs=0.25 * error)
    assert second.high < second.accuracy_dense


def test_a_target_that_would_lose_every_weight_is_left_out_and_named(capsys):
    sites = ("enc1/mha", "enc1/trunk", "enc1/ff_hidden", "enc1/readout")
    nothing = {site: torch.zeros(4, 5, dtype=torch.bool) for site in sites}
    some = nothing | {"enc1/readout": torch.ones(4, 5, dtype=torch.bool)}
    assert plan(["fc", "proj"], ["andc"], [0], {0.3: some}, 1) == [Pruning("fc", "andc")]
    assert "pruning of proj at theta 0.3 is left out" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"nothing can be pruned: .* would lose every weight"):
        plan(["fc", "proj"], ["andc"], [0], {0.3: nothing}, 1)
