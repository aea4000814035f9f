"""Filters: their fields against literal silencing, their probes against an oracle, the stage against its parts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from cctlib import stages
from cctlib.data import images as data
from cctlib.errors import UserError
from cctlib.model import manifest
from cctlib.model.vgg import VGG, VGGConfig
from cctlib.snp import fields, maps
from cctlib.snp.probe import ProbeSettings

SETTINGS = maps.LayerSettings(probe=ProbeSettings(precision="fp32"), thetas=(0.3, 0.5), draws=3, seeds=2)


def site(seed, labels=5, positions=4, nodes=6):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(labels, positions, nodes, generator=draw) for _ in range(2)]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_fields_of_filters_are_what_silencing_all_others_leaves(seed):
    draw = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(15, 4, 6, generator=draw), torch.arange(15) % 5
    W = torch.randn(5, 4, 6, generator=draw)
    mu = torch.stack([images[labels == label].mean(0) for label in range(5)])
    statistics = fields.measure_maps(mu, W)
    for node in range(6):
        alone = torch.zeros_like(images)
        alone[..., node] = images[..., node]
        logits = alone.flatten(1).double() @ W.flatten(1).T.double()
        M = torch.stack([logits[labels == label].mean(0) for label in range(5)])
        B = M / M.max() > 0.3
        assert int(statistics.ones[node]) == int(B.sum())
        assert int(statistics.labels[node]) == int(B.diagonal().sum())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_one_position_is_a_transformers_site(seed):
    mu, W = site(seed, positions=1)
    with_positions, without = fields.measure_maps(mu, W), fields.measure(mu[:, 0], W[:, 0])
    for name in ("silent", "ones", "labels", "clusters", "signal", "noise", "column_noise", "assignment"):
        assert torch.equal(getattr(with_positions, name), getattr(without, name)), name
    torch.testing.assert_close(with_positions.snr_field, without.snr_field)


def test_chunks_of_nodes_are_put_together(monkeypatch):
    mu, W = site(0)
    whole = fields.measure_maps(mu, W)
    monkeypatch.setattr(fields, "CHUNK", 1)
    parts = fields.measure_maps(mu, W)
    assert torch.equal(whole.noise, parts.noise)
    torch.testing.assert_close(whole.snr_field, parts.snr_field)


def test_arrays_without_positions_are_refused():
    with pytest.raises(UserError, match="position"):
        fields.measure_maps(torch.ones(3, 4), torch.ones(3, 4))


def structured(images=240, positions=9, nodes=8, labels=4):
    """Maps with correlated positions, filters of unequal size, and a little of the label in them."""
    draw = torch.Generator().manual_seed(1)
    truth = torch.arange(images) % labels
    smooth = torch.randn(images, positions, nodes, generator=draw).cumsum(1)
    pattern = torch.randn(labels, positions, nodes, generator=draw)
    scale = torch.linspace(0.1, 3, nodes)
    return ((smooth + 0.7 * pattern[truth] + 2) * scale / 8).bfloat16(), truth


def test_the_probe_ends_where_the_objective_is_least():
    values, labels = structured()
    settings = replace(SETTINGS, epochs=400, probe=ProbeSettings(penalty=0.03, precision="fp32"))
    W = maps.train_probe(values, labels, 4, settings)
    features = values.flatten(1).double()
    oracle = torch.zeros(4, features.shape[1], dtype=torch.float64, requires_grad=True)

    def loss(weights):
        return cross_entropy(features @ weights.T, labels) + 0.015 * weights.square().sum()

    def closure():
        optimizer.zero_grad()
        value = loss(oracle)
        value.backward()
        return value

    optimizer = torch.optim.LBFGS([oracle], max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    optimizer.step(closure)
    assert loss(W.flatten(1).double()).item() == pytest.approx(loss(oracle).item(), rel=1e-2)
    alike = torch.nn.functional.cosine_similarity(W.flatten().double(), oracle.detach().flatten(), dim=0)
    assert alike > 0.995
    assert (maps.says(values, W) == (features @ oracle.T).argmax(1)).double().mean() > 0.99


def test_a_step_is_that_of_the_siblings_recipe():
    values, labels = structured()
    W = maps.train_probe(values, labels, 4, replace(SETTINGS, epochs=2))
    linear = torch.nn.Linear(values[0].numel(), 4, bias=False)
    torch.nn.init.zeros_(linear.weight)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.01, momentum=0.975, nesterov=True, weight_decay=1e-3)
    draw = torch.Generator().manual_seed(0)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.975**epoch
        for rows in torch.randperm(240, generator=draw).split(100):
            optimizer.zero_grad()
            cross_entropy(linear(values[rows].flatten(1).float()), labels[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(W.flatten(1), linear.weight.detach(), atol=1e-3, rtol=1e-3)
    assert torch.get_float32_matmul_precision() == "highest"


def test_means_are_those_of_each_label():
    values, labels = structured()
    mu, other = maps.mean_maps(values, [labels, labels.flip(0)], 4)
    assert not torch.equal(mu, other)
    expected = torch.stack([values[labels == label].float().mean(0) for label in range(4)])
    torch.testing.assert_close(mu, expected, atol=2e-2, rtol=1e-3)


@pytest.fixture(scope="module")
def tiny_vgg(tmp_path_factory):
    """The folder of a tiny untrained VGG of the demo set, and its images."""
    folder = tmp_path_factory.mktemp("vgg")
    images = {split: data.load("demo", split, image_size=32) for split in ("train", "held-out", "test")}
    config = VGGConfig(convolutions=3, width=4, num_classes=images["train"].num_labels)
    torch.manual_seed(0)
    save_file(VGG(config).state_dict(), folder / "weights.safetensors")
    model = manifest.write_manifest(
        folder,
        name="vgg_tiny",
        config=config,
        weights=folder / "weights.safetensors",
        dataset="demo",
        normalisation={"mean": [0.5] * 3, "std": [0.5] * 3},
    )
    return model, {split: part.subset(per_label=8) for split, part in images.items()}


def test_the_stage_measures_every_site_and_goes_on_where_it_was_killed(tiny_vgg, tmp_path, monkeypatch):
    model, images = tiny_vgg
    whole = maps.layers_stage(model, images, SETTINGS, {}, tmp_path / "whole", torch.device("cpu"))
    tables = stages.read_tables(whole, maps.NAMES)
    sites = [f"layer{m}/{kind}" for kind in ("filters", "before_relu") for m in (1, 2, 3)]
    assert tables["accuracy"].site.tolist() == sites
    assert tables["nodes"].groupby("site").node.nunique().to_dict() == dict(zip(sites, [4, 4, 8] * 2, strict=True))
    counts = tables["controls"].groupby(["site", "control"]).draw.nunique()
    assert len(counts) == 12 and (counts == 3).all()
    assert set(tables["few_labels"].number) == {10} and set(tables["few_labels"].site) == {"layer3/filters"}
    of_test = tables["predictions"].query("split == 'test'")
    share = (of_test["layer2/filters"] == of_test.label).mean()
    accuracy = tables["accuracy"].set_index("site").accuracy
    assert accuracy["layer2/filters"] == pytest.approx(share)
    assert of_test.label.to_numpy().tolist() == images["test"].labels.tolist()

    real, calls = maps.measure_site, []

    def killed_at_the_fourth(site, *arguments):
        calls.append(site)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(site, *arguments)

    monkeypatch.setattr(maps, "measure_site", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        maps.layers_stage(model, images, SETTINGS, {}, tmp_path / "killed", torch.device("cpu"))
    again = maps.layers_stage(model, images, SETTINGS, {}, tmp_path / "killed", torch.device("cpu"))
    assert calls == [*sites[:4], *sites[3:]]
    for name in maps.NAMES:
        pd.testing.assert_frame_equal(tables[name], stages.read_tables(again, (name,))[name])


def test_a_site_of_the_stage_is_what_its_parts_say(tiny_vgg):
    model, images = tiny_vgg
    network = model.network("cpu")
    with torch.no_grad():
        taps = {
            split: network(model.normalise(part.pixels), taps=["layer1/filters", "layer1/before_relu"])[1]
            for split, part in images.items()
        }
    for split in taps:
        assert torch.equal(taps[split]["layer1/filters"], taps[split]["layer1/before_relu"].relu())
    kept = {split: of_split["layer1/filters"].bfloat16() for split, of_split in taps.items()}
    made = maps.measure_site("layer1/filters", kept, images, SETTINGS, last=False)
    W = maps.train_probe(kept["train"], images["train"].labels, 10, SETTINGS)
    [mu] = maps.mean_maps(kept["test"], [images["test"].labels], 10)
    statistics = fields.measure_maps(mu, fields.rounded(W), 0.5)
    rows = made["nodes"].query("theta == 0.5")
    assert np.array_equal(rows.noise.to_numpy(), statistics.noise.numpy())
    assert "few_labels" not in made
