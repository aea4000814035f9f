"""RandAugment on whole batches: two random operations an image, each with its own amount (Method, section 2).

The set, the strengths and the chances are those of timm's `rand-m9-mstd0.5-inc1`, with which the CCT authors
train. The choices are drawn on the host, where the batch is sorted into groups of one operation each; the device
then does each group as a whole. Rotations, shears and translations are one affine map; colour, contrast,
brightness and sharpness are one blend. Interpolation is bilinear, where timm takes bilinear or bicubic by chance.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample
from torchvision.transforms.v2 import functional as vision

LAYERS = 2  # operations per image
PROBABILITY = 0.5  # of each of them to happen
SPREAD = 0.5  # standard deviation of the magnitude ("mstd0.5")
LARGEST = 10  # magnitude

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
BLENDS = ("colour", "contrast", "brightness", "sharpness")
TONES = ("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add")
OPERATIONS = (*GEOMETRIC, *BLENDS, *TONES)
IDENTITY = len(OPERATIONS)


def draw_operations(
    magnitude: float, count: int, height: int, width: int, generator: torch.Generator
) -> tuple[Int[Tensor, "image layer"], Float[Tensor, "image layer"]]:
    """Two operations for each of `count` images, drawn with replacement, each left out half of the time.

    Returns indices into `OPERATIONS` (or `IDENTITY`), and amounts as `amounts` explains them; both on the host.
    """
    shape = (count, LAYERS)
    operations = torch.randint(len(OPERATIONS), shape, generator=generator)
    level = magnitude + SPREAD * torch.randn(shape, generator=generator, dtype=torch.float64)
    sign = 2 * torch.randint(2, shape, generator=generator) - 1
    skipped = torch.rand(shape, generator=generator) >= PROBABILITY
    meant = amounts(operations, level.clamp(0, LARGEST) / LARGEST * sign, height, width)
    return operations.masked_fill(skipped, IDENTITY), meant


def amounts(
    operations: Int[Tensor, "*shape"], level: Float[Tensor, "*shape"], height: int, width: int
) -> Float[Tensor, "*shape"]:
    """What a signed level in [-1, 1] means for each operation (timm's `inc1` set: all grow with the level).

    rotate: degrees, up to 30. shear: slope, up to 0.3. translate: pixels, up to 0.45 of the side. Blends: a factor
    of 1 +- 0.9, at least 0.1. posterize: bits kept, from 4 down to 0. solarize: threshold, from 256 down to 0.
    solarize_add: what is added, up to 110. The others have no amount (0).
    """
    strength = level.abs()
    meaning = {
        "rotate": 30 * level,
        "shear_x": 0.3 * level,
        "shear_y": 0.3 * level,
        "translate_x": 0.45 * width * level,
        "translate_y": 0.45 * height * level,
        **dict.fromkeys(BLENDS, (1 + 0.9 * level).clamp(min=0.1)),
        "posterize": 4 - (4 * strength).floor(),
        "solarize": 256 - (256 * strength).floor(),
        "solarize_add": (110 * strength).floor(),
    }
    result = torch.zeros_like(level)
    for name, values in meaning.items():
        result = torch.where(operations == OPERATIONS.index(name), values, result)
    return result.float()


def rand_augment(
    pixels: UInt8[Tensor, "image 3 height width"],
    operations: Int[Tensor, "image layer"],
    amounts: Float[Tensor, "image layer"],
    fill: list[int],
) -> UInt8[Tensor, "image 3 height width"]:
    """Apply each image's operations in turn; `fill` is the colour of what comes in from outside.

    `operations` and `amounts` are on the host, so that grouping them does not wait for the device.
    """
    for layer in range(operations.shape[1]):
        group = operations[:, layer].clamp(min=len(GEOMETRIC) - 1)  # the geometric ones are one group
        order = group.argsort(stable=True)
        counts = torch.bincount(group, minlength=IDENTITY + 1).tolist()
        place, which, amount = (
            to_device(values[order], pixels.device)
            for values in (torch.arange(len(group)), operations[:, layer], amounts[:, layer])
        )
        parts = zip(pixels[place].split(counts), which.split(counts), amount.split(counts), strict=True)
        done = [_apply(index, *part, fill) for index, part in enumerate(parts) if counts[index]]
        pixels = torch.empty_like(pixels).index_copy_(0, place, torch.cat(done))
    return pixels


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy what is on the host without waiting for the device; what is on the device stays as it is."""
    pinned = device.type == "cuda" and values.device.type == "cpu"
    return values.pin_memory().to(device, non_blocking=True) if pinned else values.to(device)


def _apply(
    index: int,
    pixels: UInt8[Tensor, "image 3 height width"],
    which: Int[Tensor, "image"],
    amount: Float[Tensor, "image"],
    fill: list[int],
) -> UInt8[Tensor, "image 3 height width"]:
    """Apply one operation, or the geometric ones, which `which` tells apart."""
    if index == IDENTITY:
        return pixels
    name = OPERATIONS[index]
    if name in GEOMETRIC:
        only = {kind: torch.where(which == number, amount, 0.0) for number, kind in enumerate(GEOMETRIC)}
        return affine(pixels, **only, fill=fill)
    if name in BLENDS:
        return blend(name, pixels, amount)
    return tone(name, pixels, amount)


def affine(
    pixels: UInt8[Tensor, "image 3 height width"],
    rotate: Float[Tensor, "image"],
    shear_x: Float[Tensor, "image"],
    shear_y: Float[Tensor, "image"],
    translate_x: Float[Tensor, "image"],
    translate_y: Float[Tensor, "image"],
    fill: list[int],
) -> UInt8[Tensor, "image 3 height width"]:
    """Rotate about the middle (degrees), shear about the top left corner (slope), translate (pixels); bilinear.

    Of each image's amounts all but one are zero, so that their order does not matter.
    """
    height, width = pixels.shape[2:]
    cosine, sine = torch.deg2rad(rotate).cos(), torch.deg2rad(rotate).sin()
    # grid_sample's coordinates run from -1 to 1 about the middle, so a corner that stays fixed becomes a shift.
    right = shear_x * height / width + 2 * translate_x / width
    down = shear_y * width / height + 2 * translate_y / height
    first = [cosine, (shear_x - sine) * height / width, right]
    second = [(shear_y + sine) * width / height, cosine, down]
    grid = affine_grid(torch.stack(first + second, dim=1).view(-1, 2, 3), list(pixels.shape), align_corners=False)
    covered = torch.ones_like(pixels[:, :1])
    sampled = grid_sample(torch.cat([pixels, covered], dim=1).float(), grid, align_corners=False)
    image, covered = sampled[:, :3], sampled[:, 3:]
    colour = torch.stack([torch.full_like(rotate, value) for value in fill], dim=1)[:, :, None, None]
    # As in torchvision, a half covered pixel is faded twice, by the zeros outside and by its coverage.
    return (colour + covered * (image - colour)).round_().to(torch.uint8)


def blend(
    name: str, pixels: UInt8[Tensor, "image 3 height width"], factor: Float[Tensor, "image"]
) -> UInt8[Tensor, "image 3 height width"]:
    """Move each image away from (factor above 1) or towards (below 1) what it is without a property: one of BLENDS."""
    if name == "brightness":
        without = torch.zeros_like(pixels, dtype=torch.float32)
    elif name == "sharpness":
        without = _smooth(pixels)
    else:
        red, green, blue = pixels.float().unbind(1)
        without = (0.2989 * red + 0.587 * green + 0.114 * blue).floor()[:, None]
        without = without.mean(dim=(1, 2, 3), keepdim=True) if name == "contrast" else without
    factor = factor[:, None, None, None]
    return (pixels * factor + without * (1 - factor)).clamp_(0, 255).to(torch.uint8)


def _smooth(pixels: UInt8[Tensor, "image 3 height width"]) -> Float[Tensor, "image 3 height width"]:
    """Weighted mean of 3x3 pixels, the middle one five times; the border stays as it is."""
    smooth = pixels.float()
    kernel = torch.full((3, 1, 3, 3), 1 / 13, device=pixels.device)
    kernel[:, :, 1, 1] = 5 / 13
    smooth[:, :, 1:-1, 1:-1] = conv2d(smooth, kernel, groups=3).round_()
    return smooth


def tone(
    name: str, pixels: UInt8[Tensor, "image 3 height width"], amount: Float[Tensor, "image"]
) -> UInt8[Tensor, "image 3 height width"]:
    """Map the values of the pixels: one of TONES."""
    if name == "autocontrast":
        return vision.autocontrast(pixels)
    if name == "equalize":
        return vision.equalize(pixels)
    if name == "invert":
        return 255 - pixels
    amount = amount[:, None, None, None]
    if name == "posterize":
        return pixels & (256 - 2 ** (8 - amount)).to(torch.uint8)
    if name == "solarize":
        return torch.where(pixels >= amount, 255 - pixels, pixels)
    return torch.where(pixels < 128, pixels + amount.to(torch.uint8), pixels)  # solarize_add
