"""Images of one's own: a folder `<root>/<split>/<class>/<image>`, as photographs are kept on a disk.

Splits are `train` and `test`, and `held-out` where the folder has one (else a tenth of `train` is held out). Images may
have any size, any name and any suffix; links are followed; folders may lie inside class folders. Files that are no
images are left out, and counted in a warning. Hidden files and folders, and what file managers leave, are passed over.
"""

import functools
import hashlib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cctlib.errors import UserError

LAYOUT = "an image folder is laid out as <root>/<split>/<class>/<image>, with the splits train and test"
SPLITS = ("train", "test", "held-out")
JUNK = {"@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "lost+found", "thumbs.db", "desktop.ini"}
NOT_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows these files, and cannot draw them
LEAST = 6  # a tenth of five, rounded, is no image to hold out
log = logging.getLogger(__name__)


class Part(NamedTuple):
    """The images of one split: their files, their labels, and a digest that changes when the files do."""

    files: list[Path]
    labels: list[int]
    identity: str


def resolve(path: str) -> Path:
    """The folder of `folder:PATH`, without links. Raises `UserError` where there is none."""
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"{root} is no folder; {LAYOUT}")
    if label_name(str(root)) != unicodedata.normalize("NFC", str(root)):
        raise UserError(
            f"{label_name(str(root))} has a name that is not UTF-8; rename the folder, or make a link to it"
        )
    return root


def label_names(root: Path) -> tuple[str, ...]:
    """The labels of an image folder: the folders in `train`, in alphabetical order."""
    home = root / "train"
    if not home.is_dir():
        classes = sorted({label for label, _ in _classes(root)})
        advice = (
            f" ({root} holds {_listed(classes)}: are they classes? Move them into train/ and test/)" if classes else ""
        )
        raise UserError(f"{home} is no folder; {LAYOUT}{advice}")
    names = tuple(sorted({label for label, _ in _classes(home)}))
    if len(names) < 2:
        raise UserError(f"{home} holds {len(names)} class folders, expected at least 2")
    return names


def label_name(folder: str) -> str:
    """The name of a class from that of its folder: composed Unicode; bytes that are not UTF-8 written as \\xNN."""
    return unicodedata.normalize("NFC", os.fsencode(folder).decode("utf-8", "backslashreplace"))


def parts(root: Path, names: tuple[str, ...]) -> dict[str, Part]:
    """The images of each split, after all that can be refused before an image is opened.

    Raises `UserError` for a missing split, a class that `train` does not have, and a class with too few images, here
    rather than when a network is trained already.
    """
    present = [split for split in SPLITS if (root / split).is_dir()]
    others = sorted(
        path.name for path in root.iterdir() if path.is_dir() and _visible(path.name) and path.name not in SPLITS
    )
    advice = f" ({root} also holds {_listed(others)}, which nothing uses)" if others else ""
    if "test" not in present:
        raise UserError(f"{root / 'test'} is no folder; {LAYOUT}{advice}")
    if others:
        _warn(f"{root} holds {_listed(others)}, which nothing uses; a folder that decides is called held-out")
    found = {split: _part(root / split, names) for split in present}
    for split, part in found.items():
        least = LEAST if split == "train" and "held-out" not in present else 1
        counts = np.bincount(np.array(part.labels, np.int64), minlength=len(names))
        if (few := np.flatnonzero(counts < least)).size:
            held_out = " (a tenth of them, rounded, is held out)" if least > 1 else ""
            more = f", and {len(few) - 1} other classes have too few" if len(few) > 1 else ""
            raise UserError(
                f"{root / split} has {counts[few[0]]} images of class {names[few[0]]!r}, needed are at least {least}"
                f"{held_out}{more}; add images, or remove the class from every split"
            )
    return found


def _part(home: Path, names: tuple[str, ...]) -> Part:
    files, labels, left_out = [], [], Counter(_suffix(path) for path in home.iterdir() if _is_loose(path))
    digest = hashlib.sha256()
    for label, folder in sorted(_classes(home)):
        if label not in names:
            raise UserError(f"{folder} is a class that {home.with_name('train')} does not have (label out of range)")
        for path in _walk(folder):
            if not path.is_file():
                left_out["broken link"] += 1
                continue
            stat = path.stat()
            if not _is_image(path, stat.st_size, stat.st_mtime_ns):
                left_out[_suffix(path)] += 1
                continue
            files.append(path)
            labels.append(names.index(label))
            digest.update(os.fsencode(path.relative_to(home)) + f" {stat.st_size} {stat.st_mtime_ns}\n".encode())
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        _warn(f"{home}: {left_out.total()} files are left out, being no images that can be read here: {kinds}")
    return Part(files, labels, digest.hexdigest())


def _classes(home: Path) -> list[tuple[str, Path]]:
    """Names of labels, and their folders."""
    return [(label_name(path.name), path) for path in home.iterdir() if path.is_dir() and _visible(path.name)]


def _walk(folder: Path) -> Iterator[Path]:
    """All visible files below a folder. Links are followed, each folder is entered once."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None

    entered = set()
    for place, inside, files in os.walk(folder, onerror=refuse, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in entered:
            inside.clear()
            continue
        entered.add((stat.st_dev, stat.st_ino))
        inside[:] = sorted(filter(_visible, inside))
        yield from (Path(place, name) for name in sorted(filter(_visible, files)))


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in JUNK


def _is_loose(path: Path) -> bool:
    """Whether it is a file beside the class folders, where no label is."""
    return not path.is_dir() and _visible(path.name)


def _suffix(path: Path) -> str:
    return label_name(path.suffix.lower()) or "without a suffix"


@functools.cache
def _suffixes() -> set[str]:
    """Suffixes of the images that Pillow can read."""
    known = Image.registered_extensions().items()
    return {suffix for suffix, kind in known if kind in Image.OPEN and kind not in NOT_PICTURES}


@functools.lru_cache(100_000)
def _is_image(path: Path, size: int, changed: int) -> bool:
    """Whether it is to be read as an image: by its suffix, else by its first bytes."""
    if path.suffix.lower() in _suffixes():
        return True
    try:
        with Image.open(path) as image:
            return image.format not in NOT_PICTURES
    except Exception:  # Pillow raises what its many formats raise
        return False


@functools.cache
def _warn(message: str) -> None:
    """Say it once in a process, however often the data set is loaded."""
    log.warning("%s", message)


def _listed(names: list[str]) -> str:
    shown = [label_name(name) for name in names[:4]]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
