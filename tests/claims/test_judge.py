"""The claims on whole studies: what ships is judged, what was not measured says so, and both data sets are asked together."""

import shutil
from dataclasses import replace

import pytest

from cctlib import study
from cctlib.claims import judge
from cctlib.claims.rules import SUPPORTED, UNDETERMINED, verdict
from cctlib.model import manifest
from cctlib.study import beside, open_study, provenance_of


@pytest.fixture(scope="module")
def shipped():
    return open_study("cifar100", profile="shipped", device="cpu")


def test_every_claim_of_a_study_is_judged(shipped):
    judged = judge.all_claims(shipped)
    assert [found.claim for found in judged] == ["C1", "C2", "C3", "C4", "C5"]
    assert all(found.effect != "not measured" for found in judged)
    assert judged[3] == judge.pruning(shipped) and judged[4] == judge.heads(shipped)


def test_what_did_not_ship_is_undetermined(shipped, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shipped.model.folder, folder, ignore=shutil.ignore_patterns("pruning.parquet", "expert_*"))
    judged = judge.all_claims(replace(shipped, model=manifest.open_model(folder)))
    assert [(found.verdict, found.effect) for found in judged[3:]] == 2 * [(UNDETERMINED, "not measured")]


def test_a_study_stands_beside_what_ships(shipped, monkeypatch):
    together = beside(shipped)
    assert together[shipped.provenance["dataset"]] is shipped
    titles = list(together)
    own = replace(
        shipped,
        dataset="folder:mine",
        measurement=replace(shipped.measurement, about=shipped.provenance | {"dataset": "mine"}),
    )
    assert list(beside(own)) == [*titles, "mine"]
    monkeypatch.setattr(study, "shipped_model", lambda *_: None)
    assert list(beside(own)) == ["mine"]
    said = provenance_of([shipped, own])
    assert said["dataset"] == f"{titles[0]}, mine" and said["weights"] == shipped.provenance["weights"]


def test_both_data_sets_are_the_papers(shipped):
    """Another split or data set is shown, and decides nothing."""
    other, third = (replace(shipped, dataset=name) for name in ("flowers102", "demo"))
    good = [verdict(f"C{number}", SUPPORTED, "") for number in range(1, 6)]
    bad = [verdict("C1", UNDETERMINED, "")]
    assert (
        judge.both_data_sets({"a": shipped, "b": other, "c": third}, {"a": good, "b": good, "c": bad}).verdict
        == SUPPORTED
    )
    assert judge.both_data_sets({"a": shipped, "c": third}, {"a": good, "c": good}).effect == "not measured"
    table = judge.table({"a": good, "b": bad})
    assert list(table.dataset) == 5 * ["a"] + ["b"] and table.verdict.iloc[-1] == UNDETERMINED
