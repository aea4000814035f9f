"""Make the folders under `artifacts/`: what comes with the package (a maintainer's job, `cctlib ship`).

Weights are rounded to fp16, and what the rounding costs is measured and written into the manifest. A study's measurement and
tables are copied beside them, so that the book can be read, and drawn again, without images, weights or a GPU. The picture
in the README is drawn from them.
"""

import io
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from cctlib import figures, stages
from cctlib.data import images as data
from cctlib.data.images import Images, batches
from cctlib.errors import UserError
from cctlib.figures import nodes
from cctlib.model import cct, checkpoints, manifest
from cctlib.model.manifest import Model
from cctlib.model.precision import autocast
from cctlib.snp import measure
from cctlib.study import Study, open_study
from cctlib.training import log, trainer
from cctlib.training.recipes import Recipe, from_dict
from tools.reproduce import later_stages

HERO = stages.PACKAGE.parent / "book" / "_static" / "hero.png"
LARGEST = 20_000_000  # bytes of one file in git


def ship_run(folder: Path, destination: Path | None = None, *, default: bool, device: torch.device) -> Model:
    """`ship_weights` for what `cctlib train` left in `folder`, by default to its place under `artifacts/`.

    The manifest says on which machine, from which commit and for how long it was trained. Raises `UserError` for a run without an
    end, and as `ship_weights`.
    """
    run = stages.read_json(folder / stages.RUN)
    weights = folder / trainer.WEIGHTS
    if not weights.is_file():
        raise UserError(
            f"{folder} holds no {weights.name}; its training has not come to its end, go on with: cctlib train --resume"
        )
    recipe, dataset = from_dict(run["recipe"]), run["data"]["dataset"]
    minutes = round(log.read_log(folder / log.FILE).seconds.max() / 60, 1)
    target = destination or stages.shipped() / dataset / recipe.model
    about = {"minutes": minutes, **run["environment"]}
    return ship_weights(weights, recipe, dataset, target, training=about, default=default, device=device)


def ship_weights(
    weights: Path,
    recipe: Recipe,
    dataset: str,
    destination: Path,
    *,
    training: Mapping[str, object] | None = None,
    default: bool,
    device: torch.device,
) -> Model:
    """Round trained weights to fp16, measure them before and after, and write a model folder at `destination`.

    The recipe says what the network is and at which size it reads images; it goes into the manifest with the number and the
    fingerprint of the training images. `training`: what else there is to say of the run, as its device and its length.
    A log beside the weights goes along. Accuracies are given per image and per label (the mean over labels that have images).
    Raises `UserError` when the weights do not fit the recipe or the data set.
    """
    splits = {split: data.load(dataset, split, image_size=recipe.image_size) for split in data.SPLITS}
    learned = splits.pop("train")
    config = recipe.config(learned.num_labels)
    original = checkpoints.load_weights(weights, config)
    destination.mkdir(parents=True, exist_ok=True)
    rounded = destination / "weights.safetensors"
    with stages.replacing(rounded) as temporary:
        save_file({name: value.half().contiguous() for name, value in original.state_dict().items()}, temporary)
    if (weights.parent / log.FILE).is_file():
        with stages.replacing(destination / log.FILE) as temporary:
            shutil.copyfile(weights.parent / log.FILE, temporary)
    about = {"recipe": asdict(recipe), "images": len(learned), "split": "train, without the held-out images"} | dict(
        training or {}
    )
    model = manifest.write_manifest(
        destination,
        name=recipe.model,
        config=config,
        weights=rounded,
        default=default,
        dataset=dataset,
        normalisation=trainer.constants(learned),
        labels=learned.names,
        training=about,
    )
    before = {split: network_accuracy(original.to(device), model, images, device) for split, images in splits.items()}
    after = {split: network_accuracy(model.network(device), model, images, device) for split, images in splits.items()}
    measured = {
        "accuracy": {split: found[0] for split, found in after.items()},
        "accuracy_per_label": {split: found[1] for split, found in after.items()},
        "accuracy_before_rounding": {split: found[0] for split, found in before.items()},
        "weights_before_rounding": stages.sha256_file(weights),
        "data": {"train": learned.fingerprint} | {split: images.fingerprint for split, images in splits.items()},
        "measured": stages.environment(device),
    }
    stages.write_json(destination / "manifest.json", model.manifest | measured)
    return manifest.open_model(destination)


@torch.no_grad()
def network_accuracy(network: cct.CCT, model: Model, images: Images, device: torch.device) -> tuple[float, float]:
    """Share of the images that the network gets right, and the mean of this share over the labels that have images."""
    right = []
    for pixels, labels in batches(images, 256, device=device):
        with autocast(device):
            right.append(network(model.normalise(pixels)).argmax(1) == labels)
    correct = torch.cat(right).cpu()
    counts = images.labels.bincount(minlength=images.num_labels)
    found = images.labels[correct].bincount(minlength=images.num_labels)
    present = counts > 0
    return correct.double().mean().item(), (found[present] / counts[present].double()).mean().item()


def ship_study(study: Study) -> Path:
    """Copy a study's measurement and tables into its model's folder; its record of images and settings goes along.

    Raises `UserError` for a study that was itself opened from shipped files, or a file too large for git.
    """
    if study.source != "measured":
        raise UserError("this study was opened from the files that ship; measure one with profile quick or full")
    folders = {stage: study.folders[stage] for stage in ("measure", "tables")} | later_stages(study)
    for stage, folder in folders.items():
        for path in sorted(folder.iterdir()):
            if path.name in (stages.RECORD, measure.POOLED):
                continue
            name = f"{stage}.{path.name}" if path.name == stages.PROVENANCE else path.name
            if path.stat().st_size > LARGEST:
                raise UserError(
                    f"{path.name} has {path.stat().st_size:,} bytes, more than the {LARGEST:,} that one file may have"
                )
            shutil.copyfile(path, study.model.folder / name)
    if study.dataset == "cifar100" and study.model.manifest.get("default"):
        draw_hero()
    return study.model.folder


def draw_hero(path: Path = HERO) -> Path:
    """Draw the README's picture from the measurement that ships with CIFAR-100's default model; its hash goes into the file, for
    a test to compare.

    Its nodes are those of median noise at the first and the last encoder's `ff`: nobody picked them.
    """
    study = open_study("cifar100", profile="shipped", device="cpu")
    places = [f"enc{m}/ff" for m in (1, study.measurement.encoders)]
    chosen = [nodes.typical(study.tables["nodes"], place) for place in places]
    seen = [
        nodes.look(*study.measurement[place].tensors(), place, node) for place, node in zip(places, chosen, strict=True)
    ]
    figure = figures.stamp(figures.overview.hero(seen[0], seen[1], study.tables["by_theta"]), study.provenance)
    source = PngInfo()
    source.add_text("Source", stages.sha256_file(study.model.folder / measure.FILE))
    with stages.replacing(path) as temporary:
        Image.open(io.BytesIO(figures.to_png(figure, dpi=150))).save(temporary, "PNG", optimize=True, pnginfo=source)
    return path
