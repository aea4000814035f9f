"""A study: one data set, one model, one profile, taken from data to tables (the flow of `make reproduce`).

    data -> (train) -> probes -> measurement -> tables

Each arrow is a stage (`stages.stage`): skipped when its result is whole, resumed when it was killed. Notebooks call
`open_study` and draw; the command line calls the same functions.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, cast

import pandas as pd
import torch

from cctlib import stages
from cctlib.data import images as data
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.model import manifest
from cctlib.model.cct import CCT
from cctlib.model.manifest import Model
from cctlib.model.precision import Precision, arithmetic
from cctlib.model.vgg import VGGConfig
from cctlib.profiles import Profile, resolve_profile
from cctlib.snp import maps, measure, stage, tables
from cctlib.snp.measure import Measurement
from cctlib.training import run
from cctlib.training.recipes import fitted, recipe_for


def resolve_device(name: str = "auto") -> torch.device:
    """The device to compute on; `auto` is the GPU where there is one.

    Raises `UserError` for a device that torch does not have here, or that holds no values (`meta`).
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here: {reason}; use cpu, cuda or auto") from None


class Missing(UserError):
    """A measurement or tables that do not ship and cannot be made here."""


@dataclass
class Study:
    """A measured network, with the tables that figures and claims are made from.

    `measurement`: the arrays (see `measure.Measurement`). `tables`: DataFrames by name (see `tables.py`). `model`: the
    model folder. `source`: 'measured' (computed here from images) or 'shipped' (read from the files that come with the
    model). `folders`: of the stages that made it, by name; `home`: the folder that holds them; `profile`: how much they
    computed. A shipped study has no folders and no profile; `shipped_stages` are those whose results it has read.
    """

    dataset: str
    model: Model
    measurement: Measurement
    tables: Mapping[str, pd.DataFrame]
    source: Literal["measured", "shipped"]
    device: torch.device
    folders: dict[str, Path]
    home: Path = Path("runs")
    profile: Profile | None = None
    shipped_stages: dict[str, None] = field(default_factory=lambda: dict.fromkeys(("measure", "tables")))

    @property
    def provenance(self) -> dict[str, str]:
        """What the line under each figure says: read from the records of measurement and stages, never typed.

        Commit, device, precision and attention are those of all stages; where stages differ, each value is followed by
        the names of its own.
        """
        about = dict(self.measurement.about)
        if self.source == "shipped":
            about["note"] = "shipped measurement, not made here"
            files = {name: self.model.folder / f"{name}.{stages.PROVENANCE}" for name in self.shipped_stages}
        else:
            files = {name: folder / stages.PROVENANCE for name, folder in self.folders.items()}
        records = {name: stages.read_json(path) for name, path in files.items() if path.is_file()}
        for key in ("commit", "device", "precision", "attention"):
            made: dict[str, list[str]] = {}
            for name, record in records.items():
                if key in record:
                    made.setdefault(str(record[key]), []).append(name)
            if made:
                parts = [f"{value} ({', '.join(names)})" for value, names in made.items()]
                about[key] = ", ".join(made if len(made) == 1 else parts)
        return about

    def images(self, split: str = "test") -> Images | None:
        """The images that the measurement of a split was made from, in its order; None where they are not here."""
        count = self.measurement.about["per_label"][split]
        try:
            return load_images(self.dataset, split, count, self.model, download=False)
        except data.DataUnavailable:
            return None

    def network(self) -> CCT:
        """The network, frozen, on the study's device."""
        return cast(CCT, self.model.network(self.device))

    def later_stage(
        self,
        name: str,
        room: str,
        compute: Callable[[Path], None],
        settings: Mapping[str, object],
        images: Mapping[str, Images] | None = None,
        precision: Precision = "auto",
    ) -> Path:
        """The folder of a stage that reads the measurement (see `stages.stage`), found or made now, in `folders`."""
        reads: dict[str, Path | str] = {"model": self.model.identity, "measurement": self.folders["measure"]}
        self.folders[name] = stages.stage(
            self.home,
            name,
            compute,
            room=room,
            reads=reads | {split: part.fingerprint for split, part in (images or {}).items()},
            settings=settings,
            arithmetic=arithmetic(self.device, precision),
            device=self.device,
        )
        return self.folders[name]

    def shipped_tables(self, names: Sequence[str], *made_by: str) -> dict[str, pd.DataFrame]:
        """Tables that ship with the model, by name. made_by: the stages that made them; the first is a command, too.

        Raises `Missing`, with the command that makes them, where one does not ship.
        """
        try:
            found = stages.read_tables(self.model.folder, names)
        except UserError:
            raise Missing(
                f"{', '.join(names)} did not ship with {self.model.name} of {self.dataset}, and need its images; where "
                f"they are, run: cctlib {made_by[0]} --dataset {self.dataset} --profile quick"
            ) from None
        self.shipped_stages.update(dict.fromkeys(made_by))
        return found


def load_images(dataset: str, split: str, per_label: int | None, model: Model, download: bool = True) -> Images:
    """A split at the model's image size, or the first `per_label` images of each label of it."""
    images = data.load(dataset, split, image_size=model.config.image_size, download=download)
    return images if per_label is None else images.subset(per_label=per_label)


def open_study(
    dataset: str = "cifar100",
    model: str = "default",
    profile: str = "auto",
    runs: Path | str = "runs",
    device: str = "auto",
) -> Study:
    """Measure (or find measured) a model on a data set.

    dataset: `cifar100`, `flowers102`, `flowers102-kaggle`, `demo`, or `folder:PATH`. model: a shipped name, a folder
    with a manifest.json, or `default`. profile: `quick`, `full`, `scratch` (train first), `shipped` (read what comes
    with the model), or `auto`. Raises `UserError` for bad names, and where neither images nor a shipped measurement can
    be had.
    """
    runs, where = stages.from_here(runs), resolve_device(device)
    chosen = resolve_profile(profile, where)
    if chosen is None:
        return shipped_study(dataset, model, where)
    try:
        return measured_study(dataset, model, chosen, runs, where)
    except data.DataUnavailable as unavailable:
        if chosen.name == "scratch":
            raise
        try:
            study = shipped_study(dataset, model, where)
        except Missing:
            raise unavailable from None
        print(f"{unavailable}\nGoing on from the measurement that ships with the model.", file=sys.stderr, flush=True)
        return study


def shipped_study(dataset: str, model: str, device: torch.device) -> Study:
    """The study that comes with a model.

    Raises `Missing` when none does, `UserError` for an unknown data set and for a network that is no CCT.
    """
    found = manifest.find(dataset, model)
    if found is None or not found.cct or not (found.folder / measure.FILE).is_file():
        if not dataset.startswith("folder:"):  # with which nothing ships, whether it is there or not
            data.describe(dataset)
        raise Missing(
            f"no measurement ships with model {model!r} of {dataset}; it has to be measured, which needs the images"
        )
    made = stages.read_tables(found.folder, tables.NAMES)
    return Study(dataset, found, measure.load(found.folder), made, "shipped", device, folders={})


@dataclass(frozen=True)
class Layers:
    """A measured convolutional network: its model, the tables of `snp.maps` by name, and where they come from."""

    model: Model
    folder: Path
    tables: Mapping[str, pd.DataFrame]
    provenance: dict[str, str]


def open_layers(
    dataset: str, model: str = "vgg_11", profile: str = "auto", runs: Path | str = "runs", device: str = "auto"
) -> Layers:
    """Measure (or find measured) the layers of a convolutional network; arguments and errors as `open_study`."""
    where, runs = resolve_device(device), stages.from_here(runs)
    found = manifest.find(dataset, model)
    if found is None:
        raise UserError(f"no network of {dataset} comes with cctlib; give the folder of a trained one as the model")
    if not isinstance(found.config, VGGConfig):
        raise UserError(
            f"the model in {found.folder} is a {found.name}, and layers are those of a convolutional network; "
            f"a transformer is measured by: cctlib snp --model {found.folder.name}"
        )
    chosen = resolve_profile(profile, where)
    if chosen is None:
        folder, record = found.folder, found.folder / f"layers.{stages.PROVENANCE}"
    else:
        counts = {"train": chosen.layers_train, "held-out": chosen.held_out, "test": chosen.test}
        images = {split: load_images(dataset, split, count, found) for split, count in counts.items()}
        settings = maps.LayerSettings(probe=chosen.probe, thetas=chosen.thetas, draws=chosen.rotations)
        spec = data.describe(dataset)
        about = {"dataset": spec.title, "model": found.name, "weights": found.manifest.sha256}
        about |= {"profile": chosen.title}
        folder = maps.layers_stage(found, images, settings, about, runs / spec.key, where)
        record = folder / stages.PROVENANCE
    written = stages.read_json(folder / maps.ABOUT)
    made = {key: str(value) for key, value in stages.read_json(record).items() if key in ("commit", "device")}
    return Layers(found, folder, stages.read_tables(folder, maps.NAMES), written | made)


def convolutional(dataset: str) -> Layers | None:
    """The convolutional network that ships for a data set with its tables, if there is one."""
    folders = sorted(path.parent for path in (stages.shipped() / dataset).glob(f"*/{maps.ABOUT}"))
    return open_layers(dataset, str(folders[0]), "shipped") if folders else None


def beside(study: Study) -> dict[str, Study]:
    """The study, and those that ship with default models of other data sets, by title in the order of `DATASETS`."""
    found = {}
    for dataset in dict.fromkeys([*data.DATASETS, study.dataset]):
        with suppress(Missing):
            other = study if dataset == study.dataset else shipped_study(dataset, "default", study.device)
            found[other.provenance["dataset"]] = other
    return found


def measured_study(dataset: str, model: str, profile: Profile, runs: Path, device: torch.device) -> Study:
    """Run the stages that are not done yet, and return the study."""
    spec = data.describe(dataset)
    dataset, home = spec.name, runs / spec.key  # one folder is one data set, however its path is written
    known = None if profile.name == "scratch" else manifest.find(dataset, model)
    if known is None and profile.name != "scratch" and dataset != "demo" and "google.colab" in sys.modules:
        raise UserError(
            f"no trained network of {dataset} comes with cctlib, and training one takes hours: set profile = "
            '"scratch" to train it all the same, or give the folder of a trained one as the model'
        )
    network = known or train_model(dataset, home, device)
    heads = network.cct.heads  # refuses a convolutional network before anything is computed
    per_label = {"train": profile.train, "held-out": profile.held_out, "test": profile.test}
    train, held_out, test = (load_images(dataset, split, count, network) for split, count in per_label.items())
    about = {
        "dataset": spec.title if spec.root is None else dataset,
        "model": network.name,
        "weights": network.manifest.sha256,
        "profile": profile.title,
        "per_label": per_label,
    }
    probes = stage.probe_stage(network, train, profile.probe, home, device)
    measured = stage.measure_stage(
        network, probes, held_out, test, profile.probe, profile.null_draws, about, home, device
    )
    tabled = stage.tables_stage(measured, profile.thetas, profile.label_orders, profile.rotations, heads, home, device)
    folders = {} if known else {"train": network.folder}
    folders |= {"probe": probes, "measure": measured, "tables": tabled}
    result, made = measure.load(measured), stages.read_tables(tabled, tables.NAMES)
    return Study(dataset, network, result, made, "measured", device, folders, home, profile)


def train_model(dataset: str, home: Path, device: torch.device) -> Model:
    """Train the data set's own recipe; the stage's folder is a model folder."""
    recipe = recipe_for(dataset, device)
    images = {split: data.load(dataset, split, image_size=recipe.image_size) for split in data.SPLITS}
    recipe = fitted(recipe, len(images["train"]))
    length = f"{recipe.epochs} epochs of {len(images['train']):,} images in batches of {recipe.batch}"
    print(f"training a network on {dataset} first: recipe {recipe.name}, {length}", file=sys.stderr)

    def compute(work: Path) -> None:
        run.train(recipe, images["train"], images["held-out"], work, test=images["test"], device=device, resume=True)

    folder = stages.stage(
        home,
        "train",
        compute,
        room="training",
        reads={split: part.fingerprint for split, part in images.items()},
        settings=asdict(recipe),
        arithmetic=arithmetic(device, recipe.precision),
        device=device,
    )
    return manifest.open_model(folder)
