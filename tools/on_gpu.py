"""What a GPU does with this project, in one JSON report: `make on-gpu`, or by hand on a machine without a network.

    python -m tools.on_gpu pack pieces/                     where there is a network: wheels and images, in small pieces
    python -m tools.on_gpu run --pieces pieces/ --minutes 20    where the GPU is

A GPU is often lent for half an hour, with a torch of its own, no network, and a limit on the size of what is handed
over. So `pack` writes pieces of at most 60 MB, `run` joins them, verifies them, installs only what is missing and
never torch, and does first what matters most: the tests marked `cuda`, the benchmarks, then the published recipe for
the minutes that are left. Each step is in the report, with its output, whether it went well or not; the training can
be taken up again from its folder.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIECE = 60_000_000  # bytes
LIST = "pieces.json"
NEEDED = [
    "filelock",
    "huggingface_hub",
    "hypothesis",
    "jaxtyping",
    "beartype",
    "pandas",
    "platformdirs",
    "pyarrow",
    "pytest",
    "pytest_timeout",
    "safetensors",
    "scipy",
    "sklearn",
    "statsmodels",
    "tqdm",
    "typeguard",
    "tyro",
]  # modules; none of them needs torch
PACKAGES = {"sklearn": "scikit-learn", "pytest_timeout": "pytest-timeout"}  # where the name on PyPI is another one


def pack(pieces: Path, dataset: str = "cifar100", python: str = "3.12", wheels: bool = True) -> None:
    """Write the decoded images of a data set, and wheels of what this package needs beside torch, into small pieces."""
    from cctlib.data import images as data
    from cctlib.data.cache import cache_folder

    if pieces.exists() and any(pieces.iterdir()):
        sys.exit(f"on_gpu: {pieces} is not empty; name a new folder")
    pieces.mkdir(parents=True, exist_ok=True)
    for split in ("train", "held-out", "test"):
        data.load(dataset, split)
    archive = pieces / "all.tar"
    with tarfile.open(archive, "w", encoding="utf-8") as tar:
        for entry in sorted(cache_folder().glob(f"{dataset}-*-t*")):
            if entry.is_dir():
                tar.add(entry, f"cache/{entry.name}")
        if wheels:
            _download(pieces / "wheels", python)
            tar.add(pieces / "wheels", "wheels")
    parts = _split(archive)
    archive.unlink()
    shutil.rmtree(pieces / "wheels", ignore_errors=True)
    (pieces / LIST).write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {len(parts)} pieces to {pieces}, {sum(os.path.getsize(pieces / name) for name in parts):,} bytes")


def _download(folder: Path, python: str) -> None:
    names = [PACKAGES.get(name, name) for name in NEEDED]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
    constraints = [f"--constraint={ROOT / 'constraints.txt'}", f"--python-version={python}"]
    subprocess.run([*command, *constraints, *names], check=True)


def _split(archive: Path) -> dict[str, str]:
    """Cut a file into pieces beside it; their names with the SHA-256 of each."""
    parts: dict[str, str] = {}
    with archive.open("rb") as file:
        while part := file.read(PIECE):
            name = f"piece-{len(parts):02d}"
            (archive.parent / name).write_bytes(part)
            parts[name] = hashlib.sha256(part).hexdigest()
    return parts


def unpack(pieces: Path, home: Path) -> None:
    """Join the pieces, verify each, and unpack them under `home`. Exits in one line that names a wrong piece."""
    home.mkdir(parents=True, exist_ok=True)
    archive = home / "all.tar"
    with archive.open("wb") as file:
        for name, digest in json.loads((pieces / LIST).read_text(encoding="utf-8")).items():
            part = (pieces / name).read_bytes() if (pieces / name).is_file() else b""
            if hashlib.sha256(part).hexdigest() != digest:
                sys.exit(f"on_gpu: {pieces / name} is missing or damaged; hand it over again")
            file.write(part)
    with tarfile.open(archive) as tar:
        tar.extractall(home, filter="data")
    archive.unlink()


def run(
    pieces: Path | None = None,
    minutes: float = 20.0,
    home: Path = Path("runs/on-gpu"),
    recipe: str = "paper",
    dataset: str = "cifar100",
    device: str = "cuda",
) -> None:
    """Run tests, benchmarks and the recipe on the device, and write `report.json` into the home folder."""
    deadline = time.monotonic() + 60 * minutes
    if pieces is not None:
        unpack(pieces, home)
    environment = _environment(home)
    report: dict[str, object] = {"machine": _machine(environment), "steps": []}

    def step(name: str, command: Sequence[str], share: float) -> None:
        limit = max(30.0, share * (deadline - time.monotonic()))
        report["steps"].append(_step(name, [sys.executable, *command], limit, environment))  # type: ignore[attr-defined]
        home.mkdir(parents=True, exist_ok=True)
        (home / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {'well' if report['steps'][-1]['status'] == 0 else 'failed'}", flush=True)  # type: ignore[index]

    step("tests", ["-m", "pytest", "-q", "-m", "cuda", "tests"], 0.25)
    for name in ("forward", "train"):
        options = ["--device", device, "--seconds", "15"]
        step(f"bench_{name}", [f"benchmarks/bench_{name}.py", *options], 0.2)
    hours = max(0.01, (deadline - time.monotonic()) / 3600)
    training = ["-m", "cctlib", "train", "--recipe", recipe, "--dataset", dataset, "--device", device, "--resume"]
    step("training", [*training, "--folder", str(home / "train"), "--hours", f"{hours:.4f}"], 1.5)
    report["training"] = _log(home / "train" / "log.jsonl")
    (home / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {home / 'report.json'}")


def _environment(home: Path) -> dict[str, str]:
    """The environment of every step: the clone, the unpacked images, and wheels of what this Python does not have."""
    paths = [str(ROOT)]
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and (home / "wheels").is_dir():
        target = home / "packages"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", str(target)]
        names = [PACKAGES.get(name, name) for name in missing]
        subprocess.run([*install, f"--find-links={home / 'wheels'}", *names], check=True)
        paths.append(str(target.resolve()))
    elif missing:
        sys.exit(f"on_gpu: this Python lacks {', '.join(missing)}; install them, or hand over the pieces of `pack`")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if (home / "cache").is_dir():
        environment |= {"CCTLIB_CACHE": str((home / "cache").resolve()), "CCTLIB_OFFLINE": "1"}
    return environment


def _machine(environment: dict[str, str]) -> dict[str, object]:
    code = (
        "import json, torch; from cctlib.stages import commit, device_name; gpu = torch.cuda.is_available(); "
        "name = 'cuda' if gpu else 'cpu'; "
        "memory = torch.cuda.get_device_properties(0).total_memory if gpu else 0; "
        "print(json.dumps({'device': device_name(name), 'memory': memory, 'torch': torch.__version__, "
        "'cuda': torch.version.cuda, 'commit': commit()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        sys.exit(f"on_gpu: this Python cannot run cctlib: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout) | {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}


def _step(name: str, command: Sequence[str], limit: float, environment: dict[str, str]) -> dict[str, object]:
    """Run a command for `limit` seconds at most; what it printed last, its status (124: out of time), its seconds."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit, env=environment, cwd=ROOT
        )
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        status, output = 124, late.stdout or b""
    text = re.sub(r"[^\n]*\r", "", output.decode("utf-8", "replace"))  # what a progress bar overwrote
    return {"name": name, "status": status, "seconds": round(time.monotonic() - start, 1), "output": text[-6000:]}


def _log(path: Path) -> list[dict]:
    """The rows of a training's log that have a held-out accuracy, and its last one."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return [row for row in rows[:-1] if "held_out_accuracy" in row] + rows[-1:]


def main() -> None:
    """`pack` and `run`, by the standard library alone: what else is needed may not be installed yet."""
    parser = argparse.ArgumentParser(prog="tools.on_gpu", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack", help="write images and wheels into pieces of at most 60 MB")
    packing.set_defaults(job=pack)
    packing.add_argument("pieces", type=Path, help="folder to write; it holds nothing yet")
    packing.add_argument("--dataset", default="cifar100", help="whose images go along")
    packing.add_argument("--python", default="3.12", help="version on the machine with the GPU")
    packing.add_argument("--no-wheels", dest="wheels", action="store_false", help="images alone")
    running = commands.add_parser("run", help="tests, benchmarks and a training, and a report of them")
    running.set_defaults(job=run)
    running.add_argument("--pieces", type=Path, help="what `pack` wrote")
    running.add_argument("--minutes", type=float, default=20.0, help="for everything together")
    running.add_argument("--home", type=Path, default=Path("runs/on-gpu"), help="for the report and the training")
    running.add_argument("--recipe", default="paper")
    running.add_argument("--dataset", default="cifar100")
    running.add_argument("--device", default="cuda", help="cuda; cpu for trying this out")
    given = vars(parser.parse_args())
    given.pop("job")(**given)


if __name__ == "__main__":
    main()
