"""Pruning as stages of a study: on a tiny network and demo images."""

import shutil
from dataclasses import asdict, replace
from typing import get_args

import pytest

from cctlib import stages
from cctlib.andc import masks, stage
from cctlib.andc.stage import Saturation
from cctlib.claims import verdicts
from cctlib.claims.rules import NOT_TESTED, State
from cctlib.errors import UserError
from cctlib.model.manifest import Training
from cctlib.training.recipes import recipe
from tools import campaign


def test_pruning_has_all_methods_and_can_be_judged(tiny_study):
    tables = stage.pruning_tables(tiny_study)
    at, curves, timed = (tables[name] for name in ("pruning", "curves", "latency"))
    without = at[at.epochs == 0]
    assert set(without.target) == set(masks.TARGETS)
    for _, rows in without.groupby("target"):
        assert set(rows.method) == set(masks.METHODS) and (rows.method == "random").sum() == 3
        assert rows[rows.method != "shuffled"].density.nunique() == 1  # equal density
    assert set(at[at.epochs > 0].target) == {"fc"} and (at.images == 30).all() and (curves.images == 20).all()
    assert set(curves.theta) == {0.1, 0.3} and (at.dense_bytes > at.bytes).all()
    assert verdicts.pruning(None, at).state == NOT_TESTED
    assert set(timed.batch) == {1, 128}


def test_a_network_of_unknown_training_is_not_retrained(tiny_study, tmp_path):
    assert tiny_study.model.manifest.training is None
    with pytest.raises(UserError, match="does not say how its network was trained") as refused:
        stage.saturated_stage(tiny_study, Saturation(), tmp_path)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_a_campaign_makes_the_table_that_pruning_is_judged_by(tiny_study, tmp_path):
    """Of a network that knows its recipe: one target, one epoch; the table is read where it stands beside the model."""
    how = recipe("demo", batch=10, precision="fp32")
    training = Training(asdict(how), images=40, passes=40, minutes=0.0, environment={}, log="log.jsonl")
    folder = tmp_path / "model"
    shutil.copytree(tiny_study.model.folder, folder)
    model = replace(tiny_study.model, folder=folder, manifest=replace(tiny_study.model.manifest, training=training))
    study = replace(tiny_study, model=model)
    assert stage.SATURATED not in stage.pruning_tables(study)
    settings = Saturation(("fc",), ("andc", "random"), seeds=(0, 1), lengths=(1, 2), train=2, test=2)
    made = stage.saturated_stage(study, settings, tmp_path / "runs")
    shutil.copy(made / "saturated.parquet", folder)
    tables = stage.pruning_tables(study)
    table = tables[stage.SATURATED]
    assert table.method.tolist() == ["andc", "random", "random"] and table.seed.tolist() == [0, 0, 1]
    assert (table.images == 2 * len(study.measurement.names)).all() and table.density.nunique() == 1
    assert verdicts.pruning(table, tables["pruning"]).state in get_args(State)

    def written():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("checkpoint-*.npy")}

    rows = written()
    more = stage.saturated_stage(study, replace(settings, seeds=(0, 1, 2)), tmp_path / "runs")
    assert len(stages.read_tables(more, [stage.SATURATED])[stage.SATURATED]) == 4
    assert rows.items() < written().items(), "rows that were there are not done again"


def test_a_mistake_in_a_campaign_is_one_line(capsys):
    with pytest.raises(SystemExit) as left:
        campaign.main(["andc", "--dataset", "folder:/nowhere"])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.startswith("campaign: no measurement ships") and error.count("\n") == 1
