"""The data sets by name: what is known about each before any file is opened."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cctlib.data import demo, download, sources
from cctlib.data import labels as known
from cctlib.errors import UserError

SPLITS = ("train", "held-out", "test")


@dataclass(frozen=True)
class Dataset:
    """What is known about a data set before any file is opened."""

    name: str
    title: str
    names: tuple[str, ...]
    image_size: int | None  # default resolution; None: that of the files
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    note: str  # where it comes from
    resizable: bool = False  # whether another resolution can be asked for
    rows: Mapping[str, int] = field(
        default_factory=dict
    )  # images in the files of "train" (held-out included) and "test"
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of each split, where the pixels are lossless
    groups: tuple[int, ...] | None = None
    group_names: tuple[str, ...] | None = None
    downloads: tuple[Callable[[Path, str], None], ...] = ()  # tried in turn
    layout: str = ""  # what a folder given as CCTLIB_DATA has to hold
    root: Path | None = None  # of an image folder

    @property
    def num_labels(self) -> int:
        """K."""
        return len(self.names)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that `load` takes."""
        return SPLITS


FLOWERS = Dataset(
    name="flowers102",
    title="Flowers-102 (official split)",
    names=known.FLOWERS102,
    image_size=224,
    mean=(0.4353, 0.3773, 0.2872),  # the CCT authors' for this data set
    std=(0.2966, 0.2455, 0.2698),
    note="Nilsback and Zisserman 2008; training and validation images train (2,040), tested on 6,149",
    resizable=True,
    rows={"train": 2040, "test": 6149},
    downloads=(download.flowers102,),
    layout="flowers-102/ with jpg/, imagelabels.mat and setid.mat",
)
DATASETS: dict[str, Dataset] = {
    "cifar100": Dataset(
        name="cifar100",
        title="CIFAR-100",
        names=known.CIFAR100,
        image_size=32,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        note="Krizhevsky 2009; 500 training and 100 test images for each of 100 labels",
        rows={"train": 50_000, "test": 10_000},
        fingerprints={
            "train": "1177c1df3a2ad5975ee20c76c0423dff9db541552d9ce50d43555799409be943",
            "held-out": "4f6d3e1a02fff55f986a96968978654011159417c7c50391c39c5378b1e51b2c",
            "test": "cd10c131eaad63a45cb2839d8d7a891ea8da6649314bbbc94d228c28d37c8b81",
        },
        groups=known.CIFAR100_GROUPS,
        group_names=known.CIFAR100_GROUP_NAMES,
        downloads=(download.cifar100_parquet, download.cifar100_python),
        layout="cifar100/train-*.parquet and test-*.parquet, or cifar-100-python/",
    ),
    "flowers102": FLOWERS,
    "flowers102-kaggle": dataclasses.replace(
        FLOWERS,
        name="flowers102-kaggle",
        title="Flowers-102 (split kaggle-6552)",
        note="behind the CCT authors' 97.19%: 6,552 train (4,911 of them official test images), 819 test",
        rows={"train": 6552, "test": 819},
    ),
    "demo": Dataset(
        name="demo",
        title="demo shapes",
        names=demo.NAMES,
        image_size=demo.SIZE,
        mean=(0.38, 0.38, 0.38),
        std=(0.22, 0.22, 0.22),
        note="drawn by cctlib, no file needed; 300 training and 100 test images for each of 10 labels",
        fingerprints={
            "train": "bb8e6068a1ec04e4d7924963957124fa07b8cc96de5e2369d8afb2cc7339cd3a",
            "held-out": "6dd10c50d52e5b9f3eb3d80d5d882fa9b25c9b0b45041f99ba699be8d393162e",
            "test": "73e494438b8146212feaf8eb8859bbdabd09da1e733cc8ddf75ba1c6bac17482",
        },
    ),
}


def describe(name: str) -> Dataset:
    """The data set of a name, or the image folder of `folder:PATH`. Raises `UserError` for others."""
    if name in DATASETS:
        return DATASETS[name]
    kind, _, path = name.partition(":")
    if kind != "folder" or not path:
        raise UserError(f"no data set is called {name!r}; there are {', '.join(DATASETS)} and folder:PATH")
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"{root} is no folder; folder:PATH needs one laid out as <root>/<split>/<class>/<image>")
    return Dataset(
        name="folder",
        title=root.name,
        names=sources.folder_names(root),
        image_size=None,
        mean=(0.485, 0.456, 0.406),  # ImageNet's, the custom for photographs
        std=(0.229, 0.224, 0.225),
        note=f"images in {root}",
        resizable=True,
        root=root,
    )
