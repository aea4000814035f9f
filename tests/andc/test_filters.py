"""AFCC: masks of kernels against the siblings' loops, and the table against networks with kernels zeroed by hand."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cctlib.andc import filters
from cctlib.andc.retrain import Reduced, Retraining, retrain_layers
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
    nodes = {"layer1/filters": 4, "layer2/filters": 4, "layer3/filters": 8, "fc": 8}
    return {site: torch.rand(count, 10, generator=draw) < 0.15 for site, count in nodes.items()}


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
    for a, of_filter in enumerate(labels["fc"]):
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


def test_outputs_see_what_literal_silencing_leaves(model):
    splits = {"probe": data.load("demo", "train").subset(per_label=5), "held-out": data.load("demo", "held-out")}
    found = filters.diagonal_sets(model, splits, 1, CPU)["fc"]
    network, images = model.network("cpu"), splits["held-out"]
    same = []
    for node in range(CONFIG.layers[-1][0]):
        alone = torch.zeros(CONFIG.layers[-1][0], 1, 1).index_fill(0, torch.tensor(node), 1.0)
        hook = network.layers[-1].register_forward_hook(lambda layer, x, maps, only=alone: (maps[0], maps[1] * only))
        with hook, torch.no_grad():
            logits = network(model.normalise(images.pixels))
        fields = torch.stack([logits[images.labels == label].mean(0) for label in range(10)])
        same.append(found[node] == (fields.diagonal() > 0.3 * fields.max().clamp(min=0)))
    same = torch.stack(same)
    assert (~same).sum() <= 2  # of 80; the maps are kept in bf16


def test_batch_norm_is_retrained_with_its_convolution_and_with_no_other(model):
    network, images = model.network("cpu"), data.load("demo", "train").subset(per_label=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    masks = {"layers.2.conv.weight": torch.ones(8, 4, 3, 3, dtype=torch.bool)}
    train = Reduced(images.pixels, images.labels, lambda net, pixels: net(model.normalise(pixels)), CPU)
    retrain_layers(network, masks, train, 1.0, Retraining(precision="fp32"), torch.Generator().manual_seed(0))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert changed == {"layers.2.conv.weight", *(f"layers.2.norm.{name}" for name in norm)}
    assert not network.training and not any(module.training for module in network.modules())


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

    dense = table.groupby("epochs").accuracy_dense
    assert np.allclose(dense.min(), dense.max(), atol=0.2) and dense.first()[0.0] == pytest.approx(accuracy(), abs=0.02)
    for name, kept in connected.items():
        weight = network.get_parameter(name)
        weight.view(*kept.shape, -1)[~kept] = 0
    row = table.query("convolutions == 2 and method == 'andc' and epochs == 0").iloc[0]
    assert row.accuracy == pytest.approx(accuracy(), abs=0.02)  # in bf16 there, where the machine has it
    assert 0 < row.density < 1 and row.low <= row.accuracy <= row.high
    same = table.groupby(["convolutions", "epochs"]).density.nunique()
    assert (same == 1).all()
