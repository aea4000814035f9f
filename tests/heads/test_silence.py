"""Silencing nodes in the network, against weights cut by hand."""

import copy

import pytest
import tiny_pruning as tiny
import torch

from cctlib.errors import UserError
from cctlib.heads import silence

HEADS, NODES = tiny.CONFIG.heads, tiny.CONFIG.width


def test_sets_are_the_heads_and_as_many_random_nodes():
    sets = silence.head_and_random_sets(12, 3, 5, torch.Generator().manual_seed(0))
    assert sets.shape == (8, 12) and (sets.sum(1) == 4).all()
    assert [row.nonzero()[:, 0].tolist() for row in sets[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert len({tuple(row.tolist()) for row in sets[3:]}) > 1
    again = silence.head_and_random_sets(12, 3, 5, torch.Generator().manual_seed(0))
    assert torch.equal(sets, again)


@pytest.mark.parametrize("encoder", [1, 2])
def test_a_silenced_head_is_one_whose_columns_of_the_projection_are_zero(encoder):
    """The nodes of `mha` reach the network through the projection alone: cut its columns instead."""
    network, images = tiny.network(), tiny.images(23)
    sets = silence.head_and_random_sets(NODES, HEADS, 2, torch.Generator().manual_seed(0))
    site = f"enc{encoder}/mha"
    whole, found = silence.predict(
        network, tiny.normalise, images, {site: sets}, device="cpu", batch=7, precision="fp32"
    )
    x = tiny.normalise(images.pixels)
    assert torch.equal(whole, network(x).argmax(1))
    for row, nodes in enumerate(sets):
        cut = copy.deepcopy(network)
        cut.classifier.blocks[encoder - 1].self_attn.proj.weight[:, nodes] = 0
        assert torch.equal(found[site][row], cut(x).argmax(1))
    assert not torch.equal(found[site], whole.expand_as(found[site]))  # silencing does something


def test_going_on_from_an_encoder_gives_the_logits_of_the_whole_network():
    network, x = tiny.network(), tiny.normalise(tiny.images(5).pixels)
    gains = {"enc2/mha": torch.linspace(0, 1, NODES)}
    _, taps = network(x, taps=["enc1/ff"])
    torch.testing.assert_close(network.forward_from(2, taps["enc1/ff"], gains), network(x, gains=gains))


def test_without_images_it_says_so():
    with pytest.raises(UserError, match="no test images") as caught:
        silence.predict(tiny.network(), tiny.normalise, tiny.images(0), {}, device="cpu")
    assert "\n" not in str(caught.value)


def test_attention_received_adds_up_to_one_whatever_kernel_the_network_uses():
    network, x = tiny.network(), tiny.normalise(tiny.images(3).pixels)
    explicit = silence.attention_received(network, x, 2)
    network.attention = "fused"
    received = silence.attention_received(network, x, 2)
    assert network.attention == "fused"  # as before
    side = tiny.CONFIG.side(tiny.CONFIG.image_size)
    assert received.shape == (3, HEADS, side, side)
    torch.testing.assert_close(received.sum((2, 3)), torch.ones(3, HEADS))
    torch.testing.assert_close(received, explicit)
