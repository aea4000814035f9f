"""Networks of other seeds: which count as trained alike, what is compared, and that C5 is judged over all of them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from cctlib import stages
from cctlib.claims import judge, seeds
from cctlib.claims.rules import HOLDS, IN_PART
from cctlib.heads.stage import ownership
from cctlib.model import manifest
from cctlib.study import shipped_study


@pytest.fixture(scope="module")
def study():
    return shipped_study("flowers102", "default", torch.device("cpu"))


@pytest.fixture(scope="module")
def owned(study):
    return ownership(study, deals=300, rotations=2)


@pytest.fixture
def shipped(study, owned, tmp_path, monkeypatch):
    """A function that ships a network of another seed for the study's data set, as alike to its own as is given."""
    own = study.model.manifest
    home = tmp_path / study.dataset

    def ship(seed, permutation=None, **changes):
        folder = home / f"seed{seed}"
        folder.mkdir(parents=True)
        entries = {**stages.read_json(study.model.folder / manifest.FILE), "seed": seed, "default": False, **changes}
        stages.write_json(folder / manifest.FILE, entries)
        tables = seeds.tables(study, owned)
        if permutation is not None:
            owner = tables["designation"]["head"]
            tables["designation"]["head"] = np.where(owner >= 0, permutation(owner.to_numpy()), owner)
        stages.write_tables(tables, folder)
        shutil.copyfile(study.model.folder / "heads.provenance.json", folder / seeds.RECORD)

    assert own.seed == 0
    monkeypatch.setattr(stages, "shipped", lambda: tmp_path)
    return ship


def test_networks_trained_alike_from_other_seeds_are_found(study, owned, shipped):
    training = stages.read_json(study.model.folder / manifest.FILE)["training"]
    shipped(2)
    shipped(1)
    shipped(3, training={**training, "recipe": {**training["recipe"], "lr": 1e-3}})
    shipped(4, data={"train": "0" * 64})
    shipped(5, training=None)
    found = seeds.networks(seeds.families(study, owned))
    assert list(found) == ["seed 0", "seed 1", "seed 2"]
    assert set(found["seed 1"]) == set(seeds.TABLES)


def test_where_none_is_trained_as_the_own_network_the_largest_family_is_taken(study, owned, shipped):
    training = stages.read_json(study.model.folder / manifest.FILE)["training"]

    def other(**changes):
        return {"training": {**training, "recipe": {**training["recipe"], **changes}}}

    shipped(7, **other(lr=1e-3))
    assert list(seeds.networks(seeds.families(study, owned))) == ["seed 0"]  # a single network says nothing of seeds
    shipped(8, **other(lr=3e-3))
    shipped(9, **other(lr=3e-3))
    assert list(seeds.networks(seeds.families(study, owned))) == ["seed 8", "seed 9"]
    shipped(1)
    assert list(seeds.networks(seeds.families(study, owned))) == ["seed 0", "seed 1"]


def test_families_are_networks_trained_alike(study, owned, shipped):
    training = stages.read_json(study.model.folder / manifest.FILE)["training"]
    for seed, name in ((1, "other"), (2, "more"), (3, "more")):
        shipped(seed, training={**training, "recipe": {**training["recipe"], "name": name}})
    found = seeds.families(study, owned)
    assert [(family.name, list(family.networks)) for family in found] == [
        (training["recipe"]["name"], ["seed 0"]),
        ("more", ["seed 2", "seed 3"]),
        ("other", ["seed 1"]),
    ]


def test_a_record_of_another_recipe_or_of_none_is_not_alike(study):
    own = study.model.manifest
    assert seeds.trained_on(own) == seeds.trained_on(replace(own, seed=7)) is not None
    begun = replace(own, training=replace(own.training, start={"weights": "0" * 64, "recipe": "cpu"}))
    assert seeds.trained_on(begun) != seeds.trained_on(own)
    assert seeds.trained_on(replace(own, training=None)) is seeds.trained_on(replace(own, data=None)) is None


def test_heads_are_judged_over_all_networks(study, owned, shipped):
    assert judge.heads(study, owned).state in (IN_PART, HOLDS)
    assert "1 network, so the part over networks is not tested" in judge.heads(study, owned).effect
    shipped(1, lambda head: (head + 1) % 4)  # the same division, with other numbers: not spontaneous
    shipped(2)
    verdict = judge.heads(study, owned)
    assert verdict.state == IN_PART and "in 3 of 3 networks, adjusted Rand index +1.00" in verdict.effect


def test_agreement_is_that_of_the_labels_which_both_designate(study, owned, shipped):
    generator = np.random.default_rng(0)
    shipped(1, lambda head: generator.integers(0, 4, len(head)))
    networks = seeds.networks(seeds.families(study, owned))
    pairs = seeds.agreement(networks).set_index("site")
    assert list(networks) == ["seed 0", "seed 1"] and len(pairs) == study.measurement.encoders
    for site, row in pairs.iterrows():
        first, second = (
            table[table.site == site].sort_values("label")["head"].to_numpy()
            for table in (of_one["designation"] for of_one in networks.values())
        )
        both = (first >= 0) & (second >= 0)
        assert row.rand == pytest.approx(adjusted_rand_score(first[both], second[both]))
        assert row.labels == both.sum() and abs(row.rand) < 0.2  # drawn at random
