"""Make the folders under `artifacts/`: what comes with the package (a maintainer's job).

    python -m tools.ship weights FOLDER --default    weights of a finished training
    python -m tools.ship measurement --dataset NAME  the measurement and tables of a study
    python -m tools.ship seed FOLDER --dataset NAME  the tables of a network beside the default one
    python -m tools.ship layers --dataset NAME       the tables of a convolutional network

Weights are rounded to fp16, and what the rounding costs is measured and written into the manifest. A study's
measurement and tables are copied beside them, so that the book can be read, and drawn again, without images, weights or
a GPU. The picture in the README is drawn from them.
"""

import io
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import tyro
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from cctlib import figures, stages
from cctlib.claims import judge, seeds
from cctlib.claims.rules import SUB_BLOCKS
from cctlib.data import images as data
from cctlib.errors import UserError
from cctlib.figures.node import look_at, typical
from cctlib.heads.stage import ownership
from cctlib.model import manifest
from cctlib.model.manifest import Model
from cctlib.profiles import resolve_profile
from cctlib.snp import maps, measure
from cctlib.snp.measure import Measurement
from cctlib.snp.probe import READOUT
from cctlib.study import Layers, Study, measured_study, open_layers, open_study, resolve_device
from cctlib.training import run, trainer
from tools.hero import hero
from tools.reproduce import later_stages

HERO = stages.PACKAGE.parent / "book" / "_static" / "hero.png"
LARGEST = 20_000_000  # bytes of one file in git


def ship_run(folder: Path, name: str = "", *, default: bool, device: torch.device) -> Model:
    """Ship the weights that `cctlib train` left in `folder`, in fp16, with their log, as `artifacts/<data set>/<name>`.

    name: that of the model if none is given. default: make it the data set's only default. Where other weights shipped
    under that name, their measurement goes.
    Raises `UserError` for a run that has not come to its end, and when its images are no longer what they were.
    """
    weights = folder / trainer.WEIGHTS
    if not weights.is_file():
        raise UserError(
            f"{folder} holds no {weights.name}; its training has not come to its end, go on with: cctlib train --resume"
        )
    record = stages.read_json(folder / stages.RUN)
    dataset, recipe = record["data"]["dataset"], record["recipe"]
    if dataset not in data.DATASETS:
        raise UserError(f"{folder} was trained on {dataset}; only models of data sets with a name of their own ship")
    judged = [data.load(dataset, split, image_size=recipe["image_size"]) for split in ("held-out", "test")]
    if judged[0].fingerprint != record["data"]["held-out"]:
        raise UserError(
            f"the held-out images of {dataset} are not those of the training in {folder}; "
            "ship from where its images are as they were"
        )
    original = run.write_model(weights, folder, judged, device=device)
    name = name or recipe["model"]
    destination = stages.shipped() / dataset / name
    rounded = _ship_weights(weights, destination)
    with stages.replacing(destination / stages.LOG) as temporary:
        shutil.copyfile(folder / stages.LOG, temporary)
    if default:
        _no_other_default(destination)
    unrounded = {"sha256": original.manifest.sha256, "accuracy": original.manifest.accuracy}
    return run.write_model(rounded, folder, judged, device=device, name=name, default=default, unrounded=unrounded)


def _ship_weights(weights: Path, destination: Path) -> Path:
    """Write the weights in fp16. Where other weights were there, their manifest and their measurement go first."""
    rounded = destination / trainer.WEIGHTS
    with stages.replacing(rounded) as temporary:
        save_file({name: value.half().contiguous() for name, value in load_file(weights).items()}, temporary)
        if rounded.is_file() and stages.sha256_file(rounded) != stages.sha256_file(temporary):
            (destination / manifest.FILE).unlink(missing_ok=True)
            _remove_measurement(destination)
    return rounded


def _remove_measurement(folder: Path) -> None:
    for pattern in ("measurement.*", "*.parquet", f"*.{stages.PROVENANCE}"):
        for path in folder.glob(pattern):
            path.unlink()


def _no_other_default(destination: Path) -> None:
    for path in destination.parent.glob(f"*/{manifest.FILE}"):
        if path.parent != destination:
            stages.write_json(path, stages.read_json(path) | {"default": False})


def ship_study(study: Study) -> Path:
    """Copy a study's measurement and tables to its model's folder, in place of those that shipped before.

    Raises `UserError` for a study that was itself opened from shipped files, and for a file too large for git.
    """
    folder = study.model.folder
    if study.source != "measured":
        raise UserError("this study was opened from the files that ship; measure one with profile quick or full")
    made = {stage: study.folders[stage] for stage in ("measure", "tables")} | later_stages(study)
    files = {
        f"{stage}.{path.name}" if path.name == stages.PROVENANCE else path.name: path
        for stage, home in made.items()
        for path in sorted(home.iterdir())
        if path.name not in (stages.RECORD, measure.POOLED, "shuffled.parquet")
    }
    with tempfile.TemporaryDirectory() as work:
        measure.save(_lean(study.measurement), Path(work))
        files |= {path.name: path for path in Path(work).iterdir()}
        for path in files.values():
            if path.stat().st_size > LARGEST:
                raise UserError(
                    f"{path} has {path.stat().st_size:,} bytes, more than the {LARGEST:,} that one file may have"
                )
        _remove_measurement(folder)
        for name, path in files.items():
            shutil.copyfile(path, folder / name)
    if study.dataset == "cifar100" and study.model.manifest.default:
        draw_hero()
    return folder


def _lean(measurement: Measurement) -> Measurement:
    """Without the arrays that the table `alternatives` alone is made of, half of all: the table itself ships."""
    kept = {
        site: replace(values, mu={split: mu for split, mu in values.mu.items() if split != measure.NODEWISE})
        for site, values in measurement.sites.items()
    }
    readout = {variant: by_site for variant, by_site in measurement.alternatives.items() if variant == READOUT}
    return replace(measurement, sites=kept, alternatives=readout)


def measured_seed(folder: str, dataset: str, runs: Path, device: torch.device) -> Study:
    """What is compared from seed to seed, measured with profile full: no variants, and only sites that claims speak of.

    Raises `UserError` as `open_study`.
    """
    full = resolve_profile("full", device)
    assert full is not None
    probe = replace(full.probe, probed=SUB_BLOCKS, swapped=(), short=())
    return measured_study(dataset, folder, replace(full, probe=probe), runs, device)


def ship_seed(study: Study, name: str = "") -> Path:
    """Ship what is compared from seed to seed with the manifest and the log of the training, as
    `artifacts/<data set>/<name>`: neither weights nor arrays, so that many seeds stay small.

    name: `<model>-seed<number>` if none is given.

    Raises `UserError` for the default model itself, for a network whose training is not recorded, and where one that
    was trained otherwise has that name.
    """
    own, default = study.model.manifest, manifest.find(study.dataset)
    kind = seeds.trained_on(own)
    known = default and (seeds.trained_on(default.manifest), default.manifest.seed)
    if kind is None or (kind, own.seed) == known:
        raise UserError(
            f"the network in {study.model.folder} is the default one of {study.dataset}, or does not say how it was "
            "trained; tables alone ship of others"
        )
    destination = stages.shipped() / study.dataset / (name or f"{own.name}-seed{own.seed}")
    if destination.is_dir() and seeds.trained_on(manifest.open_model(destination).manifest) != kind:
        raise UserError(f"{destination} holds a network that was trained otherwise; give this one another --name")
    tables = seeds.tables(study, ownership(study), judge.along(judge.encoders(study)))
    stages.write_tables(tables, destination)
    for file in (manifest.FILE, stages.LOG):
        shutil.copyfile(study.model.folder / file, destination / file)
    shutil.copyfile(study.folders["heads"] / stages.PROVENANCE, destination / seeds.RECORD)
    return destination


def ship_layers(layers: Layers) -> Path:
    """Copy the tables of a convolutional network to its model's folder, in place of those that shipped before."""
    destination = layers.model.folder
    if layers.folder == destination:
        raise UserError("these are the tables that ship; measure with profile quick or full")
    _remove_measurement(destination)
    for name in (maps.ABOUT, *(f"{table}.parquet" for table in maps.NAMES)):
        shutil.copyfile(layers.folder / name, destination / name)
    shutil.copyfile(layers.folder / stages.PROVENANCE, destination / f"layers.{stages.PROVENANCE}")
    return destination


def draw_hero(path: Path = HERO) -> Path:
    """Draw the README's picture from the measurement that ships with CIFAR-100's default model.

    The measurement's hash goes into the file, for a test to compare. The nodes are those of median noise at the first
    and the last encoder's `ff`: nobody picked them.
    """
    study = open_study("cifar100", profile="shipped", device="cpu")
    places = [f"enc{m}/ff" for m in (1, study.measurement.encoders)]
    first, last = (
        look_at(*study.measurement[place].tensors(), place, typical(study.tables["nodes"], place)) for place in places
    )
    figure = hero(first, last, study.tables["by_theta"])
    source = PngInfo()
    source.add_text("Source", stages.sha256_file(study.model.folder / measure.FILE))
    with stages.replacing(path) as temporary:
        Image.open(io.BytesIO(figures.to_png(figure, dpi=150))).save(temporary, "PNG", optimize=True, pnginfo=source)
    return path


def weights(folder: Path, /, name: str = "", default: bool = False, device: str = "auto") -> None:
    """Ship the weights of a finished training.

    Args:
        folder: that `cctlib train` wrote.
        name: under which they ship; that of the model where none is given.
        default: make it the model that the book shows for its data set.
        device: cpu, cuda, or auto.
    """
    model = ship_run(folder, name, default=default, device=resolve_device(device))
    assert model.manifest.accuracy is not None
    print(f"wrote {model.folder}: {model.manifest.accuracy['test']:.2%} of the test images")


def measurement(
    dataset: str = "cifar100", model: str = "default", profile: str = "full", runs: str = "runs", device: str = "auto"
) -> None:
    """Ship the measurement and the tables of a study, measuring what is not measured yet."""
    print(f"wrote {ship_study(open_study(dataset, model, profile, runs, device))}")


def seed(folder: str, /, name: str = "", dataset: str = "cifar100", runs: str = "runs", device: str = "auto") -> None:
    """Ship the tables of a network beside the default one, for what comes back from seed to seed, measuring it first.

    Args:
        folder: that `cctlib train` wrote.
        name: under which they ship; that of the model and its seed where none is given.
    """
    study = measured_seed(folder, dataset, stages.from_here(runs), resolve_device(device))
    print(f"wrote {ship_seed(study, name)}")


def layers(
    dataset: str = "cifar100", model: str = "vgg_11", profile: str = "full", runs: str = "runs", device: str = "auto"
) -> None:
    """Ship the tables of a convolutional network, measuring what is not measured yet."""
    print(f"wrote {ship_layers(open_layers(dataset, model, profile, runs, device))}")


if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"weights": weights, "measurement": measurement, "seed": seed, "layers": layers}, prog="tools.ship"
        )
    except UserError as error:
        sys.exit(f"tools.ship: {error}")
