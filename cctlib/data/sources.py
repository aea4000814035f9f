"""Where images come from: one function for each layout of files, each returning the same thing, a `Source`.

A source knows its labels and reads any one image; it decides nothing about order, splits or caches (see
`data.py`). `find` looks whether a data set's files are in a folder, without opening them.

Images of any kind become `uint8 [side, side, 3]`: turned upright by their EXIF tag, converted to RGB (grey,
palette, CMYK, 16 bits), then, where a resolution is asked for, the shorter side is resized to it (bicubic
with antialias, Pillow's) and the centre is cropped to a square. An image that has that size already is left
as it is, to the bit.
"""

import codecs
import functools
import hashlib
import importlib.resources
import io
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import Int64, UInt8
from PIL import ExifTags, Image, ImageOps

from cctlib.data import labels as known
from cctlib.errors import UserError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
FLOWERS102_MD5 = {
    "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
    "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
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
class Found:
    """Files of one split that are there: where, a digest that changes when they do, and how to open them."""

    where: Path
    identity: str
    open: Callable[[], Source]


def find(dataset: str, root: Path, part: str, size: int) -> Found | None:
    """The files of a data set's `train` or `test` part in the folder `root`; None when there are none."""
    if dataset == "cifar100":
        files = sorted((root / "cifar100").glob(f"{part}-*.parquet"))
        if files:
            return Found(files[0], "", functools.partial(cifar100_parquet, files))
        pickled = root / "cifar-100-python" / part
        return Found(pickled.parent, "", functools.partial(cifar100_python, pickled)) if pickled.is_file() else None
    folder = root / "flowers-102"
    if not folder.is_dir():
        return None
    return Found(folder, listing(folder / "jpg"), functools.partial(flowers102, folder, dataset, part, size))


def cifar100_parquet(files: Sequence[Path]) -> Source:
    """The public release `uoft-cs/cifar100`: columns `img {bytes, path}`, `fine_label`, `coarse_label`."""
    where = str(files[0])
    try:
        table = pyarrow.concat_tables(pyarrow.parquet.read_table(file, columns=["img", "fine_label"]) for file in files)
        encoded = table["img"].combine_chunks().field("bytes")
        labels = table["fine_label"].to_numpy().astype(np.int64)
    except (pyarrow.ArrowException, OSError, KeyError, TypeError) as error:
        raise BadData(
            f"{where} cannot be read as the CIFAR-100 parquet file: {_line(error)}; download it again"
        ) from None
    check_labels(labels, known.CIFAR100, where)

    def read(row: int) -> UInt8[np.ndarray, "side side 3"]:
        return decode(io.BytesIO(encoded[row].as_py()), f"row {row} of {where}", 32, resize=False)

    return Source(where, 32, labels, read)


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles arrays, strings, numbers and lists only: a pickle may call all it names.

    torchvision's class would read these files as well, but only with `pickle.load`, made safe by MD5 sums of
    the originals.
    """

    ALLOWED: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> object:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls {module}.{name}") from None


def cifar100_python(file: Path) -> Source:
    """torchvision's layout: `cifar-100-python/train` and `test`, pickled dicts with `data`, `fine_labels`."""
    try:
        with file.open("rb") as opened:
            content = _PlainUnpickler(opened, encoding="latin1").load()
        pixels, labels = np.asarray(content["data"]), np.asarray(content["fine_labels"], np.int64)
        rows = pixels.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
        if pixels.dtype != np.uint8:
            raise TypeError(f"its pixels are {pixels.dtype}, expected uint8")
    except Exception as error:  # whatever a damaged pickle may raise
        raise BadData(f"{file} cannot be read as CIFAR-100's pickle: {_line(error)}; download it again") from None
    check_labels(labels, known.CIFAR100, str(file))
    return Source(str(file), 32, labels, rows.__getitem__)


def flowers102(folder: Path, dataset: str, part: str, size: int) -> Source:
    """torchvision's layout of Flowers-102. `dataset` tells the split: `flowers102` or `flowers102-kaggle`.

    Images are ordered by the SHA-256 of their published name instead of their pixels: the pixels change with
    the resolution, with the copy of the data (a download has photographs of full size, other copies smaller
    ones) and with the version of the JPEG decoder, and with them would the held-out images, some of which a
    model would then have been trained on. So every copy is divided alike, and labels are the same row by row;
    fingerprints are not, which is why `datasets.py` names none for this set.
    """
    from scipy.io import loadmat  # late: nothing else here needs scipy

    for name, expected in FLOWERS102_MD5.items():
        file = folder / name
        found = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() if file.is_file() else "missing"
        if found != expected:
            raise BadData(f"{file} is not the published file: MD5 {found}, expected {expected}; download it again")
    labels = loadmat(folder / "imagelabels.mat", squeeze_me=True)["labels"].astype(np.int64) - 1
    official = loadmat(folder / "setid.mat", squeeze_me=True)
    numbers = flowers102_numbers(dataset, part, official)
    files = [folder / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
    if missing := [file for file in files if not file.is_file()]:
        raise BadData(f"{missing[0]} is missing, and {len(missing) - 1} other images; download Flowers-102 again")

    def read(row: int) -> UInt8[np.ndarray, "side side 3"]:
        return decode(files[row], str(files[row]), size, resize=True)

    keys = [hashlib.sha256(file.name.encode()).digest() for file in files]
    chosen = labels[numbers - 1]
    check_labels(chosen, known.FLOWERS102, str(folder))
    return Source(str(folder), size, chosen, read, keys)


def flowers102_numbers(dataset: str, part: str, official: dict[str, Any]) -> Int64[np.ndarray, "image"]:
    """Numbers (from 1) of the images of a split.

    Official: train = training + validation, test. `kaggle-6552`: train 6,552 and test 819 of the split behind
    the CCT authors' result; its 818 validation images are in neither.
    """
    if dataset == "flowers102":
        names = ("trnid", "valid") if part == "train" else ("tstid",)
        return np.sort(np.concatenate([np.atleast_1d(official[name]) for name in names]).astype(np.int64))
    text = importlib.resources.files("cctlib.data").joinpath("flowers102_kaggle.json").read_text()
    kaggle = {name: np.array(numbers) for name, numbers in json.loads(text).items()}
    everything = np.arange(1, 8190)
    return kaggle["test"] if part == "test" else np.setdiff1d(everything, np.concatenate([*kaggle.values()]))


def folder_names(root: Path) -> tuple[str, ...]:
    """The labels of an image folder: the folders in `root/train`, in alphabetical order."""
    if not (root / "train").is_dir():
        raise UserError(f"{root / 'train'} is no folder; an image folder is laid out as <root>/<split>/<class>/<image>")
    names = tuple(sorted(path.name for path in (root / "train").iterdir() if path.is_dir() and path.name[0] != "."))
    if len(names) < 2:
        raise UserError(f"{root / 'train'} holds {len(names)} class folders, expected at least 2")
    return names


def image_folder(root: Path, part: str, names: tuple[str, ...], size: int, resize: bool) -> Source:
    """Any folder of images, `<root>/<split>/<class>/<image>`. The classes are those of `train`."""
    home = root / part
    if strange := sorted({path.name for path in home.iterdir() if path.is_dir() and path.name[0] != "."} - set(names)):
        raise BadData(f"{home / strange[0]} is a class that {root / 'train'} does not have (label out of range)")
    files = [(path, label) for label, name in enumerate(names) for path in _images(home / name)]
    labels = np.array([label for _, label in files], np.int64)
    check_labels(labels, names, str(home), complete=part == "train")

    def read(row: int) -> UInt8[np.ndarray, "side side 3"]:
        return decode(files[row][0], str(files[row][0]), size, resize)

    return Source(str(home), size, labels, read)


def folder_size(root: Path, names: tuple[str, ...]) -> int:
    """The side of the first training image, which all others then need. Raises `BadData` if not square."""
    first = next((file for name in names for file in _images(root / "train" / name)), None)
    if first is None:
        raise BadData(f"{root / 'train'} holds no images")
    return decode(first, str(first), None, resize=False).shape[0]


def listing(folder: Path, times: bool = False) -> str:
    """SHA-256 over names and sizes (and times of change) of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns if times else ''}\n".encode())
    return digest.hexdigest()


def check_labels(labels: Int64[np.ndarray, "image"], names: Sequence[str], where: str, complete: bool = True) -> None:
    """Raise `BadData` for labels out of range, no images, or (where `complete`) a label without any image."""
    if wrong := np.flatnonzero((labels < 0) | (labels >= len(names))).tolist():
        row = wrong[0]
        raise BadData(f"{where}: image {row} has label {labels[row]}, out of range 0 to {len(names) - 1}")
    if len(labels) == 0:
        raise BadData(f"{where} holds no images")
    counts = np.bincount(labels, minlength=len(names))
    if complete and (counts == 0).any():
        empty = int(counts.argmin())
        raise BadData(f"{where} has no image of class {names[empty]!r} (label {empty})")


def decode(file: Path | io.BytesIO, where: str, size: int | None, resize: bool) -> UInt8[np.ndarray, "side side 3"]:
    """One image as `uint8 [size, size, 3]`; size None: as it is. Raises `BadData` naming `where`."""
    try:
        with Image.open(file) as opened:
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
            image = ImageOps.exif_transpose(opened) if turned else opened
            if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip instead of scaling
                image = Image.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
            image = image.convert("RGB")
    except Exception as error:  # Pillow raises what its many formats raise
        raise BadData(f"{where} is no readable image: {_line(error)}; replace or remove it") from None
    if resize and size is not None:
        return np.asarray(_square(image, size))
    expected = (size or image.width,) * 2
    if image.size != expected:
        found, wanted = ("{}x{}".format(*pair) for pair in (image.size, expected))
        raise BadData(f"{where} has size {found}, expected {wanted}; give an image size to have images resized")
    return np.asarray(image)


def _square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size`, centre cropped."""
    shorter = min(image.size)
    width, height = ((side * size + shorter // 2) // shorter for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _images(folder: Path) -> list[Path]:
    """Image files below a class folder, in alphabetical order; hidden ones and other kinds are left out."""
    inside = folder.rglob("*") if folder.is_dir() else ()
    return sorted(path for path in inside if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file())


def _line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
