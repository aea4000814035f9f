"""Decoded images on disk, whole or absent.

An entry is a folder with the arrays of one part (`train` or `test`) of a data set at one resolution:
`<split>.npy` (uint8 `[image, height, width, 3]`, memory-mapped when read), `<split>.labels.npy` (int64) and
`manifest.json`. It is written under another name and renamed when it is complete. What is read has to have the
fingerprint that was written.
"""

import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import platformdirs
from jaxtyping import Int64, UInt8
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from cctlib.data import order
from cctlib.data.datasets import Dataset
from cctlib.data.folders import warn_once
from cctlib.data.sources import BadData, Source

FORMAT = 1  # raised when images are decoded, resized or ordered otherwise: older entries are made again
BLOCK = 64  # images that a thread decodes at a time


# One split as it is kept: pixels, labels, their fingerprint.
Arrays = tuple[UInt8[np.ndarray, "image height width 3"], Int64[np.ndarray, "image"], str]


def cache_folder() -> Path:
    """Where arrays and downloads are kept: CCTLIB_CACHE, else the user's cache folder."""
    place = os.environ.get("CCTLIB_CACHE") or platformdirs.user_cache_path("cctlib")
    return Path(place).expanduser().absolute()


def read(entry: Path, split: str, identity: str | None, expected: str | None) -> Arrays | None:
    """The arrays of a split, mapped into memory; None when not there, damaged, or made from other files.

    identity: of the files that the entry has to have been made from (None: any); expected: fingerprint, where known.
    """
    try:
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        recorded = manifest["splits"][split]["fingerprint"]
        if manifest.get("format") != FORMAT or identity not in (None, manifest["identity"]):
            return None
        files = entry / f"{split}.npy", entry / f"{split}.labels.npy"
        content = _fingerprint(*files, *(file.stat().st_mtime_ns for file in files))
        if content == recorded == (expected or content):
            # Mode "c": what is written to the array stays in this process. (torch has no read-only tensors.)
            return np.load(files[0], mmap_mode="c"), np.load(files[1]), content
        damage = f"its fingerprint is {content}"
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        damage = str(error)
    warn_once(f"{entry} is damaged ({damage}) and is made again")
    return None


@functools.lru_cache(64)
def _fingerprint(pixels: Path, labels: Path, *changed: int) -> str:
    """Of the arrays in two files; hashed once in a process, and again when the files have changed."""
    return order.fingerprint(np.load(pixels, mmap_mode="r"), np.load(labels))


def write(entry: Path, source: Source, part: str, spec: Dataset, size: int) -> None:
    """Decode the images of a part of a data set into an entry; from `train`, held-out rows are taken if need be.

    Raises `BadData` when the images are not what they should be, `OSError` when the disk is full. The entry is then as
    before.
    """
    work = entry.with_name(entry.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    try:
        work.mkdir(parents=True)
        pixels = _decoded(source, size, work / "decoded.npy")
        in_order = order.canonical_order(source.labels, source.keys or [order.pixel_key(image) for image in pixels])
        takes_held_out = part == "train" and not spec.has_held_out
        places = order.divide(source.labels[in_order]) if takes_held_out else {part: slice(None)}
        splits = {}
        for split, place in places.items():
            rows = in_order[place]
            arranged, labels = _new_array(work / f"{split}.npy", (len(rows), size, size, 3)), source.labels[rows]
            np.take(pixels, rows, axis=0, out=arranged, mode="clip")  # any other mode makes a copy in memory first
            arranged.flush()
            np.save(work / f"{split}.labels.npy", labels)
            content = order.fingerprint(arranged, labels)
            if content != (expected := spec.fingerprints.get(split, content)):
                raise BadData(
                    f"{source.where} does not hold the published images: fingerprint of {split} "
                    f"{content[:16]}, expected {expected[:16]}; remove it and download it again"
                )
            splits[split] = {"images": len(labels), "fingerprint": content}
        (work / "decoded.npy").unlink()
        manifest = {"format": FORMAT, "source": source.where, "identity": source.identity, "splits": splits}
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)
        os.replace(work, entry)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _decoded(source: Source, size: int, file: Path) -> UInt8[np.ndarray, "image side side 3"]:
    """All images of a source, in a new array on disk."""
    pixels = _new_array(file, (len(source.labels), size, size, 3))

    def block(start: int) -> None:
        for row in range(start, min(start + BLOCK, len(pixels))):
            pixels[row] = source.read(row, size)

    bar = {"desc": f"decoding {Path(source.where).name}", "unit": " images", "unit_scale": BLOCK, "leave": False}
    threads = min(8, os.cpu_count() or 1)
    thread_map(block, range(0, len(pixels), BLOCK), max_workers=threads, tqdm_class=tqdm, disable=None, **bar)
    return pixels


def _new_array(file: Path, shape: tuple[int, ...]) -> UInt8[np.memmap, "image side side 3"]:
    """An array in a new `.npy` file, mapped into memory.

    Its room on the disk is taken at once, as a full disk would kill a process that writes to a map. Raises `OSError`.
    """
    array = np.lib.format.open_memmap(file, "w+", np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array
