"""Where images come from: one function for each layout of files, each returning the same thing, a `Source`.

A source knows its labels and reads any one image; it decides nothing about order, splits or caches (see `order.py`,
`cache.py`).

Images of any kind become `uint8 [side, side, 3]`: turned upright by their EXIF tag, converted to RGB (grey, palette,
CMYK, 16 bits), then the shorter side is resized (bicubic with antialias, Pillow's) and the centre is cropped to a
square. An image that has that size already is left as it is, to the bit.
"""

import hashlib
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute
import pyarrow.parquet
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps

from cctlib import stages
from cctlib.errors import UserError

FLOWERS102_MD5 = {
    "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
    "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
}


class DataUnavailable(UserError):
    """A data set that is not on this machine and cannot be downloaded now."""


class BadData(UserError):
    """Files that are there, and are not what they should be."""


@dataclass(frozen=True)
class Source:
    """Images of one split, not decoded yet, in the order in which their files list them."""

    where: str  # the file or folder, for messages
    labels: Int64[np.ndarray, "image"]
    images: Sequence[Any]  # each a file's path, a file's content, or pixels
    keys: Sequence[bytes] | None = None  # what orders the images of a label; None: the SHA-256 of their pixels
    identity: str = ""  # a digest that changes when the files do; empty where the images are known by a fingerprint

    def read(self, row: int, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """One image. Raises `BadData`, naming it."""
        image = self.images[row]
        if isinstance(image, np.ndarray):
            return image
        if isinstance(image, str | Path):
            return decode(image, str(image), size)
        return decode(io.BytesIO(image), f"row {row} of {self.where}", size)


def find(dataset: str, root: Path, part: str) -> Source | None:
    """The images of a split of a published data set in `root`, which holds public layouts; None: not there.

    A layout may lie in `root` itself or two folders further down, and have another name, as people unpack it.
    Raises `BadData` when the files are not what they should be.
    """
    layouts = LAYOUTS[dataset]
    deeper = (folder for depth in ("*/", "*/*/") for folder in sorted(root.glob(depth)))
    for folder in itertools.chain((root / name for name in layouts), [root], deeper):
        for name, (marks, read) in layouts.items():
            if marks == PARQUET and folder != root and folder.name != name:
                continue  # other data sets have parquet files too
            if all(any(path.is_file() for path in folder.glob(mark.format(part=part))) for mark in marks):
                return read(folder, dataset, part)
    return None


def cifar100_parquet(folder: Path, name: str, part: str) -> Source:
    """The public release `uoft-cs/cifar100`: columns `img` (a struct with `bytes`) and `fine_label`."""
    files = sorted(folder.glob(PARQUET[0].format(part=part)))
    try:
        table = pyarrow.parquet.read_table(files, columns=["img", "fine_label"], partitioning=None)
        images = pyarrow.compute.struct_field(table["img"], "bytes").to_pylist()
        labels = table["fine_label"].to_numpy().astype(np.int64)
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise BadData(
            f"{files[0]} cannot be read as the CIFAR-100 parquet file: {one_line(error)}; download it again"
        ) from None
    return Source(str(files[0]), labels, images)


def cifar100_python(folder: Path, name: str, part: str) -> Source:
    """The original files `train`, `test` and `meta`, which torchvision unpickles if their MD5 is right."""
    from torchvision.datasets import CIFAR100  # late: it takes a second to import, and few come here

    try:
        rows = type("Original", (CIFAR100,), {"base_folder": folder.name})(folder.parent, train=part == "train")
    except (RuntimeError, OSError, KeyError) as error:
        raise BadData(f"{folder} cannot be read as CIFAR-100: {one_line(error)}; download it again") from None
    return Source(str(folder / part), np.array(rows.targets, np.int64), list(rows.data))


def flowers102(folder: Path, dataset: str, part: str) -> Source:
    """torchvision's layout of Flowers-102, in the official split or in the one that is called kaggle.

    Images are ordered by the SHA-256 of their published name instead of their pixels: the pixels change with the
    resolution, with the copy of the data (a download has photographs of full size, other copies smaller ones) and with
    the version of the JPEG decoder, and with them would the held-out images, some of which a model would then have been
    trained on. So every copy is divided alike, and labels are the same row by row; fingerprints are not, which is why
    `datasets.py` names none for this set.
    """
    from scipy.io import loadmat  # late: nothing else here needs scipy

    for name, expected in FLOWERS102_MD5.items():
        file = folder / name
        md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() if file.is_file() else "missing"
        if md5 != expected:
            raise BadData(f"{file} is not the published file: MD5 {md5}, expected {expected}; download it again")
    labels = loadmat(folder / "imagelabels.mat", squeeze_me=True)["labels"].astype(np.int64) - 1
    numbers = flowers102_numbers(dataset, part, loadmat(folder / "setid.mat", squeeze_me=True))
    files = [folder / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
    if missing := [file for file in files if not file.is_file()]:
        raise BadData(f"{missing[0]} is missing, and {len(missing) - 1} other images; download Flowers-102 again")
    keys = [hashlib.sha256(file.name.encode()).digest() for file in files]
    identity = stages.sha256_json([(file.name, file.stat().st_size) for file in files])
    return Source(str(folder), labels[numbers - 1], files, keys, identity)


def flowers102_numbers(dataset: str, part: str, official: dict[str, Any]) -> Int64[np.ndarray, "image"]:
    """Numbers (from 1) of the images of a split.

    Official: train = training + validation, test. `kaggle-6552`: train 6,552 and test 819 of the split behind
    the CCT authors' result; its 818 validation images are in neither.
    """
    if dataset == "flowers102":
        names = ("trnid", "valid") if part == "train" else ("tstid",)
        return np.sort(np.concatenate([np.atleast_1d(official[name]) for name in names]).astype(np.int64))
    published = stages.read_json(Path(__file__).with_name("flowers102_kaggle.json"))
    kaggle = {name: np.array(numbers) for name, numbers in published.items()}
    everything = np.arange(1, 8190)
    return kaggle["test"] if part == "test" else np.setdiff1d(everything, np.concatenate([*kaggle.values()]))


# The public layouts of each data set by the names of their folders: files that are in them, and what reads them.
Layout = tuple[tuple[str, ...], Callable[[Path, str, str], Source]]
PARQUET = ("{part}-*.parquet",)
FLOWERS102: dict[str, Layout] = {"flowers-102": (("imagelabels.mat",), flowers102)}
LAYOUTS: dict[str, dict[str, Layout]] = {
    "cifar100": {
        "cifar100": (PARQUET, cifar100_parquet),
        "cifar-100-python": (("train", "test", "meta"), cifar100_python),
    },
    "flowers102": FLOWERS102,
    "flowers102-kaggle": FLOWERS102,
}


def decode(file: Path | str | io.BytesIO, where: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """One image as `uint8 [size, size, 3]`. Raises `BadData` naming `where`."""
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip instead of scaling
                image = Image.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
            if image.mode == "F":  # in a range that nobody knows
                raise ValueError("its pixels are fractions; save it with 8 or 16 bits")
            image = image.convert("RGB")
    except Exception as error:  # Pillow raises what its many formats raise
        raise BadData(f"{where} is no readable image: {one_line(error)}; replace or remove it") from None
    shorter = min(image.size)
    width, height = ((side * size + shorter // 2) // shorter for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def one_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
