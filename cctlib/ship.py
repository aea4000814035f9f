"""Make the folders under `artifacts/`: what comes with the package (a maintainer's job, `cctlib ship`).

Weights are rounded to fp16, and what the rounding costs is measured and written into the manifest. A study's measurement and
tables are copied beside them, so that the book can be read, and drawn again, without images, weights or a GPU.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from cctlib import artifacts, cct, data, measure, models
from cctlib.data import Images, batches
from cctlib.errors import UserError
from cctlib.models import Model
from cctlib.precision import autocast
from cctlib.study import Study

LARGEST = 20_000_000  # bytes of one file in git


def ship_weights(
    weights: Path,
    variant: str,
    dataset: str,
    training: dict,
    destination: Path,
    *,
    default: bool,
    device: torch.device,
) -> Model:
    """Round trained weights to fp16, measure them before and after, and write a model folder at `destination`.

    `training` is copied into the manifest: it says how, on which images, and for how long the weights were trained.
    Raises `UserError` when the weights do not fit the variant.
    """
    spec = data.DATASETS[dataset]
    config = cct.config(variant, num_classes=spec.num_labels, image_size=spec.image_size)
    destination.mkdir(parents=True, exist_ok=True)
    original = cct.load_weights(weights, config)
    rounded = destination / "weights.safetensors"
    with artifacts.replacing(rounded) as temporary:
        save_file(
            {name: value.half().contiguous() for name, value in original.state_dict().items()}, temporary
        )
    splits = {split: data.load(dataset, split) for split in ("held-out", "test")}
    model = models.write_manifest(
        destination, name=variant, config=config, weights=rounded, default=default, dataset=dataset,
        normalisation={"mean": spec.mean, "std": spec.std}, labels=splits["test"].names, training=training,
    )  # fmt: skip
    networks = {"fp32": original.to(device).eval(), "fp16": model.network(device)}
    accuracy = {
        name: {split: network_accuracy(network, model, images, device) for split, images in splits.items()}
        for name, network in networks.items()
    }
    measured = {
        "accuracy": accuracy["fp16"],
        "accuracy_before_rounding": accuracy["fp32"],
        "weights_before_rounding": artifacts.sha256_file(weights),
        "data": {split: images.fingerprint for split, images in splits.items()},
        "measured": artifacts.environment(device),
    }
    artifacts.write_json(destination / "manifest.json", model.manifest | measured)
    return models.open_model(destination)


@torch.no_grad()
def network_accuracy(network: cct.CCT, model: Model, images: Images, device: torch.device) -> float:
    """Share of the images that the network gets right."""
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for pixels, labels in batches(images, 256, device=device):
        with autocast(device):
            correct += (network(model.normalise(pixels)).argmax(1) == labels).sum()
    return correct.item() / len(images)


def ship_study(study: Study) -> Path:
    """Copy a study's measurement and tables into its model's folder; its record of images and settings goes along.

    Raises `UserError` for a study that was itself opened from shipped files, or a file too large for git.
    """
    if study.source != "measured":
        raise UserError("this study was opened from the files that ship; measure one with profile quick or full")
    for stage in ("measure", "tables"):
        for path in sorted(study.folders[stage].iterdir()):
            if path.name in (artifacts.RECORD, measure.POOLED, "null.csv"):
                continue
            name = f"{stage}.{path.name}" if path.name == artifacts.PROVENANCE else path.name
            if path.stat().st_size > LARGEST:
                raise UserError(
                    f"{path.name} has {path.stat().st_size:,} bytes, more than the {LARGEST:,} that one file may have"
                )
            shutil.copyfile(path, study.model.folder / name)
    return study.model.folder
