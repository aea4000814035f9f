"""What ships: rounded weights with what their training recorded, and no measurement of other weights."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cctlib import stages, study
from cctlib.claims import seeds
from cctlib.data import images as data
from cctlib.errors import UserError
from cctlib.heads.stage import ownership
from cctlib.model import manifest
from cctlib.training import run
from cctlib.training.recipes import DEMO
from tools import ship

TINY = replace(DEMO, name="tiny", epochs=2, batch=8)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images():
    return {split: data.load("demo", split) for split in data.SPLITS}


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The folder of a finished training on 40 of the demo images."""
    folder = tmp_path_factory.mktemp("run")
    run.train(TINY, images["train"].subset(per_label=4), images["held-out"], folder, device="cpu")
    return folder


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    """An empty place for what ships."""
    monkeypatch.setattr(stages, "shipped", lambda: tmp_path / "artifacts")
    return tmp_path / "artifacts"


def test_a_run_ships_with_what_it_recorded(trained, images, artifacts):
    model = ship.ship_run(trained, default=True, device=CPU)
    assert model.folder == artifacts / "demo" / "cct_2_3x2" and manifest.find("demo").manifest == model.manifest
    record = json.loads((trained / "run.json").read_text())
    shipped = model.manifest
    assert shipped.training.images == 40  # not the 270 that the data set has
    assert shipped.training.environment == record["environment"] and shipped.training.recipe == record["recipe"]
    assert shipped.data == {
        "train": images["train"].subset(per_label=4).fingerprint,
        "held-out": images["held-out"].fingerprint,
        "test": images["test"].fingerprint,
    }
    assert (model.folder / "log.jsonl").read_bytes() == (trained / "log.jsonl").read_bytes()
    ours, theirs = load_file(trained / "weights.safetensors"), load_file(model.folder / "weights.safetensors")
    assert all(torch.equal(theirs[name], value.half()) for name, value in ours.items())
    assert shipped.unrounded["sha256"] == stages.sha256_file(trained / "weights.safetensors")
    network = model.network("cpu")
    with torch.no_grad():
        right = (network(model.normalise(images["test"].pixels)).argmax(1) == images["test"].labels).float()
    assert shipped.accuracy["test"] == pytest.approx(right.mean().item(), abs=2e-3)  # there, batches of 256


def test_models_have_folders_of_their_own_and_one_is_the_default(trained, artifacts, tmp_path):
    ship.ship_run(trained, default=True, device=CPU)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("weights.safetensors", "log.jsonl"):
        (other / name).write_bytes((trained / name).read_bytes())
    record = json.loads((trained / "run.json").read_text())
    record["recipe"]["seed"] = 3
    (other / "run.json").write_text(json.dumps(record))
    assert ship.ship_run(other, "of-my-own", default=False, device=CPU).folder == artifacts / "demo" / "of-my-own"
    assert sorted(path.name for path in (artifacts / "demo").iterdir()) == ["cct_2_3x2", "of-my-own"]
    assert manifest.find("demo").manifest.seed == 0 and manifest.find("demo", "of-my-own").manifest.seed == 3
    ship.ship_run(other, "of-my-own", default=True, device=CPU)
    assert manifest.find("demo").manifest.seed == 3
    assert not manifest.find("demo", "cct_2_3x2").manifest.default


def test_other_weights_take_the_old_measurement_away(trained, artifacts):
    folder = ship.ship_run(trained, default=True, device=CPU).folder

    def measured():
        weights = manifest.open_model(folder).manifest.sha256
        stages.write_json(folder / "measurement.json", {"about": {"weights": weights}})
        pd.DataFrame({"site": ["enc1/ff"]}).to_parquet(folder / "nodes.parquet")
        np.savez(folder / "measurement.npz", mu=np.zeros(3))

    measured()
    ship.ship_run(trained, default=True, device=CPU)
    assert (folder / "nodes.parquet").is_file() and manifest.find("demo") is not None  # the same weights again
    weights = load_file(folder / "weights.safetensors")
    weights["classifier.fc.bias"] += 1
    ship.save_file(weights, folder / "weights.safetensors")
    measured()
    ship.ship_run(trained, default=True, device=CPU)
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"weights.safetensors", "manifest.json", "log.jsonl"}


def test_a_study_ships_in_place_of_the_one_before(tiny_study, monkeypatch):
    folder = tiny_study.model.folder
    (folder / "old.parquet").write_bytes(b"of an older measurement")
    ship.ship_study(tiny_study)
    opened = study.shipped_study("demo", str(folder), CPU)
    assert not (folder / "old.parquet").exists() and opened.model.manifest.training is None
    site = next(iter(opened.measurement.sites))
    assert np.array_equal(opened.measurement[site].W, tiny_study.measurement[site].W)
    assert set(opened.measurement[site].mu) == {"held-out", "test"} and set(opened.measurement.alternatives) == {
        "readout"
    }
    pd.testing.assert_frame_equal(opened.tables["alternatives"], tiny_study.tables["alternatives"])
    with pytest.raises(UserError, match="opened from the files that ship"):
        ship.ship_study(opened)
    monkeypatch.setattr(ship, "LARGEST", 1000)
    with pytest.raises(UserError, match="more than the 1,000 that one file may have"):
        ship.ship_study(tiny_study)
    assert (folder / "measurement.npz").is_file()


def test_a_network_of_another_seed_ships_without_weights_and_arrays(tiny_study, artifacts, tmp_path, monkeypatch):
    environment = stages.environment("cpu")
    training = manifest.Training(
        asdict(DEMO), images=4, passes=4, minutes=1.0, environment=environment, log="log.jsonl"
    )
    for number, folder in enumerate((artifacts / "demo" / "first", tmp_path / "second")):
        shutil.copytree(tiny_study.model.folder, folder)
        (folder / "log.jsonl").write_text(f"log {number}")
        known = {"seed": number, "default": number == 0, "training": asdict(training), "data": {"train": "0" * 64}}
        stages.write_json(folder / manifest.FILE, stages.read_json(folder / manifest.FILE) | known)
    first = replace(tiny_study, model=manifest.find("demo"))
    monkeypatch.setattr(ship, "resolve_profile", lambda name, device: tiny_study.profile)
    second = ship.measured_seed(str(tmp_path / "second"), "demo", tmp_path / "runs", CPU)
    assert list(second.measurement.sites) == ["enc1/mha", "enc1/ff", "enc2/mha", "enc2/ff"]
    W, whole = (study.measurement["enc1/mha"].W for study in (second, tiny_study))
    assert np.array_equal(W, whole) and list(second.measurement.alternatives) == ["readout"]
    folder = ship.ship_seed(second)
    files = {f"{name}.parquet" for name in seeds.TABLES} | {"manifest.json", "log.jsonl", seeds.RECORD}
    assert folder == artifacts / "demo" / "cct_2_3x2-seed1" and {path.name for path in folder.iterdir()} == files
    assert (folder / "log.jsonl").read_text() == "log 1"
    assert [len(family.networks) for family in seeds.families(first, ownership(first))] == [2]
    with pytest.raises(UserError, match=r"weights\.safetensors is missing; restore it, or train again by the recipe"):
        manifest.find("demo", "cct_2_3x2-seed1")
    with pytest.raises(UserError, match="no model 'third' for demo; shipped are: first; or name"):
        manifest.find("demo", "third")
    with pytest.raises(UserError, match="is the default one of demo, or does not say how it was trained"):
        ship.ship_seed(first)
    other = {**asdict(training), "recipe": {**asdict(DEMO), "lr": 1e-3}}
    stages.write_json(folder / manifest.FILE, stages.read_json(folder / manifest.FILE) | {"training": other})
    with pytest.raises(UserError, match="cct_2_3x2-seed1 holds a network that was trained otherwise"):
        ship.ship_seed(second)
    assert ship.ship_seed(second, "trained-otherwise").name == "trained-otherwise"
    assert [len(family.networks) for family in seeds.families(first, ownership(first))] == [2, 1]


def test_runs_that_do_not_ship(trained, tmp_path):
    record = json.loads((trained / "run.json").read_text())
    for entries, message in (
        ({"dataset": f"folder:{tmp_path}"}, "only models of data sets with a name of their own ship"),
        ({"held-out": "0" * 64}, "held-out images of demo are not those of the training"),
    ):
        folder = tmp_path / message[:5]
        folder.mkdir()
        with pytest.raises(UserError, match="has not come to its end"):
            ship.ship_run(folder, default=False, device=CPU)
        for name in ("weights.safetensors", "log.jsonl"):
            (folder / name).write_bytes((trained / name).read_bytes())
        (folder / "run.json").write_text(json.dumps(record | {"data": record["data"] | entries}))
        with pytest.raises(UserError, match=message):
            ship.ship_run(folder, default=False, device=CPU)
