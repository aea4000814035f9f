"""Small data sets in the layouts of the real ones, for tests: random pixels, all labels."""

import dataclasses
import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR100

from cctlib.data import images, sources
from cctlib.data.datasets import DATASETS


def pictures(count: int, seed: int = 0, side: int = 32) -> np.ndarray:
    """Random images `[image, side, side, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """One image as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, compress_level=0, **options)  # random pixels: no use in trying
    return buffer.getvalue()


def load_into(cache: Path, dataset: str, split: str) -> images.Images:
    """A split through a cache of its own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CCTLIB_CACHE", str(cache))
        return images.load(dataset, split)


def tiny_cifar100(per_label: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pixels and labels of `train` and `test`, shuffled."""
    made = {}
    for seed, (part, count) in enumerate(per_label.items()):
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(100), count))
        made[part] = (pictures(len(labels), seed), labels)
    return made


def forget_published(monkeypatch, name: str, **rows: int) -> None:
    """Make the loader accept a small stand-in for a data set: other counts, no known fingerprints."""
    spec = dataclasses.replace(DATASETS[name], rows=rows, fingerprints={})
    monkeypatch.setitem(DATASETS, name, spec)


def write_parquet(folder: Path, part: str, pixels, labels, **columns) -> Path:
    """`folder/cifar100/<part>-00000-of-00001.parquet`; `columns` replaces columns (None leaves one out)."""
    images = [{"bytes": encoded(image), "path": f"{row}.png"} for row, image in enumerate(pixels)]
    table = {"img": images, "fine_label": labels.tolist(), "coarse_label": [0] * len(labels)} | columns
    file = folder / "cifar100" / f"{part}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: column for name, column in table.items() if column is not None}), file)
    return file


def write_python(folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]], monkeypatch) -> Path:
    """`folder/cifar-100-python` with `train`, `test` and `meta`, which torchvision is made to accept."""
    home = folder / "cifar-100-python"
    home.mkdir(parents=True, exist_ok=True)
    none = np.empty((0, 32, 32, 3), np.uint8), np.empty(0, np.int64)
    for part, (pixels, labels) in ({"train": none, "test": none} | parts).items():
        flat = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(labels), 3072)
        (home / part).write_bytes(pickle.dumps({"data": flat, "fine_labels": labels.tolist()}, protocol=2))
    (home / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a"] * 100}, protocol=2))
    md5 = {part: hashlib.md5((home / part).read_bytes()).hexdigest() for part in ("train", "test", "meta")}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5["meta"]})
    return home


def write_flowers(folder: Path, monkeypatch) -> Path:
    """Flowers-102 in torchvision's layout, which the loader is made to accept: a JPEG of each label in trnid, valid
    and tstid, numbered in this order."""
    (folder / "jpg").mkdir(parents=True)
    numbers = np.arange(1, 307)
    savemat(folder / "imagelabels.mat", {"labels": (numbers - 1)[None] % 102 + 1})
    savemat(folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), numbers.reshape(3, 1, 102), strict=True)))
    for number in numbers:
        image = encoded(pictures(1, int(number), 20)[0], "JPEG")
        (folder / "jpg" / f"image_{number:05d}.jpg").write_bytes(image)
    digests = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in sources.FLOWERS102_MD5}
    monkeypatch.setattr(sources, "FLOWERS102_MD5", digests)
    forget_published(monkeypatch, "flowers102", train=204, test=102)
    return folder


def write_folder(root: Path, counts: dict[str, dict[str, int]], side: int = 8) -> Path:
    """An image folder: counts[split][class] PNG images."""
    seed = 0
    for split, classes in counts.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                seed += 1
                (root / split / name / f"{number}.png").write_bytes(encoded(pictures(1, seed, side)[0]))
    return root
