"""From a network to tables, on a tiny CCT and a few demo images, against plain loops."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cctlib.data import images as data
from cctlib.errors import UserError
from cctlib.model import cct, sites
from cctlib.snp import fields, measure, probe, tables

SETTINGS = probe.ProbeSettings(epochs=1, batch=20, least_steps=6, precision="fp32")  # two passes an epoch
ABOUT = {"dataset": "Demo", "per_label": {"train": 6, "held-out": 2, "test": 3}}


def half(pixels):
    return pixels.float() / 255 - 0.5


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = cct.config("cct_2_3x2", num_classes=10, image_size=32)
    return cct.CCT(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    counts = {"train": 6, "held-out": 2, "test": 3}
    return {split: data.load("demo", split).subset(per_label=count) for split, count in counts.items()}


def trained(network, images, checkpoint=None, settings=SETTINGS):
    widths = {site: sites.width(site, network.config) for site in sites.site_names(network.config.encoders)}
    probes = probe.make_probes(widths, 10, settings)
    history = probe.train_probes(
        network,
        half,
        probes,
        images["train"],
        images["held-out"],
        settings,
        device="cpu",
        checkpoint=checkpoint,
        checkpoint_steps=1,
    )
    return probes.eval().requires_grad_(False), history


@pytest.fixture(scope="module")
def measured(network, images):
    probes, _ = trained(network, images)
    found = measure.measure(
        network,
        half,
        probes,
        images["held-out"],
        images["test"],
        null_draws=2,
        device="cpu",
        about=ABOUT,
        precision="fp32",
    )
    return probes, *found


def test_mu_is_the_mean_of_the_pooled_values(network, images, measured):
    probes, result, _, _ = measured
    test = images["test"]
    for site in ("enc1/mha", "enc2/ff"):
        tokens = network(half(test.pixels), taps=[site])[1][site]
        pooled = torch.stack([probes[site].pool(one[None])[0] for one in tokens])
        for label in range(10):
            torch.testing.assert_close(
                torch.from_numpy(result[site].mu["test"][label]),
                pooled[test.labels == label].mean(0),
                atol=1e-5,
                rtol=1e-4,
            )


def test_the_field_is_what_literal_silencing_leaves(network, images, measured):
    probes, result, _, _ = measured
    site, node, test = "enc2/mha", 5, images["test"]
    tokens = network(half(test.pixels), taps=[site])[1][site]
    kept = probes[site].fc.weight.clone()
    silenced = torch.zeros_like(kept)
    silenced[:, node] = kept[:, node]
    outputs = probes[site].pool(tokens) @ silenced.T
    literal = torch.stack([outputs[test.labels == label].mean(0) for label in range(10)])
    mu, W = result[site].tensors()
    torch.testing.assert_close(fields.field(mu[:, node], W[:, node]), literal, atol=1e-5, rtol=1e-4)


def test_extremes_are_the_ends_of_a_sort(network, images, measured):
    probes, result, _, _ = measured
    site = "enc1/ff"
    pooled = probes[site].pool(network(half(images["test"].pixels), taps=[site])[1][site])
    for node in (0, 7):
        order = pooled[:, node].argsort()
        most, least = result[site].extremes[node]
        torch.testing.assert_close(
            pooled[torch.from_numpy(most).long(), node], pooled[order.flip(0)[:8], node], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            pooled[torch.from_numpy(least).long(), node], pooled[order[:8], node], atol=1e-5, rtol=0
        )


def test_a_measurement_survives_being_stored(measured, tmp_path):
    _, result, _, _ = measured
    measure.save(result, tmp_path)
    again = measure.load(tmp_path)
    assert again.names == result.names and again.about == result.about
    for site, values in result.sites.items():
        assert np.array_equal(again[site].W, values.W) and np.array_equal(again[site].mu["test"], values.mu["test"])
        assert np.array_equal(again[site].extremes, values.extremes)
    for site, values in result.swapped.items():
        assert np.array_equal(again.swapped[site].W, values.W) and again.swapped[site].extremes is None
    (tmp_path / measure.FILE).write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        measure.load(tmp_path)


def test_second_probes_differ_in_the_layernorm_only(network, images, measured):
    probes, result, _, _ = measured
    assert probes.swapped == {site: f"{site}/swapped" for site in ("enc1/mha", "enc1/ff", "enc2/mha", "enc2/ff")}
    assert set(result.sites) == set(sites.site_names(2)) and set(result.swapped) == set(probes.swapped)
    for site, name in probes.swapped.items():
        assert isinstance(probes[site].norm, torch.nn.LayerNorm) != isinstance(probes[name].norm, torch.nn.LayerNorm)
    test = images["test"]
    tokens = network(half(test.pixels), taps=["enc2/ff"])[1]["enc2/ff"]
    pooled = probes["enc2/ff/swapped"].pool(tokens)
    mu = torch.stack([pooled[test.labels == label].mean(0) for label in range(10)])
    torch.testing.assert_close(torch.from_numpy(result.swapped["enc2/ff"].mu["test"]), mu, atol=1e-5, rtol=1e-4)
    table = tables.alternatives_table(result, torch.device("cpu")).set_index(["alternative", "site"])
    guessed = probes["enc2/ff/swapped"].fc(pooled).argmax(1)
    assert table.accuracy[tables.SWAPPED, "enc2/ff"] == pytest.approx((guessed == test.labels).double().mean().item())
    found = fields.measure(mu, probes["enc2/ff/swapped"].fc.weight, 0.3)
    assert table.noise[tables.SWAPPED, "enc2/ff"] == pytest.approx(found.summary()["noise"].item())
    assert table.accuracy[tables.CHOSEN].notna().all() and len(table.loc[tables.SWAPPED]) == 4


def test_second_probes_leave_the_first_ones_as_they_are(network, images, measured):
    plain, _ = trained(network, images, settings=replace(SETTINGS, swapped=()))
    assert plain.names == measured[0].sites
    assert all(torch.equal(value, measured[0].state_dict()[name]) for name, value in plain.state_dict().items())


def test_a_measurement_from_before_second_probes_is_read(measured, tmp_path):
    result = replace(measured[1], swapped={})
    measure.save(result, tmp_path)
    again = measure.load(tmp_path)
    assert again.swapped == {} and set(again.sites) == set(result.sites)
    assert tables.SWAPPED not in set(tables.alternatives_table(again, torch.device("cpu")).alternative)


def test_an_unmeasured_site_is_one_line(measured):
    with pytest.raises(UserError, match=r"enc9/ff.*was not measured") as caught:
        measured[1]["enc9/ff"]
    assert "\n" not in str(caught.value)


def test_tables_are_those_of_snp(measured, tmp_path):
    _, result, null, _ = measured
    tables.compute(result, null, (0.2, 0.3), 2, tmp_path, torch.device("cpu"))
    made = tables.load(tmp_path)
    mu, W = result["enc2/ff"].tensors()
    found = fields.measure(mu, W, 0.3)
    nodes = made["nodes"].query("site == 'enc2/ff' and theta == 0.3")
    assert nodes.noise.tolist() == found.noise.tolist()
    assert (nodes.ones == nodes.signal + nodes.column_noise + nodes.foreign_noise).all()
    assert len(made["null"]) == 2 * len(result.sites) and len(made["orders"]) == 2 * len(result.sites)
    accuracy = made["accuracy"].set_index("site")
    own = (result["enc2/ff"].predictions["test"] == result.labels["test"]).mean()
    assert accuracy.accuracy["enc2/ff"] == pytest.approx(own, abs=1e-6)
    assert (accuracy.low <= accuracy.accuracy).all() and (accuracy.accuracy <= accuracy.high).all()


def test_a_killed_training_of_probes_ends_with_the_same_weights(network, images, tmp_path, monkeypatch):
    whole, history = trained(network, images)
    steps = 0

    class Killed(BaseException):
        pass

    save = probe._Run.save

    def save_and_die(run, path):
        nonlocal steps
        save(run, path)
        steps += 1
        if steps == 5:  # in the second pass
            raise Killed

    monkeypatch.setattr(probe._Run, "save", save_and_die)
    with pytest.raises(Killed):
        trained(network, images, checkpoint=tmp_path / "checkpoint.pt")
    monkeypatch.setattr(probe._Run, "save", save)
    resumed, again = trained(network, images, checkpoint=tmp_path / "checkpoint.pt")
    pd.testing.assert_frame_equal(history, again)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_small_set_is_passed_over_more_often():
    settings = probe.ProbeSettings(batch=128, least_steps=300)
    assert settings.passes(45_000) == 1 and settings.passes(1_836) == 20  # 15 steps each


def test_training_all_probes_at_once_is_training_each_alone(network, images):
    together, _ = trained(network, images)
    alone = probe.make_probes({site: sites.width(site, network.config) for site in together.sites}, 10, SETTINGS)
    one = probe.Probes({"enc2/ff": alone["enc2/ff"]})
    probe.train_probes(network, half, one, images["train"], images["held-out"], SETTINGS, device="cpu")
    torch.testing.assert_close(one["enc2/ff"].fc.weight, together["enc2/ff"].fc.weight)


def test_no_held_out_images_is_one_line(network, images):
    empty = dict(images, **{"held-out": images["held-out"].subset(count=1)})
    object.__setattr__(empty["held-out"], "labels", torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UserError, match="no held-out images"):
        trained(network, empty)


def test_accuracy_per_label_weighs_every_label_alike():
    labels, read = np.array([0, 0, 0, 2, 2, 2, 2]), np.array([0, 0, 1, 2, 0, 1, 0])  # no image of label 1
    assert measure.per_label(read, labels) == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert measure.per_label(labels[:4], labels[:4]) == 1
