"""Published data sets: order, held-out rows, fingerprints, cache, refusals. Real data where there are any."""

import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_data import (
    encoded,
    forget_published,
    load_into,
    pictures,
    tiny_cifar100,
    write_flowers,
    write_folder,
    write_parquet,
    write_python,
)

from cctlib import stages
from cctlib.data import datasets, demo, order, sources
from cctlib.data import images as data
from cctlib.errors import UserError

REAL = os.environ.get("CCTLIB_DATA", "")
needs_cifar100 = pytest.mark.skipif(
    not (Path(REAL) / "cifar100").is_dir() or not REAL, reason="no cifar100/ in the folder CCTLIB_DATA"
)
needs_flowers = pytest.mark.skipif(
    not (Path(REAL) / "flowers-102").is_dir() or not REAL, reason="no flowers-102/ in the folder CCTLIB_DATA"
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No data and an empty cache, whatever the machine has; and no network."""
    monkeypatch.delenv("CCTLIB_DATA", raising=False)
    monkeypatch.setenv("CCTLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CCTLIB_OFFLINE", "1")
    return tmp_path


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays")


@pytest.fixture
def real(monkeypatch, real_cache):
    """The real data, decoded once for the tests of this file."""
    monkeypatch.setenv("CCTLIB_DATA", REAL)
    monkeypatch.setenv("CCTLIB_CACHE", str(real_cache))


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    """CIFAR-100 with 10 training images and 1 test image a label, as parquet files; and its rows."""
    folder, rows = tmp_path_factory.mktemp("tiny"), tiny_cifar100({"train": 10, "test": 1})
    for part, (pixels, chosen) in rows.items():
        write_parquet(folder, part, pixels, chosen)
    return folder, rows


@pytest.fixture
def tiny(home, monkeypatch, tiny_files):
    """The small CIFAR-100 in a folder of the test's own; its rows."""
    folder, rows = tiny_files
    shutil.copytree(folder, home, dirs_exist_ok=True)
    forget_published(monkeypatch, "cifar100", train=1000, test=100)
    monkeypatch.setenv("CCTLIB_DATA", str(home))
    return rows


def nhwc(images: data.Images) -> np.ndarray:
    return images.pixels.permute(0, 2, 3, 1).contiguous().numpy()


def pixel_hashes(images: data.Images) -> list[str]:
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in nhwc(images)]


def refused(match: str, name: str, split: str = "train", **options) -> None:
    """`load` refuses with one line that says `match`, and leaves nothing behind."""
    with pytest.raises(UserError, match=match) as caught:
        data.load(name, split, **options)
    assert "\n" not in str(caught.value)
    folder = Path(os.environ["CCTLIB_CACHE"])
    assert [path for path in folder.rglob("*") if path.suffix != ".lock"] == []


# --- the real data --------------------------------------------------------------------------------


@needs_cifar100
@pytest.mark.data
def test_cifar100_is_the_published_data_in_canonical_order(real):
    train, held_out, test = (data.load("cifar100", split) for split in data.SPLITS)
    for images, per_label in ((train, 450), (held_out, 50), (test, 100)):
        assert images.labels.bincount().tolist() == [per_label] * 100
        assert images.fingerprint == data.DATASETS["cifar100"].fingerprints[images.split]
        assert images.pixels.shape[1:] == (3, 32, 32) and images.pixels.dtype == torch.uint8
    # The means of the 50,000 training images as they are widely published.
    total = nhwc(train).sum((0, 1, 2), dtype=np.int64) + nhwc(held_out).sum((0, 1, 2), dtype=np.int64)
    published = (0.5070751592371323, 0.48654887331495095, 0.4409178433670343)
    assert np.allclose(total / (50_000 * 1024 * 255), published, atol=1e-15)
    # Held-out comes first in the order of the hashes of each label.
    first, then = pixel_hashes(held_out), pixel_hashes(train)
    for label in range(100):
        ordered = first[label * 50 : label * 50 + 50] + then[label * 450 : label * 450 + 450]
        assert ordered == sorted(ordered)


@needs_cifar100
@pytest.mark.data
def test_both_layouts_of_cifar100_give_the_same_arrays(real, home, monkeypatch):
    test = data.load("cifar100", "test")
    shuffled = np.random.default_rng(0).permutation(len(test))
    write_python(home, {"test": (nhwc(test)[shuffled], test.labels.numpy()[shuffled])}, monkeypatch)
    monkeypatch.setenv("CCTLIB_DATA", str(home))
    again = load_into(home / "other", "cifar100", "test")  # accepted by the published fingerprint
    assert again.fingerprint == test.fingerprint and torch.equal(again.pixels, test.pixels)


@needs_cifar100
@pytest.mark.data
def test_names_and_superclasses_are_those_of_the_published_files():
    file = Path(REAL) / "cifar100" / "test-00000-of-00001.parquet"
    features = json.loads(pq.read_schema(file).metadata[b"huggingface"])["info"]["features"]
    assert list(datasets.CIFAR100_NAMES) == features["fine_label"]["names"]
    assert list(datasets.CIFAR100_GROUP_NAMES) == features["coarse_label"]["names"]
    columns = pq.read_table(file, columns=["fine_label", "coarse_label"]).to_pydict()
    pairs = set(zip(columns["fine_label"], columns["coarse_label"], strict=True))
    assert pairs == set(enumerate(datasets.CIFAR100_GROUPS))


@needs_flowers
@pytest.mark.data
def test_flowers_splits_are_the_published_ones():
    from scipy.io import loadmat

    folder = Path(REAL) / "flowers-102"
    official = loadmat(folder / "setid.mat", squeeze_me=True)
    with (folder / "splits.csv").open() as file:
        rows = list(csv.DictReader(file))
    numbers = np.array([int(row["image"][6:11]) for row in rows])
    for name, column, parts in (
        ("flowers102", "official", {"train": ("train", "val"), "test": ("test",)}),
        ("flowers102-kaggle", "kaggle_6552", {"train": ("train",), "test": ("test",)}),
    ):
        for part, values in parts.items():
            expected = numbers[[row[column] in values for row in rows]]
            found = sources.flowers102_numbers(name, part, official)
            assert found.tolist() == expected.tolist()
            assert len(found) == data.DATASETS[name].rows[part]


@needs_flowers
@pytest.mark.data
def test_flowers_hold_out_the_same_images_at_every_size(real):
    small, large = (data.load("flowers102", "held-out", image_size=size) for size in (16, 32))
    assert small.labels.bincount(minlength=102).tolist() == [2] * 102
    train = data.load("flowers102", "train", image_size=16)
    assert train.labels.bincount(minlength=102).tolist() == [18] * 102
    assert small.fingerprint != large.fingerprint
    pooled = torch.nn.functional.avg_pool2d(large.pixels.float(), 2)
    distance = torch.cdist(pooled.flatten(1), small.pixels.float().flatten(1))
    assert distance.argmin(1).tolist() == list(range(204))  # each the same picture
    assert len(small.names) == 102 and small.names[76] == "passion flower"
    assert train.dataset == "flowers102" and train.groups is None


# --- order, splits, fingerprints ------------------------------------------------------------------


def test_canonical_order_does_not_depend_on_the_files(tiny, home, monkeypatch):
    train = data.load("cifar100", "train")
    pixels, chosen = tiny["train"]
    write_python(home / "elsewhere", {"train": (pixels[::-1], chosen[::-1])}, monkeypatch)
    monkeypatch.setenv("CCTLIB_DATA", str(home / "elsewhere"))
    again = load_into(home / "other", "cifar100", "train")
    assert torch.equal(train.pixels, again.pixels) and train.fingerprint == again.fingerprint
    # Written out once more, plainly.
    ordered = sorted((int(y), hashlib.sha256(x.tobytes()).digest(), x) for x, y in zip(pixels, chosen, strict=True))
    expected = np.stack([x for row, (_, _, x) in enumerate(ordered) if row % 10 >= 1])
    assert np.array_equal(nhwc(train), expected)
    digest = hashlib.sha256(b"900x32x32x3" + expected.tobytes() + np.repeat(np.arange(100), 9).astype("<i8").tobytes())
    assert train.fingerprint == digest.hexdigest()
    assert train.split == "train" and data.load("cifar100", "held-out").labels.tolist() == list(range(100))


def test_equal_images_with_two_labels_keep_their_labels():
    keys = [b"same", b"other", b"same", b"same"]
    assert order.canonical_order(np.array([1, 0, 0, 1]), keys).tolist() == [1, 2, 0, 3]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_a_tenth_of_each_label_is_held_out(counts):
    chosen = np.repeat(np.arange(len(counts)), counts)
    parts = order.divide(chosen)
    assert sorted([*parts["train"], *parts["held-out"]]) == list(range(len(chosen)))
    for label, count in enumerate(counts):
        rows = np.flatnonzero(chosen == label)
        held_out = [row for row in parts["held-out"] if chosen[row] == label]
        assert held_out == rows[: round(count / 10)].tolist()


def test_fingerprint_sees_shape_pixels_and_labels():
    pixels, chosen = pictures(4, side=8), np.arange(4)
    changed = pixels.copy()
    changed[3, 7, 7, 2] ^= 1
    seen = {
        order.fingerprint(pixels, chosen),
        order.fingerprint(pixels.reshape(4, 4, 16, 3), chosen),
        order.fingerprint(changed, chosen),
        order.fingerprint(pixels, chosen[::-1]),
        order.fingerprint(pixels[:3], chosen[:3]),
    }
    assert len(seen) == 5


# --- subsets --------------------------------------------------------------------------------------


def unequal(home: Path) -> data.Images:
    root = write_folder(home / "set", {"train": {"a": 20, "b": 10, "c": 6}, "test": {"a": 4, "b": 1, "c": 2}})
    return data.load(f"folder:{root}", "train")  # 18, 9 and 5 rows


def test_subsets_take_the_first_rows_of_each_label(home):
    images = unequal(home)
    part = images.subset(per_label=5)
    assert part.labels.bincount().tolist() == [5, 5, 5]
    assert torch.equal(part.pixels[:5], images.pixels[:5]) and torch.equal(part.pixels[5:10], images.pixels[18:23])
    assert set(pixel_hashes(images.subset(per_label=2))) < set(pixel_hashes(part))
    assert part.fingerprint == order.fingerprint(nhwc(part), part.labels.numpy()) != images.fingerprint
    assert part.pixels.is_contiguous(memory_format=torch.channels_last)
    assert images.subset(per_label=100) is images


def test_a_subset_of_nothing_is_refused():
    with pytest.raises(UserError, match="a subset needs at least 1 image of each label: got per_label=0"):
        data.load("demo", "test").subset(per_label=0)


# --- the cache ------------------------------------------------------------------------------------


def test_images_are_decoded_once_and_mapped(tiny, monkeypatch):
    first = data.load("cifar100", "train")
    monkeypatch.setattr(sources, "decode", None)  # would fail if called
    again = data.load("cifar100", "train")
    held_out = data.load("cifar100", "held-out")  # same entry
    assert torch.equal(first.pixels, again.pixels) and len(held_out) == 100
    assert again.pixels.permute(0, 2, 3, 1).is_contiguous()


def test_writing_to_images_does_not_reach_the_cache(tiny):
    images = data.load("cifar100", "train")
    images.pixels.zero_()
    assert data.load("cifar100", "train").fingerprint == images.fingerprint
    assert data.load("cifar100", "train").pixels.any()


def flip_byte(entry: Path) -> None:
    content = bytearray((entry / "train.npy").read_bytes())
    content[-5] ^= 1
    (entry / "train.npy").write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_byte,
        lambda entry: (entry / "train.npy").write_bytes((entry / "train.npy").read_bytes()[:-1000]),
        lambda entry: (entry / "train.npy").write_bytes(b""),
        lambda entry: (entry / "train.labels.npy").unlink(),
        lambda entry: np.save(entry / "train.labels.npy", np.zeros(900, np.int64)),
        lambda entry: (entry / "manifest.json").write_text("{"),
        lambda entry: (entry / "manifest.json").write_text("[]"),
    ],
)
def test_a_damaged_cache_is_made_again(tiny, home, damage):
    before = data.load("cifar100", "train").fingerprint
    damage(home / "cache" / "cifar100-32-train")
    assert data.load("cifar100", "train").fingerprint == before
    assert sorted(path.name for path in (home / "cache").iterdir()) == ["cifar100-32-train", "cifar100-32-train.lock"]


def test_a_rewritten_cache_with_other_images_is_not_believed(tiny, home, monkeypatch, caplog):
    before = data.load("cifar100", "test")
    pixels = nhwc(before).copy()
    spec = data.DATASETS["cifar100"]
    monkeypatch.setitem(data.DATASETS, "cifar100", dataclasses.replace(spec, fingerprints={"test": before.fingerprint}))
    entry = home / "cache" / "cifar100-32-test"
    np.save(entry / "test.npy", pixels // 2)
    manifest = json.loads((entry / "manifest.json").read_text())
    manifest["splits"]["test"]["fingerprint"] = order.fingerprint(pixels // 2, before.labels.numpy())
    (entry / "manifest.json").write_text(json.dumps(manifest))
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(nhwc(data.load("cifar100", "test")), pixels)
    assert caplog.text.count("is made again") == 1


def test_killed_while_decoding_it_starts_again_and_ends_the_same(tiny, home):
    """A process that is killed in the middle leaves no entry; the next one makes the same arrays."""
    code = (
        "import os, signal, dataclasses\n"
        "from cctlib.data import images as data, sources\n"
        "spec = dataclasses.replace(data.DATASETS['cifar100'], rows={}, fingerprints={})\n"
        "data.DATASETS['cifar100'] = spec\n"
        "decode, seen = sources.decode, []\n"
        "def dying(*arguments, **options):\n"
        "    seen.append(0)\n"
        "    if len(seen) == 700: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return decode(*arguments, **options)\n"
        "sources.decode = dying\n"
        "data.load('cifar100', 'train')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2])}
    )
    assert ended.returncode == -9
    assert [path.name for path in (home / "cache").glob("*/")] == ["cifar100-32-train.partial"]
    images = data.load("cifar100", "train")
    assert [path.name for path in (home / "cache").glob("*/")] == ["cifar100-32-train"]
    fresh = load_into(home / "fresh", "cifar100", "train")
    assert images.fingerprint == fresh.fingerprint
    files = [sorted((folder / "cifar100-32-train").iterdir()) for folder in (home / "cache", home / "fresh")]
    for one, other in zip(*files, strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_of_two_that_miss_the_cache_one_decodes(tiny, monkeypatch):
    calls, decode = [], sources.decode

    def counted(*arguments, **options):
        calls.append(0)
        return decode(*arguments, **options)

    monkeypatch.setattr(sources, "decode", counted)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(data.load("cifar100", "test").fingerprint)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert len(calls) == 100


def test_a_cache_is_enough_when_the_files_are_gone(tiny, home, monkeypatch):
    before = data.load("cifar100", "test")
    monkeypatch.delenv("CCTLIB_DATA")
    assert data.load("cifar100", "test", download=False).fingerprint == before.fingerprint
    with pytest.raises(data.DataUnavailable):
        data.load("cifar100", "train", download=False)


def test_the_cache_of_one_split_of_flowers_is_none_of_the_other(flowers, home, monkeypatch):
    data.load("flowers102", "test", image_size=16)
    (home / "cache" / "flowers102-16-test").rename(home / "cache" / "flowers102-kaggle-16-test")
    monkeypatch.delenv("CCTLIB_DATA")
    for size in (16, 24):  # neither the other split, nor another size
        with pytest.raises(data.DataUnavailable):
            data.load("flowers102", "test", image_size=size, download=False)


def test_arrays_are_hashed_once_in_a_process(tiny, home, monkeypatch, caplog):
    data.load("cifar100", "test")
    with monkeypatch.context() as patched:
        patched.setattr(order, "fingerprint", None)  # would fail if called
        assert len(data.load("cifar100", "test")) == 100
    content = bytearray((home / "cache" / "cifar100-32-test" / "test.npy").read_bytes())
    content[-5] ^= 1
    (home / "cache" / "cifar100-32-test" / "test.npy").write_bytes(content)
    data.load("cifar100", "test")
    assert "is damaged" in caplog.text and "is made again" in caplog.text  # a changed file is hashed again


def test_a_process_that_fails_leaves_the_lock_to_those_that_wait(home, capsys):
    """Were its file removed on failure, a third process would lock a new file of that name, beside the second."""
    entered = []
    with stages.locked(home / "entry"):
        waiting = threading.Thread(target=lambda: _enter(home / "entry", entered))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and "waiting for entry, which another process makes" in capsys.readouterr().err
        before = (home / "entry.lock").stat().st_ino
    waiting.join()
    with pytest.raises(ValueError), stages.locked(home / "entry"):
        raise ValueError
    with stages.locked(home / "entry"):
        assert entered == [True] and (home / "entry.lock").stat().st_ino == before


def _enter(entry: Path, entered: list[bool]) -> None:
    with stages.locked(entry):
        entered.append(True)


# --- refusals -------------------------------------------------------------------------------------


def test_unknown_names_and_splits_are_refused(home):
    refused(r"no data set is called 'cifar10'; there are cifar100, .* and folder:PATH", "cifar10")
    refused("no split is called 'val'", "cifar100", "val")
    refused(r"nowhere is no folder", f"folder:{home / 'nowhere'}")
    refused(r"no data set is called 'folder:'", "folder:")
    refused("image size 224 is not possible for cifar100: expected 32", "cifar100", image_size=224)
    refused("image size 0 is not possible for flowers102", "flowers102", image_size=0)


def test_a_missing_data_folder_is_refused(home, monkeypatch):
    monkeypatch.setenv("CCTLIB_DATA", str(home / "gone"))
    refused("CCTLIB_DATA is .*gone, which is no folder", "cifar100")


def test_without_data_and_network_the_message_says_what_to_do(home, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)  # would fail if called
    for name, layout in (("cifar100", "cifar100 or cifar-100-python"), ("flowers102", "flowers-102")):
        with pytest.raises(
            data.DataUnavailable, match=r"CCTLIB_OFFLINE is set.*Set CCTLIB_DATA to a folder that"
        ) as caught:
            data.load(name, "train")
        assert layout in str(caught.value)
        monkeypatch.delenv("CCTLIB_OFFLINE")
        refused("cannot be downloaded: that was not asked for", name, download=False)
        monkeypatch.setenv("CCTLIB_OFFLINE", "1")


def rewrite(home, tiny, **columns):
    write_parquet(home, "train", *tiny["train"], **columns)


def test_a_damaged_parquet_is_refused(tiny, home):
    file = home / "cifar100" / "train-00000-of-00001.parquet"
    whole = file.read_bytes()
    for content in (b"", b"<html>not found</html>", whole[:-100], whole[:2000] + bytes(3000) + whole[5000:]):
        file.write_bytes(content)
        refused(r"train-00000-of-00001\.parquet", "cifar100")
    rewrite(home, tiny, fine_label=None)
    refused("cannot be read as the CIFAR-100 parquet file: .*fine_label", "cifar100")


def test_bad_rows_are_refused(tiny, home, monkeypatch):
    pixels, chosen = tiny["train"]
    images = [{"bytes": encoded(image), "path": ""} for image in pixels]
    for content in (images[7]["bytes"][:900], None):
        rewrite(home, tiny, img=[*images[:7], {"bytes": content, "path": ""}, *images[8:]])
        refused("row 7 of .*parquet is no readable image", "cifar100")
    rewrite(home, tiny, img=[7] * len(images))
    refused("cannot be read as the CIFAR-100 parquet file: .*struct_field", "cifar100")
    published = load_into(home / "other", "cifar100", "test"), data.DATASETS["cifar100"]
    prints = {"test": published[0].fingerprint}
    monkeypatch.setitem(data.DATASETS, "cifar100", dataclasses.replace(published[1], fingerprints=prints))
    chosen = tiny["test"][1]
    for wrong in ([100, *chosen[1:].tolist()], [-1, *chosen[1:].tolist()], np.where(chosen == 3, 4, chosen).tolist()):
        write_parquet(home, "test", *tiny["test"], fine_label=wrong)
        refused("does not hold the published images: fingerprint of test", "cifar100", "test")


def test_a_snapshot_in_the_cache_of_the_hub_is_read(tiny, home, monkeypatch):
    """It holds links to files that have no suffix."""
    before = data.load("cifar100", "test").fingerprint
    (home / "snapshot" / "cifar100").mkdir(parents=True)
    for number, file in enumerate((home / "cifar100").iterdir()):
        file.rename(home / f"blob{number}")
        (home / "snapshot" / "cifar100" / file.name).symlink_to(home / f"blob{number}")
    monkeypatch.setenv("CCTLIB_DATA", str(home / "snapshot"))
    assert load_into(home / "other", "cifar100", "test").fingerprint == before


def test_other_images_than_the_published_ones_are_refused(tiny, monkeypatch):
    spec = data.DATASETS["cifar100"]
    monkeypatch.setitem(data.DATASETS, "cifar100", dataclasses.replace(spec, fingerprints={"held-out": "0" * 64}))
    refused("does not hold the published images: fingerprint of held-out .*, expected 0000", "cifar100")


def test_a_disk_that_fills_up_is_refused(tiny, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    refused("cannot write the cache .*No space left on device; free some space, or set CCTLIB_CACHE", "cifar100")


def test_a_cache_that_cannot_be_written_is_refused(tiny, home):
    (home / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the cache .*set CCTLIB_CACHE"):
        load_into(home / "file", "cifar100", "train")


def test_files_in_the_original_layout_with_other_content_are_refused_unread(tiny, home, monkeypatch):
    """A pickle may call what it names: one that is not the published file is not opened."""
    file = write_python(home / "other", {"train": tiny["train"]}, monkeypatch) / "train"
    monkeypatch.setenv("CCTLIB_DATA", str(home / "other"))
    monkeypatch.setattr(pickle, "load", None)  # would fail if called
    file.write_bytes(file.read_bytes()[:-500])
    refused("cifar-100-python cannot be read as CIFAR-100: .*corrupted.*; download it again", "cifar100")


@pytest.mark.parametrize(
    ("layout", "place"),
    [
        ("cifar100", "cifar100"),
        ("cifar-100-python", "cifar-100-python"),
        ("cifar-100-python", "kaggle"),
        ("cifar100", "mine"),
        ("cifar100", "x/sub/cifar100"),
        ("cifar-100-python", "x/archive"),
        ("flowers-102", "flowers-102"),
        ("flowers-102", "x/oxford"),
    ],
)
def test_data_beside_the_place_that_was_named_are_taken(request, home, monkeypatch, layout, place):
    """One level too deep, further down, or under another name."""
    if layout == "flowers-102":
        name, made = "flowers102", request.getfixturevalue("flowers")
    else:
        name, rows = "cifar100", request.getfixturevalue("tiny")
        made = home / "cifar100" if layout == "cifar100" else write_python(home, rows, monkeypatch)
    monkeypatch.setenv("CCTLIB_DATA", str(home))
    before = data.load(name, "test").fingerprint
    (home / "made" / place).parent.mkdir(parents=True)
    made.rename(home / "made" / place)
    top = home / "made" / place if "/" not in place else home / "made" / "x"
    monkeypatch.setenv("CCTLIB_DATA", str(top))
    assert load_into(home / "other", name, "test").fingerprint == before


def test_a_data_folder_without_the_data_set_is_described(home, monkeypatch):
    (home / "made" / "imagenet").mkdir(parents=True)
    for file in ("train-00000-of-00001.parquet", "meta"):  # of other data sets
        (home / "made" / "imagenet" / file).write_bytes(b"")
    monkeypatch.setenv("CCTLIB_DATA", str(home / "made"))
    refused(r"CCTLIB_DATA is .*made, which holds imagenet and neither cifar100 nor cifar-100-python$", "cifar100")


# --- kinds of images, and Flowers-102 -------------------------------------------------------------


def scene() -> Image.Image:
    """64x48: red on the left, a blue square in the lower right corner, smooth enough for JPEG."""
    pixels = np.full((48, 64, 3), 200, np.uint8)
    pixels[:, :32] = (200, 40, 40)
    pixels[32:, 48:] = (30, 30, 180)
    return Image.fromarray(pixels)


def decoded(image: Image.Image, kind: str = "JPEG", **options) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return sources.decode(buffer, "an image", 48)


def test_colour_models_become_rgb():
    expected = np.asarray(scene().crop((8, 0, 56, 48))).astype(int)
    for image, kind, tolerance in (
        (scene(), "JPEG", 3),
        (scene().convert("CMYK"), "JPEG", 8),
        (scene().convert("RGBA"), "PNG", 0),
        (scene().convert("P", palette=Image.Palette.ADAPTIVE), "PNG", 0),
    ):
        found = decoded(image, kind)
        assert found.shape == (48, 48, 3) and found.dtype == np.uint8
        assert np.abs(found - expected).mean() <= tolerance, image.mode
    grey = decoded(scene().convert("L"))
    assert (grey == grey[..., :1]).all() and np.abs(grey[..., 0] - np.asarray(scene().convert("L"))[:, 8:56]).mean() < 3
    deep = Image.fromarray((np.asarray(scene().convert("L")).astype(np.uint16) << 8) + 7)
    assert np.array_equal(decoded(deep, "PNG")[..., 0], np.asarray(scene().convert("L"))[:, 8:56])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    scene().save(buffer, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(buffer))
    assert (upright.size == (48, 64)) == (orientation > 4)
    left, top = (upright.width - 48) // 2, (upright.height - 48) // 2
    expected = np.asarray(upright.crop((left, top, left + 48, top + 48)))
    assert np.array_equal(sources.decode(buffer, "an image", 48), expected)


def test_resizing_keeps_the_centre_and_never_touches_images_of_the_right_size():
    square = pictures(1, side=48)[0]
    assert np.array_equal(decoded(Image.fromarray(square), "PNG"), square)
    small = sources.decode(io.BytesIO(encoded(np.asarray(scene()))), "an image", 24)
    assert small.shape == (24, 24, 3)
    assert abs(int(small[2, 2, 0]) - 200) < 6 and abs(int(small[2, 2, 1]) - 40) < 6  # red is on the left
    thin = sources.decode(io.BytesIO(encoded(np.zeros((1, 999, 3), np.uint8))), "an image", 7)
    assert thin.shape == (7, 7, 3)


@pytest.fixture
def flowers(home, monkeypatch):
    monkeypatch.setenv("CCTLIB_DATA", str(home))
    return write_flowers(home / "flowers-102", monkeypatch)


def test_flowers_train_on_training_and_validation_images(flowers):
    train = data.load("flowers102", "train", image_size=16)
    assert train.labels.tolist() == [label for label in range(102) for _ in range(2)]
    test = data.load("flowers102", "test", image_size=16)
    assert test.labels.tolist() == list(range(102)) and test.names == datasets.FLOWERS102_NAMES
    assert train.pixels.shape == (204, 3, 16, 16)
    by_name = sorted(("image_00001.jpg", "image_00103.jpg"), key=lambda name: hashlib.sha256(name.encode()).digest())
    first = sources.decode(flowers / "jpg" / by_name[0], "", 16)
    assert np.array_equal(nhwc(train)[0], first)


def test_a_corrupt_flower_is_named(flowers):
    file = flowers / "jpg" / "image_00205.jpg"
    file.write_bytes(file.read_bytes()[:-100])
    refused(
        r"image_00205\.jpg is no readable image: .*truncated.*; replace or remove it",
        "flowers102",
        "test",
        image_size=16,
    )
    file.unlink()
    refused(r"image_00205\.jpg is missing, and 0 other images", "flowers102", "test", image_size=16)


def test_other_labels_of_flowers_are_refused(flowers):
    (flowers / "setid.mat").write_bytes(b"else")
    refused(r"setid\.mat is not the published file: MD5 [0-9a-f]{32}, expected", "flowers102", image_size=16)
    (flowers / "setid.mat").unlink()
    refused(r"setid\.mat is not the published file: MD5 missing", "flowers102", image_size=16)


def test_another_copy_of_flowers_is_decoded_again(flowers):
    before = data.load("flowers102", "test", image_size=16)
    file = flowers / "jpg" / "image_00205.jpg"
    file.write_bytes(encoded(pictures(1, 7, 24)[0], "JPEG"))
    assert data.load("flowers102", "test", image_size=16).fingerprint != before.fingerprint


# --- the demo set ---------------------------------------------------------------------------------


def test_the_demo_set_is_the_same_everywhere_and_needs_no_file(home):
    total = 0
    for split, per_label in (("train", 270), ("held-out", 30), ("test", 100)):
        images = data.load("demo", split)
        assert images.fingerprint == data.DATASETS["demo"].fingerprints[split]
        assert images.labels.bincount().tolist() == [per_label] * 10
        assert images.names == demo.NAMES and images.pixels.shape[1:] == (3, 32, 32)
        total += len(set(pixel_hashes(images)))
    assert total == 4000  # all images differ
    assert not (home / "cache").exists()


def test_demo_colours_say_nothing_about_the_label():
    """What is to be learnt is shape and texture: the mean colour does not give the label away."""
    pixels, chosen = demo.draw("train")
    colour = pixels.mean((1, 2))
    means = np.stack([colour[chosen == label].mean(0) for label in range(10)])
    nearest = ((colour[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == chosen).mean() < 0.3


# --- what a network reads -------------------------------------------------------------------------


def test_normalise_is_the_formula():
    images, spec = data.load("demo", "test"), data.DATASETS["cifar100"]
    found = data.normalise(images.pixels[:8], spec.mean, spec.std)
    mean, std = (np.array(values)[:, None, None] for values in (spec.mean, spec.std))
    expected = (images.pixels[:8].numpy() / 255 - mean) / std
    assert found.dtype == torch.float32 and np.allclose(found.numpy(), expected, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
