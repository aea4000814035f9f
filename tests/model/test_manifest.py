"""Manifests: written by one function, read by one that believes nothing, compared with the study that opens them."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_data import write_folder

from cctlib import stages
from cctlib.data.datasets import describe
from cctlib.errors import UserError
from cctlib.model import cct, manifest

NORMALISATION = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
TRAINING = manifest.Training(
    recipe={"name": "tiny", "batch": 8},
    images=40,
    passes=120,
    minutes=0.5,
    environment={"device": "here", "processes": 1},
    log="log.jsonl",
)


def model_in(folder, dataset="demo", **entries):
    """A model folder with an untrained network for a data set."""
    labels = list(describe(dataset).names)
    config = cct.config("cct_2_3x2", num_classes=len(labels), image_size=32)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(cct.CCT(config).state_dict(), folder / "weights.safetensors")
    entries = {"dataset": dataset, "labels": labels} | entries
    return manifest.write_manifest(
        folder,
        name="cct_2_3x2",
        config=config,
        weights=folder / "weights.safetensors",
        normalisation=NORMALISATION,
        **entries,
    )


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "shipped", lambda: tmp_path / "artifacts")
    return tmp_path / "artifacts"


# Written and read


def test_what_is_written_is_read_again(tmp_path):
    entries = {
        "data": {"test": "ab"},
        "seed": 3,
        "training": TRAINING,
        "accuracy": {"test": 0.5},
        "accuracy_per_label": {"test": 1},
        "unrounded": {"sha256": "cd", "accuracy": {"test": 0.25}},
        "measured": {"device": "here"},
    }
    model = model_in(tmp_path / "model", **entries)
    opened = manifest.open_model(tmp_path / "model")
    assert opened == model and opened.manifest.training == TRAINING and opened.manifest.accuracy == {"test": 0.5}
    assert opened.network("cpu")(opened.normalise(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))).shape == (1, 10)
    pixels = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    torch.testing.assert_close(opened.normalise(pixels), torch.full((1, 3, 32, 32), 2.0))


def test_own_weights_need_few_entries(tmp_path):
    model = model_in(tmp_path / "model", dataset="demo", labels=None)
    unknown = manifest.open_model(tmp_path / "model").check("demo").manifest
    assert unknown.training is unknown.accuracy is unknown.accuracy_per_label is unknown.labels is None
    assert "training" not in json.loads((model.folder / "manifest.json").read_text())


DAMAGE = [
    (lambda entries: entries.pop("normalisation"), "lacks the entry 'normalisation'"),
    (lambda entries: entries.pop("sha256"), "lacks the entry 'sha256'"),
    (lambda entries: entries["config"].pop("heads"), "config lacks the entry 'heads'"),
    (lambda entries: entries["training"].pop("images"), "training lacks the entry 'images'"),
    (lambda entries: entries.update(weights={"file": "weights.safetensors"}), "weights is {'file'.*; expected str"),
    (lambda entries: entries.update(config="cct_7_3x2"), "config is 'cct_7_3x2'; expected entries by name"),
    (lambda entries: entries["config"].update(encoders=0), "config: CCT: encoders is 0"),
    (lambda entries: entries["config"].update(encoders="7"), "encoders is '7'; expected int"),
    (lambda entries: entries["config"].update(encoder=7), "config has an entry 'encoder', which is not known"),
    (lambda entries: entries.update(acuracy={}), "has an entry 'acuracy', which is not known; known are name, config"),
    (lambda entries: entries.update(accuracy=0.7), r"accuracy is 0.7; expected dict\[str, float\] \| None"),
    (lambda entries: entries.update(labels="apple"), "labels is 'apple'; expected"),
    (lambda entries: entries["accuracy"].update(test="70%"), r"accuracy is {'test': '70%'}; expected dict"),
    (lambda entries: entries.update(training=[]), r"training is \[\]; expected entries by name"),
    (lambda entries: entries["training"].update(images="many"), "training: images is 'many'; expected int"),
    (lambda entries: entries.update(normalisation={"mean": [0.5] * 3}), "not a mean and a positive std"),
    (lambda entries: entries.update(normalisation={"mean": [0.5] * 3, "std": [0.0] * 3}), "not a mean and a positive"),
    (lambda entries: entries.update(normalisation=[0.5, 0.5]), r"normalisation is \[0.5, 0.5\]; expected dict"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_manifest_is_one_line(tmp_path, damage, message):
    path = model_in(tmp_path / "model", training=TRAINING, accuracy={"test": 0.7}).folder / "manifest.json"
    entries = json.loads(path.read_text())
    damage(entries)
    path.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=message) as caught:
        manifest.find("demo", str(tmp_path / "model"))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '"text"', "3", "{"])
def test_what_is_no_manifest(tmp_path, text):
    path = model_in(tmp_path / "model").folder / "manifest.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json") as caught:
        manifest.open_model(path.parent)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_is_not_written(tmp_path):
    folder = model_in(tmp_path / "model").folder
    before = (folder / "manifest.json").read_text()
    for entries, message in (({"acuracy": {}}, "'acuracy'"), ({"normalisation": {}}, "not a mean and a positive std")):
        given = {"normalisation": NORMALISATION} | entries
        with pytest.raises(UserError, match=message):
            manifest.write_manifest(
                folder, name="a", config=cct.CCTConfig(), weights=folder / "weights.safetensors", **given
            )
    assert (folder / "manifest.json").read_text() == before


# Compared with the data set, the weights and the measurement


def test_the_two_splits_of_flowers_are_never_mixed(tmp_path):
    for trained, other in (("flowers102", "flowers102-kaggle"), ("flowers102-kaggle", "flowers102")):
        folder = str(model_in(tmp_path / trained, trained).folder)
        assert manifest.find(trained, folder).manifest.dataset == trained
        with pytest.raises(UserError, match=f"was trained on {trained}, and {other} may test with its training images"):
            manifest.find(other, folder)


def test_labels_are_those_of_the_data_set(tmp_path):
    here = f"folder:{write_folder(tmp_path / 'here', {'train': {'cat': 1, 'dog': 1}, 'test': {}})}"
    there = f"folder:{write_folder(tmp_path / 'there', {'train': {'cat': 1, 'eel': 1}, 'test': {}})}"
    same = f"folder:{write_folder(tmp_path / 'same', {'train': {'cat': 2, 'dog': 2}, 'test': {}})}"
    folder = str(model_in(tmp_path / "model", here).folder)
    assert manifest.find(here, folder) == manifest.find(same, folder)  # a folder may have moved
    with pytest.raises(UserError, match=r"has label 1 as 'dog', folder:\S* as 'eel'; use the data set"):
        manifest.find(there, folder)
    with pytest.raises(UserError, match=r"has label 1 as None, .* as 'dog'; use the data set"):
        model_in(tmp_path / "less", here, labels=["cat"]).check(here)
    with pytest.raises(UserError, match="knows 2 labels, demo has 10"):
        manifest.find("demo", folder)


def test_weights_and_measurement_belong_to_the_manifest(tmp_path):
    model = model_in(tmp_path / "model")
    stages.write_json(model.folder / "measurement.json", {"about": {"weights": model.manifest.sha256}})
    assert manifest.find("demo", str(model.folder)) == model
    for content in ({"about": {"weights": "0" * 64}}, {"about": {}}, {"about": []}, {}):
        stages.write_json(model.folder / "measurement.json", content)
        with pytest.raises(UserError, match=r"measurement.json is not of the weights beside it"):
            manifest.find("demo", str(model.folder))
    weights = model.folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    for opened in (lambda: manifest.find("demo", str(model.folder)), lambda: model.network("cpu")):
        with pytest.raises(UserError, match=r"weights.safetensors has SHA-256 \w{12}, its manifest says"):
            opened()
    weights.unlink()
    with pytest.raises(UserError, match=r"weights.safetensors is missing"):
        manifest.find("demo", str(model.folder))


# Found


def test_the_default_is_the_one_that_says_so(artifacts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert manifest.find("demo") is None
    model_in(artifacts / "demo" / "first")
    model_in(tmp_path / "default")  # a folder of that name is somebody's own
    assert manifest.find("demo") is None
    second = model_in(artifacts / "demo" / "second", default=True)
    assert manifest.find("demo") == manifest.find("demo", "second") == second
    model_in(artifacts / "demo" / "third", default=True)
    with pytest.raises(UserError, match="several default models: second, third"):
        manifest.find("demo")


def test_a_model_that_is_not_there(artifacts, tmp_path):
    model_in(artifacts / "demo" / "cct_2_3x2-seed1")
    assert manifest.find("demo", "cct_2_3x2-seed1").name == "cct_2_3x2"
    with pytest.raises(UserError, match="no model 'cct_2_3x2' for demo; shipped are: cct_2_3x2-seed1; or name a"):
        manifest.find("demo", "cct_2_3x2")
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(UserError, match=r"a folder with a manifest.json: .*cctlib train --resume.*write_manifest"):
        manifest.find("demo", str(tmp_path / "unfinished"))
