"""The demo set: ten labels, five shapes times two textures, drawn by integer arithmetic.

It needs no file and no network, and is the same to the last bit on every machine, so tests can pin its
fingerprint. Labels share structure on purpose: `striped disc` has its shape in common with `checked disc` and
its texture with `striped cross`. A node that answers to discs, or to stripes, therefore lights up a cluster
of labels.

An image: a shape of random size, place and turn, filled with a texture of random turn and period in two
colours, on a plain ground of a third colour, and noise. Colours, sizes and turns say nothing about the label.
"""

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt8
from numpy import ndarray

SIZE = 32
SHAPES = ("cross", "disc", "ring", "square", "triangle")
TEXTURES = ("checked", "striped")
NAMES = tuple(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)
PER_LABEL = {"train": 300, "test": 100}
SEED = {"train": 2501, "test": 12900}

# Turns by angles whose sine and cosine are fractions: (cosine, sine, denominator), 0 to 90 degrees. No
# rounding anywhere.
TURNS = np.array(
    [(1, 0, 1), (24, 7, 25), (15, 8, 17), (4, 3, 5), (3, 4, 5), (8, 15, 17), (7, 24, 25), (0, 1, 1)], np.int32
)
FINE = 16  # positions inside an image count in sixteenths of a pixel
NOISE = 40  # the sum of two draws of +-NOISE/2 is added to each channel of each pixel


# One value for each pixel of each image; and one for each image, shaped to spread over its pixels.
Pixels = Int[ndarray, "image row column"]
Each = Int[ndarray, "image 1 1"]


def draw(split: str) -> tuple[UInt8[ndarray, "image 32 32 3"], Int64[ndarray, "image"]]:
    """Images `[image, 32, 32, 3]` and labels `[image]` of `train` (3,000) or `test` (1,000), by label.

    Sizes, turns and colours come from the raw 64-bit output of PCG64, whose stream numpy guarantees.
    """
    labels = np.repeat(np.arange(len(NAMES)), PER_LABEL[split])
    generator = np.random.PCG64(SEED[split])
    draws = generator.random_raw((len(labels), 16)) >> np.uint64(16)

    def between(column: int, low: int, high: int) -> Each:
        """A whole number in low..high for each image."""
        return (low + (draws[:, column] % np.uint64(high - low + 1)).astype(np.int32))[:, None, None]

    radius = between(0, 10 * FINE, 13 * FINE)
    centre = [SIZE * FINE // 2 + between(axis, -3 * FINE, 3 * FINE) for axis in (1, 2)]
    y, x = (np.mgrid[:SIZE, :SIZE] * FINE + FINE // 2).astype(np.int32)
    y, x = y - centre[0], x - centre[1]
    inside = _inside(labels % len(SHAPES), *_turn(x, y, between(3, 0, 6)), radius)
    dark = _texture(labels // len(SHAPES), *_turn(x, y, between(4, 0, 7)), between(5, 5 * FINE, 7 * FINE))
    ground, light, gap = (
        np.stack([between(first + c, *span) for c in range(3)], -1)
        for first, span in ((6, (20, 120)), (9, (140, 250)), (12, (45, 90)))
    )
    filled = np.where(dark[..., None], light - gap, light)
    pixels = np.where(inside[..., None], filled, ground) + _noise(generator, len(labels))
    return np.clip(pixels, 0, 255).astype(np.uint8), labels


def _turn(x: Pixels, y: Pixels, which: Each) -> tuple[Pixels, Pixels]:
    """Coordinates turned by each image's angle."""
    cosine, sine, whole = (TURNS[which, part] for part in range(3))
    return (cosine * x + sine * y) // whole, (cosine * y - sine * x) // whole


def _inside(shape: Int[ndarray, "image"], x: Pixels, y: Pixels, radius: Each) -> Bool[ndarray, "image row column"]:
    """Which pixels the shape covers."""
    across, distance = np.maximum(abs(x), abs(y)), x * x + y * y
    disc = distance <= radius * radius
    covered = [  # in the order of SHAPES
        (across <= radius) & (np.minimum(abs(x), abs(y)) * 3 <= radius),
        disc,
        disc & (distance * 4 >= radius * radius),
        across * 5 <= radius * 4,
        (y * 2 <= radius) & (7 * abs(x) <= 4 * (y + radius)),
    ]
    return np.choose(shape[:, None, None], covered)


def _texture(texture: Int[ndarray, "image"], x: Pixels, y: Pixels, period: Each) -> Bool[ndarray, "image row column"]:
    """Which pixels are in the darker of the texture's two colours."""
    stripes, rows = (x * 2 // period) % 2 == 1, (y * 2 // period) % 2 == 1
    return np.where((texture == TEXTURES.index("striped"))[:, None, None], stripes, stripes ^ rows)


def _noise(generator: np.random.PCG64, images: int) -> Int[ndarray, "image row column 3"]:
    """Noise in -NOISE..NOISE, small values more often than large ones."""
    raw = generator.random_raw(images * SIZE * SIZE * 3 // 4).astype("<u8").view("<u2").astype(np.int32)
    first, second = raw % (NOISE + 1), (raw // 256) % (NOISE + 1)
    return (first + second - NOISE).reshape(images, SIZE, SIZE, 3)
