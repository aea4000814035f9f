"""Downloads from a real HTTP server on this machine, which stands in for the hub, Oxford, Toronto and a proxy."""

import contextlib
import dataclasses
import hashlib
import http.server
import importlib.util
import io
import re
import shutil
import ssl
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from tiny_data import forget_published, load_into, tiny_cifar100, write_flowers, write_parquet, write_python
from torchvision.datasets import CIFAR100, Flowers102

from cctlib.data import download
from cctlib.data import images as data
from cctlib.errors import UserError

HUB = f"/datasets/uoft-cs/cifar100/resolve/{download.HUB_REVISION}/cifar100"


class Server:
    """Serves `files` (path -> bytes), the way the hub does; with a `status`, answers all with that."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.status = 0
        self.breaks = 0  # how many of the next answers end half-way
        self.silent = False
        self.is_hub = True
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    outer.answer(self)

            do_HEAD = do_CONNECT = do_GET

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, request) -> None:
        asked = request.headers.get("Range")
        self.requests.append((request.command, request.path, asked))
        request.close_connection = True
        if self.silent:
            time.sleep(3)
            return
        body = self.files.get(request.path, b"")
        status = self.status or (200 if request.path in self.files else 404)
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "Connection": "close"}
        if self.is_hub:
            headers["X-Repo-Commit"] = download.HUB_REVISION
        if status != 200:
            body = b""
        elif asked:
            start, whole = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]), len(body)
            body, status = body[start:], 206
            headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
        request.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            cut, self.breaks = (len(body) // 2 if self.breaks else len(body)), max(0, self.breaks - 1)
            request.wfile.write(body[:cut])

    def got(self) -> list[str]:
        """What was downloaded, by name."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET"]


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    names = "CCTLIB_DATA CCTLIB_OFFLINE HF_HUB_OFFLINE HF_ENDPOINT HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY"
    names += " SSL_CERT_FILE REQUESTS_CA_BUNDLE"
    for name in names.split():
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("CCTLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")  # nobody is there
    huggingface_hub.close_session()  # it keeps the proxies that it was made with
    yield tmp_path
    huggingface_hub.close_session()


@pytest.fixture
def cifar(server, home, monkeypatch):
    """A small CIFAR-100 on the hub and in the original archive; the fingerprints of its splits."""
    rows = tiny_cifar100({"train": 10, "test": 1})
    forget_published(monkeypatch, "cifar100", train=1000, test=100)
    for part, (pixels, chosen) in rows.items():
        file = write_parquet(home / "made", part, pixels, chosen)
        server.files[f"{HUB}/{file.name}"] = file.read_bytes()
    write_python(home / "original", rows, monkeypatch)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(home / "original" / "cifar-100-python", "cifar-100-python")
    server.files["/cifar-100-python.tar.gz"] = archive.getvalue()
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
    monkeypatch.setattr(CIFAR100, "url", f"{server.url}/cifar-100-python.tar.gz")
    monkeypatch.setenv("CCTLIB_DATA", str(home / "made"))
    prints = {split: load_into(home / "reference", "cifar100", split).fingerprint for split in data.SPLITS}
    monkeypatch.delenv("CCTLIB_DATA")
    spec = data.DATASETS["cifar100"]
    monkeypatch.setitem(data.DATASETS, "cifar100", dataclasses.replace(spec, fingerprints=prints))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return prints


def unavailable(*said: str, name: str = "cifar100") -> None:
    with pytest.raises(UserError) as caught:
        data.load(name, "test")
    assert all(part in str(caught.value) for part in said), caught.value
    assert "\n" not in str(caught.value)


def test_cifar100_comes_from_the_mirror_that_is_named_and_comes_once(server, home, cifar, monkeypatch):
    for split in data.SPLITS:
        assert data.load("cifar100", split).fingerprint == cifar[split]
    assert server.got() == ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]
    # A new cache is filled from the hub's own, which needs no network.
    monkeypatch.setenv("CCTLIB_OFFLINE", "1")
    server.requests.clear()
    assert load_into(home / "new", "cifar100", "train").fingerprint == cifar["train"]
    assert server.requests == []


def test_a_broken_transfer_is_resumed(server, cifar, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)  # what is lost of a transfer that breaks
    server.breaks = 1
    assert data.load("cifar100", "test").fingerprint == cifar["test"]
    starts = [asked for method, path, asked in server.requests if method == "GET" and "test-" in path]
    assert starts[0] in (None, "bytes=0-") and re.fullmatch(r"bytes=[1-9]\d+-", starts[1])


def test_the_original_archive_stands_in_for_the_hub(server, home, cifar, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    for split in data.SPLITS:
        assert data.load("cifar100", split).fingerprint == cifar[split]
    assert set(server.got()) == {"cifar-100-python.tar.gz"} and time.monotonic() - start < 30
    kept = sorted(path.name for path in (home / "cache" / "downloads").rglob("*") if path.is_file())
    assert kept == ["meta", "test", "train"]


def test_a_download_with_other_images_is_not_accepted(server, home, cifar):
    pixels, chosen = tiny_cifar100({"train": 10, "test": 1})["test"]
    other = write_parquet(home / "other", "test", pixels[::-1], chosen).read_bytes()
    server.files[f"{HUB}/test-00000-of-00001.parquet"] = other
    assert data.load("cifar100", "test").fingerprint == cifar["test"]  # from the archive
    assert server.got()[-1] == "cifar-100-python.tar.gz"
    del server.files["/cifar-100-python.tar.gz"]
    (home / "cache").rename(home / "old")
    unavailable("does not hold the published images", "remove it and download it again", "cifar-100-python could not")


@pytest.mark.parametrize("name", ["CCTLIB_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_means_no_request(server, cifar, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    unavailable(f"it cannot be downloaded: {name} is set. Set CCTLIB_DATA to a folder that holds cifar100")
    assert server.requests == []
    monkeypatch.setenv(name, "0")
    assert len(data.load("cifar100", "test")) == 100


# --- what is said when it goes wrong --------------------------------------------------------------------


def hub_fails(*said: str) -> None:
    start = time.monotonic()
    with pytest.raises(data.DataUnavailable) as caught:
        download.fetch("cifar100", Path("unused"), True)
    assert all(part in str(caught.value) for part in said), caught.value
    assert "\n" not in str(caught.value) and time.monotonic() - start < 20


def test_no_network(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub_fails("uoft-cs/cifar100 (test) could not be downloaded", "refused: there is no connection")
    unavailable("there is no connection", "Set CCTLIB_DATA to a folder that holds cifar100 or cifar-100-python")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl, which makes the certificate")
def test_a_certificate_that_is_not_trusted_and_how_to_trust_it(server, home, cifar, monkeypatch):
    request = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 1 -subj /CN=localhost"
    command = [*request.split(), "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, cwd=home, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "cert.pem", home / "key.pem")
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    monkeypatch.setenv("HF_ENDPOINT", server.url.replace("http://127.0.0.1", "https://localhost"))
    hub_fails("certificate is not trusted here", "set SSL_CERT_FILE and REQUESTS_CA_BUNDLE")
    assert server.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", str(home / "cert.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(home / "cert.pem"))
    huggingface_hub.close_session()
    assert data.load("cifar100", "test").fingerprint == cifar["test"]


def test_a_proxy_that_wants_a_password(server, monkeypatch):
    server.status = 407
    monkeypatch.setenv("HTTPS_PROXY", server.url)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    hub_fails("the proxy wants a name and a password (407): set HTTPS_PROXY to http://NAME:PASSWORD@HOST:PORT")
    assert server.requests[0][:2] == ("CONNECT", "hub.invalid:443")


@pytest.mark.parametrize(
    ("variable", "proxy", "said"),
    [
        (
            "HTTPS_PROXY",
            "http://somebody:secret@127.0.0.1:9",
            "no connection through the proxy that HTTPS_PROXY or ALL",
        ),
        ("HTTPS_PROXY", "smtp://127.0.0.1:9", "HTTPS_PROXY or ALL_PROXY names no proxy; write it as http://HOST:PORT"),
        ("ALL_PROXY", "socks5://127.0.0.1:9", "a SOCKS proxy needs a package: pip install socksio pysocks"),
    ],
)
def test_a_proxy_that_cannot_be_used(monkeypatch, variable, proxy, said):
    if "socks" in proxy and importlib.util.find_spec("socksio"):
        pytest.skip("the package for SOCKS proxies is installed")
    monkeypatch.setenv(variable, proxy)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    hub_fails(said)


def test_an_endpoint_that_is_no_hub(server, cifar):
    server.is_hub = False
    hub_fails("HF_ENDPOINT names a server that is no copy of the Hugging Face hub")


def test_a_file_that_is_not_there(server, cifar):
    server.files.clear()
    hub_fails("404")


def test_a_full_disk(monkeypatch, cifar):
    def full(*arguments, **options):
        raise RuntimeError("while writing") from OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    unavailable("no disk space left for uoft-cs/cifar100 (test); free some, or set CCTLIB_CACHE and HF_HOME")


# --- Flowers-102 ------------------------------------------------------------------------------------------


@pytest.fixture
def flowers(server, home, monkeypatch):
    """A small Flowers-102 on the server."""
    folder = write_flowers(home / "made", monkeypatch)
    with tarfile.open(folder / "102flowers.tgz", "w:gz") as tar:
        tar.add(folder / "jpg", "jpg")
    files = {name: (folder / name).read_bytes() for name in ("102flowers.tgz", "imagelabels.mat", "setid.mat")}
    server.files |= {f"/{name}": content for name, content in files.items()}
    digests = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(Flowers102, "_download_url_prefix", f"{server.url}/")
    monkeypatch.setattr(Flowers102, "_file_dict", dict(zip(("image", "label", "setid"), digests.items(), strict=True)))


def test_flowers_are_downloaded_and_unpacked_once(server, home, flowers):
    assert data.load("flowers102", "test", image_size=8).labels.tolist() == list(range(102))
    data.load("flowers102", "train", image_size=8)
    data.load("flowers102", "test", image_size=16)
    downloads = home / "cache" / "downloads"
    kept = sorted(path.name for path in (downloads / "flowers-102").iterdir())
    assert kept == ["imagelabels.mat", "jpg", "setid.mat"] and not list((downloads / "incoming").iterdir())
    assert [name for name in server.got() if name == "102flowers.tgz"] == ["102flowers.tgz"] * server.got().count(
        kept[0]
    )


def test_flowers_half_unpacked_by_a_killed_run_are_unpacked_again(server, home, flowers):
    half = home / "cache" / "downloads" / "incoming" / "flowers-102"
    (half / "jpg").mkdir(parents=True)
    (half / "jpg" / "image_00001.jpg").write_bytes(b"half")
    (half / "102flowers.tgz").write_bytes(server.files["/102flowers.tgz"])
    assert len(data.load("flowers102", "test", image_size=8)) == 102
    assert "102flowers.tgz" not in server.got()


def test_flowers_that_break_off_or_are_others_are_refused(server, home, flowers):
    server.files["/102flowers.tgz"] = server.files["/102flowers.tgz"][:-100]
    unavailable("flowers-102 could not be downloaded: File not found or corrupted", name="flowers102")
    assert not (home / "cache" / "downloads" / "flowers-102").exists()
    server.status = 503
    unavailable("503", "the server is busy; run the same command later", name="flowers102")


def test_a_server_that_goes_silent_is_given_up(server, flowers, monkeypatch):
    server.silent = True
    monkeypatch.setattr(download, "SILENCE", 0.3)
    unavailable("the server went silent; run the same command again", name="flowers102")
