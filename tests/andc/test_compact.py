"""Costs and compact forms of pruned networks: equal to the masked network, smaller, and honestly chosen."""

import numpy as np
import pytest
import tiny_pruning as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cctlib.andc import compact
from cctlib.andc import masks as andc
from cctlib.andc.compact import Bags, count, remove_silent
from cctlib.andc.retrain import prune
from cctlib.model.cct import CCT, CCTConfig

SMALL = CCTConfig(encoders=2, width=64, heads=2, conv_channels=16, image_size=16, num_classes=20)
NEAR = {"rtol": 0, "atol": 1e-5}


def pruned_network(share=0.1, seed=0, config=tiny.CONFIG, target="all"):
    """A network with ANDC's zeros in its weights."""
    masks = andc.andc_masks(tiny.diagonals(share, seed, config), config.encoders, target)
    return prune(tiny.network(seed, config), masks)


def pictures(count, config=tiny.CONFIG):
    side = config.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(7))


# Costs


def test_multiplications_of_a_small_network_by_hand():
    """8x8 images, one convolution 3x3 of 16 channels, 16 tokens, 2 encoders of 16 nodes and 32 hidden, 5 labels."""
    tokens, width, hidden, labels = 16, 16, 32, 5
    encoder = tokens * (3 * width**2 + width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    pool = tokens * width + tokens * width
    by_hand = 64 * 9 * 3 * 16 + 2 * encoder + pool + width * labels
    assert compact.dense_macs(tiny.CONFIG) == by_hand
    assert count(tiny.network(), {}).macs == by_hand


@pytest.mark.parametrize("config", [SMALL, CCTConfig()], ids=["small", "cct_7_3x2"])
def test_counted_multiplications_do_not_depend_on_the_batch_or_the_form_of_attention(config):
    network = CCT(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(pictures(2, config))
    assert count(network, {}).macs * 2 * 2 == counter.get_total_flops()  # 2 images, a product and a sum each
    network.attention = "fused"
    assert count(network, {}).macs * 2 * 2 == counter.get_total_flops()


def test_pruned_weights_cost_nothing():
    network, masks = tiny.network(), andc.andc_masks(tiny.diagonals(), 2)
    dense, cost = count(network, {}), count(network, masks)
    assert dense.parameters == sum(parameter.numel() for parameter in network.parameters())
    zeros = compact.masks_of(prune(network, masks))
    assert zeros.keys() == masks.keys() and all(torch.equal(zeros[name], masks[name]) for name in masks)
    gone = {name: int((~mask).sum()) for name, mask in masks.items()}
    tokens = tiny.CONFIG.tokens
    assert cost.parameters == dense.parameters - sum(gone.values())
    fc = gone.pop("classifier.fc.weight")
    assert cost.macs == dense.macs - tokens * sum(gone.values()) - fc


def test_bytes_are_those_of_kept_weights_and_bitmasks():
    """Written out: the fp16 values that are kept, and a packed bit for each entry; a nearly full matrix is dense."""
    network = tiny.network()
    masks = andc.andc_masks(tiny.diagonals(), 2)
    masks["classifier.fc.weight"] = torch.ones(5, 16, dtype=torch.bool)
    masks["classifier.fc.weight"][0, :3] = False  # 6 bytes saved, 10 of bits: not worth it
    assert len(np.packbits(masks["classifier.fc.weight"].numpy())) == 10
    written = 0
    for name, tensor in network.state_dict().items():
        kept = tensor[masks[name]] if name in masks and name != "classifier.fc.weight" else tensor
        written += kept.half().numpy().nbytes
        if kept is not tensor:
            written += np.packbits(masks[name].numpy()).nbytes
    assert count(network, masks).bytes == written
    assert count(network, {}).bytes == sum(tensor.half().numpy().nbytes for tensor in network.state_dict().values())


# Silent nodes


def test_silent_nodes_leave_and_constants_move_into_the_next_bias():
    network = tiny.network()
    first, second = network.classifier.blocks
    first.linear1.weight[[1, 2]] = 0  # constants
    first.linear2.weight[:, [2, 3, 9]] = 0  # 2: neither, 3 and 9: reach nothing
    images = pictures(6)
    logits, taps = network(images, taps=["enc1/ff"])
    remove_silent(network)
    assert first.linear1.weight.shape == (28, 16) and first.linear2.weight.shape == (16, 28)
    assert second.linear1.weight.shape == (32, 16)
    again, taps_again = network(images, taps=["enc1/ff"])
    torch.testing.assert_close(again, logits, **NEAR)
    torch.testing.assert_close(taps_again["enc1/ff"], taps["enc1/ff"], **NEAR)


@pytest.mark.parametrize("cut", ["linear1", "linear2"])
def test_an_encoder_may_lose_all_its_hidden_nodes(cut):
    network = tiny.network()
    getattr(network.classifier.blocks[1], cut).weight.zero_()
    logits = network(pictures(5))
    small, _ = compact.compact(network, 5, seconds=0.0)
    assert small.classifier.blocks[1].linear1.weight.shape == (0, 16)
    torch.testing.assert_close(small(pictures(5)), logits, **NEAR)


# Forms


@given(
    shape=st.sampled_from([(1,), (7,), (1, 4), (5, 3), (33, 2), (2, 3, 4)]),
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 9),
    density=st.floats(0.05, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_bags_give_the_outputs_of_the_dense_layer(shape, outputs, inputs, density, seed):
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(inputs, outputs).requires_grad_(False)
    module.weight *= torch.rand(outputs, inputs, generator=generator) < density
    x = torch.randn(*shape, inputs, generator=generator)
    made = Bags(module.weight, module.bias, images=3)
    expected = F.linear(x, module.weight, module.bias)
    torch.testing.assert_close(made(x), expected, **NEAR)
    torch.testing.assert_close(made(x.transpose(0, -2).contiguous().transpose(0, -2)), expected, **NEAR)


# The compact network


@pytest.mark.parametrize("form", ["dense", "bags"])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.4])
def test_the_compact_network_has_the_logits_of_the_masked_one(form, share):
    for config in (tiny.CONFIG, SMALL):
        network = pruned_network(share, config=config)
        names = {layer.module for layer in andc.layers(config.encoders)}
        for batch in (1, 40):
            small, chosen = compact.compact(network, batch, form)
            torch.testing.assert_close(small(pictures(40, config)), network(pictures(40, config)), **NEAR)
            assert set(chosen.values()) == {form} and chosen.keys() <= names
        fused = pruned_network(share, config=config)
        fused.attention = "fused"
        small, _ = compact.compact(fused, 4, form)
        torch.testing.assert_close(small(pictures(4, config)), fused(pictures(4, config)), **NEAR)


@pytest.mark.parametrize("target", andc.TARGETS)
def test_only_layers_with_zeros_are_measured_and_the_network_is_left_alone(target):
    network = pruned_network(0.1, target=target)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    small, chosen = compact.compact(network, 2, seconds=0.0)
    assert chosen.keys() == {layer.module for layer in andc.layers(2, target)}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    torch.testing.assert_close(small(pictures(3)), network(pictures(3)), **NEAR)


@pytest.mark.parametrize(("seconds", "form"), [(0.96, "dense"), (0.8, "bags"), (3.0, "dense")])
def test_the_form_that_is_clearly_faster_is_installed_layer_by_layer(monkeypatch, seconds, form):
    def times(_, forms, *__):
        bags = {name: seconds if "linear1" in name else 3.0 for name in forms["bags"]}
        return {"dense": dict.fromkeys(forms["dense"], 1.0), "bags": bags}

    monkeypatch.setattr(compact, "time_forms", times)
    small, chosen = compact.compact(pruned_network(), 2)
    assert all(of_layer == (form if "linear1" in name else "dense") for name, of_layer in chosen.items())
    for name, of_layer in chosen.items():
        assert isinstance(small.get_submodule(name), Bags if of_layer == "bags" else nn.Linear)


def test_every_sparse_layer_is_timed_in_every_form(monkeypatch):
    told, timed = [], compact.time_forms
    monkeypatch.setattr(compact, "time_forms", lambda *given: told.append(timed(*given)) or told[0])
    _, chosen = compact.compact(pruned_network(), 2, seconds=0.0)
    assert told[0].keys() == {"dense", "bags"}
    for times in told[0].values():
        assert times.keys() == chosen.keys() and all(0 < seconds < np.inf for seconds in times.values())
