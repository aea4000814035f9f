"""Results that can be trusted: whole or absent, keyed by what went in, and saying where they came from.

A *stage* is one step of the flow (train, probe, measure, tables, heads, andc, a notebook). Its folder under `runs/` is
named after a hash of everything that determines the result: the records of the stages that it reads, its settings, the
arithmetic of the device, and the source code that computes it. A folder that exists is whole, so its stage is skipped.
Work in progress lives beside it in `<folder>.partial`, where a killed stage finds its checkpoint again.
"""

import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout

from cctlib.errors import UserError

PACKAGE = Path(__file__).parent
FOUNDATION = ("errors", "bootstrap", "stages")  # modules that every room may import
# Each may import those before it.
ROOMS = ("data", "model", "training", "snp", "profiles", "study", "heads", "andc", "claims", "figures")
RECORD = "stage.json"  # what went in and the hash of what came out: equal for equal runs
PROVENANCE = "provenance.json"  # when, where, how long: different for every run
LOG = "log.jsonl"  # the course of a training, with its times: likewise
RUN = "run.json"  # what a training was given, and the machine that it began on: likewise
MANIFEST = "manifest.json"  # what trained weights are, their hash included, and how long it took: likewise
UNREPEATABLE = (RECORD, PROVENANCE, LOG, RUN, MANIFEST)  # not hashed among a stage's outputs
CLOCK = "checkpoint-clock.json"  # who computes a stage, since when, and for how long it was computed before


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def sha256_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of all files of a folder, in hex. Taken once a process."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return sha256_json({path.relative_to(folder).as_posix(): sha256_file(path) for path in files})


def sha256_json(value: object) -> str:
    """SHA-256 of the canonical JSON of `value` (keys sorted), in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _code_hashes() -> dict[str, str]:
    """SHA-256 of the source that a room can call: its own, that of the rooms below it, and that of the foundation."""
    digests: dict[str, dict[str, str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        digests.setdefault(name.parts[0].removesuffix(".py"), {})[name.as_posix()] = sha256_file(path)
    below = [digests[part] for part in FOUNDATION]
    hashes = {}
    for room in ROOMS:
        below.append(digests[room])
        hashes[room] = sha256_json(below)
    return hashes | {"everything": sha256_json(digests)}


CODE = _code_hashes()  # of the code that runs: a file that is edited after the import is not in it


@functools.cache
def commit() -> str:
    """The commit of the code that runs: from git, else from what pip recorded at installation, else 'unknown'.

    A working tree with uncommitted changes, anywhere in the repository, is marked `-dirty`. Asked once a process.
    """
    root = PACKAGE.parent
    if (root / ".git").exists() and shutil.which("git"):
        run = lambda *words: subprocess.run(["git", "-C", root, *words], capture_output=True, text=True)  # noqa: E731
        head = run("rev-parse", "--short=10", "HEAD").stdout.strip()
        if head:
            return head + ("-dirty" if run("status", "--porcelain").stdout else "")
    try:
        origin = importlib.metadata.distribution("cctlib").read_text("direct_url.json")
        return json.loads(origin or "{}")["vcs_info"]["commit_id"][:10]
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return "unknown"


def machine(device: torch.device | str) -> str:
    """The name of the GPU or of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    known = re.search(r"^model name\s*: (.+)$", text, re.M)
    return known[1].strip() if known else platform.processor() or platform.machine()


def device_name(device: torch.device | str) -> str:
    """The same for a reader, who is told a processor's number of threads as well."""
    if torch.device(device).type == "cuda":
        return machine(device)
    threads = torch.get_num_threads()
    return f"{machine(device)}, {threads} thread{'s' if threads > 1 else ''}"


def environment(device: torch.device | str) -> dict[str, str]:
    """Versions and hardware that a result was made with."""
    return {
        "device": device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
    }


def from_here(path: Path | str) -> Path:
    """A path as an absolute one, without links. In a clone, notebooks/ counts as the root: JupyterLab starts there."""
    here, root = Path.cwd(), PACKAGE.parent
    start = root if here == root / "notebooks" and (root / "pyproject.toml").is_file() else here
    return (start / Path(path).expanduser()).resolve()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a temporary name beside `path`; rename it to `path` when the block ends well, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """Read a JSON file of entries by name; a missing or broken one is a `UserError` that names it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; it should have been written beside its data, restore or remake it"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); remove it and run again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__} instead of entries by name; remove it and run again")
    return value


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write tables as Parquet, by name, each atomically."""
    for name, table in tables.items():
        with replacing(folder / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)


def read_tables(folder: Path, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Tables by name. Raises `UserError` when one is missing."""
    missing = [name for name in names if not (folder / f"{name}.parquet").is_file()]
    if missing:
        raise UserError(f"{folder} lacks the tables {', '.join(missing)}; remove the folder and run again")
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in names}


def processes_started() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def stage(
    home: Path,
    name: str,
    compute: Callable[[Path], object],
    *,
    room: str,
    reads: Mapping[str, Path | str],
    settings: Mapping[str, object],
    device: torch.device | str,
    arithmetic: Mapping[str, str] | None = None,
) -> Path:
    """The folder of a finished stage: found, or computed now.

    Args:
        home: the folder that holds the stages.
        compute: called with a partial folder, into which it writes its files. The folder survives a kill and is handed
            to `compute` again. Files whose name starts with `checkpoint` are removed at the end.
        room: of the code that computes it, one of `ROOMS` or "everything".
        reads: what it reads, by name: the folders of other stages, and hashes (fingerprints) of anything else.
        settings: all other values that determine the result, as JSON.
        arithmetic: resolved precision and form of attention (`precision.arithmetic`), where a network is run.

    Two processes that want the same stage wait for each other, without limit.
    Raises `UserError` under torchrun, whose processes would all do the same.
    """
    if processes_started() > 1:
        raise UserError(f"{name} runs in one process, which torchrun multiplies; start the same command without it")
    inputs = {
        "code": CODE[room],
        # A stage's record holds the hashes of all its files.
        "reads": {key: sha256_file(read / RECORD) if isinstance(read, Path) else read for key, read in reads.items()},
        "settings": settings,
        "arithmetic": dict(arithmetic or {}),
    }
    folder = home / f"{name}-{sha256_json(inputs)[:12]}"
    if is_whole(folder):
        return folder
    with locked(folder):
        if not is_whole(folder):
            _compute(folder, name, inputs, compute, device)
    return folder


def locked(folder: Path) -> AcquireReturnProxy:
    """The lock of a folder that one process makes while others wait; held until the end of a `with`.

    Says on standard error who holds it while it waits. The lock's file stays: whoever removed it would let a third
    process lock another file of that name. Raises `OSError` where the file cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        clock = _partial(folder) / CLOCK
        holder = read_json(clock)["by"] if clock.is_file() else "another process"
        print(f"waiting for {folder.name}, which {holder} makes", file=sys.stderr, flush=True)
        return lock.acquire()


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _compute(
    folder: Path, name: str, inputs: Mapping, compute: Callable[[Path], object], device: torch.device | str
) -> None:
    partial = _partial(folder)
    partial.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # it is not whole
    before = 0.0  # seconds that earlier attempts took, the last of them up to the last file that it wrote
    if (partial / CLOCK).is_file():
        last, written = read_json(partial / CLOCK), max(path.stat().st_mtime for path in partial.rglob("*"))
        before = last["seconds"] + max(0.0, written - last["start"])
    start, made_with = time.time(), environment(device) | inputs["arithmetic"]
    by = f"process {os.getpid()} on {socket.gethostname()}"
    write_json(partial / CLOCK, {"by": by, "start": start, "seconds": before})
    compute(partial)
    for leftover in [*partial.glob("checkpoint*"), *partial.glob(".*.tmp")]:  # the latter: of a process that was killed
        leftover.unlink()
    seconds = round(before + time.time() - start, 1)
    write_json(
        partial / PROVENANCE, {"made": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds, **made_with}
    )
    files = [path for path in sorted(partial.rglob("*")) if path.is_file() and path.name not in UNREPEATABLE]
    outputs = {path.relative_to(partial).as_posix(): sha256_file(path) for path in files}
    write_json(partial / RECORD, {"stage": name, "inputs": inputs, "outputs": outputs})
    partial.rename(folder)


def is_whole(folder: Path) -> bool:
    """Whether a stage's folder holds all its files with the content its record promises."""
    if not (folder / RECORD).is_file():
        return False
    outputs = read_json(folder / RECORD)["outputs"]
    return all((folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in outputs.items())


def shipped() -> Path:
    """The folder of results that come with the package: `artifacts/` of a checkout, or its installed copy."""
    checkout = PACKAGE.parent / "artifacts"
    return checkout if checkout.is_dir() else Path(importlib.import_module("cctlib_artifacts").__path__[0])
