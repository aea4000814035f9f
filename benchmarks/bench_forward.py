"""Speed of the forward pass, always against vit-pytorch's CCT (the CCT authors' own port) in the same run.

    python benchmarks/bench_forward.py [--variant cct_7_3x2] [--batch 64] [--seconds 20] [--device cpu]

All rows share the weights and the images and take turns, so that other load falls on all alike.
Printed are images per second at the median turn, and the median over turns of the ratio to vit-pytorch. The
logits are compared first: a fast wrong answer ends the run.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from cctlib.model import cct
from cctlib.model.sites import site_names
from cctlib.stages import device_name

REFERENCE = "vit-pytorch"


def reference(config: cct.CCTConfig) -> nn.Module:
    """vit-pytorch's CCT of the same shape, regularised alike."""
    from vit_pytorch.cct import CCT

    return CCT(
        img_size=config.image_size,
        embedding_dim=config.width,
        n_conv_layers=config.convolutions,
        kernel_size=config.kernel,
        stride=config.stride,
        padding=config.padding,
        num_layers=config.encoders,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=config.num_classes,
        positional_embedding=config.positional,
        dropout_rate=config.dropout,
        attention_dropout=config.attention_dropout,
        stochastic_depth_rate=config.stochastic_depth,
    )


def rows(config: cct.CCTConfig, device: torch.device) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is timed, by name: functions from images to logits, all with the same weights."""
    theirs = reference(config).to(device).eval()
    networks = {form: cct.CCT(config, form).to(device).eval() for form in cct.ATTENTION}
    for network in networks.values():
        network.load_state_dict(theirs.state_dict())
    sites = site_names(config.encoders)
    return {
        REFERENCE: theirs,
        "explicit": networks["explicit"],
        "fused": networks["fused"],
        f"explicit, {len(sites)} taps": lambda images: networks["explicit"](images, taps=sites)[0],
        f"fused, {len(sites)} taps": lambda images: networks["fused"](images, taps=sites)[0],
    }


def seconds(forward: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Wall time of one pass."""
    start = time.perf_counter()
    forward(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start


@torch.no_grad()
def compare(config: cct.CCTConfig, batch: int, budget: float, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each row, turn by turn, for about `budget` seconds. Raises when the logits differ."""
    images = torch.randn(batch, 3, config.image_size, config.image_size, device=device)
    timed = rows(config, device)
    expected = timed[REFERENCE](images)
    for name, forward in timed.items():
        torch.testing.assert_close(forward(images), expected, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    turns: dict[str, list[float]] = {name: [] for name in timed}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(turns[REFERENCE]) < 3:
        for name, forward in timed.items():
            turns[name].append(seconds(forward, images))
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="cct_7_3x2")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    turns = compare(cct.config(options.variant), options.batch, options.seconds, device)
    print(f"{options.variant}, batch {options.batch}, fp32, {device_name(device)}, torch {torch.__version__}, ", end="")
    print(f"{len(turns[REFERENCE])} turns")
    for name, times in turns.items():
        ratio = median(theirs / ours for theirs, ours in zip(turns[REFERENCE], times, strict=True))
        print(f"{name:20} {options.batch / median(times):8.0f} images/s {ratio:6.2f} times {REFERENCE}")


if __name__ == "__main__":
    main()
