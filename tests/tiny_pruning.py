"""A small network, images and diagonal sets, for the tests of pruning."""

import torch

from cctlib.data.images import Images
from cctlib.model import sites
from cctlib.model.cct import CCT, CCTConfig

LABELS = 5
CONFIG = CCTConfig(encoders=2, width=16, heads=2, mlp_ratio=2.0, convolutions=1, image_size=8, num_classes=LABELS)


def network(seed: int = 0, config: CCTConfig = CONFIG) -> CCT:
    """In eval mode, frozen, with biases that are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = CCT(config).eval().requires_grad_(False)
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def images(count: int = 40, seed: int = 0, split: str = "test", side: int = 8) -> Images:
    """Random pixels, all labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % LABELS
    names = tuple("abcde")
    return Images(pixels.permute(0, 3, 1, 2), labels, names, f"{split}-{seed}-{count}", "demo", split)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


def diagonals(share: float = 0.2, seed: int = 0, config: CCTConfig = CONFIG) -> dict[str, torch.Tensor]:
    """Random diagonal sets of all sites, and of the network's own read-out."""
    generator = torch.Generator().manual_seed(seed)
    widths = {site: config.nodes(site) for site in sites.site_names(config.encoders)}
    widths[f"enc{config.encoders}/readout"] = config.width
    return {site: torch.rand(width, config.num_classes, generator=generator) < share for site, width in widths.items()}
