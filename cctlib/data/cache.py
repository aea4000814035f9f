"""Decoded images on disk: canonical order, held-out rows, fingerprints, and files that are whole or absent.

An entry is a folder with the arrays of one part (`train` or `test`) of a data set at one resolution:
`<split>.npy` (uint8 `[image, height, width, 3]`, memory-mapped when read), `<split>.labels.npy` (int64) and
`manifest.json`. It is written under another name and renamed when it is complete; what is read has to have
the fingerprint that was written.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from jaxtyping import Int64, UInt8
from tqdm.auto import tqdm

from cctlib.data.download import require_space
from cctlib.data.sources import BadData, Source
from cctlib.errors import UserError

FORMAT = 1  # raised when images are decoded, resized or ordered otherwise: older entries are made again
BLOCK = 256  # rows decoded, copied or hashed at a time
log = logging.getLogger(__name__)


class Arrays(NamedTuple):
    """One split as it is kept: pixels `[image, height, width, 3]`, labels `[image]`, their fingerprint."""

    pixels: UInt8[np.ndarray, "image height width 3"]
    labels: Int64[np.ndarray, "image"]
    fingerprint: str


def fingerprint(pixels: UInt8[np.ndarray, "image height width 3"], labels: Int64[np.ndarray, "image"]) -> str:
    """SHA-256 over shape, pixels `[image, height, width, 3]` and labels `[image]`, in hex."""
    digest = hashlib.sha256("x".join(map(str, pixels.shape)).encode())
    for start in range(0, len(pixels), BLOCK):
        digest.update(np.ascontiguousarray(pixels[start : start + BLOCK]).data)
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def pixel_key(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """SHA-256 of one image's pixels `[height, width, 3]`, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).digest()


def canonical_order(labels: Int64[np.ndarray, "image"], keys: Sequence[bytes]) -> Int64[np.ndarray, "image"]:
    """Row numbers by label, then by key (Method, section 1). Rows equal in both hold the same pixels."""
    return np.array(sorted(range(len(labels)), key=lambda row: (labels[row], keys[row])), np.int64)


def divide(labels: Int64[np.ndarray, "image"]) -> dict[str, Int64[np.ndarray, "row"]]:
    """Training rows in canonical order -> rows of `held-out` (the first tenth of each label) and of `train`.

    A tenth is rounded to the nearest whole number, a half to the even one, as Python's `round` does.
    """
    rank, size = rank_in_label(labels)
    held_out = rank < np.rint(size / 10)
    return {"train": np.flatnonzero(~held_out), "held-out": np.flatnonzero(held_out)}


def rank_in_label(labels: Int64[np.ndarray, "image"]) -> tuple[Int64[np.ndarray, "image"], Int64[np.ndarray, "image"]]:
    """For each row: its place among the rows of its label (from 0), and how many those are."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank, counts[labels]


def read(entry: Path, split: str, identity: str | None, expected: str | None, report: bool = False) -> Arrays | None:
    """The arrays of a split, mapped into memory; None when not there, damaged, or made from other files.

    identity: of the files that the entry has to have been made from (None: any); expected: fingerprint, where
    known; report: log what is damaged. Raises `UserError` when the split is known to have no images.
    """
    try:
        manifest = json.loads((entry / "manifest.json").read_text())
        record = manifest["splits"][split]
        if manifest.get("format") != FORMAT or identity not in (None, manifest["identity"]):
            return None
        if record["images"] == 0:
            raise UserError(f"{manifest['source']} has too few images for a split {split!r}")
        # Mode "c": what is written to the array stays in this process. (torch has no read-only tensors.)
        pixels = np.load(entry / f"{split}.npy", mmap_mode="c", allow_pickle=False)
        labels = np.load(entry / f"{split}.labels.npy", allow_pickle=False)
        found = fingerprint(pixels, labels)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        damage = str(error)
    else:
        if found == record["fingerprint"] == (expected or found):
            return Arrays(pixels, labels, found)
        damage = f"its fingerprint is {found}"
    if report:
        log.warning("%s is damaged (%s) and is made again", entry, damage)
    return None


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Hold the lock of an entry, so that of two processes that miss it one makes it and the other waits.

    When making it fails, the lock's file goes as well: a refusal leaves nothing behind.
    """
    lock = entry.with_name(entry.name + ".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        holder = FileLock(lock)
        holder.acquire()
    except OSError as error:
        raise UserError(f"the cache {entry.parent} cannot be written: {error.strerror}; set CCTLIB_CACHE") from None
    try:
        yield
    except BaseException:
        lock.unlink(missing_ok=True)
        raise
    finally:
        holder.release()


def write(
    entry: Path, source: Source, part: str, identity: str, rows: int | None, fingerprints: Mapping[str, str], cut: bool
) -> None:
    """Decode a source into an entry.

    rows, fingerprints: what the data set is known to have, where it is. cut: whether held-out rows are taken
    from it. Raises `BadData` when the source is not what it should be, `UserError` when the disk is full; the
    entry is then as before.
    """
    if rows not in (None, len(source.labels)):
        raise BadData(f"{source.where} has {len(source.labels):,} images, expected {rows:,}; download it again")
    require_space(entry.parent, 2 * len(source.labels) * source.size**2 * 3)
    work = entry.with_name(entry.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    work.mkdir(parents=True)
    try:
        splits = {}
        for split, arrays in _decoded(source, work, part, cut):
            if arrays.fingerprint != fingerprints.get(split, arrays.fingerprint):
                raise BadData(
                    f"{source.where} does not hold the published images: fingerprint of {split} "
                    f"{arrays.fingerprint[:16]}, expected {fingerprints[split][:16]}; download it again"
                )
            splits[split] = {"images": len(arrays.labels), "fingerprint": arrays.fingerprint}
        manifest = {"format": FORMAT, "source": source.where, "identity": identity, "splits": splits}
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        shutil.rmtree(entry, ignore_errors=True)
        os.replace(work, entry)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise UserError(f"cannot write the cache {entry}: {error.strerror or error}; set CCTLIB_CACHE") from None
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _decoded(source: Source, work: Path, part: str, cut: bool) -> Iterator[tuple[str, Arrays]]:
    """Write the arrays of each split of a source into the folder `work`, and name them."""
    shape = (len(source.labels), source.size, source.size, 3)
    with _array(work / "decoded.npy", shape) as unordered:
        hashes = _decode(source, unordered)
        order = canonical_order(source.labels, source.keys or hashes)
        labels = source.labels[order]
        for split, chosen in (divide(labels) if cut else {part: np.arange(len(labels))}).items():
            np.save(work / f"{split}.labels.npy", labels[chosen])
            with _array(work / f"{split}.npy", (len(chosen), *shape[1:])) as pixels:
                for start in range(0, len(chosen), BLOCK):
                    pixels[start : start + BLOCK] = unordered[order[chosen[start : start + BLOCK]]]
                yield split, Arrays(pixels, labels[chosen], fingerprint(pixels, labels[chosen]))
    (work / "decoded.npy").unlink()


def _decode(source: Source, pixels: UInt8[np.ndarray, "image height width 3"]) -> list[bytes]:
    """Read every image of a source into `pixels`, on all cores; the SHA-256 of each one's pixels."""

    def block(start: int) -> list[bytes]:
        rows = range(start, min(start + BLOCK, len(pixels)))
        for row in rows:
            pixels[row] = source.read(row)
        return [pixel_key(pixels[row]) for row in rows]

    keys: list[bytes] = []
    bar = tqdm(total=len(pixels), unit=" images", desc=f"decoding {Path(source.where).name}", disable=None, leave=False)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for found in pool.map(block, range(0, len(pixels), BLOCK)):
                keys += found
                bar.update(len(found))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return keys


@contextmanager
def _array(file: Path, shape: tuple[int, ...]) -> Iterator[UInt8[np.ndarray, "image height width 3"]]:
    """A new array in a file, written through a memory map.

    Its room is taken first: writing to a map that the disk has no room for would kill the process.
    """
    if shape[0] == 0:  # nothing can be mapped
        yield np.empty(shape, np.uint8)
        return
    pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            try:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
            except OSError as error:
                if error.errno == errno.ENOSPC:  # other errors: a file system that cannot promise room
                    raise
    yield pixels
    pixels.flush()
