"""Speed of training against vit-pytorch's CCT with a usual pipeline, in the same run.

    python benchmarks/bench_train.py [--recipe cpu] [--model cct_7_3x2] [--batch 128] [--seconds 90] [--device cpu]

The usual pipeline is torchvision's transforms on PIL images in the workers of a DataLoader, and torch.optim.AdamW.
Model, batch, precision, optimizer and kinds of augmentation are the same for all rows, all images have the recipe's
full size, and they are random. A third row trains vit-pytorch's network on one batch that is there already, which tells
the network's share from the pipeline's. The rows take turns, so that other load falls on all alike. Printed are images
per second at the median turn, and the median over turns of the ratio to the usual pipeline; and, for our step, the
share of the speed that this device has in a single matrix product of the network's shapes, timed in the same turns.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from bench_forward import reference
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2.functional import to_pil_image

from cctlib.andc import compact
from cctlib.data.images import DATASETS, Images
from cctlib.model import cct, precision
from cctlib.stages import device_name
from cctlib.training.processes import Place
from cctlib.training.recipes import Recipe, recipe
from cctlib.training.trainer import Trainer

USUAL, BARE, OURS, PRODUCT = "vit-pytorch, DataLoader", "vit-pytorch, no data", "cctlib", "matrix product"
SPEC = DATASETS["cifar100"]
IMAGES = 2_000
STEPS = 3  # of a turn


class Pictures(Dataset):
    """PIL images and labels, transformed one at a time, as in torchvision's data sets."""

    def __init__(self, images: Images, chosen: Recipe):
        self.pictures = [to_pil_image(image) for image in images.pixels]
        self.labels = images.labels.tolist()
        self.transform = usual_transform(chosen)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(self.pictures[row]), self.labels[row]


def usual_transform(chosen: Recipe) -> transforms.Compose:
    """The recipe's augmentation of single images, in torchvision's terms."""
    steps: list[nn.Module] = []
    if chosen.shift:
        steps.append(transforms.RandomCrop(chosen.image_size, padding=chosen.shift, padding_mode="reflect"))
    if chosen.crop_scale < 1:
        steps.append(transforms.RandomResizedCrop(chosen.image_size, scale=(chosen.crop_scale, 1.0)))
    if chosen.flip:
        steps.append(transforms.RandomHorizontalFlip())
    if chosen.randaugment:
        steps.append(transforms.RandAugment(2, round(chosen.randaugment)))
    steps += [
        transforms.ToImage(),
        transforms.ToDtype(torch.float32, scale=True),
        transforms.Normalize(SPEC.mean, SPEC.std),
    ]
    if chosen.erasing:
        steps.append(transforms.RandomErasing(chosen.erasing, value="random"))
    return transforms.Compose(steps)


def usual_batches(
    images: Images, chosen: Recipe, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches from a DataLoader with workers that stay."""
    mixing = []
    if chosen.mixup:
        mixing.append(transforms.MixUp(alpha=chosen.mixup, num_classes=SPEC.num_labels))
    if chosen.cutmix:
        mixing.append(transforms.CutMix(alpha=chosen.cutmix, num_classes=SPEC.num_labels))
    mix = transforms.RandomChoice(mixing) if mixing else None
    loader = DataLoader(
        Pictures(images, chosen),
        batch_size=chosen.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=(lambda rows: mix(*default_collate(rows))) if mix else None,
    )
    for pixels, labels in itertools.chain.from_iterable(itertools.repeat(loader)):
        yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def theirs(source: Iterator[tuple[Tensor, Tensor]], chosen: Recipe, device: torch.device) -> Callable[[], None]:
    """A function that does one usual training step with vit-pytorch's network."""
    network = reference(chosen.config(SPEC.num_labels)).to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=chosen.lr, weight_decay=chosen.weight_decay
    )  # ours too: see main

    def step() -> None:
        images, labels = next(source)
        with precision.autocast(device, chosen.precision):
            logits = network(images)
        loss = cross_entropy(logits.float(), labels, label_smoothing=chosen.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        if chosen.clip:
            nn.utils.clip_grad_norm_(network.parameters(), chosen.clip)
        optimizer.step()

    return step


def product(chosen: Recipe, device: torch.device) -> Callable[[], None]:
    """A function that multiplies a batch of tokens by weights of queries, keys, values, in the recipe's precision."""
    config = chosen.config(SPEC.num_labels)
    kind = torch.bfloat16 if chosen.precision == "bf16" else torch.float32
    tokens = torch.randn(chosen.batch * config.tokens, config.width, device=device, dtype=kind)
    weights = torch.randn(config.width, 3 * config.width, device=device, dtype=kind)
    found = torch.empty(len(tokens), 3 * config.width, device=device, dtype=kind)

    def multiply() -> None:
        torch.mm(tokens, weights, out=found)

    return multiply


def share_of_product(chosen: Recipe, turns: dict[str, list[float]]) -> float:
    """Multiplications a second of our step over those of the single product. A step counts as three forward passes."""
    config = chosen.config(SPEC.num_labels)
    with torch.device("meta"):
        step = 3 * chosen.batch * compact.count(cct.CCT(config), {}).macs
    single = chosen.batch * config.tokens * config.width * 3 * config.width
    return median(step / ours / (single / alone) for ours, alone in zip(turns[OURS], turns[PRODUCT], strict=True))


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Wall time of a turn."""
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(chosen: Recipe, workers: int, budget: float, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each row, turn by turn, for about `budget` seconds after a first turn that is not counted."""
    images = random_images(chosen.image_size)
    endless = itertools.repeat(next(usual_batches(images, chosen, 0, device)))
    with tempfile.TemporaryDirectory() as folder:
        ours = Trainer(chosen, images, images, Path(folder), Place(0, 1, device))
        steps = {
            USUAL: theirs(usual_batches(images, chosen, workers, device), chosen, device),
            BARE: theirs(endless, chosen, device),
            OURS: ours.learn,
            PRODUCT: product(chosen, device),
        }
        for step in steps.values():
            seconds(step, device)
        turns: dict[str, list[float]] = {name: [] for name in steps}
        end = time.perf_counter() + budget
        while time.perf_counter() < end or len(turns[OURS]) < 3:
            for name, step in steps.items():
                turns[name].append(seconds(step, device))
    return turns


def random_images(size: int) -> Images:
    """Images without meaning, with CIFAR-100's labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, size, size, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.arange(IMAGES) % SPEC.num_labels
    return Images(pixels, labels, SPEC.names, fingerprint="random", dataset="cifar100", split="train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cpu")
    parser.add_argument("--model", help="default: the recipe's")
    parser.add_argument("--batch", type=int, help="default: the recipe's")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the DataLoader")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    chosen = recipe(options.recipe)
    chosen = replace(
        chosen,
        model=options.model or chosen.model,
        batch=options.batch or chosen.batch,
        optimizer="adamw",
        sizes=(),
        precision=precision.resolve(device, options.precision),
    )
    turns = compare(chosen, options.workers, options.seconds, device)
    print(
        f"{chosen.model}, batch {chosen.batch}, {chosen.precision}, recipe {chosen.name}, {options.workers} workers, ",
        end="",
    )
    print(f"{device_name(device)}, torch {torch.__version__}, {len(turns[OURS])} turns of {STEPS} steps")
    for name, times in turns.items():
        if name == PRODUCT:
            continue
        ratio = median(usual / own for usual, own in zip(turns[USUAL], times, strict=True))
        print(f"{name:24} {STEPS * chosen.batch / median(times):8.0f} images/s {ratio:6.2f} times the usual pipeline")
    print(f"{OURS} multiplies at {share_of_product(chosen, turns):.0%} of the speed of a single matrix product")


if __name__ == "__main__":
    main()
