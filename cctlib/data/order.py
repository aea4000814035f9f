"""The two sentences of the method's section 1: canonical order, and the rows that are held out.

Rows are sorted by label, then by a key of the image (the SHA-256 of its pixels, unless the source has a better one), so
that every copy of a data set gives the same arrays. The first tenth of each label's training rows is held out: it
decides, and is never trained on.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8


def canonical_order(labels: Int64[np.ndarray, "image"], keys: Sequence[bytes]) -> Int64[np.ndarray, "image"]:
    """Row numbers by label, then by key. Rows equal in both hold the same pixels."""
    return np.array(sorted(range(len(labels)), key=lambda row: (labels[row], keys[row])), np.int64)


def divide(labels: Int64[np.ndarray, "image"]) -> dict[str, Int64[np.ndarray, "row"]]:
    """Training rows in canonical order -> rows of `held-out` (the first tenth of each label) and of `train`.

    A tenth is rounded to the nearest whole number, a half to the even one, as Python's `round` does.
    """
    rank, size = rank_in_label(labels)
    held_out = rank < np.rint(size / 10)
    return {"train": np.flatnonzero(~held_out), "held-out": np.flatnonzero(held_out)}


def rank_in_label(labels: Int64[np.ndarray, "image"]) -> tuple[Int64[np.ndarray, "image"], Int64[np.ndarray, "image"]]:
    """For each row in canonical order: its place among the rows of its label (from 0), and how many those are."""
    first, end = np.searchsorted(labels, labels, "left"), np.searchsorted(labels, labels, "right")
    return np.arange(len(labels)) - first, end - first


def pixel_key(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """SHA-256 of one image's pixels `[height, width, 3]`, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).digest()


def fingerprint(pixels: UInt8[np.ndarray, "image height width 3"], labels: Int64[np.ndarray, "image"]) -> str:
    """SHA-256 over shape, pixels `[image, height, width, 3]` and labels `[image]`, in hex."""
    digest = hashlib.sha256("x".join(map(str, pixels.shape)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
