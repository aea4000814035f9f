"""Images, ready to compute with: CIFAR-100, Flowers-102, a folder of images, or the built-in demo set.

`load("cifar100", "train")` returns `Images`: uint8 pixels, labels, names, and a fingerprint of the content.
What it does on the way (Method, section 1):

1. finds the files (in CCTLIB_DATA, else among earlier downloads, else by downloading them; see `sources.py`,
   `download.py`);
2. decodes each image once and puts the rows in *canonical order*: by label, then by the SHA-256 of the pixels
   (for Flowers-102 of the image's name, see `sources.flowers102`), so that every source gives the same
   arrays;
3. takes the first tenth of each label's training rows as *held-out*: they decide, and are never trained on;
4. keeps the arrays in a cache folder, which is there as a whole or not at all, and checks them by fingerprint
   at each use.

CCTLIB_DATA: a folder that holds data in the public layouts. CCTLIB_CACHE: where arrays and downloads are kept
(default: the user's cache folder). CCTLIB_OFFLINE=1: never try the network.
"""

import dataclasses
import functools
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from cctlib.data import cache as imagecache
from cctlib.data import demo, download, sources
from cctlib.data.cache import Arrays
from cctlib.data.datasets import DATASETS, SPLITS, Dataset, describe
from cctlib.data.sources import BadData, Found, Source
from cctlib.errors import UserError

__all__ = [
    "DATASETS",
    "SPLITS",
    "DataUnavailable",
    "Dataset",
    "Images",
    "available",
    "batches",
    "describe",
    "load",
    "normalise",
]


class DataUnavailable(UserError):
    """A data set that is not on this machine and cannot be downloaded now."""


@dataclass(frozen=True, eq=False)
class Images:
    """One split of a data set, in canonical order."""

    pixels: UInt8[Tensor, "image 3 height width"]  # channels last; writing to it never reaches the file behind it
    labels: Int64[Tensor, "image"]
    names: tuple[str, ...]  # index = label
    fingerprint: str  # SHA-256 over shape, pixels and labels of the rows that are here, in hex
    dataset: str  # a name in DATASETS, or "folder"
    split: str  # "train" (without the held-out rows), "held-out" or "test"
    groups: tuple[int, ...] | None = None  # superclass of each label, where there are superclasses
    group_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_labels(self) -> int:
        """K, also where the split has no image of some label."""
        return len(self.names)

    def subset(self, per_label: int | None = None, count: int | None = None) -> "Images":
        """The first `per_label` rows of each label; or `count` rows, each label getting its share of them.

        Both are the same at every call, and a smaller subset is part of a larger one. A label with fewer rows
        gives all it has. Raises `UserError` when neither or both are given, or a number below 1.
        """
        if (per_label is None) == (count is None) or (per_label or count or 0) < 1:
            raise UserError(f"a subset needs per_label or count, at least 1: got per_label={per_label}, count={count}")
        labels = self.labels.cpu().numpy()
        rank, size = imagecache.rank_in_label(labels)
        if per_label is not None:
            rows = np.flatnonzero(rank < per_label)
        else:  # the row that stands at 30% of its label comes before the one that stands at 40% of another
            rows = np.sort(np.lexsort((labels, (2 * rank + 1) / (2 * size)))[:count])
        if len(rows) == len(self):
            return self
        index = torch.from_numpy(rows).to(self.pixels.device)
        nhwc = self.pixels.permute(0, 2, 3, 1)[index]
        return dataclasses.replace(
            self,
            pixels=nhwc.permute(0, 3, 1, 2),
            labels=self.labels[index],
            fingerprint=imagecache.fingerprint(nhwc.cpu().numpy(), labels[rows]),
        )

    def to(self, device: torch.device | str) -> "Images":
        """The same images with pixels and labels on a device, where `batches` then finds them."""
        return dataclasses.replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


def load(
    dataset: str, split: str, *, image_size: int | None = None, download: bool = True, cache: Path | None = None
) -> Images:
    """One split of a data set, in canonical order; decoded at the first call, then mapped from the cache.

    dataset: `cifar100`, `flowers102`, `flowers102-kaggle`, `demo` or `folder:PATH`; split: `train`, `held-out`
    or `test`. image_size: side in pixels, for Flowers-102 and folders (shorter side resized, centre cropped);
    default the data set's own. download: whether the network may be asked; cache: instead of CCTLIB_CACHE.
    Raises `DataUnavailable` when the data can be had neither here nor from the network, and `UserError` when
    the files are not what they should be, for bad arguments, and when the disk is full.
    """
    spec = describe(dataset)
    if split not in SPLITS:
        raise UserError(f"no split is called {split!r}; there are {', '.join(SPLITS)}")
    if image_size is not None and image_size != spec.image_size and (not spec.resizable or image_size < 1):
        allowed = "a positive number" if spec.resizable else f"{spec.image_size}, its own; resize batches instead"
        raise UserError(f"image size {image_size} is not possible for {spec.name}: expected {allowed}")
    if spec.name == "demo":
        return _images(spec, split, _draw_demo(split))
    home, part = _cache_folder(cache), _part(spec, split)
    entry = home / f"{_key(spec)}-{image_size or spec.image_size or 'own'}-{part}"
    given, earlier = (_find(spec, part, image_size, root) for root in (None, home / "downloads"))
    files = given or earlier
    wanted = (entry, split, files.identity if files else None, spec.fingerprints.get(split))
    arrays = imagecache.read(*wanted)
    if arrays is None:
        with imagecache.locked(entry):  # of two processes that miss it, one makes it and the other reads it
            arrays = imagecache.read(*wanted, report=True)
            if arrays is None:
                _fill(entry, spec, part, image_size, given, earlier, home / "downloads" if download else None)
                arrays = imagecache.read(entry, split, None, None)
    if arrays is None:
        raise UserError(f"{entry} could not be read back; remove it, or set CCTLIB_CACHE to another disk")
    return _images(spec, split, arrays)


def available(dataset: str, image_size: int | None = None, cache: Path | None = None) -> bool:
    """Whether `load` can do without the network: training and test files, or their arrays, are here."""
    spec = describe(dataset)
    if spec.name in ("demo", "folder"):
        return True
    home, size = _cache_folder(cache), image_size or "*"
    return all(
        any(_find(spec, part, image_size, root) for root in (None, home / "downloads"))
        or any(home.glob(f"{_key(spec)}-{size}-{part}/manifest.json"))
        for part in ("train", "test")
    )


def normalise(
    pixels: UInt8[Tensor, "image 3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "image 3 height width"]:
    """What a network reads: pixel / 255, minus the mean, over the deviation; on the pixels' device."""
    centre, scale = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(3, 1, 1) for values in (mean, std)
    )
    return pixels.to(torch.float32).div_(255).sub_(centre).div_(scale)


def batches(
    images: Images, size: int, *, device: torch.device | str, generator: torch.Generator | None = None, skip: int = 0
) -> Iterator[tuple[UInt8[Tensor, "batch 3 height width"], Int64[Tensor, "batch"]]]:
    """One pass over the images in batches of `size` (the last may be smaller), on `device`.

    In canonical order, or shuffled when a generator (of the CPU) is given: the whole order is drawn at the
    start, so a pass that is taken up again with the generator's earlier state and `skip` batches goes on
    exactly where it was.
    """
    device = torch.device(device)
    order = None if generator is None else torch.randperm(len(images), generator=generator)
    nhwc, labels = images.pixels.permute(0, 2, 3, 1), images.labels
    pin = device.type == "cuda" and nhwc.device.type == "cpu"
    for start in range(skip * size, len(images), size):
        rows = slice(start, start + size) if order is None else order[start : start + size].to(nhwc.device)
        found = (nhwc[rows], labels[rows])
        pixels, chosen = ((part.pin_memory() if pin else part).to(device, non_blocking=pin) for part in found)
        yield pixels.permute(0, 3, 1, 2), chosen


def _images(spec: Dataset, split: str, arrays: Arrays) -> Images:
    return Images(
        pixels=torch.from_numpy(arrays.pixels).permute(0, 3, 1, 2),
        labels=torch.from_numpy(arrays.labels),
        names=spec.names,
        fingerprint=arrays.fingerprint,
        dataset=spec.name,
        split=split,
        groups=spec.groups,
        group_names=spec.group_names,
    )


def _draw_demo(split: str) -> Arrays:
    """The demo set is drawn anew at each call, which takes about a second: it never touches a disk."""
    pixels, labels = demo.draw("test" if split == "test" else "train")
    rows = imagecache.canonical_order(labels, [imagecache.pixel_key(image) for image in pixels])
    if split != "test":
        rows = rows[imagecache.divide(labels[rows])[split]]
    return Arrays(pixels[rows], labels[rows], imagecache.fingerprint(pixels[rows], labels[rows]))


def _cache_folder(cache: Path | None) -> Path:
    chosen = cache or os.environ.get("CCTLIB_CACHE") or platformdirs.user_cache_path("cctlib")
    return Path(chosen).expanduser().absolute()


def _key(spec: Dataset) -> str:
    """The name of a data set in the cache; folders are told apart by their paths."""
    if spec.root is None:
        return spec.name
    return f"folder-{hashlib.sha256(str(spec.root).encode()).hexdigest()[:12]}"


def _part(spec: Dataset, split: str) -> str:
    """Whose files a split comes from: held-out rows are training rows, unless an image folder has its own."""
    return split if split != "held-out" or _has_held_out(spec) else "train"


def _has_held_out(spec: Dataset) -> bool:
    return spec.root is not None and (spec.root / "held-out").is_dir()


def _find(spec: Dataset, part: str, size: int | None, root: Path | None = None) -> Found | None:
    """The files of a part in `root` (default: where the user says), not opened. `UserError`: a bad place."""
    if spec.root is not None:
        home = spec.root / part
        if root is not None:
            return None
        if not home.is_dir():
            raise UserError(f"{home} is no folder; an image folder is laid out as <root>/<split>/<class>/<image>")
        identity = f"{sources.listing(home, times=True)} {_has_held_out(spec)} {'/'.join(spec.names)}"
        return Found(home, identity, functools.partial(_open_folder, spec, part, size))
    if root is None:
        given = os.environ.get("CCTLIB_DATA")
        if not given:
            return None
        root = Path(given).expanduser()
        if not root.is_dir():
            raise UserError(f"CCTLIB_DATA is {given}, which is no folder; correct it, or unset it to download the data")
    assert spec.image_size is not None  # only folders come without
    return sources.find(spec.name, root, part, size or spec.image_size)


def _open_folder(spec: Dataset, part: str, size: int | None) -> Source:
    assert spec.root is not None
    side = size or sources.folder_size(spec.root, spec.names)
    return sources.image_folder(spec.root, part, spec.names, side, resize=size is not None)


def _fill(
    entry: Path,
    spec: Dataset,
    part: str,
    size: int | None,
    given: Found | None,
    earlier: Found | None,
    downloads: Path | None,
) -> None:
    """Write a cache entry from the files the user gave, else from an earlier download, else from a new one.

    A download counts as one only when its images are the right ones; if not, it is deleted and the next
    source tried. Raises `DataUnavailable` when none is left.
    """

    def keep(found: Found) -> None:
        cut = part == "train" and not _has_held_out(spec)
        rows = spec.rows.get(part)
        imagecache.write(entry, found.open(), part, found.identity, rows, spec.fingerprints, cut)

    if given:
        return keep(given)
    if earlier:
        try:
            return keep(earlier)
        except BadData:
            _remove(earlier.where)
    reasons = ["CCTLIB_OFFLINE is set"] if downloads and download.offline() else []
    for fetch in spec.downloads if downloads and not reasons else ():
        assert downloads is not None
        found = None
        try:
            with imagecache.locked(downloads):
                fetch(downloads, part)
                found = _find(spec, part, size, downloads)
                assert found is not None
                return keep(found)
        except download.DownloadFailed as failure:
            reasons.append(str(failure))
        except BadData as failure:
            reasons.append(str(failure))
            if found:
                _remove(found.where)
    raise DataUnavailable(
        f"{spec.title} is not on this machine, and it cannot be downloaded: {'; '.join(reasons) or 'that was not asked for'}. "
        f"Set CCTLIB_DATA to a folder that holds {spec.layout}"
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
