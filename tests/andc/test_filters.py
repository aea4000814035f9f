"""AFCC: masks of kernels against the siblings' loops, and the table against networks with kernels zeroed by hand."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cctlib.andc import filters
from cctlib.data import images as data
from cctlib.model import manifest
from cctlib.model.vgg import VGG, VGGConfig

CONFIG = VGGConfig(convolutions=3, width=4, num_classes=10)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny untrained VGG of the demo set."""
    folder = tmp_path_factory.mktemp("vgg")
    torch.manual_seed(0)
    save_file(VGG(CONFIG).state_dict(), folder / "weights.safetensors")
    constants = {"mean": [0.5] * 3, "std": [0.5] * 3}
    weights = folder / "weights.safetensors"
    return manifest.write_manifest(
        folder, name="tiny", config=CONFIG, weights=weights, dataset="demo", normalisation=constants
    )


@pytest.fixture
def sets():
    """Diagonal sets of every layer, drawn at random: some filters have no label."""
    draw = torch.Generator().manual_seed(0)
    return {f"layer{m}/filters": torch.rand(nodes, 10, generator=draw) < 0.15 for m, nodes in ((1, 4), (2, 4), (3, 8))}


def test_a_kernel_stays_iff_its_filters_share_a_label(model, sets):
    network = model.network("cpu")
    masks = filters.kernel_masks(network, filters.connections(sets, network, 2), "andc", 0)
    assert set(masks) == {"layers.1.conv.weight", "layers.2.conv.weight", "fc.weight"}
    labels = {site: [set(row.nonzero().flatten().tolist()) for row in of_site] for site, of_site in sets.items()}
    for m in (2, 3):
        mask = masks[f"layers.{m - 1}.conv.weight"]
        assert mask.shape == network.layers[m - 1].conv.weight.shape
        for to, after in enumerate(labels[f"layer{m}/filters"]):
            for source, before in enumerate(labels[f"layer{m - 1}/filters"]):
                assert (mask[to, source] == bool(before & after)).all()
    positions = CONFIG.side**2
    assert positions > 1
    for a, of_filter in enumerate(labels["layer3/filters"]):
        for j in range(10):
            assert (masks["fc.weight"][j, a * positions : (a + 1) * positions] == (j in of_filter)).all()


@pytest.mark.parametrize("method", filters.METHODS)
def test_every_method_keeps_as_many_whole_kernels(model, sets, method):
    network = model.network("cpu")
    kept = filters.connections(sets, network, 1)
    masks = filters.kernel_masks(network, kept, method, 3)
    for name, mask in masks.items():
        kernels = mask.reshape(*kept[name].shape, -1)
        assert (kernels.all(2) == kernels.any(2)).all() and kernels.all(2).sum() == kept[name].sum()
    if method == "magnitude":
        sizes = network.layers[2].conv.weight.abs().sum((2, 3))
        mask = masks["layers.2.conv.weight"].all(3).all(2)
        assert sizes[mask].min() >= sizes[~mask].max()


def test_the_stage_judges_networks_whose_kernels_are_zero(model, tmp_path):
    settings = filters.FilterPruning(convolutions=(0, 2), seeds=(0, 1), epochs=(0.0, 0.5), probe=20, train=8, test=30)
    folder = filters.filters_stage(model, "demo", settings, tmp_path, CPU)
    [table] = filters.stages.read_tables(folder, [filters.TABLE]).values()
    assert len(table) == 2 * 4 * 2 and (table.images == 300).all()
    test = data.load("demo", "test").subset(per_label=30)
    splits = {"probe": data.load("demo", "train").subset(per_label=20), "held-out": data.load("demo", "held-out")}
    network = model.network("cpu")
    connected = filters.connections(filters.diagonal_sets(model, splits, 3, CPU), network, 2)

    def accuracy():
        with torch.no_grad():
            return (network(model.normalise(test.pixels)).argmax(1) == test.labels).double().mean().item()

    assert np.allclose(table.accuracy_dense, accuracy())
    for name, kept in connected.items():
        weight = network.get_parameter(name)
        weight.view(*kept.shape, -1)[~kept] = 0
    row = table.query("convolutions == 2 and method == 'andc' and epochs == 0").iloc[0]
    assert row.accuracy == pytest.approx(accuracy(), abs=0.02)  # in bf16 there, where the machine has it
    assert 0 < row.density < 1 and row.low <= row.accuracy <= row.high
    same = table.groupby(["convolutions", "epochs"]).density.nunique()
    assert (same == 1).all()
