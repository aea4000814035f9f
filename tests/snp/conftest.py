"""A tiny untrained network, for all tests of the room that need one."""

import pytest
import torch

from cctlib.model import cct


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = cct.CCTConfig(encoders=2, width=16, heads=2, mlp_ratio=2.0, convolutions=2, image_size=32, num_classes=10)
    return cct.CCT(config).eval().requires_grad_(False)
