"""VGG: torchvision's numbers, nodes where they are said to be, sizes, and errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VGG as TorchvisionVGG
from torchvision.models.vgg import make_layers

from cctlib.errors import UserError
from cctlib.model import adapters, networks
from cctlib.model.cct import CCTConfig
from cctlib.model.vgg import VGG, VGGConfig

SMALL = VGGConfig(convolutions=7, width=4, num_classes=5)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = VGG(SMALL)
    for _ in range(3):  # running statistics of the batch norms that are not those of the start
        network.train()(drawn(1, 16, 3, 32, 32))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def torchvisions(network):
    """torchvision's VGG of the same layers, with our weights."""
    theirs = TorchvisionVGG(make_layers([4, 4, "M", 8, 8, "M", 16, 16, 16, "M"], batch_norm=True), num_classes=5)
    theirs.avgpool, theirs.classifier = nn.Identity(), nn.Linear(16 * 16, 5, bias=False)
    convolutions = [module for module in theirs.features if isinstance(module, nn.Conv2d)]
    norms = [module for module in theirs.features if isinstance(module, nn.BatchNorm2d)]
    for layer, convolution, norm in zip(network.layers, convolutions, norms, strict=True):
        convolution.load_state_dict({"weight": layer.conv.weight, "bias": torch.zeros(len(layer.conv.weight))})
        norm.load_state_dict(layer.norm.state_dict())
    theirs.classifier.load_state_dict(network.fc.state_dict())
    return theirs.eval().requires_grad_(False)


def test_logits_and_filters_are_torchvisions_through_our_adapter(network, torchvisions):
    images = drawn(2, 6, 3, 32, 32)
    tapped = adapters.Tapped(torchvisions, adapters.torchvision_vgg(torchvisions))
    sites = [f"layer{m}/filters" for m in range(1, 8)]
    logits, nodes = network(images, taps=sites)
    their_logits, their_nodes = tapped(images, taps=sites)
    torch.testing.assert_close(logits, their_logits)
    assert list(nodes) == list(their_nodes) == sites
    for site in sites:
        torch.testing.assert_close(nodes[site], their_nodes[site])
        assert nodes[site].shape[2] == network.nodes[site]


def test_before_relu_is_batch_norms_output_at_every_position(network):
    images = drawn(3, 2, 3, 32, 32)
    taps = ["layer1/before_relu", "layer1/filters", "layer5/before_relu"]
    _, nodes = network(images, taps=taps)
    by_hand = network.layers[0].norm(network.layers[0].conv(images))
    assert torch.equal(nodes["layer1/before_relu"][:, 33], by_hand[:, :, 1, 1])  # position 33 of 32 x 32
    assert torch.equal(nodes["layer1/filters"], nodes["layer1/before_relu"].relu())
    assert nodes["layer5/before_relu"].shape == (2, 64, 16)
    none, again = network(images, taps=taps, to_the_end=False)
    assert none is None and torch.equal(again["layer5/before_relu"], nodes["layer5/before_relu"])


@pytest.mark.parametrize("size", [8, 16, 24, 48])
def test_other_sizes_of_image_are_averaged_or_repeated_to_what_the_linear_layer_reads(network, size):
    images = drawn(4, 2, 3, size, size)
    x = network(images, taps=["layer7/filters"])[1]["layer7/filters"].transpose(1, 2).unflatten(2, (size // 4,) * 2)
    pooled = F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 4)
    torch.testing.assert_close(network(images), network.fc(pooled.flatten(1)))


def test_the_siblings_vgg_11():
    config = networks.config("vgg_11", num_classes=100, image_size=32, positional="learnable")
    assert config == VGGConfig()
    assert config.layers == (
        (64, False),
        (64, True),
        (128, False),
        (128, True),
        (256, False),
        (256, False),
        (256, True),
        (512, False),
        (512, False),
        (512, True),
    )
    with torch.device("meta"):
        network = networks.build(config)
    assert network.fc.weight.shape == (100, 2048) and network.fc.bias is None
    assert [len(weight) for weight in network.hidden_weights()] == [64, 128, 128, 256, 256, 256, 512, 512, 512]
    assert isinstance(networks.config("cct_7_3x2", num_classes=100, image_size=32), CCTConfig)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: VGGConfig(convolutions=14), "VGG-16 has 13"),
        (lambda: VGGConfig(image_size=8), "use larger images"),
        (lambda: VGGConfig(width=0), "width is 0"),
        (lambda: networks.config("vgg_12", num_classes=5, image_size=32), "vgg_11"),
        (lambda: VGG(SMALL)(torch.zeros(1, 3, 32, 32), taps=["enc1/ff"]), "layer"),
        (lambda: VGG(SMALL)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "uint8"),
        (lambda: VGG(SMALL)(torch.zeros(3, 32, 32)), "expected"),
        (lambda: VGG(SMALL)(torch.zeros(1, 3, 32, 32), taps=["layer8/filters"]), "layer7/filters"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()
