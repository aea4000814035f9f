"""Folders of one's own images, as they are kept on disks: any size, name, suffix; links; too few; misplaced."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import encoded, pictures, write_folder

from cctlib.cli import main
from cctlib.data import folders
from cctlib.data import images as data
from cctlib.errors import UserError
from cctlib.training.recipes import recipe_for

COUNTS = {"train": {"cat": 12, "dog": 7}, "test": {"cat": 2, "dog": 1}}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("CCTLIB_DATA", raising=False)
    monkeypatch.setenv("CCTLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CCTLIB_OFFLINE", "1")
    folders.warn_once.cache_clear()
    return tmp_path


@pytest.fixture
def root(home):
    return write_folder(home / "set", COUNTS)


def load(root: Path, split: str = "train", **options) -> data.Images:
    return data.load(f"folder:{root}", split, **options)


def refused(root: Path, *said: str, split: str = "train") -> None:
    """One line, before anything is decoded, whatever split is asked for."""
    cache = Path(os.environ["CCTLIB_CACHE"])
    before = set(cache.rglob("*.npy"))
    with pytest.raises(UserError) as caught:
        load(root, split)
    assert all(part in str(caught.value) for part in said), caught.value
    assert "\n" not in str(caught.value)
    assert set(cache.rglob("*.npy")) == before


def photograph(width: int = 64, height: int = 48) -> np.ndarray:
    """Red on the left, grey on the right, smooth enough for JPEG."""
    pixels = np.full((height, width, 3), 200, np.uint8)
    pixels[:, : width // 2] = (200, 40, 40)
    return pixels


# --- what is read ---------------------------------------------------------------------------------


def test_ordinary_photographs_go_through_without_a_setting(home, capsys):
    for number, (width, height) in enumerate([(64, 48), (48, 64), (640, 40), (33, 32), (9, 300), (31, 31), (32, 32)]):
        for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
            (home / "set" / place).mkdir(parents=True, exist_ok=True)
            file = home / "set" / place / f"{number}.jpg"
            file.write_bytes(encoded(photograph(width, height) - number - 10 * len(place), "JPEG"))
    main(["data", "--dataset", f"folder:{home / 'set'}"])
    printed = capsys.readouterr().out
    assert printed.count("32x32") == 3 and [row.split()[1] for row in printed.splitlines()[1:]] == ["12", "2", "14"]
    assert data.describe(f"folder:{home / 'set'}").image_size == recipe_for("folder:x", "cpu").image_size
    assert data.describe(f"folder:{home / 'set'}").image_size == recipe_for("folder:x", "cuda").image_size
    assert load(home / "set", image_size=48).pixels.shape == (12, 3, 48, 48)


def test_unequal_classes_are_divided_each_by_a_tenth(root):
    images = load(root)
    assert images.names == ("cat", "dog") and images.labels.bincount().tolist() == [11, 6]
    assert load(root, "held-out").labels.bincount().tolist() == [1, 1]
    assert load(root, "test").labels.bincount().tolist() == [2, 1]


def test_a_folder_may_have_its_own_held_out_images(root):
    write_folder(root, {"held-out": {"cat": 3, "dog": 2}})
    assert len(load(root)) == 19
    assert load(root, "held-out").labels.tolist() == [0, 0, 0, 1, 1]


def test_a_folder_that_changed_is_read_again(root):
    before = load(root).fingerprint
    (root / "train" / "cat" / "7.png").write_bytes(encoded(pictures(1, 99, 8)[0]))
    assert load(root).fingerprint != before


def test_one_folder_is_one_data_set_however_its_path_is_written(root, home, monkeypatch):
    images = load(root)
    (home / "link").symlink_to(root)
    monkeypatch.chdir(home)
    for path in (home / "link", "set", "./set/../set/", root / "train" / ".."):
        assert data.describe(f"folder:{path}").name == images.dataset
    # What is recorded can be used again.
    assert data.load(images.dataset, "train").fingerprint == images.fingerprint
    assert len([entry for entry in (home / "cache").iterdir() if entry.is_dir()]) == 1


@pytest.mark.parametrize("place", ["train/cat", "train/cat/more", "train"])
def test_links_to_folders_are_followed_and_changes_behind_them_are_seen(root, home, place):
    stored = home / "store"
    if place == "train":
        (root / "train").rename(stored)
    else:
        write_folder(stored, {"cat": {".": 8}})
        stored = stored / "cat"
        if place == "train/cat":
            (root / "train" / "cat").rename(home / "old")
    (root / place).symlink_to(stored)
    before = load(root)
    expected = {"train": 19, "train/cat": 8 + 7, "train/cat/more": 12 + 8 + 7}[place]
    assert len(before) + len(load(root, "held-out")) == expected
    new = stored / "cat" / "new.png" if place == "train" else stored / "new.png"
    new.write_bytes(encoded(pictures(1, 77, 8)[0]))
    after = load(root)
    assert len(after) + len(load(root, "held-out")) == expected + 1 and after.fingerprint != before.fingerprint


def test_links_in_a_circle_end(root):
    (root / "train" / "cat" / "again").symlink_to(root / "train" / "cat")
    (root / "train" / "dog" / "all").mkdir()
    (root / "train" / "dog" / "all" / "up").symlink_to(root / "train" / "dog")
    assert len(load(root)) == 17


def test_links_to_images_are_read_and_broken_ones_are_counted(root, home, caplog):
    file = root / "train" / "cat" / "0.png"
    file.rename(home / "elsewhere.png")
    file.symlink_to(home / "elsewhere.png")
    (root / "train" / "cat" / "gone.png").symlink_to(home / "nowhere.png")
    (root / "train" / "cow").symlink_to(home / "nowhere")
    assert len(load(root)) == 17
    assert "2 files are left out, being no images that can be read here: 2 broken link" in caplog.text


@pytest.mark.parametrize(
    "file",
    [
        "train/cat/.ipynb_checkpoints/0-checkpoint.png",
        "train/cat/.Trash-1000/files/deleted.png",
        "train/cat/sub/@eaDir/0.png/SYNOFILE_THUMB_M.png",
        "train/cat/__MACOSX/0.png",
        "train/cat/._0.png",
        "train/@eaDir/0.png/SYNOFILE_THUMB_M.png",
        "train/.hidden/0.png",
        "test/__MACOSX/cat/0.png",
        "train/cat/.DS_Store",
        "train/cat/Thumbs.db",
        "train/.DS_Store",
    ],
)
def test_what_systems_leave_behind_is_passed_over(root, file, caplog):
    before = [load(root, split).fingerprint for split in data.SPLITS]
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(encoded(pictures(1, 55, 8)[0]))
    assert [load(root, split).fingerprint for split in data.SPLITS] == before
    assert load(root).names == ("cat", "dog") and not caplog.text


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.JFIF", "JPEG"),
        ("a.jpe", "JPEG"),
        ("a.JPG", "JPEG"),
        ("a.jp2", "JPEG2000"),
        ("a.avif", "AVIF"),
        ("a.tga", "TGA"),
        ("a", "PNG"),
        ("a.img", "WEBP"),
        ("a.jpg_original", "JPEG"),
    ],
)
def test_whatever_pillow_reads_is_an_image(root, name, kind, caplog):
    from PIL import features

    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(pictures(1, 5, 40)[0]).save(root / "test" / "dog" / "a", kind)
    (root / "test" / "dog" / "a").rename(root / "test" / "dog" / name)
    assert len(load(root, "test")) == 4 and not caplog.text


def test_what_is_left_out_is_counted_and_said_once(root, caplog):
    for name in ("notes.txt", "b.txt", "list", "c.HEIC", "video.mpg"):
        (root / "train" / "cat" / name).write_text("no image")
    (root / "train" / "loose.png").write_bytes(encoded(pictures(1, 5, 8)[0]))
    with caplog.at_level(logging.WARNING):
        assert len(load(root)) == 17
        load(root)
    assert caplog.text.count("left out") == 1
    kinds = "1 .heic, 1 .mpg, 1 .png, 2 .txt, 1 without a suffix"
    assert f"{root / 'train'}: 6 files are left out, being no images that can be read here: {kinds}" in caplog.text


def test_names_that_are_not_utf8_are_no_obstacle(root, capsys):
    raw = os.fsencode(root / "train" / "cat") + b"/caf\xe9 \xff.png"
    try:
        with open(raw, "wb") as file:
            file.write(encoded(pictures(1, 5, 8)[0]))
    except OSError:
        pytest.skip("this file system takes no such names")
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / os.fsdecode(b"h\xfcnd"))
    main(["data", "--dataset", f"folder:{root}"])
    images = load(root)
    assert len(images) == 18 and images.names == ("cat", "h\\xfcnd")
    "".join(images.names).encode()  # what tables and pages are written in
    with open(raw, "wb"):
        pass
    refused_now = pytest.raises(UserError, match="is no readable image")
    with refused_now as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_composed_and_decomposed_names_are_one_class(home):
    root = write_folder(home / "set", {"train": {"caf\u00e9": 6, "dog": 6}, "test": {"cafe\u0301": 1, "dog": 1}})
    assert load(root, "test").labels.tolist() == [0, 1] and load(root).names[0] == "caf\u00e9"


# --- what is refused, before anything is computed ---------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test", "held-out"])
def test_a_class_without_test_images_is_refused_at_once(root, split):
    for file in (root / "test" / "dog").iterdir():
        file.unlink()
    refused(
        root, f"{root / 'test'} has too few images: 0 of 'dog'; needed are at least 1 of each class; add", split=split
    )
    (root / "test" / "dog").rmdir()
    refused(root, f"{root / 'test'} has too few images: 0 of 'dog'", split=split)


@pytest.mark.parametrize(("count", "enough"), [(5, False), (6, True)])
def test_a_class_of_too_few_images_to_hold_one_out_is_refused(home, count, enough):
    root = write_folder(home / "set", {"train": {"cat": 12, "dog": count}, "test": {"cat": 1, "dog": 1}})
    if enough:
        assert load(root, "held-out").labels.bincount().tolist() == [1, 1]
    else:
        refused(
            root,
            "train has too few images: 5 of 'dog'; needed are at least 6 of each class (a tenth of them",
            split="test",
        )
        write_folder(root, {"held-out": {"cat": 1, "dog": 1}})  # then none has to be taken from them
        assert load(root).labels.bincount().tolist() == [12, 5]
        (root / "held-out" / "dog" / "0.png").unlink()
        refused(root, f"{root / 'held-out'} has too few images: 0 of 'dog'; needed are at least 1 of", split="train")


def test_all_classes_with_too_few_images_are_named(home):
    root = write_folder(home / "set", {"train": {"a": 9, "b": 2, "c": 3}, "test": {"a": 1, "b": 1, "c": 1}})
    refused(root, "has too few images: 2 of 'b', 3 of 'c'; needed are at least 6")


def test_bad_layouts_are_refused(home):
    root = home / "set"
    root.mkdir()
    refused(root, "train is no folder; an image folder is laid out as")
    write_folder(root.parent, {"set": {"cat": 3, "dog": 3}})
    refused(root, f"{root} holds cat, dog: rename them if they are splits, move them into train/ and test/ if classes")
    write_folder(root, {"train": {"cat": 6}})
    refused(root, "holds 1 class folders, expected at least 2")
    write_folder(root, {"train": {"dog": 6}})
    refused(root, "test is no folder", f"{root} holds cat, dog, which nothing uses")
    write_folder(root, {"test": {"cow": 1}})
    refused(root, "cow is a class that", "does not have")


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Test"])
def test_a_folder_that_is_no_split_is_not_passed_over_in_silence(root, name, caplog):
    write_folder(root, {name: {"cat": 1, "dog": 1}})
    assert len(load(root)) == 17
    assert f"{root} holds {name}, which nothing uses; images that decide belong into a folder held-out" in caplog.text
    (root / "test").rename(root / "other")
    refused(root, "test is no folder", name)


def test_a_broken_image_is_named(root):
    for content in (b"", b"<html>not found</html>", encoded(pictures(1, 5, 40)[0], "JPEG")[:-300]):
        (root / "train" / "cat" / "bad.jpg").write_bytes(content)
        refused(root, f"{root / 'train' / 'cat' / 'bad.jpg'} is no readable image: ")


def test_pixels_that_would_turn_black_are_refused(root):
    Image.fromarray(np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40)).save(root / "test" / "cat" / "a.tiff")
    refused(root, "a.tiff is no readable image: its pixels are fractions; save it with 8 or 16 bits", split="test")


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_a_folder_that_may_not_be_read_is_named(root):
    (root / "train" / "cat" / "locked").mkdir(mode=0)
    refused(root, "locked cannot be read: Permission denied")


def test_images_of_the_size_asked_for_are_left_as_they_are(home):
    root = write_folder(home / "set", COUNTS, side=32)
    files = sorted((root / "test" / "cat").iterdir())
    rows = {row.numpy().tobytes() for row in load(root, "test").pixels.permute(0, 2, 3, 1)[:2].contiguous()}
    assert rows == {np.asarray(Image.open(file)).tobytes() for file in files}
    assert load(root, "test").pixels.dtype == torch.uint8
