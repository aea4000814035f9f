"""The one loop against a plain call of the network, and the precision that it runs in."""

import inspect

import pytest
import torch

from cctlib.data.images import load
from cctlib.errors import UserError
from cctlib.model import cct, precision
from cctlib.model.forward import forward

TAPS = ("enc1/mha", "enc2/ff")


def half(pixels):
    return pixels.float() / 255 - 0.5


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return cct.CCT(cct.config("cct_2_3x2", num_classes=10, attention_dropout=0.0)).eval()


@pytest.fixture(scope="module")
def images():
    return load("demo", "test").subset(per_label=2)


def test_every_image_once_with_its_logits_and_nodes(network, images):
    with torch.no_grad():
        expected, nodes = network(half(images.pixels), taps=TAPS)
    first = 0
    for start, labels, logits, found in forward(
        network, half, images, taps=TAPS, batch=7, device="cpu", precision="fp32"
    ):
        rows = slice(start, start + len(labels))
        assert start == first and torch.equal(labels, images.labels[rows])
        torch.testing.assert_close(logits, expected[rows], rtol=1e-5, atol=1e-6)
        for site in TAPS:
            torch.testing.assert_close(found[site], nodes[site][rows], rtol=1e-5, atol=1e-6)
        assert not logits.requires_grad and torch.is_grad_enabled()  # a probe may be trained in the loop
        first += len(labels)
    assert first == len(images)


def test_without_taps_any_network_will_do(images):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3)).eval()
    [(start, _, logits, nodes)] = forward(network, half, images, batch=100, device="cpu", precision="fp32")
    assert (start, logits.shape, nodes) == (0, (20, 3), {})


@pytest.mark.parametrize(
    ("capability", "bf16", "expected"), [((8, 0), True, "bf16"), ((7, 5), False, "fp16"), ((6, 1), False, "fp32")]
)
def test_auto_asks_the_gpu_that_is_named(monkeypatch, capability, bf16, expected):
    """With a pretended second GPU that is unlike the first one."""
    current = [0]

    class On:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device.index)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", On)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: (current[-1] == 1) == bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability if device.index == 1 else (9, 9))
    assert precision.resolve("cuda:1") == expected
    assert precision.resolve("cuda:1", "fp32") == "fp32"


def test_precisions_are_used_and_refused():
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        assert precision.scaler("cpu", name).is_enabled() == (name == "fp16")
        with precision.autocast("cpu", name):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    resolve = inspect.unwrap(precision.resolve)  # as users import it, without the type checks of the tests
    with pytest.raises(UserError, match="'half' is not known; use auto, bf16, fp16, fp32"):
        resolve("cpu", "half")
