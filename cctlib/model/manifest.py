"""Model folders: weights, and the one manifest that says what they are.

    <folder>/manifest.json         the content of `Manifest`
    <folder>/weights.safetensors   parameter names of the CCT authors' release (other seeds ship without)
    <folder>/log.jsonl             the training curve (optional)
    <folder>/measurement.json ...  what the book shows where the data set is not on this machine (optional)

`write_manifest` makes one: at the end of a training, when a model ships, and for weights from elsewhere. `open_model`
reads one and refuses what is damaged. `find` gives a study its model, after comparing it with the study's data set.
Models that ship are in `artifacts/<data set>/<name>/`.
"""

import json
import reprlib
from dataclasses import MISSING, asdict, dataclass, fields
from inspect import formatannotation
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from cctlib import stages
from cctlib.data.datasets import DATASETS, describe
from cctlib.data.images import normalise
from cctlib.errors import UserError
from cctlib.model import checkpoints, precision
from cctlib.model.cct import CCTConfig
from cctlib.model.networks import Config, Network
from cctlib.model.vgg import VGGConfig

FILE, MEASUREMENT = "manifest.json", "measurement.json"
DEFAULT = "default"  # the model that a data set's study takes where none is named


@dataclass(frozen=True)
class Training:
    """How weights came about."""

    recipe: dict[str, Any]  # all settings, as `training.recipes.from_dict` takes them
    images: int  # that were learned from
    passes: int  # images shown in the whole training, repetitions included
    minutes: float
    environment: dict[str, str | int]  # device, versions, number of processes, and the commit of the code
    log: str  # file beside the weights
    # Of the weights that it began with: their sha256, and recipe, passes and minutes of the training that made them.
    start: dict[str, Any] | None = None  # None, or all of it None: random ones


@dataclass(frozen=True)
class Manifest:
    """What weights are. What is not known of them is None. Raises `UserError` for values that cannot be."""

    name: str  # for people and files, as cct_7_3x2
    config: Config
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
    unrounded: dict[str, Any] | None = None  # sha256 and accuracy of the weights before they were rounded to ship
    measured: dict[str, str] | None = None  # where the accuracies were measured: device, versions, commit

    def __post_init__(self) -> None:
        sizes = {name: len(values) for name, values in self.normalisation.items()}
        if sizes != {"mean": 3, "std": 3} or min(self.normalisation["std"]) <= 0:
            raise UserError("normalisation is not a mean and a positive std of three channels each")


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
    def config(self) -> Config:
        """The network's configuration."""
        return self.manifest.config

    @property
    def cct(self) -> CCTConfig:
        """The configuration of a CCT. Raises `UserError` for another network, which has no encoders and heads."""
        if not isinstance(self.config, CCTConfig):
            raise UserError(
                f"the model in {self.folder} is a {self.name}, and a study is of a CCT; "
                f"a convolutional network is measured by: cctlib layers --model {self.folder.name}"
            )
        return self.config

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides the network's outputs: weights, configuration, normalisation."""
        return stages.sha256_json([self.manifest.sha256, asdict(self.config), self.manifest.normalisation])

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (uint8) to the network's input, with the constants that it was trained with."""
        return normalise(pixels, **self.manifest.normalisation)

    def network(self, device: torch.device | str) -> Network:
        """The network in eval mode, frozen, in fp32 on `device`, with the attention that is faster there.

        Raises `UserError` as `weights` does.
        """
        network = checkpoints.load_weights(self.weights(), self.config, attention=precision.attention(device))
        return network.requires_grad_(False).to(device)

    def weights(self) -> Path:
        """The weights file. Raises `UserError` when it is missing or is not that of the manifest."""
        path = self.folder / self.manifest.weights
        if not path.is_file():
            raise UserError(f"{path} is missing; restore it, or train again by the recipe in {FILE}")
        sha256, recorded = stages.sha256_file(path), self.manifest.sha256
        if sha256 != recorded:
            raise UserError(f"{path} has SHA-256 {sha256[:12]}, its manifest says {recorded[:12]}; restore the file")
        return path

    def check(self, dataset: str) -> "Model":
        """This model, if it belongs to a data set: to its split and labels, its own weights and measurement.

        Raises `UserError` when it does not.
        """
        names, count, trained_on = describe(dataset).names, self.config.num_classes, self.manifest.dataset
        problems = []
        if trained_on in DATASETS and dataset in DATASETS and trained_on != dataset:
            problems.append(f"was trained on {trained_on}, and {dataset} may test with its training images")
        if count != len(names):
            problems.append(f"knows {count} labels, {dataset} has {len(names)}")
        for label, (here, there) in enumerate(zip_longest(self.manifest.labels or names, names)):
            if here != there:
                problems.append(f"has label {label} as {here!r}, {dataset} as {there!r}")
        if problems:
            advice = "use the data set that it was trained on, or another model"
            raise UserError(f"the model in {self.folder} {problems[0]}; {advice}")
        self.weights()
        path = self.folder / MEASUREMENT
        if path.is_file() and dict(stages.read_json(path).get("about") or {}).get("weights") != self.manifest.sha256:
            raise UserError(f"{path} is not of the weights beside it; remove it and measure again")
        return self


def find(dataset: str, model: str = DEFAULT) -> Model | None:
    """The model of a data set that ships under that name, or is in the folder that `model` names; checked.

    None when the data set has no default model. Raises `UserError` when a model other than the default is asked for
    and is not there, when there are two defaults, and when the model does not belong to the data set.
    """
    home = stages.shipped() / dataset
    shipped = [path.parent for path in sorted(home.glob(f"*/{FILE}"))]
    if model == DEFAULT:
        defaults = [each for each in map(open_model, shipped) if each.manifest.default]
        if len(defaults) > 1:
            raise UserError(f"{home} has several default models: {', '.join(each.folder.name for each in defaults)}")
        return defaults[0].check(dataset) if defaults else None
    for folder in (stages.from_here(model), home / model):
        if (folder / FILE).is_file():
            return open_model(folder).check(dataset)
    names = ", ".join(folder.name for folder in shipped if any(folder.glob("*.safetensors"))) or "none"
    raise UserError(
        f"no model {model!r} for {dataset}; shipped are: {names}; or name a folder with a {FILE}: a training writes it "
        "at its end (cctlib train --resume), for other weights cctlib.model.manifest.write_manifest does"
    )


def open_model(folder: Path) -> Model:
    """The model in `folder`. Raises `UserError` when its manifest is missing or damaged, naming the entry."""
    path = folder / FILE
    return Model(folder, _parsed(Manifest, stages.read_json(path), str(path)))


def write_manifest(folder: Path, *, name: str, config: Config, weights: Path, **entries: object) -> Model:
    """Write the manifest of weights in a folder, with their hash, and return the model.

    `entries` are the other fields of `Manifest`; `normalisation` is one that must be given.
    Raises `UserError` for entries that a manifest cannot have; nothing is written then.
    """
    given = {"name": name, "config": config, "weights": weights.name, "sha256": stages.sha256_file(weights), **entries}
    known = {entry: value for entry, value in given.items() if value is not None}
    as_read = json.loads(json.dumps(known, default=asdict))
    model = Model(folder, _parsed(Manifest, as_read, str(folder / FILE)))
    stages.write_json(folder / FILE, as_read)
    return model


def _parsed(kind: type, entries: Any, where: str) -> Any:
    """A dataclass from JSON. Raises `UserError` for entries that are unknown, missing, or of another type."""
    if not isinstance(entries, dict):
        raise UserError(f"{where} is {reprlib.repr(entries)}; expected entries by name")
    known: dict[str, Any] = {field.name: field for field in fields(kind)}
    # A configuration is stored whole: a default for a missing entry could be another network's.
    needed = [name for name, field in known.items() if field.default is MISSING or issubclass(kind, Config)]
    for name in (*needed, *entries):
        if name not in entries:
            raise UserError(f"{where} lacks the entry {name!r}; restore the file, or write it anew")
        if name not in known:
            raise UserError(f"{where} has an entry {name!r}, which is not known; known are {', '.join(known)}")
    values = {}
    for name, value in entries.items():
        if kind is Manifest and value is not None and name in ("config", "training"):  # dataclasses themselves
            of = Training if name == "training" else CCTConfig if "encoders" in value else VGGConfig
            value = _parsed(of, value, f"{where}: {name}")
        try:
            check_type(value, known[name].type, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError:
            expected = formatannotation(known[name].type)
            raise UserError(f"{where}: {name} is {reprlib.repr(value)}; expected {expected}") from None
        values[name] = value
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
