"""Results that can be trusted: whole or absent, keyed by what went in, and saying where they came from.

A *stage* is one step of the flow (probe, measure, statistics, heads, andc). Its folder under `runs/` is named after a hash of
everything that determines the result: inputs, settings, and the source of the modules that compute it. A folder that is
there is whole, so the stage is skipped; work in progress lives beside it in `<folder>.partial`, where a killed
stage finds its checkpoint again.
"""

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from cctlib.errors import UserError

PACKAGE = Path(__file__).parent
RECORD = "stage.json"  # what went in and the hash of what came out: equal for equal runs
PROVENANCE = "provenance.json"  # when, where, how long: different for every run
LOG = "log.jsonl"  # the course of a training, with its times: likewise
RUN = "run.json"  # what a training was given, and the machine that it began on: likewise


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """SHA-256 of the canonical JSON of `value` (keys sorted), in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def package_hash() -> str:
    """SHA-256 over the source of the whole package."""
    return sha256_json(
        {str(path.relative_to(PACKAGE)): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    )


CODE = package_hash()  # when the package was imported: a file edited later is not the code that runs


def commit() -> str:
    """The commit of the code that runs: from git, else from what pip recorded at installation, else 'unknown'.

    A working tree with uncommitted changes in the package is marked `-dirty`.
    """
    root = PACKAGE.parent
    if (root / ".git").exists() and shutil.which("git"):
        run = lambda *words: subprocess.run(["git", "-C", root, *words], capture_output=True, text=True)  # noqa: E731
        head = run("rev-parse", "--short=10", "HEAD").stdout.strip()
        if head:
            return head + ("-dirty" if run("status", "--porcelain", "--", "cctlib").stdout else "")
    try:
        origin = importlib.metadata.distribution("cctlib").read_text("direct_url.json")
        return json.loads(origin or "{}")["vcs_info"]["commit_id"][:10]
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return "unknown"


def device_name(device: torch.device | str) -> str:
    """A reader's name of a device: the GPU's own name, or the processor and its number of threads."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    )
    return names[0].partition(":")[2].strip() if names else (platform.processor() or platform.machine())


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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a temporary name beside `path`; rename it to `path` when the block ends well, remove it when it does not."""
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
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON file; a missing or broken one is a `UserError` that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; it should have been written beside its data, restore or remake it"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); remove it and run again") from None


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


def stage(
    runs: Path, name: str, inputs: Mapping, compute: Callable[[Path], object], *, device: torch.device | str
) -> Path:
    """The folder of a finished stage: found, or computed now.

    `compute(folder)` writes its files into a partial folder, which survives a kill and is handed to `compute` again; files whose
    name starts with `checkpoint` are removed at the end. `inputs` must be JSON and hold everything that determines the
    result. Two processes that want the same stage wait for each other.
    Raises `UserError` when another process holds the stage for more than an hour.
    """
    folder = runs / f"{name}-{sha256_json(inputs)[:12]}"
    if is_whole(folder):
        return folder
    runs.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", timeout=3600):
            if not is_whole(folder):
                _compute(folder, name, inputs, compute, device)
    except Timeout:
        raise UserError(
            f"{folder}.lock is held by another process for an hour; stop that process or remove the file"
        ) from None
    return folder


def _compute(
    folder: Path, name: str, inputs: Mapping, compute: Callable[[Path], object], device: torch.device | str
) -> None:
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # it is not whole
    start = time.monotonic()
    compute(partial)
    for leftover in [*partial.glob("checkpoint*"), *partial.glob(".*.tmp")]:  # the latter: of a process that was killed
        leftover.unlink()
    seconds = round(time.monotonic() - start, 1)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(partial / PROVENANCE, {"made": made, "seconds": seconds, **environment(device)})
    outputs = {
        path.name: sha256_file(path)
        for path in sorted(partial.iterdir())
        if path.name not in (RECORD, PROVENANCE, LOG, RUN)
    }
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
