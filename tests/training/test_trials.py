"""What was tried: the table comes from logs alone, and says in what the trials differed."""

import json
from dataclasses import asdict

import pytest

from cctlib import cli, stages
from cctlib.data.images import load
from cctlib.errors import UserError
from cctlib.training import run as training
from cctlib.training import trials
from cctlib.training.log import read_log
from cctlib.training.recipes import from_dict, recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two short trainings of the demo set that differ in the optimizer and in mixup."""
    folder = tmp_path_factory.mktemp("shipped") / "trials"
    train, held_out = load("demo", "train").subset(per_label=4), load("demo", "held-out")
    for name, changes in {"plain": {}, "other": {"optimizer": "muon", "mixup": 0.5}}.items():
        chosen = recipe("demo", epochs=2, batch=8, **changes)
        training.train(chosen, train, held_out, folder / "demo" / name, device="cpu")
    stages.write_json(folder / "demo" / trials.ABOUT, {"title": "Two optimizers", "per_label": 4})
    return folder


@pytest.fixture
def group(trained, monkeypatch):
    """The folder of the two, as if they shipped."""
    monkeypatch.setattr(stages, "shipped", lambda: trained.parent)
    return trained


def test_a_group_is_told_from_its_logs(group):
    table = trials.table("demo").set_index("trial")
    assert trials.groups() == ["demo"] and set(table.index) == {"plain", "other"}
    told = {"other": "optimizer muon, mixup 0.5", "plain": "optimizer adamw, mixup 0.0"}
    assert table.settings.iloc[0] == "" and table.settings.iloc[1] == told[table.index[1]]
    assert (table.epochs == 2).all() and (table.images == 40).all()
    for name in table.index:
        last = json.loads((group / "demo" / name / "log.jsonl").read_text().splitlines()[-1])
        assert table.held_out_accuracy[name] == last["held_out_accuracy"] and table.minutes[name] == pytest.approx(
            last["seconds"] / 60
        )
    assert table.held_out_accuracy.is_monotonic_decreasing


def test_a_course_is_that_of_the_log(group):
    courses = trials.courses("demo")
    assert courses.groupby("trial").size().to_dict() == {"plain": 2, "other": 2}
    for name, own in courses.groupby("trial"):
        rows = [json.loads(line) for line in (group / "demo" / name / "log.jsonl").read_text().splitlines()]
        judged = [(row["seconds"] / 60, row["held_out_accuracy"]) for row in rows if "held_out_accuracy" in row]
        assert list(zip(own.minutes, own.held_out_accuracy, strict=True)) == judged


def test_a_trial_is_trained_again_by_its_command(group, tmp_path):
    """The same recipe and the same images, and so on one machine the same course."""
    row = trials.table("demo").set_index("trial").loc["other"]
    cli.main([*row.command.split()[1:], "--folder", str(tmp_path), "--device", "cpu"])
    first, again = (stages.read_json(folder / "run.json") for folder in (group / "demo" / "other", tmp_path))
    assert first["recipe"] == again["recipe"] and first["data"] == again["data"]
    assert read_log(tmp_path / "log.jsonl").held_out_accuracy.iloc[-1] == row.held_out_accuracy


def test_what_is_no_trial_is_named(group):
    with pytest.raises(UserError, match="nothing holds no trial"):
        trials.table("nothing")


@pytest.mark.parametrize("group", trials.groups())
def test_the_commands_of_what_ships_give_its_recipes(group, tmp_path, monkeypatch):
    """Also where the record is older than the present settings."""
    given = []
    monkeypatch.setattr(training, "train", lambda recipe, *_, **__: given.append(recipe) or tmp_path)
    monkeypatch.setattr(cli.data, "load", lambda *_, **__: load("demo", "held-out"))
    for row in trials.table(group).itertuples():
        run = stages.read_json(stages.shipped() / "trials" / group / row.trial / stages.RUN)
        cli.main(row.command.split()[1:])
        assert given.pop() == from_dict(run["recipe"])
        assert run["recipe"]["epochs"] == from_dict(run["recipe"]).epochs
        first = run["recipe"]["small_size"] if run["recipe"]["small_epochs"] else run["recipe"]["image_size"]
        assert from_dict(run["recipe"]).size(0) == first


@pytest.mark.parametrize("sizes", [(), ((3, 16),), ((3, 16), (2, 24))])
def test_a_command_gives_sizes_of_any_number(sizes, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(training, "train", lambda recipe, *_, **__: given.append(recipe) or tmp_path)
    monkeypatch.setattr(cli.data, "load", lambda *_, **__: load("demo", "held-out"))
    for name in ("cpu", "plain"):
        changed = recipe(name, sizes=sizes, flip=False)
        record = {"recipe": json.loads(json.dumps(asdict(changed))), "data": {"dataset": "cifar100"}}
        cli.main(trials.command(record).split()[1:])
        assert given.pop() == changed


@pytest.mark.parametrize("group", trials.groups())
def test_what_ships_can_be_told(group):
    table = trials.table(group)
    assert trials.title(group) and len(table) > 1
    assert table.held_out_accuracy.between(0, 1).all() and (table.dataset == table.dataset[0]).all()
    assert table.command.str.startswith("cctlib train --recipe ").all() and table.command.is_unique
