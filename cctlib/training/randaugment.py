"""RandAugment on whole batches: two random operations an image, each with its own level (Method, section 2).

The set, the strengths and the chances are those of timm's `rand-m9-mstd0.5-inc1`, with which the CCT authors train.
The choices are drawn on the host, where the images of each operation are picked out; the device then does them as one
batch, which torchvision's operations cannot where each image has its own strength. Interpolation is bilinear, where
timm takes bilinear or bicubic by chance.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from cctlib.data.images import to_device

LAYERS = 2  # operations per image
PROBABILITY = 0.5  # of each of them to happen
SPREAD = 0.5  # standard deviation of the magnitude ("mstd0.5")
LARGEST = 10  # magnitude

Pixels = UInt8[Tensor, "image 3 height width"]
Level = Float[Tensor, "image"]  # -1 to 1: the magnitude over the largest one, with a random sign
Colour = list[int]  # of what comes in from outside


def affine(kind: str, pixels: Pixels, level: Level, fill: Colour) -> Pixels:
    """Rotate about the middle (by up to 30 degrees), shear about the top left corner (0.3), move (0.45 of a side)."""
    height, width = pixels.shape[2:]
    one, zero, slope = torch.ones_like(level), torch.zeros_like(level), 0.3 * level
    cosine, sine = torch.deg2rad(30 * level).cos(), torch.deg2rad(30 * level).sin()
    # From pixels about the middle of the result to such of the image: x and y, each from x, y and 1.
    maps = {
        "rotate": (cosine, -sine, zero, sine, cosine, zero),
        "shear_x": (one, slope, slope * height / 2, zero, one, zero),
        "shear_y": (one, zero, zero, slope, one, slope * width / 2),
        "translate_x": (one, zero, 0.45 * width * level, zero, one, zero),
        "translate_y": (one, zero, zero, zero, one, 0.45 * height * level),
    }
    a, b, c, d, e, f = maps[kind]
    # grid_sample's coordinates run from -1 to 1 along each side.
    scaled = torch.stack([a, b * height / width, 2 * c / width, d * width / height, e, 2 * f / height], dim=1)
    grid = affine_grid(scaled.view(-1, 2, 3), list(pixels.shape), align_corners=False)
    covered = torch.ones_like(pixels[:, :1])
    sampled = grid_sample(torch.cat([pixels, covered], dim=1).float(), grid, align_corners=False)
    image, covered = sampled[:, :3], sampled[:, 3:]
    colour = torch.stack([torch.full_like(level, value) for value in fill], dim=1)[:, :, None, None]
    # As in torchvision, a half covered pixel is faded twice, by the zeros outside and by its coverage.
    return (colour + covered * (image - colour)).round_().to(torch.uint8)


def blend(without: Callable[[Pixels], Tensor], pixels: Pixels, level: Level, fill: Colour) -> Pixels:
    """Move each image away from (level above 0) or towards what it is without a property, by a factor of 1 +- 0.9."""
    factor = (1 + 0.9 * level).clamp(min=0.1)[:, None, None, None]
    return (pixels * factor + without(pixels) * (1 - factor)).clamp_(0, 255).to(torch.uint8)


def smooth(pixels: Pixels) -> Float[Tensor, "image 3 height width"]:
    """Weighted mean of 3x3 pixels, the middle one five times; the border stays as it is."""
    result = pixels.float()
    middle = result[:, :, 1:-1, 1:-1]
    middle.copy_(((9 * avg_pool2d(result, 3, stride=1) + 4 * middle) / 13).round_())
    return result


def amount(level: Level, most: int) -> Float[Tensor, "image 1 1 1"]:
    """A whole number for each image, from 0 to `most`, whatever the sign of its level."""
    return (most * level.abs()).floor()[:, None, None, None]


def vision(operation: str, pixels: Pixels) -> UInt8[Tensor, "image channel height width"]:
    """An operation of torchvision, which is imported late: that takes seconds, and most commands do not train."""
    from torchvision.transforms.v2 import functional

    return getattr(functional, operation)(pixels)


OPERATIONS: dict[str, Callable[[Pixels, Level, Colour], Pixels]] = {
    **{name: partial(affine, name) for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")},
    "colour": partial(blend, partial(vision, "rgb_to_grayscale")),
    "contrast": partial(blend, lambda pixels: vision("rgb_to_grayscale", pixels).float().mean((1, 2, 3), keepdim=True)),
    "brightness": partial(blend, torch.zeros_like),
    "sharpness": partial(blend, smooth),
    "autocontrast": lambda pixels, level, fill: vision("autocontrast", pixels),
    "equalize": lambda pixels, level, fill: vision("equalize", pixels),
    "invert": lambda pixels, level, fill: 255 - pixels,
    # Of each value the upper bits stay, 4 down to 0; from a threshold of 256 down to 0 on, values are inverted.
    "posterize": lambda pixels, level, fill: pixels & (256 - 2 ** (4 + amount(level, 4))).to(torch.uint8),
    "solarize": lambda pixels, level, fill: torch.where(pixels >= 256 - amount(level, 256), 255 - pixels, pixels),
    "solarize_add": lambda pixels, level, fill: torch.where(
        pixels < 128, pixels + amount(level, 110).to(torch.uint8), pixels
    ),
}
IDENTITY = len(OPERATIONS)  # the number of no operation


def draw_operations(
    magnitude: float, count: int, generator: torch.Generator
) -> tuple[Int[Tensor, "image layer"], Float[Tensor, "image layer"]]:
    """Two operations for each of `count` images, drawn with replacement, each left out half of the time.

    Returns positions in `OPERATIONS` (or `IDENTITY`), and levels; both on the host.
    """
    shape = (count, LAYERS)
    operations = torch.randint(len(OPERATIONS), shape, generator=generator)
    strength = magnitude + SPREAD * torch.randn(shape, generator=generator)
    sign = 2 * torch.randint(2, shape, generator=generator) - 1
    skipped = torch.rand(shape, generator=generator) >= PROBABILITY
    return operations.masked_fill(skipped, IDENTITY), strength.clamp(0, LARGEST) / LARGEST * sign


def rand_augment(
    pixels: Pixels, operations: Int[Tensor, "image layer"], levels: Float[Tensor, "image layer"], fill: Colour
) -> Pixels:
    """Apply each image's operations in turn.

    `operations` and `levels` are on the host, so that picking out the images does not wait for the device.
    """
    pixels = pixels.clone()
    for layer in range(LAYERS):
        for number, operation in enumerate(OPERATIONS.values()):
            rows = (operations[:, layer] == number).nonzero()[:, 0]
            if len(rows):
                place, level = (to_device(part, pixels.device) for part in (rows, levels[rows, layer]))
                pixels.index_copy_(0, place, operation(pixels[place], level, fill))
    return pixels
