"""The data sets by name: what is known about each before any image is opened."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cctlib import stages
from cctlib.data import demo, folders
from cctlib.errors import UserError

_NAMES = stages.read_json(Path(__file__).with_name("labels.json"))
# Labels and superclasses are numbered alphabetically, as in the published data.
CIFAR100_GROUP_NAMES = tuple(_NAMES["cifar100"])
_GROUPS = {name: group for group, names in enumerate(_NAMES["cifar100"].values()) for name in names}
CIFAR100_NAMES = tuple(sorted(_GROUPS))
CIFAR100_GROUPS = tuple(_GROUPS[name] for name in CIFAR100_NAMES)
# In the order of the published label numbers (1 to 102 there, 0 to 101 here), which is not alphabetical.
FLOWERS102_NAMES = tuple(_NAMES["flowers102"])


@dataclass(frozen=True)
class Dataset:
    """What is known about a data set before any image is opened."""

    name: str  # what `load` takes; of an image folder with its full path, so that what is recorded can be repeated
    title: str
    names: tuple[str, ...]  # of the labels; index = label
    image_size: int  # pixels, square: the default
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rows: Mapping[str, int] = field(default_factory=dict)  # images of "train" (held-out included) and "test"
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of splits of one size, without loss
    groups: tuple[int, ...] | None = None
    group_names: tuple[str, ...] | None = None
    root: Path | None = None  # of an image folder

    @property
    def key(self) -> str:
        """The name for files; an image folder is told apart from others by its path."""
        return self.name if self.root is None else f"folder-{self.root.name}-{stages.sha256_json(str(self.root))[:8]}"

    @property
    def has_held_out(self) -> bool:
        """Whether the files have held-out images of their own; else a tenth of the training images is held out."""
        return self.root is not None and (self.root / "held-out").is_dir()


FLOWERS = Dataset(
    name="flowers102",
    title="Flowers-102 (official split)",
    names=FLOWERS102_NAMES,
    image_size=224,
    mean=(0.4353, 0.3773, 0.2872),  # the CCT authors' for this data set
    std=(0.2966, 0.2455, 0.2698),
    # Nilsback and Zisserman 2008; training and validation images train (2,040), tested on 6,149
    rows={"train": 2040, "test": 6149},
)
CIFAR100 = Dataset(
    name="cifar100",
    title="CIFAR-100",
    names=CIFAR100_NAMES,
    image_size=32,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    # Krizhevsky 2009; 500 training and 100 test images for each of 100 labels
    rows={"train": 50_000, "test": 10_000},
    fingerprints={
        "train": "1177c1df3a2ad5975ee20c76c0423dff9db541552d9ce50d43555799409be943",
        "held-out": "4f6d3e1a02fff55f986a96968978654011159417c7c50391c39c5378b1e51b2c",
        "test": "cd10c131eaad63a45cb2839d8d7a891ea8da6649314bbbc94d228c28d37c8b81",
    },
    groups=CIFAR100_GROUPS,
    group_names=CIFAR100_GROUP_NAMES,
)
KAGGLE = dataclasses.replace(
    FLOWERS,
    name="flowers102-kaggle",
    title="Flowers-102 (split kaggle-6552)",
    # behind the CCT authors' 97.19%: 6,552 train (4,911 of them official test images), 819 test
    rows={"train": 6552, "test": 819},
)
DEMO = Dataset(
    name="demo",
    title="demo shapes",
    names=demo.NAMES,
    image_size=demo.SIZE,
    mean=(0.38, 0.38, 0.38),
    std=(0.22, 0.22, 0.22),
    # drawn by cctlib, no file needed; 300 training and 100 test images for each of 10 labels
    fingerprints={
        "train": "bb8e6068a1ec04e4d7924963957124fa07b8cc96de5e2369d8afb2cc7339cd3a",
        "held-out": "6dd10c50d52e5b9f3eb3d80d5d882fa9b25c9b0b45041f99ba699be8d393162e",
        "test": "73e494438b8146212feaf8eb8859bbdabd09da1e733cc8ddf75ba1c6bac17482",
    },
)
DATASETS: dict[str, Dataset] = {spec.name: spec for spec in (CIFAR100, FLOWERS, KAGGLE, DEMO)}


def describe(name: str) -> Dataset:
    """The data set of a name, or the image folder of `folder:PATH`. Raises `UserError` for others.

    One folder is one data set, however its path is written: the name that comes back has the path without links.
    """
    if name in DATASETS:
        return DATASETS[name]
    kind, _, path = name.partition(":")
    if kind != "folder" or not path:
        raise UserError(f"no data set is called {name!r}; there are {', '.join(DATASETS)} and folder:PATH")
    root = folders.resolve(path)
    return Dataset(
        name=f"folder:{root}",
        title=root.name,
        names=folders.label_names(root),
        image_size=32,  # that of the recipes for CIFAR-100, by which networks for folders are trained
        mean=(0.485, 0.456, 0.406),  # ImageNet's, the custom for photographs
        std=(0.229, 0.224, 0.225),
        root=root,
    )
