"""Heads and pruning as stages of a study: on a tiny network and demo images, against the probe and the network cut by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_data import write_folder

from cctlib import findings, study
from cctlib.andc import masks
from cctlib.claims import judge, verdicts
from cctlib.data import images as data
from cctlib.errors import UserError
from cctlib.heads import ownership
from cctlib.model import cct, manifest
from cctlib.profiles import HeadSettings, Profile, PruningSettings
from cctlib.snp.probe import ProbeSettings

PROFILE = Profile(
    "tiny",
    train=6,
    held_out=3,
    test=4,
    probe=ProbeSettings(epochs=2, batch=20, least_steps=1, precision="fp32"),
    thetas=(0.1, 0.3, 0.7),
    null_draws=2,
    label_orders=2,
    heads=HeadSettings(gap_deals=25, test=3, draws=2),
    pruning=PruningSettings(
        test=3,
        curve_test=2,
        train=4,
        epochs=(0.0, 1.0),
        retrained=("fc",),
        thetas=(0.1, 0.3),
        curves=("fc", "all"),
        latency_thetas=(0.3,),
        seconds=0.1,
    ),
)
CPU = torch.device("cpu")


def untrained(dataset, folder):
    """A study of an untrained network: its probes read little, and all that is computed from them is computed."""
    names = data.describe(dataset).names
    config = cct.config("cct_2_3x2", num_classes=len(names), image_size=32)
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = cct.CCT(config)
    from safetensors.torch import save_file

    save_file(network.state_dict(), folder / "weights.safetensors")
    manifest.write_manifest(
        folder,
        name="cct_2_3x2",
        config=config,
        weights=folder / "weights.safetensors",
        dataset=dataset,
        normalisation={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        labels=names,
        training={},
    )
    return study.measured_study(dataset, str(folder), PROFILE, folder.with_name("runs"), CPU)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return untrained("demo", tmp_path_factory.mktemp("demo") / "model")


UNEQUAL = {
    "train": {"aster": 11, "iris": 14, "lily": 25, "rose": 18},
    "test": {"aster": 2, "iris": 7, "lily": 1, "rose": 9},
}


def test_labels_with_unequal_numbers_of_images_are_judged_as_others(tmp_path):
    root = write_folder(tmp_path / "garden", UNEQUAL, side=32)
    found = untrained(f"folder:{root}", tmp_path / "model")
    result, counts = found.measurement, np.bincount(found.measurement.labels["test"])
    assert counts.tolist() == [2, 4, 1, 4]  # the profile takes four at most
    network, images = found.network(), found.images("test")
    right = (network(found.model.normalise(images.pixels)).argmax(1) == images.labels).numpy()
    each = [right[result.labels["test"] == label].mean() for label in range(4)]
    assert result.accuracy() == pytest.approx(right.mean()) and result.accuracy_per_label() == pytest.approx(
        np.mean(each)
    )
    accuracy = found.tables["accuracy"]
    assert ((accuracy.low <= accuracy.accuracy) & (accuracy.accuracy <= accuracy.high)).all()
    assert [verdict.claim for verdict in judge.along_encoders(found)] == ["C1", "C2", "C3"]


def test_a_label_without_test_images_is_named(tmp_path):
    missing = UNEQUAL | {"test": UNEQUAL["test"] | {"iris": 0}}
    with pytest.raises(UserError, match="no image of label 1"):
        untrained(f"folder:{write_folder(tmp_path / 'garden', missing, side=32)}", tmp_path / "model")


def test_a_head_alone_is_the_probe_with_the_other_heads_weights_cut(opened):
    """Own and other labels' accuracy of each head, image by image."""
    table = findings.heads_tables(opened)["expert_heads"]
    images, number = opened.images("test"), opened.model.config.heads
    network = opened.network()
    for site in ("enc1/mha", "enc2/mha"):
        diagonal = findings.mha_diagonals(opened, "held-out")[site]
        owner = ownership.designate(ownership.count(diagonal, number))
        _, taps = network(opened.model.normalise(images.pixels), taps=[site])
        for head in range(number):
            probe = opened.probes[site]
            cut = torch.zeros_like(probe.fc.weight)
            width = cut.shape[1] // number
            cut[:, head * width : (head + 1) * width] = probe.fc.weight[:, head * width : (head + 1) * width]
            right = ((probe.pool(taps[site]) @ cut.T).argmax(1) == images.labels).float()
            row = table[(table.site == site) & (table["head"] == head)].iloc[0]
            for column, chosen in (
                ("own", [owner[label] == head for label in images.labels]),
                ("others", [owner[label] not in (head, ownership.NOBODY) for label in images.labels]),
            ):
                chosen = torch.tensor(chosen)
                expected = right[chosen].mean().item() if (owner == head).any() else float("nan")
                assert row[column] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_heads_are_silenced_at_the_encoders_that_were_asked_for(opened):
    tables = findings.heads_tables(opened)
    assert list(tables["ablation_sites"].encoder) == [1, 2]
    assert (tables["ablation_heads"].draws == 2).all() and set(tables) == set(findings.HEADS)
    fewer = replace(opened, profile=replace(PROFILE, heads=replace(PROFILE.heads, encoders=(2, 7))))
    assert list(findings.heads_tables(fewer)["ablation_sites"].encoder) == [2]


def test_ownership_needs_the_measurement_alone(opened):
    owned = findings.ownership(opened, deals=50)
    assert list(owned.sites.encoder) == [1, 2] and owned.semantics is None  # the demo's labels have no groups
    for site, counts in owned.counts.items():
        diagonal = findings.mha_diagonals(opened, "held-out")[site]
        width = len(diagonal) // opened.model.config.heads
        for head in range(len(counts)):
            assert torch.equal(counts[head], diagonal[head * width : (head + 1) * width].sum(0))


def test_pruning_has_all_methods_and_can_be_judged(opened):
    tables = findings.pruning_tables(opened)
    at, curves, timed = (tables[name] for name in findings.PRUNING)
    without = at[at.epochs == 0]
    assert set(without.target) == set(masks.TARGETS)
    for _, rows in without.groupby("target"):
        assert set(rows.method) == set(masks.METHODS) and (rows.method == "random").sum() == 3
        assert rows[rows.method != "shuffled"].density.nunique() == 1  # equal density
    assert set(at[at.epochs > 0].target) == {"fc"} and (at.images == 30).all() and (curves.images == 20).all()
    assert set(curves.theta) == {0.1, 0.3} and (at.dense_bytes > at.bytes).all()
    assert verdicts.pruning(at).verdict in ("supported", "not supported", "undetermined")
    assert set(timed.batch) == {1, 128}


def test_finished_stages_are_not_done_again(opened, monkeypatch):
    first = findings.stages(opened)
    monkeypatch.setattr(findings.sweep, "sweep", None)
    monkeypatch.setattr(findings.silence, "predict", None)
    monkeypatch.setattr(findings.latency, "measure", None)
    assert findings.stages(opened) == first and set(first) == {"heads", "andc", "latency"}


def test_what_ships_with_a_model_is_read_and_what_does_not_is_named(opened):
    from tools.ship import ship_study

    bare = replace(opened, source="shipped", profile=None, folders={})
    for tables in (findings.heads_tables, findings.pruning_tables):
        with pytest.raises(findings.Missing, match="did not ship with cct_2_3x2 of demo") as caught:
            tables(bare)
        assert "\n" not in str(caught.value)
    ship_study(opened)
    shipped = study.shipped_study("demo", str(opened.model.folder), CPU)
    assert findings.stages(shipped) == {}
    for name, table in findings.pruning_tables(opened).items():
        assert findings.pruning_tables(shipped)[name].equals(table)
    assert findings.heads_tables(shipped)["expert_sites"].equals(findings.heads_tables(opened)["expert_sites"])


def test_a_target_that_would_lose_every_weight_is_left_out_and_named(capsys):
    nothing = {
        site: torch.zeros(4, 5, dtype=torch.bool) for site in ("enc1/mha", "enc1/trunk", "enc1/ff_hidden", "enc1/ff")
    }
    some = nothing | {"enc1/ff": torch.ones(4, 5, dtype=torch.bool)}
    prunings = [masks.Pruning("fc", "andc"), masks.Pruning("proj", "andc")]
    assert findings._possible(prunings, {0.3: some}, 1) == prunings[:1]
    assert "pruning of proj at theta 0.3 is left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing can be pruned"):
        findings._possible(prunings, {0.3: nothing}, 1)
