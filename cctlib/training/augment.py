"""Augmentation of whole batches on the device where the images are, as functions of tensors (Method, section 2).

Every random decision of a batch is drawn first, on the host, into a `Draw`; then pure functions apply it. So a seed
gives the same training images on every device, several processes can each apply their share of one global batch,
the device is never waited for, and each function can be held against torchvision's result for a single image.

The order is that of timm, with which the CCT authors train: crop, flip, RandAugment, normalise, erase, mix.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from cctlib.data.images import normalise
from cctlib.errors import UserError
from cctlib.training.randaugment import draw_operations, rand_augment, to_device

ATTEMPTS = 10  # boxes tried for an image before it is left whole


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images. The defaults leave them as they are."""

    shift: int = 0  # largest shift in pixels, in every direction; the border is reflected
    crop_scale: float = 1.0  # smallest share of the area that a resized crop keeps; 1 is no crop
    flip: bool = False  # mirror half of the images
    randaugment: float = 0.0  # magnitude of RandAugment, up to 10; 0 is off
    erasing: float = 0.0  # probability that a rectangle of an image is replaced by noise
    mixup: float = 0.0  # parameter of the Beta distribution of mixup's share; 0 is off
    cutmix: float = 0.0  # the same for CutMix
    switch: float = 0.5  # where both are on, the probability that a batch gets CutMix

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    def __post_init__(self) -> None:
        limits = {
            "shift": (0, 1_000),
            "crop_scale": (0.01, 1),
            "randaugment": (0, 10),
            "mixup": (0, 100),
            "cutmix": (0, 100),
        }
        check_limits("augmentation", self, limits | {"erasing": (0, 1), "switch": (0, 1)})


def check_limits(title: str, settings: object, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise `UserError` for the first setting that is outside of its limits, or not a number."""
    for name, (least, most) in limits.items():
        if not least <= getattr(settings, name) <= most:
            raise UserError(f"{title}: {name} is {getattr(settings, name)}; it must be {least:g} to {most:g}")


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: each image keeps a `share` of itself, the rest comes from its partner.

    `box` (top, bottom, left, right) is the part that CutMix takes from the partner; without a box it is mixup.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Draw:
    """All random decisions for one batch, on the host; None where a kind of augmentation is off."""

    offsets: Int[Tensor, "image 2"] | None = None  # down, right
    crops: Int[Tensor, "image 4"] | None = None  # top, left, height, width
    cubic: Bool[Tensor, "image"] | None = None  # the crop's interpolation: bicubic, else bilinear
    flipped: Bool[Tensor, "image"] | None = None
    operations: Int[Tensor, "image layer"] | None = None  # RandAugment's
    amounts: Float[Tensor, "image layer"] | None = None
    erased: Int[Tensor, "image 4"] | None = None  # top, left, height, width; 0 high where nothing is erased
    mix: Mix | None = None

    def rows(self, start: int, stop: int) -> "Draw":
        """The decisions for the images `start` to `stop` of the batch."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        part: dict[str, Any] = {name: t[start:stop] for name, t in found.items() if isinstance(t, Tensor)}
        return replace(self, **part)


def draw(settings: Augmentation, count: int, height: int, width: int, seed: int) -> Draw:
    """Draw the decisions for `count` images; equal seeds give equal decisions."""
    generator = torch.Generator().manual_seed(seed)
    decided: dict[str, Tensor] = {}
    if settings.shift:
        decided["offsets"] = torch.randint(-settings.shift, settings.shift + 1, (count, 2), generator=generator)
    if settings.crop_scale < 1:
        decided["crops"] = draw_boxes(count, height, width, (settings.crop_scale, 1.0), 3 / 4, generator)
        decided["cubic"] = torch.rand(count, generator=generator) < 0.5
    if settings.flip:
        decided["flipped"] = torch.rand(count, generator=generator) < 0.5
    if settings.randaugment:
        drawn = draw_operations(settings.randaugment, count, height, width, generator)
        decided["operations"], decided["amounts"] = drawn
    if settings.erasing:
        decided["erased"] = draw_erasing(settings.erasing, count, height, width, generator)
    return Draw(**decided, mix=draw_mix(settings, height, width, np.random.default_rng(seed)))


def draw_boxes(
    count: int, height: int, width: int, area: tuple[float, float], ratio: float, generator: torch.Generator
) -> Int[Tensor, "image 4"]:
    """Boxes (top, left, height, width): a share in `area` of the image, width / height between `ratio` and its inverse.

    A box that does not fit is drawn anew, up to ten times; after that it is the whole image.
    """
    share, aspect, down, right = torch.rand(4, count, ATTEMPTS, generator=generator, dtype=torch.float64)
    pixels = height * width * (area[0] + share * (area[1] - area[0]))
    aspect = torch.exp((2 * aspect - 1) * math.log(ratio))
    tall, wide = (pixels / aspect).sqrt().round(), (pixels * aspect).sqrt().round()
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    top, left = (down * (height - tall + 1)).floor(), (right * (width - wide + 1)).floor()
    first = torch.stack([top, left, tall, wide], dim=2)[torch.arange(count), fits.int().argmax(dim=1)]
    return torch.where(fits.any(dim=1, keepdim=True), first.long(), torch.tensor([0, 0, height, width]))


def draw_erasing(
    probability: float, count: int, height: int, width: int, generator: torch.Generator
) -> Int[Tensor, "image 4"]:
    """Boxes of 2% to 33% of the area for a share `probability` of the images; 0 high for the others.

    Sides are in a proportion of 0.3 to 1 / 0.3, and shorter than the image's.
    """
    boxes = draw_boxes(count, height, width, (0.02, 1 / 3), 0.3, generator)
    chosen = torch.rand(count, generator=generator) < probability
    smaller = (boxes[:, 2] < height) & (boxes[:, 3] < width)
    return boxes * (chosen & smaller)[:, None]


def draw_mix(settings: Augmentation, height: int, width: int, generator: np.random.Generator) -> Mix | None:
    """One share, and for CutMix one box, for the whole batch; None where mixing is off."""
    if not settings.mixes:
        return None
    chance, down, right = generator.random(3)
    if not settings.cutmix or (settings.mixup and chance >= settings.switch):
        return Mix(generator.beta(settings.mixup, settings.mixup))
    side = math.sqrt(1 - generator.beta(settings.cutmix, settings.cutmix))
    top, bottom = _span(int(down * height), int(side * height), height)
    left, right = _span(int(right * width), int(side * width), width)
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def _span(middle: int, length: int, limit: int) -> tuple[int, int]:
    return max(0, middle - length // 2), min(limit, middle + length // 2)


def augment(
    pixels: UInt8[Tensor, "image 3 height width"],
    labels: Int[Tensor, "image"],
    decisions: Draw,
    *,
    num_labels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    noise: Float[Tensor, "image 3 height width"] | None = None,
) -> tuple[Float[Tensor, "image 3 height width"], Float[Tensor, "image label"]]:
    """Apply the decisions. Returns normalised images, and a distribution over the labels for each.

    `noise` (standard normal) is what erased boxes are filled with; without it nothing is erased.
    """
    device = pixels.device
    if decisions.offsets is not None:
        pixels = shift(pixels, to_device(decisions.offsets, device))
    if decisions.crops is not None and decisions.cubic is not None:
        pixels = resized_crop(pixels, to_device(decisions.crops, device), to_device(decisions.cubic, device))
    if decisions.flipped is not None:
        pixels = flip(pixels, to_device(decisions.flipped, device))
    if decisions.operations is not None and decisions.amounts is not None:
        colour = [round(255 * value) for value in mean]
        pixels = rand_augment(pixels, decisions.operations, decisions.amounts, colour)
    images = normalise(pixels, mean, std)
    if decisions.erased is not None and noise is not None:
        images = erase(images, to_device(decisions.erased, device), noise)
    targets = torch.zeros(len(labels), num_labels, device=device).scatter_(1, labels[:, None], 1.0)
    if decisions.mix is not None:
        images, targets = mix(images, decisions.mix), mix_targets(targets, decisions.mix)
    return images, targets


def shift(
    pixels: UInt8[Tensor, "image channel height width"], offsets: Int[Tensor, "image 2"]
) -> UInt8[Tensor, "image channel height width"]:
    """Move each image down and right by its offsets; what comes in is its own border, reflected."""
    rows = _reflected(offsets[:, :1], pixels.shape[2])[:, None, :, None]
    columns = _reflected(offsets[:, 1:], pixels.shape[3])[:, None, None, :]
    return pixels.gather(2, rows.expand_as(pixels)).gather(3, columns.expand_as(pixels))


def _reflected(offset: Int[Tensor, "image 1"], size: int) -> Int[Tensor, "image size"]:
    position = (torch.arange(size, device=offset.device) - offset).abs()
    return size - 1 - (size - 1 - position).abs()


def flip(
    pixels: UInt8[Tensor, "image channel height width"], flipped: Bool[Tensor, "image"]
) -> UInt8[Tensor, "image channel height width"]:
    """Mirror the chosen images, left to right."""
    return torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)


def resized_crop(
    pixels: UInt8[Tensor, "image channel height width"], boxes: Int[Tensor, "image 4"], cubic: Bool[Tensor, "image"]
) -> UInt8[Tensor, "image channel height width"]:
    """Stretch each image's box (top, left, height, width) to the full size, antialiased.

    Resizing is linear and separable, so it is one matrix on the rows and one on the columns of each image.
    """
    rows = resize_weights(boxes[:, 0], boxes[:, 2], pixels.shape[2], cubic)[:, None]
    columns = resize_weights(boxes[:, 1], boxes[:, 3], pixels.shape[3], cubic)[:, None]
    return (rows @ pixels.float() @ columns.transpose(2, 3)).round_().clamp_(0, 255).to(torch.uint8)


def resize_weights(
    start: Int[Tensor, "image"], length: Int[Tensor, "image"], size: int, cubic: Bool[Tensor, "image"]
) -> Float[Tensor, "image out size"]:
    """Matrices that stretch `length` of `size` pixels, from `start` on, to `size` pixels; bilinear or bicubic."""
    start, length, cubic = (values[:, None, None] for values in (start, length, cubic))
    pixel = torch.arange(size, device=start.device)
    source = pixel[None, None, :] - start
    scale = length / size
    distance = (source + 0.5 - (pixel[None, :, None] + 0.5) * scale).abs() / scale.clamp(min=1)
    linear = (1 - distance).clamp(min=0)
    near = (1.5 * distance - 2.5) * distance**2 + 1  # Keys' cubic kernel with a = -0.5, as in PIL
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    cubes = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = torch.where(cubic, cubes, linear) * ((source >= 0) & (source < length))
    return weights / weights.sum(dim=2, keepdim=True)


def erase(
    images: Float[Tensor, "image channel height width"],
    boxes: Int[Tensor, "image 4"],
    noise: Float[Tensor, "image channel height width"],
) -> Float[Tensor, "image channel height width"]:
    """Replace each image's box (top, left, height, width) by noise."""
    top, left, height, width = boxes[:, :, None].unbind(1)
    row = torch.arange(images.shape[2], device=images.device)
    column = torch.arange(images.shape[3], device=images.device)
    rows, columns = (row >= top) & (row < top + height), (column >= left) & (column < left + width)
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], noise, images)


def partners(rows: Float[Tensor, "image *shape"]) -> Float[Tensor, "image *shape"]:
    """Row 1 for row 0 and row 0 for row 1, row 3 for row 2, and so on. The number of rows must be even.

    The batch is shuffled, so every fixed pairing is a random one; and neighbours stay together when a global batch
    is cut into even parts for several processes.
    """
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def mix(images: Float[Tensor, "image channel height width"], how: Mix) -> Float[Tensor, "image channel height width"]:
    """Mixup, or CutMix where `how` has a box, of each image with its partner."""
    if how.box is None:
        return torch.lerp(partners(images), images, how.share)
    top, bottom, left, right = how.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = partners(images)[:, :, top:bottom, left:right]
    return mixed


def mix_targets(targets: Float[Tensor, "image label"], how: Mix) -> Float[Tensor, "image label"]:
    """The distributions over labels that belong to `mix`."""
    return torch.lerp(partners(targets), targets, how.share)
