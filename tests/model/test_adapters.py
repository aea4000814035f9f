"""The sites of other people's networks, checked against their own arithmetic."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import VGG, make_layers
from torchvision.models.vision_transformer import VisionTransformer

from cctlib.errors import UserError
from cctlib.model import adapters, sites
from cctlib.model.adapters import Tapped


def pictures(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def hooks(module: nn.Module) -> int:
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


def test_timm_vit():
    timm = pytest.importorskip("timm")
    vit = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0, num_classes=5
    ).eval()
    network, images = Tapped(vit, adapters.timm_vit(vit)), pictures(16)
    names = sites.site_names(2)
    assert set(network.places) == set(names)
    with torch.no_grad():
        logits, taps = network(images, taps=names)
        assert torch.equal(logits, vit(images)) and torch.equal(network(images), logits)
        for m, block in enumerate(vit.blocks, start=1):
            mha, trunk, hidden, ff = (taps[f"enc{m}/{kind}"] for kind in sites.SITES)
            assert mha.shape == trunk.shape == ff.shape == (2, 17, 24) and hidden.shape == (2, 17, 48)
            torch.testing.assert_close(hidden, F.gelu(block.mlp.fc1(trunk)))
            if m == 2:
                middle = taps["enc1/ff"] + block.attn.proj(mha)
                torch.testing.assert_close(trunk, block.norm2(middle))
                torch.testing.assert_close(ff, middle + block.mlp.fc2(hidden))
        torch.testing.assert_close(vit.head(vit.norm(taps["enc2/ff"])[:, 0]), logits)
    assert hooks(network) == 0


def test_torchvision_vit():
    torch.manual_seed(0)
    vit = VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=40, num_classes=5).eval()
    nn.init.normal_(vit.heads.head.weight)
    network, images = Tapped(vit, adapters.torchvision_vit(vit)), pictures(16)
    names = [site for site in sites.site_names(2) if not site.endswith("/mha")]
    assert set(network.places) == set(names)
    with torch.no_grad():
        logits, taps = network(images, taps=names)
        torch.testing.assert_close(logits, vit(images))
        for m, block in enumerate(vit.encoder.layers, start=1):
            assert taps[f"enc{m}/ff_hidden"].shape == (2, 17, 40)
            torch.testing.assert_close(taps[f"enc{m}/ff_hidden"], F.gelu(block.mlp[0](taps[f"enc{m}/trunk"])))
        torch.testing.assert_close(taps["enc2/ff"], vit.encoder.layers[1](taps["enc1/ff"]))
        torch.testing.assert_close(vit.heads(vit.encoder.ln(taps["enc2/ff"])[:, 0]), logits)
    with pytest.raises(UserError, match="'enc1/mha' is not known here; the nearest names are enc1/"):
        network(images, taps=["enc1/mha"])


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_torchvision_vgg(batch_norm, mode):
    torch.manual_seed(0)
    vgg = VGG(make_layers([8, "M", 12, 16, "M"], batch_norm), num_classes=5).eval()
    vgg.classifier = nn.Linear(16 * 49, 5)
    network, images = Tapped(vgg, adapters.torchvision_vgg(vgg)), pictures(20)
    with mode():
        logits, taps = network(images, taps=list(network.places))
        assert {site: tuple(nodes.shape) for site, nodes in taps.items()} == {
            "layer1/filters": (2, 400, 8),
            "layer2/filters": (2, 100, 12),
            "layer3/filters": (2, 100, 16),
        }
        torch.testing.assert_close(logits, vgg(images))
        step = 3 if batch_norm else 2
        first = F.relu(vgg.features[: step - 1](images))  # without the in-place ReLU of torchvision
        torch.testing.assert_close(taps["layer1/filters"][1, 23], first[1, :, 1, 3])
        last = taps["layer3/filters"].transpose(1, 2).unflatten(2, (10, 10))
        torch.testing.assert_close(vgg.classifier(vgg.avgpool(vgg.features[-1](last)).flatten(1)), logits)


def test_only_what_is_asked_for_is_hooked(monkeypatch):
    network = Tapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)), {})
    network.places = {f"layer{m + 1}/filters": (f"module.{m}".removeprefix("module."), "output") for m in (0, 1)}
    counts = []
    original = nn.Module.register_forward_hook
    monkeypatch.setattr(nn.Module, "register_forward_hook", lambda *a: counts.append(1) or original(*a))
    network.module(pictures(8))
    assert not counts
    with pytest.raises(UserError, match="'enc1/ff' is not known here; the nearest names are layer1/filters"):
        network(pictures(8), taps=["enc1/ff"])
    assert not counts and hooks(network) == 0


class Odd(nn.Module):
    """A network in which hooks cannot be trusted."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.linear = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)
        self.lstm = nn.LSTM(4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(2).transpose(1, 2)[..., [0, 1, 2, 0]]
        x = self.shared(self.shared(x))
        x = self.relu(self.linear(x))
        return self.head(self.lstm(x)[0].mean(1))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("shared", "output"), "shared is called 2 times in a pass, not once"),
        (("unused", "output"), "unused is called 0 times in a pass, not once"),
        (("head", "output"), r"head output is a tensor \(2, 5\); expected token vectors"),
        (("lstm", "output"), "lstm output is tuple; expected token vectors"),
    ],
)
def test_hooks_that_would_lie_are_refused(place, message):
    network = Tapped(Odd().eval(), {"enc1/ff": place})
    with torch.no_grad(), pytest.raises(UserError, match=f"site enc1/ff: {message}"):
        network(pictures(4), taps=["enc1/ff"])
    assert hooks(network) == 0


def test_what_is_overwritten_later_is_handed_out_as_it_was():
    """A ReLU in place follows the linear layer."""
    places = {"enc1/mha": ("linear", "input"), "enc1/trunk": ("linear", "output"), "enc1/ff": ("relu", "input")}
    network = Tapped(Odd().eval(), places)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            _, taps = network(pictures(4), taps=list(places))
            torch.testing.assert_close(taps["enc1/trunk"], network.module.linear(taps["enc1/mha"]))
            assert taps["enc1/trunk"].min() < 0 and torch.equal(taps["enc1/ff"], taps["enc1/trunk"])


def test_input_and_output_of_the_same_module():
    network = Tapped(Odd().eval(), {"enc1/ff": ("relu", "output"), "enc1/mha": ("linear", "input")})
    with torch.no_grad():
        _, taps = network(pictures(4), taps=["enc1/ff", "enc1/mha"])
        torch.testing.assert_close(taps["enc1/ff"], network.module.linear(taps["enc1/mha"]).relu())


def test_hooks_go_when_the_network_fails():
    network = Tapped(Odd().eval(), {"enc1/ff": ("relu", "output")})
    with pytest.raises((IndexError, RuntimeError)):
        network(torch.zeros(2, 1, 4, 4), taps=["enc1/ff"])
    assert hooks(network) == 0


def test_places_that_do_not_exist():
    for places, message in [
        ({"enc1/ff": ("relo", "output")}, "no module 'relo'"),
        ({"enc1/ff": ("relu", "inside")}, 'side \'inside\' of relu is not known; use "input" or "output"'),
        ({"enc1/out": ("relu", "output")}, "'enc1/out' is not known"),
    ]:
        with pytest.raises(UserError, match=message):
            Tapped(Odd(), places)
    with pytest.raises(UserError, match="give a list of names"):
        Tapped(Odd(), {"enc1/ff": ("relu", "output")})(pictures(4), taps="enc1/ff")
    for spec in (adapters.timm_vit, adapters.torchvision_vit, adapters.torchvision_vgg):
        with pytest.raises(UserError, match="Odd is no"):
            spec(Odd())
