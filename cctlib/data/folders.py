"""Images of one's own: a folder `<root>/<split>/<class>/<image>`, as photographs are kept on a disk.

Splits are `train` and `test`, and `held-out` where the folder has one (else a tenth of `train` is held out). Images may
have any size, any name and any suffix; links are followed; folders may lie inside class folders. Files that are no
images are left out, and counted in a warning. Hidden files and folders, and what file managers leave, are passed over.
"""

import functools
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cctlib import stages
from cctlib.data.sources import Source
from cctlib.errors import UserError

LAYOUT = "an image folder is laid out as <root>/<split>/<class>/<image>, with the splits train and test"
SPLITS = ("train", "held-out", "test")
JUNK = {"@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "lost+found", "thumbs.db", "desktop.ini"}
NOT_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows these files, and cannot draw them
LEAST = 6  # a tenth of five, rounded, is no image to hold out
log = logging.getLogger(__name__)


def resolve(path: str) -> Path:
    """The folder of `folder:PATH`, without links. Raises `UserError` where there is none."""
    root = stages.from_here(path)
    if not root.is_dir():
        raise UserError(f"{root} is no folder; {LAYOUT}")
    if (name := label_name(str(root))) != unicodedata.normalize("NFC", str(root)):
        raise UserError(f"{name} has a name that is not UTF-8; rename the folder, or make a link to it")
    return root


def label_names(root: Path) -> tuple[str, ...]:
    """The labels of an image folder: the folders in `train`, in alphabetical order."""
    home = root / "train"
    if not home.is_dir():
        inside = listed(label for label, _ in _classes(root))
        advice = f"; {root} holds {inside}: rename them if they are splits, move them into train/ and test/ if classes"
        raise UserError(f"{home} is no folder; {LAYOUT}{advice if inside else ''}")
    names = tuple(sorted({label for label, _ in _classes(home)}))
    if len(names) < 2:
        raise UserError(f"{home} holds {len(names)} class folders, expected at least 2")
    return names


def label_name(folder: str) -> str:
    """The name of a class from that of its folder: composed Unicode; bytes that are not UTF-8 written as \\xNN."""
    return unicodedata.normalize("NFC", os.fsencode(folder).decode("utf-8", "backslashreplace"))


def parts(root: Path, names: tuple[str, ...]) -> dict[str, Source]:
    """The images of each split, after all that can be refused before an image is opened.

    Raises `UserError` for a missing split, a class that `train` does not have, and a class with too few images, here
    rather than when a network is trained already.
    """
    if others := listed(label for label, path in _classes(root) if path.name not in SPLITS):
        others = f"; {root} holds {others}, which nothing uses; images that decide belong into a folder held-out"
        warn_once(others.removeprefix("; "))
    if not (root / "test").is_dir():
        raise UserError(f"{root / 'test'} is no folder; {LAYOUT}{others}")
    by_split = {split: _part(root / split, names) for split in SPLITS if (root / split).is_dir()}
    for split, part in by_split.items():
        least = LEAST if split == "train" and "held-out" not in by_split else 1
        counts = np.bincount(part.labels, minlength=len(names))
        if few := listed(f"{count} of {name!r}" for name, count in zip(names, counts, strict=True) if count < least):
            held_out = " (a tenth of them, rounded, is held out)" if least > 1 else ""
            raise UserError(
                f"{root / split} has too few images: {few}; needed are at least {least} of each class{held_out}; "
                "add images, or remove the class from every split"
            )
    return by_split


def _part(home: Path, names: tuple[str, ...]) -> Source:
    files, labels, statuses = [], [], []
    left_out = Counter(_kind(path) for path in home.iterdir() if _visible(path.name) and not path.is_dir())
    for label, folder in sorted(_classes(home)):
        if label not in names:
            raise UserError(f"{folder} is a class that {home.with_name('train')} does not have (label out of range)")
        for file in _walk(folder):
            if not os.path.isfile(file) or not _is_image(file):
                left_out[_kind(Path(file))] += 1
                continue
            status = os.stat(file)
            files.append(file)
            labels.append(names.index(label))
            statuses.append((os.path.relpath(file, home), status.st_size, status.st_mtime_ns))
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        warn_once(f"{home}: {left_out.total()} files are left out, being no images that can be read here: {kinds}")
    identity = stages.sha256_json([statuses, names, home.with_name("held-out").is_dir()])
    return Source(str(home), np.array(labels, np.int64), files, identity=identity)


def _classes(home: Path) -> list[tuple[str, Path]]:
    """Names of labels, and their folders."""
    return [(label_name(path.name), path) for path in home.iterdir() if _visible(path.name) and path.is_dir()]


def _walk(folder: Path) -> Iterator[str]:
    """All visible files below a folder, and broken links. Links are followed, each folder is entered once."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None

    entered = set()
    for place, inside, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (here := os.path.realpath(place)) in entered:
            inside.clear()
            continue
        entered.add(here)
        inside[:] = sorted(filter(_visible, inside))
        yield from (os.path.join(place, name) for name in sorted(filter(_visible, names)))


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in JUNK


def _kind(path: Path) -> str:
    """What a file that is left out is called."""
    return (label_name(path.suffix.lower()) or "without a suffix") if path.exists() else "broken link"


def _is_image(file: str) -> bool:
    """Whether it is to be read as an image: by its suffix, else by its first bytes."""
    kind = Image.registered_extensions().get(os.path.splitext(file)[1].lower())
    if kind in Image.OPEN and kind not in NOT_PICTURES:
        return True
    try:
        with Image.open(file) as image:
            return image.format not in NOT_PICTURES
    except Exception:  # Pillow raises what its many formats raise
        return False


@functools.cache
def warn_once(message: str) -> None:
    """Say it once in a process, however often the data set is loaded."""
    log.warning("%s", message)


def listed(names: Iterable[str]) -> str:
    """The first few names of many, for a message; empty without names."""
    first = sorted(names)
    return ", ".join(first[:4]) + (f" and {len(first) - 4} more" if len(first) > 4 else "")
