"""Decoded images on disk, whole or absent.

An entry is a folder with the arrays of one part (`train` or `test`) of a data set at one resolution:
`<split>.npy` (uint8 `[image, height, width, 3]`, memory-mapped when read), `<split>.labels.npy` (int64) and
`manifest.json`. It is written under another name and renamed when it is complete; what is read has to have
the fingerprint that was written, which each process checks once.
"""

import functools
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
from filelock import FileLock, Timeout
from jaxtyping import Int64, UInt8
from tqdm import tqdm

from cctlib.data import order
from cctlib.data.datasets import Dataset
from cctlib.data.sources import BadData, Files, Source
from cctlib.errors import UserError

FORMAT = 1  # raised when images are decoded, resized or ordered otherwise: older entries are made again
BLOCK = 64  # rows decoded or copied at a time
PATIENCE = 5.0  # seconds that are waited for another process without a word
log = logging.getLogger(__name__)


class Arrays(NamedTuple):
    """One split as it is kept: pixels `[image, height, width, 3]`, labels `[image]`, their fingerprint."""

    pixels: UInt8[np.ndarray, "image height width 3"]
    labels: Int64[np.ndarray, "image"]
    fingerprint: str


def cache_folder(given: Path | None) -> Path:
    """Where arrays and downloads are kept: what the caller says, else CCTLIB_CACHE, else the user's cache folder."""
    place = given or os.environ.get("CCTLIB_CACHE") or platformdirs.user_cache_path("cctlib")
    return Path(place).expanduser().absolute()


def read(entry: Path, split: str, identity: str | None, expected: str | None, report: bool = False) -> Arrays | None:
    """The arrays of a split, mapped into memory; None when not there, damaged, or made from other files.

    identity: of the files that the entry has to have been made from (None: any); expected: fingerprint, where
    known; report: log what is damaged.
    """
    try:
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        record = manifest["splits"][split]
        if manifest.get("format") != FORMAT or identity not in (None, manifest["identity"]):
            return None
        files = entry / f"{split}.npy", entry / f"{split}.labels.npy"
        stamps = tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files))
        # Mode "c": what is written to the array stays in this process. (torch has no read-only tensors.)
        pixels = np.load(files[0], mmap_mode="c", allow_pickle=False)
        labels = np.load(files[1], allow_pickle=False)
        content = _fingerprint(files, stamps)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        damage = str(error)
    else:
        if content == record["fingerprint"] == (expected or content):
            return Arrays(pixels, labels, content)
        damage = f"its fingerprint is {content}"
    if report:
        log.warning("%s is damaged (%s) and is made again", entry, damage)
    return None


@functools.lru_cache(64)
def _fingerprint(files: tuple[Path, Path], stamps: tuple[tuple[int, ...], ...]) -> str:
    """Of the arrays in two files; hashed once in a process, and again when the files' stamps have changed."""
    return order.fingerprint(np.load(files[0], mmap_mode="r"), np.load(files[1]))


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Hold the lock of an entry, so that of two processes that miss it one makes it and the other waits.

    The lock's file stays: whoever removed it would let a third process lock another file of that name.
    """
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        holder = FileLock(entry.with_name(entry.name + ".lock"))
        try:
            holder.acquire(timeout=PATIENCE)
        except Timeout:
            log.warning("another process is writing %s; waiting for it", entry)
            holder.acquire()
    except OSError as error:
        raise UserError(f"the cache {entry.parent} cannot be written: {error.strerror}; set CCTLIB_CACHE") from None
    try:
        yield
    finally:
        holder.release()


def write(entry: Path, files: Files, part: str, spec: Dataset) -> None:
    """Decode the files of a part of a data set into an entry; from `train`, held-out rows are taken if need be.

    Raises `BadData` when the files are not what they should be, `UserError` when the disk is full. The entry is then
    as before.
    """
    source = files.open()
    work = entry.with_name(entry.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    try:
        work.mkdir(parents=True)
        splits = {}
        for split, labels in _decode(source, work, part, part == "train" and not spec.has_held_out).items():
            content = order.fingerprint(np.load(work / f"{split}.npy", mmap_mode="r"), labels)
            if content != (expected := spec.fingerprints.get(split, content)):
                raise BadData(
                    f"{source.where} does not hold the published images: fingerprint of {split} "
                    f"{content[:16]}, expected {expected[:16]}; remove it and download it again"
                )
            splits[split] = {"images": len(labels), "fingerprint": content}
        manifest = {"format": FORMAT, "source": source.where, "identity": files.identity, "splits": splits}
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)
        os.replace(work, entry)
    except OSError as error:
        reason = f"{error.strerror or error}; free some space, or set CCTLIB_CACHE to a folder on another disk"
        raise UserError(f"cannot write the cache {entry}: {reason}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _decode(source: Source, work: Path, part: str, cut: bool) -> dict[str, Int64[np.ndarray, "image"]]:
    """Write the arrays of each split of a source into the folder `work`; the labels of each split."""
    count, shape = len(source.labels), (source.size, source.size, 3)
    keys: list[bytes] = []

    def block(start: int) -> tuple[np.ndarray, list[bytes]]:
        images = np.stack([source.read(row) for row in range(start, min(start + BLOCK, count))])
        return images, [order.pixel_key(image) for image in images]

    def decoded() -> Iterator[np.ndarray]:
        bar = tqdm(total=count, unit=" images", desc=f"decoding {Path(source.where).name}", disable=None, leave=False)
        threads = min(8, os.cpu_count() or 1)
        with bar, ThreadPoolExecutor(threads) as pool:
            for start in range(0, count, threads * BLOCK):  # not all at once: what is decoded waits in memory
                for images, hashes in pool.map(block, range(start, min(start + threads * BLOCK, count), BLOCK)):
                    keys.extend(hashes)
                    bar.update(len(images))
                    yield images

    _save(work / "decoded.npy", (count, *shape), decoded())
    unordered = np.load(work / "decoded.npy", mmap_mode="r")
    in_order = order.canonical_order(source.labels, source.keys or keys)
    places = order.divide(source.labels[in_order]) if cut else {part: np.arange(count)}
    chosen = {split: in_order[place] for split, place in places.items()}
    for split, of_split in chosen.items():
        blocks = (unordered[of_split[start : start + BLOCK]] for start in range(0, len(of_split), BLOCK))
        _save(work / f"{split}.npy", (len(of_split), *shape), blocks)
        np.save(work / f"{split}.labels.npy", source.labels[of_split])
    (work / "decoded.npy").unlink()
    return {split: source.labels[of_split] for split, of_split in chosen.items()}


def _save(file: Path, shape: tuple[int, ...], blocks: Iterable[UInt8[np.ndarray, "image height width 3"]]) -> None:
    """As `np.save`, block by block. (Writing to a memory map without room on the disk would kill the process.)"""
    with file.open("wb") as opened:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(opened, header)
        for block in blocks:
            opened.write(np.ascontiguousarray(block).data)
