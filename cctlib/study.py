"""A study: one data set, one model, one profile, taken from data to tables (the flow of `make reproduce`).

    data -> (train) -> probes -> measurement -> tables

Each arrow is a stage (`artifacts.stage`): skipped when its result is whole, resumed when it was killed. Notebooks call `open_study` and
draw; the command line calls the same functions. Where the data set can neither be found nor downloaded, the study is
opened from the measurement that ships with the model, and says so wherever its numbers are shown.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from cctlib import stages
from cctlib.data import images as data
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.model import manifest, sites
from cctlib.model.cct import CCT
from cctlib.model.manifest import Model
from cctlib.model.precision import attention
from cctlib.profiles import Profile, resolve_profile
from cctlib.snp import measure, probe, tables
from cctlib.snp.measure import Measurement
from cctlib.snp.probe import Probes, ProbeSettings


def resolve_device(name: str = "auto") -> torch.device:
    """The device to compute on; `auto` is the GPU where there is one. Raises `UserError` for one that torch does not have here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]}; use cpu, cuda or auto"
        ) from None


class Missing(UserError):
    """Tables that do not ship and cannot be made here."""


@dataclass
class Study:
    """A measured network, with the tables that figures and claims are made from.

    `measurement`: the arrays (see `measure.Measurement`). `tables`: DataFrames by name (see `tables.py`). `model`: the model folder.
    `source`: 'measured' (computed here from images) or 'shipped' (read from the files that come with the model). `folders`: of the
    stages that made it, by name; `home`: the folder that holds them; `profile`: how much they computed. A shipped study has no
    folders and no profile.
    """

    dataset: str
    model: Model
    measurement: Measurement
    tables: Mapping[str, pd.DataFrame]
    source: Literal["measured", "shipped"]
    device: torch.device
    folders: Mapping[str, Path]
    home: Path = Path("runs")
    profile: Profile | None = None

    @property
    def provenance(self) -> dict[str, str]:
        """What the line under each figure says; read from the measurement, never typed."""
        about = self.measurement.about
        return about if self.source == "measured" else about | {"note": "shipped measurement, not made here"}

    def images(self, split: str = "test") -> Images | None:
        """The images that the measurement of a split was made from, in its order; None where the data set is not at hand."""
        if not data.available(self.dataset):
            return None
        count = self.measurement.about["per_label"][split]
        return load_images(self.dataset, split, count, self.model)

    def network(self) -> CCT:
        """The network, frozen, on the study's device."""
        return self.model.network(self.device, attention(self.device))

    @cached_property
    def probes(self) -> Probes:
        """The trained probes. Raises `UserError` for a study from shipped measurements, which hold no probes."""
        if "probe" not in self.folders:
            raise UserError(
                "a study opened from shipped measurements has no probes; measure one with profile quick or full"
            )
        return load_probes(self.folders["probe"], self.model, self.device)

    def shipped_tables(self, names: Sequence[str], command: str) -> dict[str, pd.DataFrame]:
        """Tables that ship with the model, by name. Raises `Missing`, with the `command` that makes them, where one does not."""
        try:
            return stages.read_tables(self.model.folder, names)
        except UserError:
            raise Missing(
                f"{', '.join(names)} did not ship with {self.model.name} of {self.dataset}, and need its images; where they "
                f"are, run: cctlib {command} --dataset {self.dataset} --profile quick"
            ) from None


def load_images(dataset: str, split: str, per_label: int | None, model: Model) -> Images:
    """A split at the model's image size, or the first `per_label` images of each label of it."""
    images = data.load(dataset, split, image_size=model.config.image_size)
    return images if per_label is None else images.subset(per_label=per_label)


def open_study(
    dataset: str = "cifar100",
    model: str = "default",
    profile: str = "auto",
    runs: Path | str = "runs",
    device: str = "auto",
) -> Study:
    """Measure (or find measured) a model on a data set.

    dataset: `cifar100`, `flowers102`, `flowers102-kaggle`, `demo`, or `folder:PATH`. model: a shipped name, a folder with a manifest.json,
    or `default`. profile: `quick`, `full`, `scratch` (train first), `shipped` (read what comes with the model), or `auto`.
    Raises `UserError` for bad names, and where neither images nor a shipped measurement can be had.
    """
    runs, where = Path(runs), resolve_device(device)
    chosen = resolve_profile(profile, where)
    if chosen is None:
        return shipped_study(dataset, model, where)
    try:
        return measured_study(dataset, model, chosen, runs, where)
    except data.DataUnavailable as missing:
        if chosen.name == "scratch" or shipped_model(dataset, model) is None:
            raise
        print(f"{missing}\nGoing on from the measurement that ships with the model.", file=sys.stderr, flush=True)
        return shipped_study(dataset, model, where)


def shipped_model(dataset: str, model: str) -> Model | None:
    """The model, if a measurement comes with it."""
    found = manifest.find(dataset, model)
    return found if found is not None and (found.folder / measure.FILE).is_file() else None


def shipped_study(dataset: str, model: str, device: torch.device) -> Study:
    """The study that comes with a model. Raises `UserError` when none does."""
    found = shipped_model(dataset, model)
    if found is None:
        raise UserError(
            f"no measurement ships with model {model!r} of {dataset}; it has to be measured, which needs the images"
        )
    return Study(dataset, found, measure.load(found.folder), tables.load(found.folder), "shipped", device, folders={})


def beside(study: Study) -> dict[str, Study]:
    """The study, and what ships of the other data sets with a shipped default model; by title, in the order of `data.DATASETS`."""
    found = {}
    for dataset in dict.fromkeys([*data.DATASETS, study.dataset]):
        other = study if dataset == study.dataset else None
        if other is None and shipped_model(dataset, "default") is not None:
            other = shipped_study(dataset, "default", study.device)
        if other is not None:
            found[other.provenance["dataset"]] = other
    return found


def provenance_of(studies: Iterable[Study]) -> dict[str, str]:
    """What the line under a figure of several studies says: all that is said of any of them, once."""
    said: dict[str, list[str]] = {}
    for study in studies:
        for key, value in study.provenance.items():
            said.setdefault(key, []).append(str(value))
    return {key: ", ".join(dict.fromkeys(values)) for key, values in said.items()}


def measured_study(dataset: str, model: str, profile: Profile, runs: Path, device: torch.device) -> Study:
    """Run the stages that are not done yet, and return the study."""
    home = runs / dataset.replace(":", "_").replace("/", "_")
    found = None if profile.name == "scratch" else manifest.find(dataset, model)
    trained = found or train_model(dataset, home, device)
    probes = probe_stage(dataset, trained, profile, home, device)
    measured = measure_stage(dataset, trained, profile, probes, home, device)
    tabled = tables_stage(measured, profile, home, device)
    folders = {"model": trained.folder, "probe": probes, "measure": measured, "tables": tabled}
    return Study(
        dataset,
        trained,
        measure.load(measured),
        tables.load(tabled, measured),
        "measured",
        device,
        folders,
        home,
        profile,
    )


def train_model(dataset: str, home: Path, device: torch.device) -> Model:
    """Train the data set's own recipe; the stage's folder is a model folder."""
    from cctlib.training import run  # late: most studies train nothing
    from cctlib.training.recipes import recipe_for

    recipe = recipe_for(dataset, device)
    images = {split: data.load(dataset, split, image_size=recipe.image_size) for split in ("train", "held-out", "test")}
    inputs = {
        "recipe": asdict(recipe),
        "data": {split: images[split].fingerprint for split in ("train", "held-out")},
        "code": stages.CODE,
    }
    folder = stages.stage(
        home, "train", inputs, lambda work: run.train_model(recipe, images, work, device=device), device=device
    )
    return manifest.open_model(folder)


def probe_stage(dataset: str, model: Model, profile: Profile, home: Path, device: torch.device) -> Path:
    """Train the probes of all sites (Method, section 4). Writes probes.safetensors and history.csv."""
    train_images = load_images(dataset, "train", profile.train, model)
    held_out = load_images(dataset, "held-out", profile.held_out, model)
    inputs = {
        "weights": model.weights_hash,
        "data": [train_images.fingerprint, held_out.fingerprint],
        "settings": asdict(profile.probe),
        "code": stages.CODE,
    }

    def compute(work: Path) -> None:
        network = model.network(device, attention(device))
        probes = fresh_probes(model, profile.probe)
        history = probe.train_probes(
            network,
            model.normalise,
            probes,
            train_images,
            held_out,
            profile.probe,
            device=device,
            checkpoint=work / "checkpoint.pt",
        )
        history.to_csv(work / "history.csv", index=False)
        save_file(
            {name: value.contiguous() for name, value in probes.state_dict().items()}, work / "probes.safetensors"
        )

    return stages.stage(home, "probe", inputs, compute, device=device)


def fresh_probes(model: Model, settings: ProbeSettings) -> Probes:
    """Untrained probes for all sites of a model."""
    config = model.config
    widths = {site: sites.width(site, config) for site in sites.site_names(config.encoders)}
    return probe.make_probes(widths, config.num_classes, settings)


def load_probes(folder: Path, model: Model, device: torch.device) -> Probes:
    """The probes that a probe stage wrote."""
    written = stages.read_json(folder / stages.RECORD)["inputs"]["settings"]
    lists: dict[str, Any] = {name: tuple(value) for name, value in written.items() if isinstance(value, list)}
    settings = ProbeSettings(**(written | lists))
    probes = fresh_probes(model, settings)
    probes.load_state_dict(load_file(folder / "probes.safetensors"))
    return probes.to(device).eval().requires_grad_(False)


def measure_stage(dataset: str, model: Model, profile: Profile, probes: Path, home: Path, device: torch.device) -> Path:
    """Gather the measurement (see `measure.py`). Writes measurement.npz, measurement.json, pooled.npz and null.parquet."""
    held_out = load_images(dataset, "held-out", profile.held_out, model)
    test = load_images(dataset, "test", profile.test, model)
    per_label = {"train": profile.train, "held-out": profile.held_out, "test": profile.test}
    inputs = {
        "probes": stages.sha256_file(probes / "probes.safetensors"),
        "data": [held_out.fingerprint, test.fingerprint],
        "null_draws": profile.null_draws,
        "code": stages.CODE,
    }
    about = {
        "dataset": data.DATASETS[test.dataset].title if test.dataset in data.DATASETS else dataset,
        "model": model.name,
        "weights": model.weights_hash,
        "profile": profile.name,
        "per_label": per_label,
        **stages.environment(device),
    }

    def compute(work: Path) -> None:
        network = model.network(device, attention(device))
        loaded = load_probes(probes, model, device)
        result, null, pooled = measure.measure(
            network,
            model.normalise,
            loaded,
            held_out,
            test,
            null_draws=profile.null_draws,
            precision=profile.probe.precision,
            device=device,
            about=about,
        )
        measure.save(result, work)
        with stages.replacing(work / measure.POOLED) as temporary, temporary.open("wb") as file:
            np.savez(file, **pooled)  # type: ignore[arg-type]
        stages.write_tables({"null": null}, work)

    return stages.stage(home, "measure", inputs, compute, device=device)


def tables_stage(measured: Path, profile: Profile, home: Path, device: torch.device) -> Path:
    """Make the tables of SNP (see `tables.py`)."""
    inputs = {
        "measurement": stages.sha256_file(measured / measure.FILE),
        "thetas": profile.thetas,
        "label_orders": profile.label_orders,
        "code": stages.CODE,
    }

    def compute(work: Path) -> None:
        tables.compute(measure.load(measured), profile.thetas, profile.label_orders, work, device)

    return stages.stage(home, "tables", inputs, compute, device=device)
