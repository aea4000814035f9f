"""From a network to tables, on a tiny CCT and a few demo images, against plain loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cctlib import stages
from cctlib.data import images as data
from cctlib.errors import UserError
from cctlib.model import sites
from cctlib.snp import fields, measure, probe, tables

SETTINGS = probe.ProbeSettings(penalty=0.1, tolerance=1e-2, most_passes=5, short_steps=2, precision="fp32")
ABOUT = {"dataset": "Demo", "per_label": {"train": 6, "held-out": 2, "test": 3}}


def half(pixels):
    return pixels.float() / 255 - 0.5


@pytest.fixture(scope="module")
def images():
    counts = {"train": 6, "held-out": 2, "test": 3}
    return {split: data.load("demo", split).subset(per_label=count) for split, count in counts.items()}


def trained(network, images, settings=SETTINGS):
    widths = {site: network.config.nodes(site) for site in sites.site_names(network.config.encoders)}
    probes = probe.make_probes(widths, 10, settings)
    probe.train_probes(network, half, probes, images["train"], settings, device="cpu")
    return probes.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def measured(network, images):
    probes = trained(network, images)
    results = measure.measure(
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
    return probes, *results


def test_mu_is_the_mean_of_the_pooled_values(network, images, measured):
    probes, result, _, _ = measured
    test = images["test"]
    for site in ("enc1/mha", "enc2/ff"):
        tokens = network(half(test.pixels), taps=[site])[1][site]
        pooled = torch.stack([probes[site].pool(one[None])[0] for one in tokens])
        for label in range(10):
            torch.testing.assert_close(
                result[site].tensors()[0][label], pooled[test.labels == label].mean(0), atol=1e-5, rtol=1e-3
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
    torch.testing.assert_close(fields.field(mu[:, node], W[:, node]), literal, atol=1e-5, rtol=1e-3)


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


def test_shuffled_labels_are_measured_as_the_labels_are(network, images, measured):
    probes, _, shuffled, _ = measured
    site, test = "enc2/ff", images["test"]
    pooled = probes[site].pool(network(half(test.pixels), taps=[site])[1][site])
    drawn = fields.shuffled(test.labels, 2, torch.Generator().manual_seed(0))
    for labels, row in zip(drawn, shuffled[shuffled.site == site].itertuples(), strict=True):
        mu = torch.stack([pooled[labels == label].mean(0) for label in range(10)]).half().float()
        expected = fields.site_row(site, fields.measure(mu, probes[site].fc.weight.half().float()))
        assert row.control == "labels shuffled" and row.snr == pytest.approx(expected["snr"], rel=0.02)


def test_pooled_values_are_kept_of_mha(network, images, measured):
    probes, _, _, pooled = measured
    expected = probes["enc2/mha"].pool(network(half(images["test"].pixels), taps=["enc2/mha"])[1]["enc2/mha"])
    assert set(pooled) == {"enc1/mha", "enc2/mha"}
    torch.testing.assert_close(torch.from_numpy(pooled["enc2/mha"]), expected, atol=1e-5, rtol=1e-4)


def test_a_measurement_survives_being_stored(measured, tmp_path):
    _, result, _, _ = measured
    measure.save(result, tmp_path)
    again = measure.load(tmp_path)
    assert again.names == result.names and again.about == result.about
    for site, values in result.sites.items():
        assert np.array_equal(again[site].W, values.W) and np.array_equal(again[site].mu["test"], values.mu["test"])
        assert np.array_equal(again[site].extremes, values.extremes)
    for site, values in result.alternatives["swapped"].items():
        assert np.array_equal(again.alternatives["swapped"][site].W, values.W)
        assert again.alternatives["swapped"][site].extremes is None
    readouts = (stored.alternatives["readout"]["enc2/ff"].mu["held-out"] for stored in (again, result))
    assert np.array_equal(*readouts)
    (tmp_path / measure.FILE).write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        measure.load(tmp_path)


def test_second_probes_differ_in_the_layernorm_only(network, images, measured):
    probes, result, _, _ = measured
    swapped = result.alternatives["swapped"]
    assert set(swapped) == {"enc1/mha", "enc1/ff", "enc2/mha", "enc2/ff"}
    assert set(result.sites) == set(sites.site_names(2))
    assert probes.of("swapped") == tuple(f"{site}/swapped" for site in swapped)
    for name in probes.of("swapped"):
        site = probe.site_of(name)
        assert isinstance(probes[site].norm, torch.nn.LayerNorm) != isinstance(probes[name].norm, torch.nn.LayerNorm)
    test = images["test"]
    tokens = network(half(test.pixels), taps=["enc2/ff"])[1]["enc2/ff"]
    pooled = probes["enc2/ff/swapped"].pool(tokens)
    mu = torch.stack([pooled[test.labels == label].mean(0) for label in range(10)])
    torch.testing.assert_close(swapped["enc2/ff"].tensors()[0], mu, atol=1e-5, rtol=1e-3)
    table = tables.alternatives_table(result, torch.device("cpu")).set_index(["alternative", "site"])
    guessed = probes["enc2/ff/swapped"].fc(pooled).argmax(1)
    assert table.accuracy[tables.PROBES["swapped"], "enc2/ff"] == pytest.approx(
        (guessed == test.labels).double().mean().item()
    )
    statistics = fields.measure(*swapped["enc2/ff"].tensors(), 0.3)
    assert table.noise[tables.PROBES["swapped"], "enc2/ff"] == pytest.approx(statistics.summary()["noise"].item())
    assert table.accuracy[tables.AS_DEFINED].notna().all() and len(table.loc[tables.PROBES["swapped"]]) == 4


def test_second_probes_leave_the_first_ones_as_they_are(network, images, measured):
    plain = trained(network, images, replace(SETTINGS, swapped=(), short=()))
    assert tuple(plain) == measured[0].sites
    assert all(torch.equal(value, measured[0].state_dict()[name]) for name, value in plain.state_dict().items())


def test_a_measurement_from_before_second_probes_is_read(measured, tmp_path):
    result = replace(measured[1], alternatives={})
    measure.save(result, tmp_path)
    again = measure.load(tmp_path)
    assert again.alternatives == {} and set(again.sites) == set(result.sites)
    assert tables.PROBES["swapped"] not in set(tables.alternatives_table(again, torch.device("cpu")).alternative)


def test_an_unmeasured_site_is_one_line(measured):
    with pytest.raises(UserError, match=r"enc9/ff.*was not measured") as caught:
        measured[1]["enc9/ff"]
    assert "\n" not in str(caught.value)


def test_tables_are_those_of_snp(network, measured, tmp_path):
    _, result, shuffled, _ = measured
    tables.compute(result, shuffled, (0.2, 0.3), 2, 2, network.config.heads, tmp_path, torch.device("cpu"))
    made = stages.read_tables(tmp_path, tables.NAMES)
    mu, W = result["enc2/ff"].tensors()
    found = fields.measure(mu, W, 0.3)
    nodes = made["nodes"].query("site == 'enc2/ff' and theta == 0.3")
    assert nodes.noise.tolist() == found.noise.tolist()
    assert (nodes.ones == nodes.signal + nodes.column_noise + nodes.foreign_noise).all()
    assert len(made["orders"]) == 2 * len(result.sites)
    draws = made["controls"].groupby(["kind", "control"]).size()
    assert draws["ff"].to_dict() == {"labels shuffled": 4, "random basis": 4} and len(draws["mha"]) == 4
    accuracy = made["accuracy"].set_index("site")
    own = (result["enc2/ff"].predictions["test"] == result.labels["test"]).mean()
    assert accuracy.accuracy["enc2/ff"] == pytest.approx(own, abs=1e-6)
    assert (accuracy.low <= accuracy.accuracy).all() and (accuracy.accuracy <= accuracy.high).all()


def test_accuracy_per_label_weighs_every_label_alike():
    labels, read = np.array([0, 0, 0, 2, 2, 2, 2]), np.array([0, 0, 1, 2, 0, 1, 0])  # no image of label 1
    assert measure.per_label(read, labels) == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert measure.per_label(labels[:4], labels[:4]) == 1


def test_the_own_readout_is_what_the_network_reads(network, images, measured):
    """Silence every weight of fc but one node's, and run the network itself, less its bias."""
    test, readout = images["test"], measured[1].alternatives["readout"]["enc2/ff"]
    mu, W = readout.tensors()
    node, fc = 5, network.classifier.fc
    weight, bias = fc.weight.clone(), fc.bias.clone()
    try:
        fc.weight.zero_()
        fc.bias.zero_()
        fc.weight[:, node] = weight[:, node]
        outputs = network(half(test.pixels))
    finally:
        fc.weight.copy_(weight)
        fc.bias.copy_(bias)
    literal = torch.stack([outputs[test.labels == label].mean(0) for label in range(10)])
    torch.testing.assert_close(fields.field(mu[:, node], W[:, node]), literal, atol=1e-5, rtol=2e-3)
    assert all(
        np.array_equal(readout.predictions[split], measured[1].predictions[split]) for split in ("held-out", "test")
    )


def test_an_old_measurement_in_float32_is_rounded_when_it_is_read(measured, tmp_path):
    """A file as it was written before rounding; what it measures is what its rounded arrays measure."""
    measure.save(measured[1], tmp_path)
    with np.load(tmp_path / measure.FILE) as file:
        arrays = dict(file)
    draw = np.random.default_rng(0)
    for key in ("enc1/ff/W", "enc1/ff/mu/test"):
        arrays[key] = draw.normal(size=arrays[key].shape).astype(np.float32)
    np.savez(tmp_path / measure.FILE, **arrays)
    mu, W = measure.load(tmp_path)["enc1/ff"].tensors()
    assert torch.equal(W, torch.from_numpy(arrays["enc1/ff/W"]).half().float())
    assert torch.equal(mu, torch.from_numpy(arrays["enc1/ff/mu/test"]).half().float())
    arrays["enc1/ff/W"][0, 0] = 1e5
    np.savez(tmp_path / measure.FILE, **arrays)
    with pytest.raises(UserError, match="65,504"):
        measure.load(tmp_path)


def drawn(split="held-out"):
    draw = np.random.default_rng(0)
    arrays = lambda: draw.normal(size=(5, 6)).astype(np.float32)  # noqa: E731
    by_site = {name: measure.SiteMeasurement(arrays(), {split: arrays(), "test": arrays()}) for name in ("mha", "ff")}
    alternatives = {"readout": {"enc1/ff": measure.SiteMeasurement(arrays(), {split: arrays(), "test": arrays()})}}
    named = {f"enc1/{name}": values for name, values in by_site.items()}
    return measure.Measurement(named, {}, {}, tuple("abcde"), None, None, {}, alternatives)


def test_diagonal_sets_come_from_the_held_out_images():
    measured = drawn()
    sets = measure.diagonals(measured, theta=0.4)
    assert set(sets) == {"enc1/mha", "enc1/ff", "enc1/readout"}
    readout = {"enc1/readout": measured.alternatives["readout"]["enc1/ff"]}
    for site, values in (measured.sites | readout).items():
        for node in range(6):
            M = np.outer(values.mu["held-out"][:, node].astype(float), values.W[:, node].astype(float))
            assert sets[site][node].tolist() == [M[i, i] / M.max() > 0.4 for i in range(5)]
    assert not torch.equal(fields.diagonals(*measured["enc1/ff"].tensors("test"), 0.4), sets["enc1/ff"])
    with pytest.raises(UserError, match="no field averages for split 'held-out'"):
        measure.diagonals(drawn("other"))
