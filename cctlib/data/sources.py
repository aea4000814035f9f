"""Where images come from: one function for each layout of files, each returning the same thing, a `Source`.

A source knows its labels and reads any one image; it decides nothing about order, splits or caches (see `order.py`,
`cache.py`). `find` looks whether a data set's files are in a folder, without opening them.

Images of any kind become `uint8 [side, side, 3]`: turned upright by their EXIF tag, converted to RGB (grey, palette,
CMYK, 16 bits), then the shorter side is resized (bicubic with antialias, Pillow's) and the centre is cropped to a
square. An image that has that size already is left as it is, to the bit.
"""

import functools
import hashlib
import importlib.resources
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import Int64, UInt8
from PIL import ExifTags, Image, ImageOps

from cctlib.data import folders
from cctlib.data.datasets import Dataset
from cctlib.errors import UserError

FLOWERS102_MD5 = {
    "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
    "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
}
# The folders that CCTLIB_DATA may hold, each with files that are in it.
LAYOUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar100": {"cifar100": ("train-*.parquet",), "cifar-100-python": ("train", "test", "meta")},
    "flowers102": {"flowers-102": ("imagelabels.mat", "setid.mat")},
    "flowers102-kaggle": {"flowers-102": ("imagelabels.mat", "setid.mat")},
}


class BadData(UserError):
    """Files that are there, and are not what they should be."""


@dataclass(frozen=True)
class Source:
    """Images of one split, not decoded yet, in the order in which their files list them."""

    where: str  # the file or folder, for messages
    size: int  # side of the images that `read` returns
    labels: Int64[np.ndarray, "image"]
    read: Callable[[int], UInt8[np.ndarray, "side side 3"]]  # raises BadData, naming the image
    keys: Sequence[bytes] | None = None  # what orders the images of a label; None: the SHA-256 of their pixels


@dataclass(frozen=True)
class Files:
    """Files of one split that are there: a digest that changes when they do, and how to open them."""

    identity: str
    open: Callable[[], Source]


def find(spec: Dataset, root: Path, part: str, size: int) -> Files | None:
    """The files of a split in the folder `root`, that of an image folder or one in a public layout; None: not there.

    Raises `UserError` for image folders that `folders.parts` refuses.
    """
    if spec.root is not None:
        listed = folders.parts(root, spec.names)[part]
        return Files(
            f"{listed.identity} {spec.has_held_out} {'/'.join(spec.names)}",
            functools.partial(image_folder, root / part, listed.files, listed.labels, size),
        )
    if spec.name == "cifar100":
        if parquet := sorted((root / "cifar100").glob(f"{part}-*.parquet")):
            return Files("", functools.partial(cifar100_parquet, parquet, spec.names))
        folder = root / "cifar-100-python"
        is_there = (folder / part).is_file()
        return Files("", functools.partial(cifar100_python, root, part)) if is_there else None
    folder = root / "flowers-102"
    if not folder.is_dir():
        return None
    return Files(_listing(folder / "jpg"), functools.partial(flowers102, folder, spec, part, size))


def misplaced(name: str, root: Path) -> str:
    """What is in `root`, the folder that CCTLIB_DATA names, where it does not hold the data set.

    Raises `UserError`, with what to do, where the data set is near: in that folder itself, or further down.
    """
    expected = LAYOUTS[name]
    for folder in (root, *(path for depth in ("*", "*/*") for path in sorted(root.glob(depth)) if path.is_dir())):
        for layout, files in expected.items():
            if not all(any(path.is_file() for path in folder.glob(file)) for file in files):
                continue
            if folder.name == layout:
                raise UserError(
                    f"CCTLIB_DATA is {root}; the data set is in {folder}: set CCTLIB_DATA to {folder.parent}"
                )
            if folder == root or "*" not in files[0]:  # other data sets have parquet files too
                raise UserError(
                    f"CCTLIB_DATA is {root}; {folder} holds {_content(folder)}: rename it to {layout}, "
                    "and set CCTLIB_DATA to the folder above it"
                )
    return f"CCTLIB_DATA is {root}, which holds {_content(root)} and neither {' nor '.join(expected)}"


def _content(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"


def image_folder(home: Path, files: Sequence[str], labels: Sequence[int], size: int) -> Source:
    """Images of one's own."""

    def read(row: int) -> UInt8[np.ndarray, "side side 3"]:
        return decode(files[row], files[row], size)

    return Source(str(home), size, np.array(labels, np.int64), read)


def cifar100_parquet(files: Sequence[Path], names: Sequence[str]) -> Source:
    """The public release `uoft-cs/cifar100`: columns `img` (a struct with `bytes`, or bytes) and `fine_label`."""
    where = str(files[0])
    try:
        table = pyarrow.concat_tables(pyarrow.parquet.read_table(file, columns=["img", "fine_label"]) for file in files)
        encoded = table["img"].combine_chunks()
        if pyarrow.types.is_struct(encoded.type):
            encoded = encoded.field("bytes")
        labels = table["fine_label"].to_numpy().astype(np.int64)
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise BadData(
            f"{where} cannot be read as the CIFAR-100 parquet file: {one_line(error)}; download it again"
        ) from None
    if set(labels.tolist()) != set(range(len(names))):
        raise BadData(
            f"{where} does not hold images of the labels 0 to {len(names) - 1} and no others; download it again"
        )

    def read(row: int) -> UInt8[np.ndarray, "side side 3"]:
        image = encoded[row].as_py()
        if not isinstance(image, bytes):
            raise BadData(f"row {row} of {where} holds no image file but {type(image).__name__}; download it again")
        return decode(io.BytesIO(image), f"row {row} of {where}", 32, exactly=True)

    return Source(where, 32, labels, read)


def cifar100_python(root: Path, part: str) -> Source:
    """torchvision's layout: `cifar-100-python/train`, `test` and `meta`, which it unpickles if their MD5 is right."""
    from torchvision.datasets import CIFAR100  # late: it takes a second to import, and few come here

    where = root / "cifar-100-python" / part
    try:
        rows = CIFAR100(root, train=part == "train")
        labels = np.array(rows.targets, np.int64)
    except (RuntimeError, OSError, KeyError) as error:
        raise BadData(f"{where.parent} cannot be read as CIFAR-100: {one_line(error)}; download it again") from None
    return Source(str(where), 32, labels, rows.data.__getitem__)


def flowers102(folder: Path, spec: Dataset, part: str, size: int) -> Source:
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
    numbers = flowers102_numbers(spec.name, part, loadmat(folder / "setid.mat", squeeze_me=True))
    files = [folder / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
    if missing := [file for file in files if not file.is_file()]:
        raise BadData(f"{missing[0]} is missing, and {len(missing) - 1} other images; download Flowers-102 again")

    def read(row: int) -> UInt8[np.ndarray, "side side 3"]:
        return decode(files[row], str(files[row]), size)

    keys = [hashlib.sha256(file.name.encode()).digest() for file in files]
    return Source(str(folder), size, labels[numbers - 1], read, keys)


def flowers102_numbers(dataset: str, part: str, official: dict[str, Any]) -> Int64[np.ndarray, "image"]:
    """Numbers (from 1) of the images of a split.

    Official: train = training + validation, test. `kaggle-6552`: train 6,552 and test 819 of the split behind
    the CCT authors' result; its 818 validation images are in neither.
    """
    if dataset == "flowers102":
        names = ("trnid", "valid") if part == "train" else ("tstid",)
        return np.sort(np.concatenate([np.atleast_1d(official[name]) for name in names]).astype(np.int64))
    text = importlib.resources.files("cctlib.data").joinpath("flowers102_kaggle.json").read_text(encoding="utf-8")
    kaggle = {name: np.array(numbers) for name, numbers in json.loads(text).items()}
    everything = np.arange(1, 8190)
    return kaggle["test"] if part == "test" else np.setdiff1d(everything, np.concatenate([*kaggle.values()]))


def _listing(folder: Path) -> str:
    """SHA-256 over names and sizes of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size} \n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def decode(
    file: Path | str | io.BytesIO, where: str, size: int, exactly: bool = False
) -> UInt8[np.ndarray, "size size 3"]:
    """One image as `uint8 [size, size, 3]`. exactly: it has to have that size. Raises `BadData` naming `where`."""
    try:
        with Image.open(file) as opened:
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
            image = ImageOps.exif_transpose(opened) if turned else opened
            if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip instead of scaling
                image = Image.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
            if image.mode == "F":  # in a range that nobody knows
                raise ValueError("its pixels are fractions; save it with 8 or 16 bits")
            image = image.convert("RGB")
    except Exception as error:  # Pillow raises what its many formats raise
        raise BadData(f"{where} is no readable image: {one_line(error)}; replace or remove it") from None
    if exactly and image.size != (size, size):
        raise BadData(f"{where} has size {image.width}x{image.height}, expected {size}x{size}")
    return np.asarray(_square(image, size))


def _square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size`, centre cropped."""
    shorter = min(image.size)
    width, height = ((side * size + shorter // 2) // shorter for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def one_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
