"""Files from the network: whole and checked, or not at all.

`fetch` brings one file. It resumes what an earlier try left, gives up on a server that goes silent, tries
again where that can help, checks the bytes, and moves the file to its name only when all of it is there. The
functions below it bring the data sets, each in its public layout. With CCTLIB_OFFLINE=1 the network is never
touched.
"""

import errno
import hashlib
import os
import re
import shutil
import tarfile
from pathlib import Path

import requests
import tenacity
from tqdm.auto import tqdm

from cctlib.errors import UserError

CIFAR100_PARQUET = (
    "https://huggingface.co/datasets/uoft-cs/cifar100/resolve/main/cifar100/{part}-00000-of-00001.parquet"
)
CIFAR100_PYTHON = ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85")
FLOWERS102 = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
FLOWERS102_FILES = {
    "102flowers.tgz": "md5:52808999861908f626f3c1f4e79d11fa",
    "imagelabels.mat": "md5:e0620be6f572b9609742df49c70aed4d",
    "setid.mat": "md5:a5357ecc9cb78c4bef273ce3793fc85c",
}
CHUNK = 1 << 14  # what is lost of a transfer that breaks
SPARE = 64 << 20  # bytes of a disk that are left free


class DownloadFailed(UserError):
    """The network, or what came through it, was no good: the data cannot be had from there."""


class _Passing(Exception):
    """A failure that may pass. tries: how many this kind deserves; wait: seconds the server asked for."""

    def __init__(self, reason: str, tries: int | None = None, wait: float = 0.0):
        super().__init__(reason)
        self.tries, self.wait = tries, wait


def offline() -> bool:
    """Whether the user forbade the network (CCTLIB_OFFLINE=1)."""
    return os.environ.get("CCTLIB_OFFLINE", "0") not in ("", "0")


def require_space(folder: Path, needed: int) -> None:
    """Raise `UserError` unless the disk that will hold `folder` has `needed` bytes, and some to spare."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + SPARE:
        raise UserError(
            f"no disk space: {folder} needs {(needed + SPARE) / 1e6:,.0f} MB and has {free / 1e6:,.0f} MB; "
            "free some, or set CCTLIB_CACHE to a folder on a larger disk"
        )


def fetch(
    url: str, to: Path, *, checksum: str | None = None, attempts: int = 6, stall: float = 30.0, backoff: float = 1.0
) -> Path:
    """Download `url` to the file `to`, with a progress bar on a terminal, and return `to`.

    checksum: `sha256:...` or `md5:...`; without one, the SHA-256 that Hugging Face announces is checked.
    attempts: tries in all; stall: seconds without a byte until a try is given up; backoff: seconds before the
    second try, doubled for every further one. A half-finished download stays beside `to` as `.part`, and the
    next call resumes it. Raises `DownloadFailed` when the network or the bytes are no good, `UserError` when
    the disk has no room.
    """
    if to.exists() and (checksum is None or _digest(to, checksum) == checksum):
        return to
    if offline():
        raise DownloadFailed(f"{url} was not downloaded: CCTLIB_OFFLINE is set")
    part = to.with_name(to.name + ".part")
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_Passing),
        stop=lambda state: state.attempt_number >= min(attempts, _failure(state).tries or attempts),
        wait=lambda state: max(min(backoff * 2 ** (state.attempt_number - 1), 30.0), _failure(state).wait),
        reraise=True,
    )
    try:
        retrying(_attempt, url, part, checksum, stall)
    except _Passing as failure:
        tried = retrying.statistics["attempt_number"]
        raise DownloadFailed(f"{url} could not be downloaded: {failure} (tried {tried} times)") from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise UserError(f"cannot write {part}: {error.strerror}; set CCTLIB_CACHE to another folder") from None
        _discard(part)
        raise UserError(f"no disk space left while writing {to}; free some, or set CCTLIB_CACHE") from None
    _tag(part).unlink(missing_ok=True)
    os.replace(part, to)
    return to


def _failure(state: tenacity.RetryCallState) -> _Passing:
    """What went wrong in the try that has just ended."""
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, _Passing) else _Passing("")


def _attempt(url: str, part: Path, checksum: str | None, stall: float) -> None:
    """One try: complete `part` and check it. Raises `_Passing` where another try may do better."""
    try:
        announced = _transfer(url, part, stall)
    except requests.ReadTimeout:
        raise _Passing(f"the server sent nothing for {stall:g} seconds") from None
    except requests.RequestException as error:
        # Nothing answered. Without a network that stays so, and the reader should be told soon.
        raise _Passing(f"no connection, {type(error).__name__} (is there a network?)", tries=2) from None
    expected = checksum or announced
    if expected and (found := _digest(part, expected)) != expected:
        _discard(part)
        raise _Passing(f"wrong bytes: {found}, expected {expected}", tries=2)


def _transfer(url: str, part: Path, stall: float) -> str | None:
    """Append to `part` what it lacks of `url`. Returns the checksum that the server announced, if it did."""
    tag = _tag(part)
    have = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "cctlib"}
    if have:  # If-Range: should the file have changed meanwhile, the server sends all of it again
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text()}
    with requests.get(url, headers=headers, stream=True, timeout=(10, stall)) as response:
        _check_status(response, part)
        resumed = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code == 206 and not (resumed and int(resumed[1]) == have):
            _discard(part)
            raise _Passing("the server resumed at a wrong place")
        have = have if resumed else 0
        length = resumed[2] if resumed else response.headers.get("Content-Length")
        total = int(length) if length else None
        require_space(part.parent, (total or 0) - have)
        part.parent.mkdir(parents=True, exist_ok=True)
        _remember(tag, response.headers.get("ETag", ""))
        _append(response, part, have, total)
    if total is not None and part.stat().st_size != total:
        raise _Passing(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")
    return _announced(response)


def _append(response: requests.Response, part: Path, have: int, total: int | None) -> None:
    """Write the body behind the `have` bytes that are kept."""
    name = part.name.removesuffix(".part")
    bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name, disable=None)
    with bar, open(part, "ab" if have else "wb") as file:
        try:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        except requests.RequestException as error:
            kind = "stalled" if "timed out" in str(error) else "broke"
            size = f"{total:,}" if total else "unknown"
            raise _Passing(f"the connection {kind} after {file.tell():,} of {size} bytes") from None


def _check_status(response: requests.Response, part: Path) -> None:
    """Raise `DownloadFailed` for an answer that stays, `_Passing` for one that may pass."""
    status = response.status_code
    if status in (200, 206):
        return
    reason = f"the server answered {status} {response.reason}"
    if status == 416:
        _discard(part)
        raise _Passing(reason)
    if status in (408, 425, 429) or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise _Passing(reason, wait=min(float(after), 60.0) if after.isdigit() else 0.0)
    raise DownloadFailed(f"{response.url} could not be downloaded: {reason}")


def _announced(response: requests.Response) -> str | None:
    """Hugging Face names the SHA-256 of a large file on the way to it."""
    for hop in (*response.history, response):
        if found := re.fullmatch(r'"?([0-9a-f]{64})"?', hop.headers.get("X-Linked-Etag", "")):
            return f"sha256:{found[1]}"
    return None


def _digest(file: Path, like: str) -> str:
    """The checksum of a file, in the form of `like`."""
    algorithm = like.partition(":")[0]
    with open(file, "rb") as opened:
        return f"{algorithm}:{hashlib.file_digest(opened, algorithm).hexdigest()}"


def _tag(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _remember(tag: Path, etag: str) -> None:
    """Keep the name of this very version of the file. Without a strong one, a broken transfer starts anew."""
    if etag and not etag.startswith("W/"):
        tag.write_text(etag)
    else:
        tag.unlink(missing_ok=True)


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def cifar100_parquet(folder: Path, part: str) -> None:
    """One file, `train` or `test`, of the public release `uoft-cs/cifar100` to `folder/cifar100/`."""
    url = CIFAR100_PARQUET.format(part=part)
    fetch(url, folder / "cifar100" / url.rpartition("/")[2])


def cifar100_python(folder: Path, part: str) -> None:
    """The original archive to `folder/cifar-100-python`, unpacked by torchvision. Its server is very slow."""
    if (folder / "cifar-100-python").is_dir():
        return
    url, checksum = CIFAR100_PYTHON
    incoming = folder / "incoming"
    archive = fetch(url, incoming / url.rpartition("/")[2], checksum=checksum)
    from torchvision.datasets import CIFAR100  # late: it takes a second to import, and few come here

    _unpack(CIFAR100, incoming, "cifar-100-python", archive)


def flowers102(folder: Path, part: str) -> None:
    """Oxford's files to `folder/flowers-102` (jpg/, imagelabels.mat, setid.mat), unpacked by torchvision."""
    if (folder / "flowers-102").is_dir():
        return
    incoming = folder / "incoming"
    files = [
        fetch(FLOWERS102 + name, incoming / "flowers-102" / name, checksum=checksum)
        for name, checksum in FLOWERS102_FILES.items()
    ]
    shutil.rmtree(incoming / "flowers-102" / "jpg", ignore_errors=True)  # of a run that was killed while unpacking
    from torchvision.datasets import Flowers102

    _unpack(Flowers102, incoming, "flowers-102", files[0])


def _unpack(dataset: type, incoming: Path, name: str, archive: Path) -> None:
    """Let torchvision's class unpack and check what was fetched, then move `incoming/name` to its place."""
    require_space(incoming, archive.stat().st_size * 3 // 2)
    try:
        dataset(root=incoming, download=True)
    except (RuntimeError, OSError, tarfile.TarError) as error:
        raise DownloadFailed(f"torchvision could not unpack {archive}: {error}") from None
    archive.unlink()
    shutil.rmtree(incoming.parent / name, ignore_errors=True)
    os.replace(incoming / name, incoming.parent / name)
