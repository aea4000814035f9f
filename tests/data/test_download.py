"""Downloads, against a real HTTP server on this machine that misbehaves as told."""

import contextlib
import dataclasses
import hashlib
import http.server
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torchvision
from scipy.io import savemat
from tiny_data import encoded, forget_published, pictures, tiny_cifar100, write_parquet, write_python

from cctlib.data import download, sources
from cctlib.data import images as data
from cctlib.errors import UserError

CONTENT = np.random.default_rng(0).integers(0, 256, 1_000_000, dtype=np.uint8).tobytes()
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves `files` (path -> bytes). `script` holds what to do at the next requests; then all goes well.

    Entries of the script: "truncate" (half of the body, then close), "stall" (half, then silence), "mute"
    (silence from the start), "wrong" (other bytes), "whole" (ignore Range), or a status number.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}  # extra ones by path
        self.moved: dict[str, str] = {}
        self.script: list[str | int] = []
        self.always: str | int | None = None
        self.etag = '"one"'
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.end = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with contextlib.suppress(ConnectionError):  # the client gave up, or was killed
                    outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, request) -> None:
        wanted = request.headers.get("Range")
        self.requests.append((request.path, wanted))
        action = self.script.pop(0) if self.script else self.always
        request.close_connection = True
        if action == "mute":
            self.end.wait(10)
            return
        if request.path in self.moved:
            self.head(request, 302, {"Location": self.moved[request.path], "Content-Length": "0"})
            return
        if isinstance(action, int) or request.path not in self.files:
            self.head(
                request, action or 404, {"Content-Length": "0", **({"Retry-After": "1"} if action == 429 else {})}
            )
            return
        body = self.files[request.path]
        whole = len(body)
        if action == "wrong":
            body = bytes(whole)
        start, status, extra = 0, 200, {}
        match = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        if match and action != "whole" and request.headers.get("If-Range") == self.etag:
            start = int(match[1])
            if start >= whole:
                self.head(request, 416, {"Content-Length": "0"})
                return
            status, extra = 206, {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        body = body[start:]
        self.head(request, status, {"Content-Length": str(len(body)), "ETag": self.etag} | extra)
        if action in ("truncate", "stall"):
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            if action == "stall":
                self.end.wait(10)
            return
        request.wfile.write(body)

    def head(self, request, status: int, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in (headers | self.headers.get(request.path, {}) | {"Connection": "close"}).items():
            request.send_header(name, value)
        request.end_headers()


@pytest.fixture
def server():
    made = Server()
    made.files["/file.bin"] = CONTENT
    yield made
    made.end.set()
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("CCTLIB_DATA", "CCTLIB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CCTLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def fetch(server, to: Path, checksum: str | None = SHA256, **options) -> Path:
    return download.fetch(f"{server.url}/file.bin", to, checksum=checksum, **{"backoff": 0.01, "stall": 0.5} | options)


def ranges(server) -> list[str | None]:
    return [wanted for _, wanted in server.requests]


def resumed(server) -> list[int]:
    """Where each request asked the server to start: halves of what was left, less the chunk that was lost."""
    starts, left = [], 0
    for wanted in ranges(server):
        start = int(wanted[6:-1]) if wanted else 0
        assert left - download.CHUNK < start <= left
        starts.append(start)
        left = start + (len(CONTENT) - start) // 2
    return starts


def fails(match: str, server, to: Path, left: tuple[str, ...] = (), **options) -> None:
    """`fetch` fails with one line that says `match`; beside `left`, nothing is there afterwards."""
    with pytest.raises(UserError, match=match) as caught:
        fetch(server, to, **options)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in to.parent.iterdir()) == sorted(left)


PART = ("file.bin.part", "file.bin.part.etag")


# --- one file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksum", [SHA256, "md5:" + hashlib.md5(CONTENT).hexdigest(), None])
def test_a_file_comes_whole(server, home, checksum):
    to = fetch(server, home / "new" / "file.bin", checksum)
    assert to.read_bytes() == CONTENT and [path.name for path in to.parent.iterdir()] == ["file.bin"]
    fetch(server, to, checksum)  # there already
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["truncate", "stall"])
def test_a_broken_transfer_is_resumed(server, home, fault):
    server.script = [fault, fault]
    assert fetch(server, home / "file.bin").read_bytes() == CONTENT
    assert len(resumed(server)) == 3


def test_a_server_that_never_answers_is_tried_again(server, home):
    server.script = ["mute"]
    assert fetch(server, home / "file.bin").read_bytes() == CONTENT
    assert ranges(server) == [None, None]


def test_a_server_without_ranges_sends_all_of_it_again(server, home):
    server.script = ["truncate", "whole"]
    assert fetch(server, home / "file.bin").read_bytes() == CONTENT
    server.etag = ""
    server.script = ["truncate"]
    assert fetch(server, home / "other.bin").read_bytes() == CONTENT
    assert ranges(server)[2:] == [None, None]  # without an ETag a rest cannot be trusted


def test_a_file_that_changed_meanwhile_is_not_mixed(server, home):
    server.script = ["truncate"]
    fails(r"broke after", server, home / "file.bin", left=PART, attempts=1)
    other = server.files["/file.bin"] = CONTENT[::-1]
    server.etag = '"two"'
    assert fetch(server, home / "file.bin", checksum=None).read_bytes() == other
    assert len(resumed(server)) == 2


def test_giving_up_keeps_what_came_and_says_how_far_it_got(server, home):
    server.always = "truncate"
    fails(
        r"broke after 8\d\d,\d\d\d of 1,000,000 bytes \(tried 3 times\)",
        server,
        home / "file.bin",
        left=PART,
        attempts=3,
    )
    server.always = "stall"
    fails(r"stalled after 9\d\d,\d\d\d of .* \(tried 1 times\)", server, home / "file.bin", left=PART, attempts=1)
    server.always = None
    assert fetch(server, home / "file.bin").read_bytes() == CONTENT


def test_answers_that_stay_are_not_asked_for_twice(server, home):
    for status in (404, 403, 410):
        server.always = status
        fails(f"the server answered {status}", server, home / "file.bin")
    assert len(server.requests) == 3


def test_answers_that_pass_are_asked_for_again(server, home):
    server.script = [503, 500, 429]
    start = time.monotonic()
    assert fetch(server, home / "file.bin").read_bytes() == CONTENT
    assert time.monotonic() - start >= 1  # the server asked for a second
    server.always = 503
    fails(r"answered 503 .*\(tried 2 times\)", server, home / "again.bin", left=("file.bin",), attempts=2)


def test_wrong_bytes_are_thrown_away(server, home):
    server.script = ["wrong"]
    assert fetch(server, home / "file.bin").read_bytes() == CONTENT
    server.always = "wrong"
    fails(
        r"wrong bytes: sha256:.*, expected sha256:.* \(tried 2 times\)", server, home / "again.bin", left=("file.bin",)
    )


def test_a_file_with_wrong_bytes_is_replaced(server, home):
    (home / "file.bin").write_bytes(b"something else")
    assert fetch(server, home / "file.bin").read_bytes() == CONTENT


def test_a_partial_file_longer_than_the_whole_starts_anew(server, home):
    (home / "file.bin.part").write_bytes(CONTENT + b"more")
    (home / "file.bin.part.etag").write_text(server.etag)
    assert fetch(server, home / "file.bin").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000004-", None]


def test_the_sha256_that_hugging_face_announces_is_checked(server, home):
    server.moved["/file"] = "/file.bin"
    server.headers["/file"] = {"X-Linked-Etag": f'"{SHA256[7:]}"'}
    to = download.fetch(f"{server.url}/file", home / "file", backoff=0.01)
    assert to.read_bytes() == CONTENT
    server.headers["/file"] = {"X-Linked-Etag": f'"{"0" * 64}"'}
    with pytest.raises(download.DownloadFailed, match=r"wrong bytes: .*, expected sha256:0000"):
        download.fetch(f"{server.url}/file", home / "other", backoff=0.01)
    assert not (home / "other").exists() and not (home / "other.part").exists()


def test_no_connection_is_said_soon(home):
    start = time.monotonic()
    with pytest.raises(download.DownloadFailed, match=r"no connection, .* \(tried 2 times\)"):
        download.fetch("http://127.0.0.1:9/file", home / "file")
    assert time.monotonic() - start < 10 and list(home.iterdir()) == []


def test_offline_means_no_request(server, home, monkeypatch):
    monkeypatch.setenv("CCTLIB_OFFLINE", "1")
    fails("CCTLIB_OFFLINE is set", server, home / "file.bin")
    assert server.requests == []
    monkeypatch.setenv("CCTLIB_OFFLINE", "0")
    fetch(server, home / "file.bin")


def test_a_full_disk_is_refused_before_anything_is_written(server, home, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": download.SPARE + 999_999})())
    fails(r"no disk space: .* needs 68 MB and has 68 MB; free some", server, home / "file.bin")


def test_a_disk_that_fills_up_is_refused(server, home, monkeypatch):
    def full(response, part, have, total):
        part.write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_append", full)
    fails("no disk space left while writing", server, home / "file.bin")


def test_a_folder_that_cannot_be_written_is_refused(server, home):
    (home / "taken").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*set CCTLIB_CACHE"):
        fetch(server, home / "taken" / "file.bin")


def test_killed_in_the_middle_it_goes_on_where_it_was(server, home):
    server.script = ["stall"]
    code = "import sys; from pathlib import Path; from cctlib.data import download\ndownload.fetch(sys.argv[1], Path(sys.argv[2]), stall=60)"
    root = str(Path(download.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"{server.url}/file.bin", str(home / "file.bin")],
        env=os.environ | {"PYTHONPATH": root},
    )
    part = home / "file.bin.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = part.stat().st_size
    assert 0 < kept <= 500_000 and not (home / "file.bin").exists()
    assert fetch(server, home / "file.bin").read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={kept}-"]


# --- the data sets -------------------------------------------------------------------------------


@pytest.fixture
def cifar(server, home, monkeypatch):
    """A small CIFAR-100 on the server, as parquet files and as the original archive."""
    rows = tiny_cifar100({"train": 10, "test": 1})
    forget_published(monkeypatch, "cifar100", train=1000, test=100)
    for part, (pixels, chosen) in rows.items():
        server.files[f"/{part}-00000-of-00001.parquet"] = write_parquet(
            home / "made", part, pixels, chosen
        ).read_bytes()
        write_python(home / "made", part, pixels, chosen)
    (home / "made" / "cifar-100-python" / "meta").write_bytes(b"names")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(home / "made" / "cifar-100-python", "cifar-100-python")
    server.files["/cifar-100-python.tar.gz"] = archive.getvalue()
    monkeypatch.setenv("CCTLIB_DATA", str(home / "made"))
    found = {split: data.load("cifar100", split, cache=home / "reference").fingerprint for split in data.SPLITS}
    monkeypatch.delenv("CCTLIB_DATA")
    spec = data.DATASETS["cifar100"]
    monkeypatch.setitem(data.DATASETS, "cifar100", dataclasses.replace(spec, fingerprints=found))
    monkeypatch.setattr(download, "CIFAR100_PARQUET", server.url + "/{part}-00000-of-00001.parquet")
    md5 = md5_of(archive.getvalue())
    monkeypatch.setattr(download, "CIFAR100_PYTHON", (f"{server.url}/cifar-100-python.tar.gz", f"md5:{md5}"))
    expect_of_torchvision(monkeypatch, home / "made" / "cifar-100-python", md5)
    return found


def md5_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def expect_of_torchvision(monkeypatch, folder: Path, archive_md5: str) -> None:
    """Let torchvision's class accept the small archive."""
    digests = {name: md5_of((folder / name).read_bytes()) for name in ("train", "test", "meta")}
    for attribute, value in {
        "tgz_md5": archive_md5,
        "train_list": [["train", digests["train"]]],
        "test_list": [["test", digests["test"]]],
        "meta": {"filename": "meta", "key": "fine_label_names", "md5": digests["meta"]},
        "_load_meta": lambda self: None,
    }.items():
        monkeypatch.setattr(torchvision.datasets.CIFAR100, attribute, value)


def test_cifar100_is_downloaded_once_each_part_when_it_is_needed(server, home, cifar):
    assert not data.available("cifar100")
    assert data.load("cifar100", "train").fingerprint == cifar["train"]
    assert data.load("cifar100", "held-out").fingerprint == cifar["held-out"]
    assert [path for path, _ in server.requests] == ["/train-00000-of-00001.parquet"]
    assert data.load("cifar100", "test").fingerprint == cifar["test"]
    assert len(server.requests) == 2 and data.available("cifar100")


def test_the_original_archive_stands_in_for_the_parquet_files(server, home, cifar):
    for part in ("train", "test"):
        del server.files[f"/{part}-00000-of-00001.parquet"]
    for split in data.SPLITS:
        assert data.load("cifar100", split).fingerprint == cifar[split]
    paths = [path for path, _ in server.requests]
    assert paths == ["/train-00000-of-00001.parquet", "/cifar-100-python.tar.gz"]
    downloads = home / "cache" / "downloads"
    assert sorted(path.name for path in downloads.rglob("*") if path.is_file()) == ["meta", "test", "train"]


def test_a_download_with_other_images_is_not_accepted(server, home, cifar):
    pixels, chosen = tiny_cifar100({"train": 10})["train"]
    other = write_parquet(home / "other", "train", pixels[::-1], chosen).read_bytes()
    server.files["/train-00000-of-00001.parquet"] = other
    assert data.load("cifar100", "train").fingerprint == cifar["train"]  # from the archive
    assert not list((home / "cache" / "downloads").rglob("*.parquet"))
    del server.files["/cifar-100-python.tar.gz"]
    with pytest.raises(data.DataUnavailable, match=r"does not hold the published images: .*; .*answered 404") as caught:
        data.load("cifar100", "train", cache=home / "new")
    assert "\n" not in str(caught.value)
    assert not [path for path in (home / "new").rglob("*") if path.is_file()]


def test_a_download_that_was_damaged_later_is_made_again(server, home, cifar):
    data.load("cifar100", "test")
    file = home / "cache" / "downloads" / "cifar100" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:5000])
    (home / "cache" / "cifar100-32-test" / "test.npy").write_bytes(b"")
    assert data.load("cifar100", "test").fingerprint == cifar["test"]
    assert len(server.requests) == 2


def test_a_page_instead_of_the_file_is_not_accepted(server, home, cifar):
    server.files = {path: b"<html>please log in</html>" for path in server.files}
    with pytest.raises(data.DataUnavailable, match=r"cannot be read as the CIFAR-100 parquet file: .*wrong bytes"):
        data.load("cifar100", "train")
    assert not [path for path in (home / "cache").rglob("*") if path.is_file()]


@pytest.fixture
def flowers(server, home, monkeypatch):
    """A small Flowers-102 on the server: two JPEGs of each label."""
    folder = home / "made"
    (folder / "jpg").mkdir(parents=True)
    numbers = np.arange(1, 205)
    for number in numbers:
        image = encoded(pictures(1, int(number), 16)[0], "JPEG")
        (folder / "jpg" / f"image_{number:05d}.jpg").write_bytes(image)
    savemat(folder / "imagelabels.mat", {"labels": (numbers - 1)[None] % 102 + 1})
    first, second = numbers[None, :102], numbers[None, 102:]
    savemat(folder / "setid.mat", {"trnid": first[:, :50], "valid": first[:, 50:], "tstid": second})
    with tarfile.open(folder / "102flowers.tgz", "w:gz") as tar:
        tar.add(folder / "jpg", "jpg")
    files = {name: (folder / name).read_bytes() for name in download.FLOWERS102_FILES}
    server.files |= {f"/{name}": content for name, content in files.items()}
    digests = {name: md5_of(content) for name, content in files.items()}
    monkeypatch.setattr(download, "FLOWERS102", f"{server.url}/")
    monkeypatch.setattr(download, "FLOWERS102_FILES", {name: f"md5:{digest}" for name, digest in digests.items()})
    monkeypatch.setattr(sources, "FLOWERS102_MD5", {name: digests[name] for name in sources.FLOWERS102_MD5})
    known = zip(("image", "label", "setid"), digests.items(), strict=True)
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", dict(known))
    forget_published(monkeypatch, "flowers102", train=102, test=102)


def test_flowers_are_downloaded_and_unpacked_by_torchvision(server, home, flowers):
    server.script = ["truncate"]
    images = data.load("flowers102", "test", image_size=8)
    assert images.labels.tolist() == list(range(102)) and not data.available("cifar100")
    assert [path for path, _ in server.requests] == [
        "/102flowers.tgz",
        "/102flowers.tgz",
        "/imagelabels.mat",
        "/setid.mat",
    ]
    downloads = home / "cache" / "downloads"
    assert sorted(path.name for path in (downloads / "flowers-102").iterdir()) == [
        "imagelabels.mat",
        "jpg",
        "setid.mat",
    ]
    data.load("flowers102", "train", image_size=8)
    data.load("flowers102", "test", image_size=16)
    assert len(server.requests) == 4


def test_flowers_half_unpacked_by_a_killed_run_are_unpacked_again(server, home, flowers):
    half = home / "cache" / "downloads" / "incoming" / "flowers-102"
    (half / "jpg").mkdir(parents=True)
    (half / "jpg" / "image_00001.jpg").write_bytes(b"half")
    for name in download.FLOWERS102_FILES:
        (half / name).write_bytes(server.files[f"/{name}"])
    assert len(data.load("flowers102", "test", image_size=8)) == 102
    assert server.requests == []


def test_without_oxford_there_are_no_flowers(server, home, flowers):
    server.always = 404
    with pytest.raises(data.DataUnavailable, match=r"102flowers\.tgz could not be downloaded: .*404.*Set CCTLIB_DATA"):
        data.load("flowers102", "train")
    assert not [path for path in (home / "cache").rglob("*") if path.is_file()]
