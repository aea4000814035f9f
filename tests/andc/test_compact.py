"""Costs, storage and compact forms of pruned networks: equal to the masked network, smaller, and honestly chosen."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import tiny_pruning as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cctlib.andc import compact, sparselayers
from cctlib.andc import masks as andc
from cctlib.andc.compact import count, remove_silent
from cctlib.andc.retrain import masked
from cctlib.andc.sparsefile import encode, load_sparse, save_sparse
from cctlib.andc.sparselayers import FORMS, make_form
from cctlib.errors import UserError
from cctlib.model.cct import CCT, CCTConfig

SMALL = CCTConfig(encoders=2, width=64, heads=2, conv_channels=16, image_size=16, num_classes=20)
NEAR = {"rtol": 0, "atol": 1e-5}


def pruned_network(share=0.1, seed=0, config=tiny.CONFIG, target="all"):
    """A network with ANDC's zeros in its weights."""
    network = tiny.network(seed, config)
    for name, mask in andc.andc_masks(tiny.diagonals(share, seed, config), config.encoders, target).items():
        network.get_parameter(name).masked_fill_(~mask, 0)
    return network


def pictures(count, config=tiny.CONFIG):
    side = config.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(7))


# Costs


@pytest.mark.parametrize("config", [tiny.CONFIG, SMALL, CCTConfig()], ids=["tiny", "small", "cct_7_3x2"])
def test_counted_multiplications_are_those_that_torch_counts(config):
    network = CCT(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(pictures(2, config))
    assert count(network, {}).macs * 2 * 2 == counter.get_total_flops()  # 2 images, a product and a sum each
    assert count(network, {}).parameters == sum(parameter.numel() for parameter in network.parameters())


def test_pruned_weights_cost_nothing():
    network, masks = tiny.network(), andc.andc_masks(tiny.diagonals(), 2)
    dense, cost = count(network, {}), count(network, masks)
    with masked(network, masks):
        found = compact.masks_of(network)
    assert found.keys() == masks.keys() and all(torch.equal(found[name], masks[name]) for name in masks)
    gone = {name: int((~mask).sum()) for name, mask in masks.items()}
    tokens = tiny.CONFIG.tokens
    assert cost.parameters == dense.parameters - sum(gone.values())
    fc = gone.pop("classifier.fc.weight")
    assert cost.macs == dense.macs - tokens * sum(gone.values()) - fc


# Storage


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_a_pruned_network_is_stored_and_read_back(tmp_path, dtype, share):
    network = pruned_network(share, config=SMALL)
    size = save_sparse(tmp_path / "pruned.safetensors", network.state_dict(), dtype)
    assert size == (tmp_path / "pruned.safetensors").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["pruned.safetensors"]
    state = load_sparse(tmp_path / "pruned.safetensors")
    assert state.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(state[name], tensor.to(dtype))
    if dtype == torch.float32:
        again = CCT(SMALL).eval()
        again.load_state_dict(state)
        assert torch.equal(again(pictures(3, SMALL)), network(pictures(3, SMALL)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.5, 0.9])
def test_the_file_is_at_most_five_percent_above_its_density(dtype, density):
    """CCT-7/3x2 with random masks, which nothing compresses; density as the share of all its parameters."""
    network = CCT(CCTConfig())
    generator = torch.Generator().manual_seed(0)
    for layer in andc.layers(7):
        weight = network.get_parameter(layer.weight)
        weight.data *= andc.random_mask(tuple(weight.shape), round(density * weight.numel()), generator)
    state = network.state_dict()
    dense = len(safetensors.torch.save({name: tensor.to(dtype) for name, tensor in state.items()}))
    kept = count(network, compact.masks_of(network)).parameters / sum(
        parameter.numel() for parameter in network.parameters()
    )
    assert len(encode(state, dtype)) <= (kept + 0.05) * dense
    # The pruned layers alone: at float16 a mask near one half costs the 1/16 that no code can save.
    alone = {layer.weight: state[layer.weight] for layer in andc.layers(7)}
    dense = len(safetensors.torch.save({name: tensor.to(dtype) for name, tensor in alone.items()}))
    extra = 0.05 if dtype == torch.float32 or density <= 0.1 else 1 / 16 + 0.005
    assert len(encode(alone, dtype)) <= (density + extra) * dense


def test_masks_of_label_sets_compress_below_their_entropy():
    found = tiny.diagonals(0.03, config=CCTConfig())
    mask = andc.connected(found["enc1/trunk"], found["enc1/ff_hidden"])
    d = float(mask.float().mean())
    independent = -d * math.log2(d) - (1 - d) * math.log2(1 - d)
    file = encode({"w": mask.float()}, torch.float32)
    assert len(file) - 4 * int(mask.sum()) < independent * mask.numel() / 8 + 200


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_matrix_survives_storage(tmp_path_factory, rows, columns, density, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator) * (
        torch.rand(rows, columns, generator=generator) < density
    )
    state = {"matrix": matrix, "bias": torch.zeros(3), "steps": torch.tensor(7)}
    path = tmp_path_factory.mktemp("any") / "file"
    save_sparse(path, state, torch.float32)
    found = load_sparse(path)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "pruned.safetensors"
    with pytest.raises(UserError, match="no such file"):
        load_sparse(path)
    save_sparse(path, pruned_network(config=SMALL).state_dict())
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-7], b"x" * 300):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{Path(path).name}: damaged"):
            load_sparse(path)
    tensors = safetensors.torch.load(whole)
    name = next(name for name in tensors if name.endswith(":values"))
    metadata = {"format": "cctlib-sparse-1", "sparse": f'{{"{name.removesuffix(":values")}": [64, 64]}}'}
    for broken in (
        {**tensors, name: tensors[name][:-1]},
        {key: tensor for key, tensor in tensors.items() if not key.endswith(":kept")},
        {**tensors, name.replace("values", "kept"): torch.tensor([1, 2, 3], dtype=torch.uint8)},
    ):
        safetensors.torch.save_file(broken, path, metadata)
        with pytest.raises(UserError, match="damaged"):
            load_sparse(path)
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(UserError, match="not a file of pruned weights"):
        load_sparse(path)


# Silent nodes


def test_silent_nodes_leave_and_constants_move_into_the_next_bias():
    network = tiny.network()
    first, second = network.classifier.blocks
    first.linear1.weight[[1, 2]] = 0  # constants
    first.linear2.weight[:, [2, 3, 9]] = 0  # 2: neither, 3 and 9: reach nothing
    images = pictures(6)
    logits, taps = network(images, taps=["enc1/ff"])
    assert remove_silent(network) == {"enc1/ff_hidden": 4, "enc2/ff_hidden": 0}
    assert first.linear1.weight.shape == (28, 16) and first.linear2.weight.shape == (16, 28)
    assert second.linear1.weight.shape == (32, 16)
    again, taps_again = network(images, taps=["enc1/ff"])
    torch.testing.assert_close(again, logits, **NEAR)
    torch.testing.assert_close(taps_again["enc1/ff"], taps["enc1/ff"], **NEAR)


@pytest.mark.parametrize("cut", ["linear1", "linear2"])
def test_an_encoder_may_lose_all_its_hidden_nodes(cut):
    network = tiny.network()
    getattr(network.classifier.blocks[1], cut).weight.zero_()
    logits = network(pictures(5))
    small, _ = compact.compact(network, 5, seconds=0.0)
    assert small.classifier.blocks[1].linear1.weight.shape == (0, 16)
    torch.testing.assert_close(small(pictures(5)), logits, **NEAR)


# Forms


@pytest.mark.parametrize("form", FORMS)
@given(
    shape=st.sampled_from([(1,), (7,), (1, 4), (5, 3), (33, 2), (2, 3, 4)]),
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 9),
    density=st.floats(0.05, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_every_form_gives_the_outputs_of_the_dense_layer(form, shape, outputs, inputs, density, seed):
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(inputs, outputs).requires_grad_(False)
    module.weight *= torch.rand(outputs, inputs, generator=generator) < density
    x = torch.randn(*shape, inputs, generator=generator)
    made = make_form(form, module, images=3)
    expected = F.linear(x, module.weight, module.bias)
    torch.testing.assert_close(made(x), expected, **NEAR)
    torch.testing.assert_close(made(x.transpose(0, -2).contiguous().transpose(0, -2)), expected, **NEAR)


def test_groups_partition_the_rows_and_cover_their_columns():
    kept = torch.rand(37, 20, generator=torch.Generator().manual_seed(0)) < 0.15
    kept[[4, 20]] = False
    for number in (1, 2, 8, 50):
        groups = sparselayers.group_rows(kept, number)
        rows = torch.cat([rows for rows, _ in groups])
        assert sorted(rows.tolist()) == kept.any(1).nonzero().flatten().tolist()
        for members, columns in groups:
            assert columns.tolist() == kept[members].any(0).nonzero().flatten().tolist()


def test_groups_find_blocks_that_are_there():
    """Four label groups, dealt to shuffled nodes: grouping leaves exactly their blocks."""
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.eye(4, dtype=torch.bool)[torch.randperm(64, generator=generator) % 4] for _ in range(2))
    groups = sparselayers.group_rows(andc.connected(source, target), 4)
    assert sum(len(rows) * len(columns) for rows, columns in groups) == 64 * 64 / 4
    assert len(sparselayers.best_groups(andc.connected(source, target))) == 4


# The compact network


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.05, 0.1, 0.4])
def test_the_compact_network_has_the_logits_of_the_masked_one(form, share):
    for config in (tiny.CONFIG, SMALL):
        network = pruned_network(share, config=config)
        names = {layer.module: form for layer in andc.layers(config.encoders)}
        for batch in (1, 40):
            small, measured = compact.compact(network, batch, forms=names)
            torch.testing.assert_close(small(pictures(40, config)), network(pictures(40, config)), **NEAR)
            assert set(measured.form) <= {form} and measured.chosen.all() and measured.seconds.isna().all()
        fused = pruned_network(share, config=config)
        fused.attention = "fused"
        small, _ = compact.compact(fused, 4, forms=names)
        torch.testing.assert_close(small(pictures(4, config)), fused(pictures(4, config)), **NEAR)


@pytest.mark.parametrize("target", andc.TARGETS)
def test_only_layers_with_zeros_are_measured_and_the_network_is_left_alone(target):
    network = pruned_network(0.1, target=target)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    small, measured = compact.compact(network, 2, seconds=0.0)
    assert set(measured.layer) == {layer.module for layer in andc.layers(2, target)}
    assert list(measured.columns) == ["layer", "outputs", "inputs", "density", "form", "seconds", "chosen"]
    assert (measured.groupby("layer").chosen.sum() == 1).all() and (measured.seconds > 0).all()
    best = measured.loc[measured.groupby("layer").seconds.idxmin()].set_index("layer").form
    for layer, form in measured[measured.chosen].set_index("layer").form.items():
        assert form in ("dense", best[layer]), "the fastest, or dense where nothing is clearly faster"
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    torch.testing.assert_close(small(pictures(3)), network(pictures(3)), **NEAR)
    repeated, _ = compact.compact(network, 2, forms=dict(measured[measured.chosen][["layer", "form"]].values))
    assert [type(module) for module in repeated.modules()] == [type(module) for module in small.modules()]


def test_a_form_is_taken_when_it_is_clearly_faster():
    assert compact.fastest({"dense": 1.0, "bags": 0.95, "csr": 2.0}) == "dense"
    assert compact.fastest({"dense": 1.0, "bags": 0.5, "csr": 0.4}) == "csr"
    assert compact.fastest({"dense": 1.0, "bags": float("nan"), "csr": 0.8}) == "csr"
    assert compact.fastest({"csr": 2.0, "bags": 1.0}) == "bags"


def test_a_form_that_does_not_run_here_is_left_out(monkeypatch):
    def no_kernel(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(sparselayers.CSR, "forward", no_kernel)
    network = pruned_network()
    small, measured = compact.compact(network, 2, forms=("csr", "dense"), seconds=0.0)
    assert measured.set_index("form").seconds.isna()["csr"].all() and set(measured[measured.chosen].form) == {"dense"}
    torch.testing.assert_close(small(pictures(2)), network(pictures(2)), **NEAR)


def test_wrong_forms_are_refused():
    network = pruned_network()
    with pytest.raises(UserError, match="form 'coo' of a sparse layer is not known; use one of dense, bags"):
        compact.compact(network, 1, forms=("coo",))
    with pytest.raises(UserError, match="has zeros but was given no form"):
        compact.compact(network, 1, forms={"classifier.fc": "dense"})
