"""Published data from the network, by the libraries that are made for it.

CIFAR-100 comes from the Hugging Face hub by `huggingface_hub`, which resumes, keeps files in its own cache (HF_HOME),
and heeds HF_ENDPOINT and proxies; else the original archive comes by torchvision, as Flowers-102 does. With
CCTLIB_OFFLINE=1 or HF_HUB_OFFLINE=1 the network is never touched. What goes wrong is said in one line, with what to do.
"""

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import getproxies

from cctlib.data.sources import DataUnavailable, one_line
from cctlib.errors import UserError

HUB = "uoft-cs/cifar100"
HUB_REVISION = "aadb3af77e9048adbea6b47c21a81e47dd092ae5"
TORCHVISION = {"cifar-100-python": "CIFAR100", "flowers-102": "Flowers102"}  # its classes, by what they unpack
SILENCE = 60.0  # seconds without a byte until torchvision's downloads are given up

# What the exceptions of the network say, in the words of httpx, requests and urllib; and what to do.
ADVICE = {
    r"CERTIFICATE_VERIFY_FAILED|certificate verify failed": "the server's certificate is not trusted here; behind a "
    "company's proxy, set SSL_CERT_FILE and REQUESTS_CA_BUNDLE to the file of certificates that it needs",
    r"(?i)socks": "a SOCKS proxy needs a package: pip install socksio pysocks, or name an HTTP proxy",
    r"407 Proxy|[Ee]rror:? '?407": "the proxy wants a name and a password (407): set HTTPS_PROXY to http://NAME:PASSWORD@HOST:PORT",
    r"[Uu]nknown scheme for proxy": "HTTPS_PROXY or ALL_PROXY names no proxy; write it as http://HOST:PORT",
    r"X-Repo-Commit": "HF_ENDPOINT names a server that is no copy of the Hugging Face hub; correct it, or unset it",
    r"(?i)time(d )?-?out": "the server went silent; run the same command again, or later",
    r"[Ee]rror:? '?(429|5\d\d)": "the server is busy; run the same command later",
    r"Connect(ion)?Error|ConnectionRefused|ProxyError|URLError|gaierror": "there is no connection",
}


def fetch(layout: str, downloads: Path, online: bool) -> Path:
    """The folder that holds a public layout: in an earlier download, else in a new one. online: whether it may be new.

    Raises `DataUnavailable`, and `UserError` when the disk is full.
    """
    return _by_torchvision(layout, downloads, online) if layout in TORCHVISION else _from_the_hub(online)


def _from_the_hub(online: bool) -> Path:
    """`cifar100/*.parquet` of the public release, both parts."""
    import huggingface_hub as hub  # late: it takes a while to import, and is needed once

    endpoint = os.environ.get("HF_ENDPOINT") or None
    for part in ("test", "train"):
        name = f"cifar100/{part}-00000-of-00001.parquet"
        file: dict[str, Any] = {"repo_id": HUB, "filename": name, "repo_type": "dataset", "revision": HUB_REVISION}
        with _said_in_one_line(f"{HUB} ({part})"):
            path = hub.try_to_load_from_cache(**file)
            if not isinstance(path, str):
                _need_network(online)
                # Fails at once where nothing answers; the download itself would try for half a minute.
                # The data are public; a stale token would be refused.
                hub.get_hf_file_metadata(hub.hf_hub_url(**file, endpoint=endpoint), token=False)
                path = hub.hf_hub_download(**file, endpoint=endpoint, token=False)
            folder = Path(path).parents[1]
    return folder


def _by_torchvision(layout: str, downloads: Path, online: bool) -> Path:
    """Let torchvision download, check and unpack beside, then move the folder to its place: whole, or not there."""
    if (downloads / layout).is_dir():
        return downloads
    incoming = downloads / "incoming"
    with _said_in_one_line(layout):
        _need_network(online)
        import torchvision  # late: it takes a second

        incoming.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, TORCHVISION[layout])(root=incoming, download=True)
        for archive in incoming.rglob("*gz"):
            archive.unlink()
        os.replace(incoming / layout, downloads / layout)
    return downloads


def _need_network(online: bool) -> None:
    for name in ("CCTLIB_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(name, "0") not in ("", "0"):
            raise DataUnavailable(f"{name} is set")
    if not online:
        raise DataUnavailable("that was not asked for")


@contextmanager
def _said_in_one_line(what: str) -> Iterator[None]:
    """Raise what goes wrong as `DataUnavailable`, or as `UserError` where the disk is full. Silence has an end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    except DataUnavailable:
        raise
    except Exception as error:  # of three libraries, and of what they call
        chain: list[BaseException] = [error]
        while deeper := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(deeper)
        if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in chain):
            raise UserError(f"no disk space left for {what}; free some, or set CCTLIB_CACHE and HF_HOME") from None
        text = " ".join(f"{type(cause).__name__} {cause}" for cause in chain)
        reason = one_line(chain[-1])[:200]
        if advice := [advice for pattern, advice in ADVICE.items() if re.search(pattern, text)]:
            through = " through the proxy that HTTPS_PROXY or ALL_PROXY names" if getproxies() else ""
            reason += f": {advice[0]}".replace("no connection", f"no connection{through}")
        raise DataUnavailable(f"{what} could not be downloaded: {reason}") from None
    finally:
        socket.setdefaulttimeout(before)
