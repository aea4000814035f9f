"""Model folders: weights, and the one manifest that says what they are.

    <folder>/manifest.json         the content of `Manifest`
    <folder>/weights.safetensors   parameter names of the CCT authors' release
    <folder>/log.jsonl             the training curve (optional)
    <folder>/measurement.json ...  what the book shows where the data set is not on this machine (optional)

`write_manifest` makes one: at the end of a training, when a model ships, and for weights from elsewhere. `open_model`
reads one and refuses what is damaged. `find` gives a study its model, after comparing it with the study's data set.
Models that ship are in `artifacts/<data set>/<name>/`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from cctlib import stages
from cctlib.data.datasets import DATASETS, describe
from cctlib.data.images import normalise
from cctlib.errors import UserError
from cctlib.model import cct, checkpoints

FILE, MEASUREMENT = "manifest.json", "measurement.json"
DEFAULT = "default"  # the model that a data set's study takes where none is named

T = TypeVar("T")


@dataclass(frozen=True)
class Training:
    """How weights came about."""

    recipe: dict[str, Any]  # all settings, as `training.recipes.from_dict` takes them
    images: int  # that were learned from
    passes: int  # images shown in the whole training, repetitions included
    minutes: float
    environment: dict[str, str | int]  # device, versions, number of processes, and the commit of the code
    log: str  # file beside the weights


@dataclass(frozen=True)
class Unrounded:
    """The weights before they were rounded to ship."""

    sha256: str
    accuracy: dict[str, float]  # by split


@dataclass(frozen=True)
class Manifest:
    """What weights are. What is not known of them is None.

    Raises `UserError` for values that cannot be.
    """

    name: str  # for people and files, as cct_7_3x2
    config: cct.CCTConfig
    weights: str  # file beside the manifest
    sha256: str  # of that file, in hex
    normalisation: dict[str, list[float]]  # mean and std of the three channels, of pixels between 0 and 1
    labels: list[str] | None = None  # index = label
    dataset: str | None = None  # with its split, as `data.load` takes it
    data: dict[str, str] | None = None  # fingerprints of the images, by split
    seed: int | None = None
    default: bool = False  # whether the data set's study takes this model where none is named
    training: Training | None = None
    accuracy: dict[str, float] | None = None  # share of the images of a split that are classified correctly
    accuracy_per_label: dict[str, float] | None = None  # the same share for each label, and the mean over labels
    unrounded: Unrounded | None = None
    measured: dict[str, str] | None = None  # where the accuracies were measured: device, versions, commit

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise UserError(f"sha256 is {self.sha256!r}; expected 64 hexadecimal digits")
        if Path(self.weights).name != self.weights:
            raise UserError(f"weights is {self.weights!r}; expected the name of a file in the same folder")
        sizes = {name: len(values) for name, values in self.normalisation.items()}
        if sizes != {"mean": 3, "std": 3} or min(self.normalisation["std"]) <= 0:
            raise UserError("normalisation is not a mean and a positive std of three channels each")
        if self.labels is not None and len(self.labels) != self.config.num_classes:
            raise UserError(f"labels has {len(self.labels)} names, config has num_classes {self.config.num_classes}")
        for name, shares in (("accuracy", self.accuracy), ("accuracy_per_label", self.accuracy_per_label)):
            if not all(0 <= share <= 1 for share in (shares or {}).values()):
                raise UserError(f"{name} is {shares}; expected shares between 0 and 1")


@dataclass(frozen=True)
class Model:
    """One model folder. The weights are compared with the manifest whenever they are loaded."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """Name for people and files, as `cct_7_3x2`."""
        return self.manifest.name

    @property
    def config(self) -> cct.CCTConfig:
        """The network's configuration."""
        return self.manifest.config

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights file, in hex."""
        return self.manifest.sha256

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides the network's outputs: weights, configuration, normalisation."""
        return stages.sha256_json([self.weights_hash, asdict(self.config), self.manifest.normalisation])

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (uint8) to the network's input, with the constants that it was trained with."""
        return normalise(pixels, **self.manifest.normalisation)

    def network(self, device: torch.device | str, attention: str = "explicit") -> cct.CCT:
        """The network in eval mode, frozen, in fp32 on `device`.

        Raises `UserError` when the weights are missing or are not those of the manifest.
        """
        network = checkpoints.load_weights(self.weights(), self.config, attention=attention)
        return network.requires_grad_(False).to(device)

    def weights(self) -> Path:
        """The weights file. Raises `UserError` when it is missing or is not that of the manifest."""
        path = self.folder / self.manifest.weights
        if not path.is_file():
            raise UserError(f"{path} is missing; the manifest beside it names it, restore it or train again")
        sha256 = stages.sha256_file(path)
        if sha256 != self.weights_hash:
            raise UserError(
                f"{path} has SHA-256 {sha256[:12]}, its manifest says {self.weights_hash[:12]}; restore the file"
            )
        return path

    def check(self, dataset: str) -> "Model":
        """This model, if it belongs to a data set: to its split and labels, its own weights and measurement.

        Raises `UserError` when it does not.
        """
        described, ours = describe(dataset), self.manifest.dataset
        if self.config.num_classes != len(described.names):
            raise UserError(
                f"the model in {self.folder} knows {self.config.num_classes} labels, {dataset} has "
                f"{len(described.names)}; use the data set that it was trained on, or another model"
            )
        for label, (here, there) in enumerate(
            zip(self.manifest.labels or described.names, described.names, strict=True)
        ):
            if here != there:
                raise UserError(
                    f"label {label} is {here!r} in {self.folder / FILE} and {there!r} in {dataset}; "
                    "use the data set that the model was trained on, or another model"
                )
        if ours in DATASETS and dataset in DATASETS and ours != dataset:
            raise UserError(
                f"the model in {self.folder} was trained on {ours}, and {dataset} may hold its training images among "
                f"the test images; use --dataset {ours}, or another model"
            )
        self.weights()
        self._check_measurement()
        return self

    def _check_measurement(self) -> None:
        path = self.folder / MEASUREMENT
        if not path.is_file():
            return
        try:
            weights = stages.read_json(path)["about"]["weights"]
        except (KeyError, TypeError):
            raise UserError(f"{path} does not say which weights it measured; remove it and measure again") from None
        if weights != self.weights_hash:
            raise UserError(
                f"{path} was measured with weights {str(weights)[:12]}, those beside it are {self.weights_hash[:12]}; "
                "remove it and measure again"
            )


def find(dataset: str, model: str = DEFAULT) -> Model | None:
    """The model of a data set that ships under that name, or is in the folder that `model` names; checked.

    None when the data set has no default model. Raises `UserError` when a model other than the default is asked for
    and is not there, when there are two defaults, and when the model does not belong to the data set.
    """
    home = stages.shipped() / dataset
    if model == DEFAULT:
        defaults = [shipped for shipped in _shipped(home) if shipped.manifest.default]
        if len(defaults) > 1:
            raise UserError(f"{home} has several default models: {', '.join(each.folder.name for each in defaults)}")
        return defaults[0].check(dataset) if defaults else None
    for folder in (Path(model), home / model):
        if (folder / FILE).is_file():
            return open_model(folder).check(dataset)
    if Path(model).is_dir():
        raise UserError(
            f"{model} holds no {FILE}; a training writes it at its end (cctlib train --resume), "
            "and for other weights cctlib.model.manifest.write_manifest does"
        )
    names = ", ".join(shipped.folder.name for shipped in _shipped(home)) or "none"
    raise UserError(f"no model {model!r} for {dataset}; shipped are: {names}; or name a folder with a {FILE}")


def _shipped(home: Path) -> list[Model]:
    return [open_model(path.parent) for path in sorted(home.glob(f"*/{FILE}"))]


def open_model(folder: Path) -> Model:
    """The model in `folder`. Raises `UserError` when its manifest is missing or damaged, naming the entry."""
    path = folder / FILE
    return Model(folder, _parsed(Manifest, stages.read_json(path), str(path)))


def write_manifest(folder: Path, *, name: str, config: cct.CCTConfig, weights: Path, **entries: object) -> Model:
    """Write the manifest of weights in a folder, with their hash, and return the model.

    `entries` are the other fields of `Manifest`; `normalisation` is one that must be given.
    Raises `UserError` for entries that a manifest cannot have; nothing is written then.
    """
    given = {"name": name, "config": config, "weights": weights.name, "sha256": stages.sha256_file(weights), **entries}
    manifest = _parsed(Manifest, json.loads(json.dumps(given, default=asdict)), str(folder / FILE))
    return save(folder, manifest)


def save(folder: Path, manifest: Manifest) -> Model:
    """Write a manifest into a folder; what is not known is left out."""
    stages.write_json(folder / FILE, {name: value for name, value in asdict(manifest).items() if value is not None})
    return Model(folder, manifest)


def _parsed(kind: type[T], entries: object, where: str) -> T:
    """A dataclass from JSON, its entries compared with the types of its fields."""
    if not isinstance(entries, Mapping):
        raise UserError(f"{where} is {_short(entries)}; expected entries by name")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in entries:
        if name not in known:
            raise UserError(f"{where} has an entry {name!r}, which is not known; known are {', '.join(known)}")
    values = {}
    for name, field in known.items():
        if name not in entries:
            # A configuration is stored whole: a default for a missing entry could be another network's.
            if field.default is MISSING or kind is cct.CCTConfig:
                raise UserError(f"{where} lacks the entry {name!r}; restore the file, or write it anew")
            continue
        value, inner = entries[name], [part for part in (field.type, *get_args(field.type)) if is_dataclass(part)]
        if inner and value is not None:
            value = _parsed(inner[0], value, f"{where}: {name}")  # type: ignore[arg-type]
        try:
            check_type(value, field.type, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError:
            expected = field.type.__name__ if isinstance(field.type, type) else str(field.type)
            raise UserError(f"{where}: {name} is {_short(value)}; expected {expected}") from None
        values[name] = value
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
