"""Augmentation of whole batches on the device where the images are, as functions of tensors (Method, section 2).

Every random decision is drawn on the host, for the whole batch, and pure functions apply it. So a seed gives the same
training images on every device, several processes can each make their share of one global batch, the device is never
waited for, and each function can be held against torchvision's result for a single image.

The order is that of timm, with which the CCT authors train: crop, flip, RandAugment, normalise, erase, mix.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cctlib.data.images import normalise, to_device
from cctlib.training.randaugment import Pixels, draw_operations, rand_augment
from cctlib.training.recipes import Recipe

ATTEMPTS = 10  # boxes tried for an image before it is left whole

Boxes = Int[Tensor, "image 4"]  # top, left, height, width
Normal = Float[Tensor, "image 3 height width"]  # normalised images, or standard normal noise
Box = tuple[int, int, int, int]  # top, bottom, left, right: what CutMix takes from an image's partner


def augment(
    pixels: Pixels,
    labels: Int[Tensor, "image"],
    recipe: Recipe,
    *,
    seed: int,
    num_labels: int,
    mean: Sequence[float],
    std: Sequence[float],
    first: int = 0,
) -> tuple[Normal, Float[Tensor, "image label"]]:
    """Normalised training images, and a distribution over the labels for each; equal seeds give equal ones.

    pixels, labels: of the recipe's whole batch, or of the share that begins at its image `first`.
    """
    batch, device, (height, width) = recipe.batch, pixels.device, pixels.shape[2:]

    def share(of_batch: Tensor) -> Tensor:
        return to_device(of_batch[first : first + len(labels)], device)

    generator = torch.Generator().manual_seed(seed)
    if recipe.shift:
        offsets = torch.randint(-recipe.shift, recipe.shift + 1, (batch, 2), generator=generator)
        pixels = shift(pixels, share(offsets))
    if recipe.crop_scale < 1:
        crops = draw_boxes(batch, height, width, (recipe.crop_scale, 1.0), 3 / 4, generator)
        cubic = torch.rand(batch, generator=generator) < 0.5
        pixels = resized_crop(pixels, share(crops), share(cubic))
    if recipe.flip:
        flipped = share(torch.rand(batch, generator=generator) < 0.5)
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
    if recipe.randaugment:
        drawn = draw_operations(recipe.randaugment, batch, generator)
        operations, levels = (values[first : first + len(labels)] for values in drawn)
        pixels = rand_augment(pixels, operations, levels, fill=[round(255 * value) for value in mean])
    images = normalise(pixels, mean, std)
    if recipe.erasing:
        boxes = draw_erasing(recipe.erasing, batch, height, width, generator)
        on_device = torch.Generator(device).manual_seed(seed + 1)
        noise = torch.randn(batch, 3, height, width, generator=on_device, device=device)
        images = erase(images, share(boxes), share(noise))
    targets = torch.zeros(len(labels), num_labels, device=device).scatter_(1, labels[:, None], 1.0)
    if recipe.mixes:
        share_kept, box = draw_mix(recipe, height, width, np.random.default_rng(seed))
        images, targets = mix(images, targets, share_kept, box)
    return images, targets


def draw_boxes(
    count: int, height: int, width: int, area: tuple[float, float], ratio: float, generator: torch.Generator
) -> Boxes:
    """Boxes: a share in `area` of the image, width / height between `ratio` and its inverse.

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


def draw_erasing(probability: float, count: int, height: int, width: int, generator: torch.Generator) -> Boxes:
    """Boxes of 2% to 33% of the area, with sides shorter than the image's; 0 high where nothing is erased."""
    boxes = draw_boxes(count, height, width, (0.02, 1 / 3), 0.3, generator)
    smaller = (boxes[:, 2] < height) & (boxes[:, 3] < width)
    return boxes * (smaller & (torch.rand(count, generator=generator) < probability))[:, None]


def draw_mix(recipe: Recipe, height: int, width: int, generator: np.random.Generator) -> tuple[float, Box | None]:
    """For the whole batch: the share that an image keeps of itself, and CutMix's box, or None for mixup."""
    chance, *place = generator.random(3)
    if not recipe.cutmix or (recipe.mixup and chance >= recipe.switch):
        return generator.beta(recipe.mixup, recipe.mixup), None
    size = np.array([height, width])
    middle = (size * place).astype(int)
    half = (math.sqrt(1 - generator.beta(recipe.cutmix, recipe.cutmix)) * size).astype(int) // 2
    top, left = np.maximum(middle - half, 0).tolist()
    bottom, right = np.minimum(middle + half, size).tolist()
    return 1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right)


def shift(pixels: Pixels, offsets: Int[Tensor, "image 2"]) -> Pixels:
    """Move each image down and right by its offsets; what comes in is its own border, reflected."""
    rows = _reflected(offsets[:, :1], pixels.shape[2])[:, None, :, None]
    columns = _reflected(offsets[:, 1:], pixels.shape[3])[:, None, None, :]
    return pixels.gather(2, rows.expand_as(pixels)).gather(3, columns.expand_as(pixels))


def _reflected(offset: Int[Tensor, "image 1"], size: int) -> Int[Tensor, "image size"]:
    position = (torch.arange(size, device=offset.device) - offset).abs()
    return size - 1 - (size - 1 - position).abs()


def resized_crop(pixels: Pixels, boxes: Boxes, cubic: Bool[Tensor, "image"]) -> Pixels:
    """Stretch each image's box to the full size.

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
    distance = (source + 0.5 - (pixel[None, :, None] + 0.5) * (length / size)).abs()
    linear = (1 - distance).clamp(min=0)
    near = (1.5 * distance - 2.5) * distance**2 + 1  # Keys' cubic kernel with a = -0.5, as in PIL
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    cubes = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = torch.where(cubic, cubes, linear) * ((source >= 0) & (source < length))
    return weights / weights.sum(dim=2, keepdim=True)


def erase(images: Normal, boxes: Boxes, noise: Normal) -> Normal:
    """Replace each image's box by noise."""
    top, left, height, width = boxes[:, :, None].unbind(1)
    row = torch.arange(images.shape[2], device=images.device)
    column = torch.arange(images.shape[3], device=images.device)
    rows, columns = (row >= top) & (row < top + height), (column >= left) & (column < left + width)
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], noise, images)


def mix(
    images: Normal, targets: Float[Tensor, "image label"], share: float, box: Box | None
) -> tuple[Normal, Float[Tensor, "image label"]]:
    """Mixup, or CutMix where there is a box, of each image and its distribution over labels with its partner's."""
    if box is None:
        mixed = torch.lerp(partners(images), images, share)
    else:
        top, bottom, left, right = box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partners(images)[:, :, top:bottom, left:right]
    return mixed, torch.lerp(partners(targets), targets, share)


def partners(rows: Float[Tensor, "image *shape"]) -> Float[Tensor, "image *shape"]:
    """Row 1 for row 0 and row 0 for row 1, row 3 for row 2, and so on. The number of rows must be even.

    The batch is shuffled, so every fixed pairing is a random one; and neighbours stay together when a global batch
    is cut into even parts for several processes.
    """
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
