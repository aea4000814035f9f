"""Model folders: weights, and a manifest that says what they are.

    <folder>/manifest.json         configuration, normalisation, label names, training, accuracy, hashes
    <folder>/weights.safetensors   parameter names of the CCT authors' release
    <folder>/log.jsonl             the training curve
    <folder>/measurement.npz       what the book shows where the data set is not at hand (optional)

Folders that ship stand under `artifacts/<dataset>/`; a trained one under `runs/`.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from cctlib import stages
from cctlib.data.images import normalise
from cctlib.errors import UserError
from cctlib.model import cct, checkpoints


@dataclass(frozen=True)
class Model:
    """One model folder. `manifest` is its content as read; the weights are verified against it when loaded."""

    folder: Path
    manifest: dict

    @property
    def name(self) -> str:
        """Name for people and files, as `cct_7_3x2`."""
        return self.manifest["name"]

    @property
    def config(self) -> cct.CCTConfig:
        """The network's configuration."""
        known = {field.name for field in fields(cct.CCTConfig)}
        return cct.CCTConfig(**{key: value for key, value in self.manifest["config"].items() if key in known})

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights file, in hex."""
        return self.manifest["weights"]["sha256"]

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides the network's outputs: weights, configuration, normalisation."""
        return stages.sha256_json([self.weights_hash, asdict(self.config), self.manifest["normalisation"]])

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (uint8) to the network's input, with the constants that it was trained with."""
        return normalise(pixels, **self.manifest["normalisation"])

    def network(self, device: torch.device | str, attention: str = "explicit") -> cct.CCT:
        """The network in eval mode, frozen, in fp32 on `device`.

        Raises `UserError` when the weights are missing or are not those of the manifest.
        """
        path = self.folder / self.manifest["weights"]["file"]
        if not path.is_file():
            raise UserError(f"{path} is missing; the manifest beside it names it, restore it or train again")
        found = stages.sha256_file(path)
        if found != self.weights_hash:
            raise UserError(
                f"{path} has SHA-256 {found[:12]}, its manifest says {self.weights_hash[:12]}; restore the file"
            )
        network = checkpoints.load_weights(path, self.config, attention=attention).float().eval().requires_grad_(False)
        return network.to(device)


def open_model(folder: Path) -> Model:
    """The model in `folder`. Raises `UserError` when there is no readable manifest."""
    return Model(folder, stages.read_json(folder / "manifest.json"))


def find(dataset: str, model: str = "default") -> Model | None:
    """The shipped model of a data set by name, or the folder that `model` names; None when the data set has no default.

    Raises `UserError` when a model other than the default is asked for and not found.
    """
    if (Path(model) / "manifest.json").is_file():
        return open_model(Path(model))
    shipped = [
        open_model(path.parent)
        for path in sorted((stages.shipped() / dataset.replace(":", "_")).glob("*/manifest.json"))
    ]
    chosen = [
        entry for entry in shipped if (entry.manifest.get("default") if model == "default" else entry.name == model)
    ]
    if not chosen and model != "default":
        names = ", ".join(entry.name for entry in shipped) or "none"
        raise UserError(
            f"no model {model!r} for {dataset}; shipped are: {names}; or name a folder with a manifest.json"
        )
    return chosen[0] if chosen else None


def write_manifest(folder: Path, *, name: str, config: cct.CCTConfig, weights: Path, **entries: object) -> Model:
    """Write the manifest of a model folder, with the hash of its weights, and return the model."""
    manifest = {
        "name": name,
        "config": asdict(config),
        "weights": {"file": weights.name, "sha256": stages.sha256_file(weights)},
        **entries,
    }
    stages.write_json(folder / "manifest.json", manifest)
    return open_model(folder)
