"""The network against independent writings of it, its taps and gains, and what it refuses."""

import importlib.util
import io
import json
import math
import os
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cctlib.errors import UserError
from cctlib.model import cct
from cctlib.model.manifest import open_model

TINY = cct.CCTConfig(encoders=3, width=24, heads=2, conv_channels=8, image_size=16, num_classes=5)
SHIPPED = sorted(Path(__file__).parents[2].glob("artifacts/cifar100/*/weights.safetensors"))


def tiny(attention: str = "explicit", seed: int = 0, **settings) -> cct.CCT:
    """A small network in eval mode whose weights are large enough for every term to matter."""
    torch.manual_seed(seed)
    network = cct.CCT(replace(TINY, **settings), attention).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return network


def pictures(count: int = 4, size: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def plain():
    """The module as users import it: without the shape checks that the tests put around the package."""
    spec = importlib.util.spec_from_file_location("plain_cct", cct.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain_tiny(plain, attention: str = "explicit", **settings):
    network = plain.CCT(plain.CCTConfig(**asdict(replace(TINY, **settings))), attention).eval()
    network.load_state_dict(tiny(**settings).state_dict())
    return network


# Names, sizes and configurations


def parameters(encoders: int, width: int, ratio: int, kernel: int, convolutions: int, labels: int) -> int:
    """Parameters without the position embedding, counted layer by layer."""
    channels = [3] + [64] * (convolutions - 1) + [width]
    tokenizer = sum(kernel**2 * a * b for a, b in pairwise(channels))
    attention = 3 * width * width + width * width + width
    feed_forward = 2 * ratio * width * width + ratio * width + width
    encoder = attention + feed_forward + 2 * 2 * width
    return tokenizer + encoders * encoder + 2 * width + (width + 1) + (width + 1) * labels


# Millions as in the README of the CCT authors' release; in two rows it does not count the position embedding.
PUBLISHED = [
    ("cct_2_3x2", 10, 0.284, True, (2, 128, 1, 3, 2), 64),
    ("cct_4_3x2", 10, 0.482, True, (4, 128, 1, 3, 2), 64),
    ("cct_6_3x1", 10, 3.168, False, (6, 256, 2, 3, 1), 256),
    ("cct_6_3x2", 10, 3.327, True, (6, 256, 2, 3, 2), 64),
    ("cct_7_3x1", 10, 3.760, True, (7, 256, 2, 3, 1), 256),
    ("cct_7_3x2", 10, 3.853, True, (7, 256, 2, 3, 2), 64),
    ("cct_14_7x2_224", 1000, 22.29, False, (14, 384, 3, 7, 2), 196),
]


@pytest.mark.parametrize(("name", "labels", "millions", "with_positions", "shape", "tokens"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, labels, millions, with_positions, shape, tokens):
    config = cct.config(name, num_classes=labels)
    assert config.tokens == tokens
    with torch.device("meta"):
        network = cct.CCT(config)
    count = sum(parameter.numel() for parameter in network.parameters())
    positions = tokens * config.width
    assert count == parameters(*shape, labels) + positions
    decimals = len(str(millions).partition(".")[2])
    assert round((count if with_positions else count - positions) / 1e6, decimals) == millions


def test_names_of_the_release_and_settings():
    assert cct.config("cct_7_3x2") == cct.CCTConfig()
    flowers = cct.config("cct_7_7x2_224_sine", num_classes=102)
    assert (flowers.stride, flowers.padding, flowers.image_size, flowers.positional) == (2, 3, 224, "sine")
    assert flowers.tokens == 14 * 14
    assert cct.config("cct_7_7x2_224", image_size=96).image_size == 96
    assert cct.config("cct_14_3x1").hidden == 3 * 384
    assert cct.CCTConfig(**asdict(flowers)) == flowers


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [1, 2, 15, 32, 33])
def test_token_count_is_what_the_tokenizer_makes(kernel, size):
    config = cct.config(f"cct_2_{kernel}x2", image_size=size)
    assert cct.Tokenizer(config)(torch.zeros(1, 3, size, size)).shape == (1, config.tokens, config.width)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoders": 0}, "encoders is 0"),
        ({"padding": -1}, "padding is -1"),
        ({"width": 30, "heads": 4}, "width 30 does not divide into 4 heads"),
        ({"positional": "cosine"}, "learnable, sine, none"),
        ({"stochastic_depth": 1.0}, "below 1"),
        ({"mlp_ratio": 0.001}, "no hidden node"),
        ({"padding": 0, "pool_padding": 0, "image_size": 5}, "leave no token of 5 pixels"),
    ],
)
def test_configurations_that_cannot_work(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        cct.CCTConfig(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cct_7", "cct_5_3x1", "vit_7_3x1", "cct_7_3x1_32_sin", "CCT_7_3x1"])
def test_unknown_names(name):
    with pytest.raises(UserError, match=f"{name}.*names are like cct_7_3x2"):
        cct.config(name)
    with pytest.raises(UserError, match="'labels' is not a setting"):
        cct.config("cct_7_3x1", labels=10)


# The formulas, written a second time


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def written_out(state: dict[str, Tensor], config: cct.CCTConfig, images: Tensor) -> dict[str, Tensor]:
    """Every site and the logits in plain float64 arithmetic from the weights: no module, head by head."""
    w = {name.removeprefix("classifier."): tensor.double() for name, tensor in state.items()}
    x = images.double()
    for layer in range(config.convolutions):
        x = F.conv2d(x, w[f"tokenizer.conv_layers.{layer}.0.weight"], None, config.stride, config.padding)
        x = F.max_pool2d(x.clamp(min=0), 3, 2, 1)
    x = torch.stack([x[:, :, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])], dim=1)
    x = x + w["positional_emb"] if "positional_emb" in w else x
    sites, size = {}, config.width // config.heads
    for m in range(1, config.encoders + 1):
        block = f"blocks.{m - 1}."
        b = {name.removeprefix(block): tensor for name, tensor in w.items() if name.startswith(block)}
        qkv = layer_norm(x, b["pre_norm.weight"], b["pre_norm.bias"]) @ b["self_attn.qkv.weight"].T
        heads, maps = [], []
        for h in range(config.heads):
            q, k, v = (qkv[..., part * config.width + h * size :][..., :size] for part in range(3))
            scores = torch.einsum("iqn,ikn->iqk", q, k).exp().pow(1 / math.sqrt(size))
            maps.append(scores / scores.sum(-1, keepdim=True))
            heads.append(maps[-1] @ v)
        mha = torch.cat(heads, -1)
        trunk = x + mha @ b["self_attn.proj.weight"].T + b["self_attn.proj.bias"]
        trunk = layer_norm(trunk, b["norm1.weight"], b["norm1.bias"])
        hidden = trunk @ b["linear1.weight"].T + b["linear1.bias"]
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = trunk + hidden @ b["linear2.weight"].T + b["linear2.bias"]
        for kind, nodes in zip(cct.SITES, (mha, trunk, hidden, x), strict=True):
            sites[f"enc{m}/{kind}"] = nodes
        sites[f"enc{m}/attention"] = torch.stack(maps, 1)
    x = layer_norm(x, w["norm.weight"], w["norm.bias"])
    scores = (x @ w["attention_pool.weight"].T + w["attention_pool.bias"]).exp()
    sites["logits"] = ((scores * x).sum(1) / scores.sum(1)) @ w["fc.weight"].T + w["fc.bias"]
    return sites


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"positional": "sine", "convolutions": 1},
        {"positional": "none", "heads": 3, "mlp_ratio": 1.5},
        {"kernel": 7, "stride": 2, "padding": 3, "image_size": 40},
    ],
)
def test_every_site_agrees_with_the_written_formulas(settings):
    network = tiny(**settings)
    images = pictures(size=network.config.image_size)
    with torch.no_grad():
        logits, taps = network(images, taps=network.tap_names)
    expected = written_out(network.state_dict(), network.config, images)
    torch.testing.assert_close(logits.double(), expected.pop("logits"), rtol=1e-4, atol=1e-4)
    assert taps.keys() == expected.keys()
    for site, nodes in taps.items():
        torch.testing.assert_close(
            nodes.double(), expected[site], rtol=1e-4, atol=1e-4, msg=lambda m, s=site: f"{s}: {m}"
        )


@pytest.mark.parametrize("attention", cct.ATTENTION)
def test_agrees_with_vit_pytorch(attention):
    theirs_module = pytest.importorskip("vit_pytorch.cct")
    config = cct.config("cct_2_3x2", num_classes=7)
    theirs = theirs_module.cct_2(
        img_size=32, n_conv_layers=2, kernel_size=3, num_classes=7, positional_embedding="learnable"
    ).eval()
    ours = cct.CCT(config, attention).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = pictures(size=32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-6)


def test_fused_attention_equals_explicit():
    network, images = tiny(), pictures()
    sites = [name for name in network.tap_names if "attention" not in name]
    with torch.no_grad():
        logits, taps = network(images, taps=sites)
        network.attention = "fused"
        fused_logits, fused_taps = network(images, taps=sites)
    torch.testing.assert_close(fused_logits, logits, rtol=0, atol=1e-5)
    for site in sites:
        torch.testing.assert_close(fused_taps[site], taps[site], rtol=1e-5, atol=1e-5)


def test_sine_is_sinusoidal():
    found = tiny(positional="sine").classifier.positional_emb
    assert not isinstance(found, torch.nn.Parameter)
    table = cct.sinusoids(9, 10)
    assert table.shape == (1, 9, 10)
    for t in range(9):
        for i in range(10):
            angle = t / 10000 ** (2 * (i // 2) / 10)
            assert table[0, t, i].item() == pytest.approx(math.cos(angle) if i % 2 else math.sin(angle), abs=1e-6)


def test_initial_weights_are_those_of_the_release():
    torch.manual_seed(0)
    network = cct.CCT(cct.config("cct_7_3x2"))
    state = network.state_dict()
    assert state["classifier.positional_emb"].std().item() == pytest.approx(0.2, rel=0.03)
    for name, tensor in state.items():
        if "conv_layers" in name:
            assert tensor.std().item() == pytest.approx(math.sqrt(2 / tensor[0].numel()), rel=0.05), name
        elif "norm" in name or name.endswith("bias"):
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight")))), name
        elif tensor.numel() > 1000 and "positional" not in name:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.05), name


# Training mode


def test_gradients_reach_every_parameter():
    for attention in cct.ATTENTION:
        network = tiny(attention, stochastic_depth=0.0).train()
        F.cross_entropy(network(pictures(8)), torch.arange(8) % 5).backward()
        for name, parameter in network.named_parameters():
            if name != "classifier.attention_pool.bias":  # a softmax does not see a constant
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_stochastic_depth_drops_branches_of_single_images():
    torch.manual_seed(0)
    kept = cct.stochastic_depth(torch.ones(20_000, 2, 3), 0.25)
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert (kept[:, 0, 0] > 0).float().mean().item() == pytest.approx(0.75, abs=0.015)
    rates = [block.depth_rate for block in cct.CCT(cct.config("cct_7_3x2")).classifier.blocks]
    assert rates == pytest.approx([0.1 * m / 6 for m in range(7)])


def test_stochastic_depth_acts_in_training_only():
    network = tiny(stochastic_depth=0.9, attention_dropout=0.0, encoders=2)
    images = pictures(1).expand(64, -1, -1, -1)
    with torch.no_grad():
        _, quiet = network(images, taps=["enc1/ff", "enc2/trunk", "enc2/ff"])
        _, noisy = network.train()(images, taps=["enc1/ff", "enc2/trunk", "enc2/ff"])
    torch.testing.assert_close(noisy["enc1/ff"], quiet["enc1/ff"])  # the first encoder's rate is 0
    unchanged = (noisy["enc2/ff"] == noisy["enc2/trunk"]).all(-1).all(-1)
    assert 0.7 < unchanged.float().mean() < 1.0
    assert not (quiet["enc2/ff"] == quiet["enc2/trunk"]).all(-1).any()


def test_dropouts_act_in_training_only():
    for settings in ({"dropout": 0.5}, {"attention_dropout": 0.5}):
        for attention in cct.ATTENTION:
            network = tiny(attention, **{"attention_dropout": 0.0, "stochastic_depth": 0.0, **settings})
            images = pictures()
            assert torch.equal(network(images), network(images))
            network.train()
            assert not torch.equal(network(images), network(images))


def test_eval_is_deterministic_and_of_no_batch():
    network, images = tiny(), pictures(6)
    with torch.no_grad():
        together = network(images)
        assert torch.equal(together, network(images))
        alone = torch.cat([network(image[None]) for image in images])
        assert network(images[:0]).shape == (0, 5)
        channels_last = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(channels_last, together, rtol=1e-5, atol=1e-5)


# Taps and gains


class Operations(TorchDispatchMode):
    """The names of all operations that reach the device, in order."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", cct.ATTENTION)
def test_taps_add_no_operation(attention):
    network, images = tiny(attention), pictures()
    sites = [name for name in network.tap_names if attention == "explicit" or "attention" not in name]
    traces = []
    for taps in ((), sites[:1], sites):
        with torch.no_grad(), Operations() as operations:
            network(images, taps=taps)
        traces.append(operations.names)
    assert traces[0] == traces[1] == traces[2]


def test_only_what_is_asked_for_comes_back():
    network, images = tiny(), pictures()
    logits, taps = network(images, taps=["enc3/mha", "enc1/ff_hidden"])
    assert set(taps) == {"enc3/mha", "enc1/ff_hidden"}
    assert taps["enc1/ff_hidden"].shape == (4, 16, 48) and taps["enc3/mha"].shape == (4, 16, 24)
    assert torch.equal(logits, network(images)) and isinstance(network(images), Tensor)


def test_a_pass_that_stops_behind_its_taps_holds_the_same_nodes_and_runs_no_later_encoder():
    network = tiny().eval()
    images, taps = torch.randn(2, 3, 16, 16), ["enc1/ff", "enc1/mha"]
    _, whole = network(images, taps=taps)
    network.classifier.blocks[1].forward = None  # whoever calls it fails
    logits, stopped = network(images, taps=taps, to_the_end=False)
    assert logits is None
    assert all(torch.equal(stopped[site], whole[site]) for site in taps)


def test_taps_carry_gradients():
    network = tiny()
    _, taps = network(pictures(), taps=["enc2/mha"])
    taps["enc2/mha"].sum().backward()
    weight = network.tokenizer.conv_layers[0][0].weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert network.classifier.blocks[1].self_attn.proj.weight.grad is None


def test_sites_follow_from_each_other():
    network, images = tiny(), pictures()
    with torch.no_grad():
        logits, taps = network(images, taps=network.tap_names)
        for m, block in enumerate(network.classifier.blocks, start=1):
            mha, trunk, hidden, ff = (taps[f"enc{m}/{kind}"] for kind in cct.SITES)
            torch.testing.assert_close(hidden, F.gelu(block.linear1(trunk)))
            torch.testing.assert_close(ff, trunk + block.linear2(hidden))
            if m > 1:
                before = taps[f"enc{m - 1}/ff"]
                torch.testing.assert_close(trunk, block.norm1(before + block.self_attn.proj(mha)))
            torch.testing.assert_close(taps[f"enc{m}/attention"].sum(-1), torch.ones(4, 2, 16))
        last = network.classifier.norm(taps["enc3/ff"])
        weights = network.classifier.attention_pool(last).squeeze(-1).softmax(1)
        pooled = torch.einsum("it,itn->in", weights, last)
        torch.testing.assert_close(network.classifier.fc(pooled), logits)


def test_gains_scale_nodes_in_the_network():
    network, images = tiny(), pictures()
    with torch.no_grad():
        logits = network(images)
        assert torch.equal(
            network(images, gains={"enc2/mha": torch.ones(24), "enc2/ff_hidden": torch.ones(48)}), logits
        )
        head = torch.cat([torch.zeros(12), torch.ones(12)])
        silenced, taps = network(images, taps=["enc2/mha"], gains={"enc2/mha": head})
        assert taps["enc2/mha"][..., :12].abs().max() == 0 < taps["enc2/mha"][..., 12:].abs().min()
        network.classifier.blocks[1].self_attn.proj.weight[:, :12] = 0  # the same, in the weights
        torch.testing.assert_close(network(images), silenced)
        assert not torch.allclose(silenced, logits)


def test_gain_of_each_kind_does_what_its_weights_would():
    images, gain = pictures(), torch.rand(24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        network = tiny()
        expected = network(images, gains={"enc1/trunk": gain})
        network.classifier.blocks[0].norm1.weight *= gain
        network.classifier.blocks[0].norm1.bias *= gain
        torch.testing.assert_close(network(images), expected)
        network, wide = tiny(), torch.cat([gain, gain])
        expected = network(images, gains={"enc3/ff_hidden": wide})
        network.classifier.blocks[2].linear2.weight *= wide
        torch.testing.assert_close(network(images), expected)
        network = tiny()
        expected, taps = network(images, taps=["enc3/ff"], gains={"enc3/ff": gain})
        _, untouched = network(images, taps=["enc3/ff"])
        torch.testing.assert_close(taps["enc3/ff"], untouched["enc3/ff"] * gain)


# Compilers, devices, precision


@pytest.mark.parametrize("attention", cct.ATTENTION)
@pytest.mark.parametrize("positional", cct.POSITIONAL)
def test_traces_into_one_graph(plain, attention, positional):
    torch._dynamo.reset()
    network, images = plain_tiny(plain, attention, positional=positional), pictures()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    taps, gains = ["enc1/mha", "enc3/ff"], {"enc2/trunk": torch.rand(24)}
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), network(images))
        torch.testing.assert_close(compiled(images[:3]), network(images[:3]))
        torch.testing.assert_close(compiled(images, taps=taps, gains=gains), network(images, taps=taps, gains=gains))
    network.train()
    compiled(images).sum().backward()
    assert network.classifier.fc.weight.grad is not None


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("attention", cct.ATTENTION)
def test_can_be_traced_and_exported(plain, attention):
    network, images = plain_tiny(plain, attention), pictures()
    with torch.no_grad():
        traced = torch.jit.trace(network, images)
        exported = torch.export.export(network, (images,)).module()
        for other in (traced, exported):
            torch.testing.assert_close(other(pictures(seed=2)), network(pictures(seed=2)))


@pytest.mark.slow
@pytest.mark.parametrize("attention", cct.ATTENTION)
def test_compiled_logits_are_the_same(plain, attention):
    torch._dynamo.reset()
    network, images = plain_tiny(plain, attention), pictures()
    compiled = torch.compile(network, fullgraph=True)
    taps = [name for name in network.tap_names if "attention" not in name]
    with torch.no_grad():
        logits, nodes = compiled(images, taps=taps)
        expected, expected_nodes = network(images, taps=taps)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    for site in taps:
        torch.testing.assert_close(nodes[site], expected_nodes[site], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("attention", cct.ATTENTION)
def test_everything_lives_on_the_device_of_the_weights(attention, training):
    """With pretended CUDA tensors, which refuse to be mixed with CPU ones; no GPU is needed."""
    network = tiny(attention, positional="sine").train(training)
    taps = [name for name in network.tap_names if attention == "explicit" or "attention" not in name]
    with FakeTensorMode():
        for module in network.modules():
            for tensors in (module._parameters, module._buffers):
                for name in [name for name, tensor in tensors.items() if tensor is not None]:
                    tensors[name] = torch.empty(tensors[name].shape, device="cuda")
        gains = {"enc1/mha": torch.ones(24, device="cuda")}
        logits, nodes = network(torch.empty(2, 3, 16, 16, device="cuda"), taps=taps, gains=gains)
        later = network.forward_from(2, nodes["enc1/ff"], {"enc2/mha": gains["enc1/mha"]})
    assert {tensor.device.type for tensor in (logits, later, *nodes.values())} == {"cuda"}
    assert len(nodes) == len(taps)


@pytest.mark.parametrize("attention", cct.ATTENTION)
def test_bf16_autocast(attention):
    network, images = tiny(attention), pictures(2)
    gains = {"enc1/ff_hidden": torch.ones(48)}
    with torch.no_grad():
        exact = network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, taps = network(images, taps=["enc1/ff_hidden"], gains=gains)
    assert logits.dtype == taps["enc1/ff_hidden"].dtype == torch.bfloat16
    assert (logits - exact).abs().max() < 0.1 * exact.abs().max()


# What is refused


def test_images_that_do_not_fit(plain):
    network = plain_tiny(plain)
    for images, message in [
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "torch.uint8; normalise"),
        (torch.zeros(2, 1, 16, 16), r"shape \(2, 1, 16, 16\); expected \[image, 3, height, width\]"),
        (torch.zeros(3, 16, 16), r"expected \[image, 3"),
        (torch.zeros(2, 3, 16, 18), "16x18 pixels, this network needs 16x16"),
    ]:
        with pytest.raises(UserError, match=message):
            network(images)


def test_without_positions_any_size_goes():
    network = tiny(positional="none")
    assert network(pictures(size=40)).shape == (4, 5)
    unpadded = tiny(positional="none", padding=0, pool_padding=0)
    with pytest.raises(UserError, match="6x6 pixels leave this tokenizer no token"):
        unpadded(pictures(size=6))


def test_taps_and_gains_that_do_not_exist(plain):
    network, images = plain_tiny(plain), pictures()
    for arguments, message in [
        ({"taps": ["enc3/mah"]}, "'enc3/mah' is not known here; the nearest names are enc3/mha"),
        ({"taps": ["enc4/ff"]}, "nearest names are enc"),
        ({"taps": "enc1/ff"}, r"give a list of names, as \['enc1/ff'\]"),
        ({"gains": {"enc0/ff": torch.ones(24)}}, "'enc0/ff' is not known"),
        ({"gains": {"enc1/ff": torch.ones(23)}}, r"enc1/ff has 24 nodes, its gains have shape \(23,\)"),
        ({"gains": {"enc1/ff": torch.ones(2, 24)}}, r"shape \(2, 24\)"),
        ({"gains": {"enc1/attention": torch.ones(24)}}, "'enc1/attention' is not known here"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            network(images, **arguments)
        assert "\n" not in str(caught.value)


def test_fused_attention_has_no_maps():
    network = tiny("fused")
    with pytest.raises(UserError, match="fused attention forms no maps; set network"):
        network(pictures(), taps=["enc1/attention"])
    network.attention = "explicit"
    assert network(pictures(), taps=["enc1/attention"])[1]["enc1/attention"].shape == (4, 2, 16, 16)
    network.attention = "flash"
    with pytest.raises(UserError, match="'flash'; use one of explicit, fused"):
        network(pictures())
    with pytest.raises(UserError, match="'flash'"):
        cct.CCT(TINY, "flash")


# The shipped weights on real images


@pytest.mark.data
@pytest.mark.parametrize("weights", SHIPPED, ids=lambda path: path.parent.name)
def test_shipped_weights_reach_their_accuracy(weights):
    data = sorted(Path(os.environ.get("CCTLIB_DATA", "none"), "cifar100").glob("test-*.parquet"))
    if not data:
        pytest.skip("needs CCTLIB_DATA with cifar100/test-*.parquet")
    said = json.loads((weights.parent / "manifest.json").read_text())
    rows = pandas.read_parquet(data[0]).iloc[:1000]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(entry["bytes"]))) for entry in rows.img])
    mean, std = (torch.tensor(said["normalisation"][name])[:, None, None] for name in ("mean", "std"))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    network = open_model(weights.parent).network("cpu")
    with torch.no_grad():
        predicted = torch.cat([network(batch).argmax(1) for batch in images.split(100)])
    accuracy = (predicted == torch.tensor(rows.fine_label.tolist())).float().mean().item()
    # Three standard errors of a share of 1,000 images.
    assert accuracy == pytest.approx(said["accuracy"]["test"], abs=3 * math.sqrt(0.25 / 1000))
