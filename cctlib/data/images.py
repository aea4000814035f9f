"""Images, ready to compute with: CIFAR-100, Flowers-102, a folder of images, or the built-in demo set.

`load("cifar100", "train")` returns `Images`: uint8 pixels, labels, names, and a fingerprint of the content. It finds or
downloads the files (`sources`, `download`; `folders` for one's own), puts the images in canonical order, takes the
held-out ones from those of the training (`order`; Method, section 1), and keeps the arrays in a folder (`cache`).

CCTLIB_DATA: a folder that holds data in the public layouts. CCTLIB_CACHE: where arrays and downloads are kept
(default: the user's cache folder). CCTLIB_OFFLINE=1: never try the network.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from cctlib import stages
from cctlib.data import cache as entries
from cctlib.data import demo, download, folders, order, sources
from cctlib.data.cache import Arrays
from cctlib.data.datasets import DATASETS, Dataset, describe
from cctlib.data.folders import SPLITS, listed
from cctlib.data.sources import BadData, DataUnavailable, Source
from cctlib.errors import UserError

__all__ = ["DATASETS", "SPLITS", "DataUnavailable", "Dataset", "Images", "describe", "load", "normalise"]


@dataclass(frozen=True, eq=False)
class Images:
    """One split of a data set, in canonical order."""

    pixels: UInt8[Tensor, "image 3 height width"]  # channels last; writing to it never reaches the file behind it
    labels: Int64[Tensor, "image"]
    names: tuple[str, ...]  # index = label
    fingerprint: str  # SHA-256 over shape, pixels and labels of the rows that are here, in hex
    dataset: str  # what `load` takes to load it again: a name in DATASETS, or "folder:" and the full path
    split: str  # "train" (without the held-out rows), "held-out" or "test"
    groups: tuple[int, ...] | None = None  # superclass of each label, where there are superclasses
    group_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_labels(self) -> int:
        """K, also where the split has no image of some label."""
        return len(self.names)

    def subset(self, per_label: int) -> "Images":
        """The first `per_label` rows of each label: the same at every call, and part of any larger subset.

        A label with fewer rows gives all it has. Raises `UserError` for a number below 1.
        """
        if per_label < 1:
            raise UserError(f"a subset needs at least 1 image of each label: got per_label={per_label}")
        labels = self.labels.cpu().numpy()
        rows = np.flatnonzero(order.rank_in_label(labels)[0] < per_label)
        if len(rows) == len(self):
            return self
        index = torch.from_numpy(rows).to(self.pixels.device)
        nhwc = self.pixels.permute(0, 2, 3, 1)[index]
        return dataclasses.replace(
            self,
            pixels=nhwc.permute(0, 3, 1, 2),
            labels=self.labels[index],
            fingerprint=order.fingerprint(nhwc.cpu().numpy(), labels[rows]),
        )

    def to(self, device: torch.device | str) -> "Images":
        """The same images with pixels and labels on a device."""
        return dataclasses.replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


def load(dataset: str, split: str, *, image_size: int | None = None, download: bool = True) -> Images:
    """One split of a data set, in canonical order; decoded at the first call, then mapped from the cache.

    dataset: `cifar100`, `flowers102`, `flowers102-kaggle`, `demo` or `folder:PATH`; split: `train`, `held-out`
    or `test`. image_size: side in pixels, for Flowers-102 and folders (shorter side resized, centre cropped);
    default the data set's own. download: whether the network may be asked.
    Raises `DataUnavailable` when the data can be had neither here nor from the network, and `UserError` when
    the files are not what they should be, for bad arguments, and when the disk is full.
    """
    spec = describe(dataset)
    if split not in SPLITS:
        raise UserError(f"no split is called {split!r}; there are {', '.join(SPLITS)}")
    size = spec.image_size if image_size is None else image_size
    if size != spec.image_size and (spec.fingerprints or size < 1):
        allowed = f"{spec.image_size}, the size that its images have" if spec.fingerprints else "a positive number"
        raise UserError(f"image size {size} is not possible for {spec.name}: expected {allowed}")
    pixels, labels, fingerprint = _demo(split) if spec.name == "demo" else _cached(spec, split, size, download)
    return Images(
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.from_numpy(labels),
        names=spec.names,
        fingerprint=fingerprint,
        dataset=spec.name,
        split=split,
        groups=spec.groups,
        group_names=spec.group_names,
    )


def normalise(
    pixels: UInt8[Tensor, "image 3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "image 3 height width"]:
    """What a network reads: pixel / 255, minus the mean, over the deviation; on the pixels' device.

    Mean and deviation go with the operations as plain numbers: no constants are copied to the device for each batch.
    """
    images = pixels.to(torch.float32).div_(255)
    for channel, centre, scale in zip(range(3), mean, std, strict=True):
        images[:, channel].sub_(centre).div_(scale)
    return images


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Copy what is on the host without waiting for the device; what is on the device stays as it is."""
    pinned = torch.device(device).type == "cuda" and values.device.type == "cpu"
    return values.pin_memory().to(device, non_blocking=True) if pinned else values.to(device)


@functools.cache
def _demo(split: str) -> Arrays:
    """A split of the demo set. Drawing it takes about a second, once in a process, and never touches a disk."""
    pixels, labels = demo.draw("test" if split == "test" else "train")
    rows = order.canonical_order(labels, [order.pixel_key(image) for image in pixels])
    if split != "test":
        rows = rows[order.divide(labels[rows])[split]]
    return pixels[rows], labels[rows], order.fingerprint(pixels[rows], labels[rows])


def _cached(spec: Dataset, split: str, size: int, online: bool) -> Arrays:
    """A split from the cache, into which the data set's files are decoded if need be."""
    home = entries.cache_folder()
    part = "train" if split == "held-out" and not spec.has_held_out else split  # whose files the split comes from
    entry, expected = home / f"{spec.key}-{size}-{part}", spec.fingerprints.get(split)
    if expected and (arrays := entries.read(entry, split, None, expected)):
        return arrays
    if spec.root:
        source: Source | None = folders.parts(spec.root, spec.names)[part]
    else:
        source = sources.find(spec.name, root, part) if (root := _data_folder()) else None
    identity = source.identity if source else None
    if arrays := entries.read(entry, split, identity, expected):
        return arrays
    try:
        with stages.locked(entry):  # of two processes that miss it, one makes it and the other reads it
            if arrays := entries.read(entry, split, identity, expected):
                return arrays
            if source:
                entries.write(entry, source, part, spec, size)
            else:
                _download(entry, spec, part, size, home / "downloads", online)
            arrays = entries.read(entry, split, None, None)
    except OSError as error:
        reason = f"{error.strerror or error}; free some space, or set CCTLIB_CACHE to a folder on another disk"
        raise UserError(f"cannot write the cache {entry}: {reason}") from None
    assert arrays is not None
    return arrays


def _data_folder() -> Path | None:
    """The folder that CCTLIB_DATA names. Raises `UserError` when it is none."""
    given = os.environ.get("CCTLIB_DATA")
    if given and not Path(given).expanduser().is_dir():
        raise UserError(f"CCTLIB_DATA is {given}, which is no folder; correct it, or unset it to download the data")
    return Path(given).expanduser().absolute() if given else None


def _download(entry: Path, spec: Dataset, part: str, size: int, downloads: Path, online: bool) -> None:
    """Write a cache entry from an earlier download, else from a new one, of the first source that has the right images.

    Raises `DataUnavailable` when none has.
    """
    layouts, reasons = list(sources.LAYOUTS[spec.name]), []
    for layout in layouts:
        try:
            with stages.locked(downloads):
                source = sources.find(spec.name, download.fetch(layout, downloads, online), part)
            assert source is not None
            return entries.write(entry, source, part, spec, size)
        except (DataUnavailable, BadData) as failure:
            reasons.append(str(failure))
    advice = f"Set CCTLIB_DATA to a folder that holds {' or '.join(layouts)}"
    if root := _data_folder():
        inside = listed(path.name for path in root.iterdir()) or "nothing"
        advice = f"CCTLIB_DATA is {root}, which holds {inside} and neither {' nor '.join(layouts)}"
    why = "; ".join(dict.fromkeys(reasons))
    raise DataUnavailable(f"{spec.title} is not on this machine, and it cannot be downloaded: {why}. {advice}")
