"""Weights files of many origins: what is read, what is refused, and that nothing in them is ever run."""

import argparse
import enum
import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cctlib.errors import UserError
from cctlib.model import cct
from cctlib.model.checkpoints import load_weights

TINY = cct.CCTConfig(encoders=3, width=24, heads=2, conv_channels=8, image_size=16, num_classes=5)


def tiny(seed: int = 0, **settings) -> cct.CCT:
    torch.manual_seed(seed)
    return cct.CCT(replace(TINY, **settings)).eval()


def pictures(size: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def same(network: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


def prefixed(network: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


# What is read


@pytest.mark.parametrize("wrap", [None, "model", "state_dict", "model_state_dict", "net", "network", "params"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.", "net.", "backbone."])
def test_checkpoints_of_every_wrapping(tmp_path, wrap, prefix):
    network, path = tiny(), tmp_path / "weights.pth"
    state = prefixed(network, prefix)
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    before = torch.random.get_rng_state()
    loaded = load_weights(path, TINY, attention="fused")
    assert same(loaded, network) and not loaded.training and loaded.attention == "fused"
    assert torch.equal(torch.random.get_rng_state(), before)


def test_old_files_and_any_suffix(tmp_path):
    network = tiny()
    torch.save({"net": network.state_dict()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(network.state_dict(), tmp_path / "weights.BIN")
    for path in tmp_path.iterdir():
        assert same(load_weights(path, TINY), network)


class Mode(enum.Enum):
    FAST = 1


class Options:
    """Somebody's own class, which a reader's machine does not have."""

    def __init__(self) -> None:
        self.mode, self.folder = Mode.FAST, Path("runs")


def test_what_scripts_keep_beside_the_weights_is_left_unread(tmp_path):
    """As the CCT authors' script and Lightning leave it: options of all kinds, numpy's numbers, optimizers."""
    network, path = tiny(), tmp_path / "last.ckpt"
    optimizer = torch.optim.AdamW(network.parameters())
    network(pictures()).sum().backward()
    optimizer.step()
    beside = {
        "args": argparse.Namespace(lr=0.1, folder=Path("runs")),
        "best_acc": np.float64(0.7),
        "confusions": np.eye(3),
        "hyper_parameters": {"options": Options(), "mode": Mode.FAST},
        "optimizer": optimizer.state_dict(),
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.7)}},
    }
    state = prefixed(network, "model.") | {"criterion.weight": torch.ones(5), "model.total_ops": torch.zeros(1)}
    torch.save({"epoch": 3, "state_dict": state, **beside}, path)
    assert same(load_weights(path, TINY), network)


def test_what_timm_saves(tmp_path):
    timm = pytest.importorskip("timm.utils")
    network, average = tiny(), tiny(seed=1)
    optimizer = torch.optim.AdamW(network.parameters())
    ema = timm.ModelEmaV3(average)
    options = argparse.Namespace(model="cct_2_3x2")
    saver = timm.CheckpointSaver(network, optimizer, options, model_ema=ema, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(3, metric=0.5)
    path = tmp_path / "checkpoint-3.pth.tar"
    assert same(load_weights(path, TINY), average)


@pytest.mark.parametrize(
    "content",
    [
        lambda last, mean: {"state_dict": last.state_dict(), "state_dict_ema": prefixed(mean, "module.")},
        lambda last, mean: {"network": last.state_dict(), "averaged": mean.state_dict(), "optimizers": []},
        lambda last, mean: {"state_dict": prefixed(last, "model.") | prefixed(mean, "ema_model.module.")},
        lambda last, mean: last.state_dict() | prefixed(mean, "ema."),
    ],
)
def test_averaged_weights_are_preferred_aloud(tmp_path, caplog, content):
    last, mean, path = tiny(), tiny(seed=1), tmp_path / "checkpoint.pt"
    torch.save(content(last, mean), path)
    with caplog.at_level(logging.WARNING):
        assert same(load_weights(path, TINY), mean)
        assert "averaged weights" in caplog.text and str(path) in caplog.text


def test_an_average_alone_is_read_as_it_is(tmp_path, caplog):
    network, path = tiny(), tmp_path / "swa.pt"
    torch.save(torch.optim.swa_utils.AveragedModel(network).state_dict(), path)  # module. and n_averaged
    assert same(load_weights(path, TINY), network) and not caplog.text


def test_half_precision_files_become_fp32(tmp_path):
    network, path = tiny(), tmp_path / "weights.safetensors"
    save_file({name: tensor.half() for name, tensor in network.state_dict().items()}, path)
    loaded = load_weights(str(path), TINY)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert same(loaded, network.half().float())


def test_positions_are_resized(tmp_path):
    network, path = tiny(), tmp_path / "weights.safetensors"
    rows = torch.linspace(0, 1, 4).repeat_interleave(4)  # a ramp from the first row to the last
    network.classifier.positional_emb.data = rows[None, :, None].repeat(1, 1, 24)
    save_file(network.state_dict(), path)
    for size, side in ((32, 8), (8, 2)):
        larger = load_weights(path, replace(TINY, image_size=size))
        grid = larger.classifier.positional_emb.detach().reshape(side, side, 24)
        torch.testing.assert_close(grid, grid[:, :1, :1].expand_as(grid))  # still a function of the row alone
        assert (grid[:, 0, 0].diff() > 0).all() and abs(grid.mean() - 0.5) < 1e-5
        assert larger(pictures(size)).shape == (2, 5)
    table = torch.randn(1, 16, 24)
    network.classifier.positional_emb.data = table
    save_file(network.state_dict(), path)
    assert torch.equal(load_weights(path, TINY).classifier.positional_emb, table)


def test_images_of_another_size_go_where_the_network_is_told(tmp_path):
    """As through the network that is loaded for that size from the same file."""
    network, path = tiny(), tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    network.image_size = 32
    loaded = load_weights(path, replace(TINY, image_size=32))
    torch.testing.assert_close(network(pictures(32)), loaded(pictures(32)))
    with pytest.raises(UserError, match="16x16 pixels, this network needs 32x32"):
        network(pictures())


def test_sinusoids_are_computed_anew_for_another_size(tmp_path):
    config, path = replace(TINY, positional="sine"), tmp_path / "weights.safetensors"
    save_file(tiny(positional="sine").state_dict(), path)
    larger = load_weights(path, replace(config, image_size=32))
    assert torch.equal(larger.classifier.positional_emb, cct.sinusoids(64, 24))
    save_file(tiny().state_dict(), path)
    with pytest.raises(
        UserError, match=r"classifier.positional_emb is learned, not sinusoidal; positional=\"learnable\""
    ):
        load_weights(path, config)


# What is refused


def test_several_networks_are_named(tmp_path):
    path = tmp_path / "distilled.pt"
    torch.save(prefixed(tiny(), "student.") | prefixed(tiny(seed=1), "teacher."), path)
    with pytest.raises(UserError, match="several networks, under student, teacher; save the one"):
        load_weights(path, TINY)


def test_a_file_without_the_network_lists_what_it_has(tmp_path):
    path = tmp_path / "resnet.pt"
    torch.save({"epoch": 3, "state_dict": {f"layer{n}.weight": torch.ones(2) for n in range(9)}}, path)
    with pytest.raises(UserError) as caught:
        load_weights(path, TINY)
    message = str(caught.value)
    assert "the file has state_dict/layer0.weight, state_dict/layer1.weight" in message
    assert "expected are tokenizer.conv_layers.0.0.weight, tokenizer.conv_layers.1.0.weight" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its 0 bytes begin with b''; download the file itself"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14980000\n",
            "its 71 bytes begin with b'version https://git-lfs.*git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", r"its 49 bytes begin with b'<!DOCTYPE html>\\n<html>"),
        (b"\n  <html>404</html>", r"its 19 bytes begin with b'\\n  <html>404"),
        (b"Entry not found", "its 15 bytes begin with b'Entry not found'"),
        (bytes(range(256)), "no readable file of tensors"),
        (pickle.dumps([1, 2]), "no readable file of tensors"),
    ],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.bin"])
def test_what_a_file_is_instead_of_weights(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_weights(path, TINY)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("content", [tiny, list, lambda: torch.ones(3)])
def test_a_pickled_network_is_no_state_dict(tmp_path, content):
    path = tmp_path / "network.pt"
    torch.save(content(), path)
    with pytest.raises(UserError, match=r"the file has .*save network.state_dict"):
        load_weights(path, TINY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 7}, r"mismatch for classifier.fc.weight: .*\[5, 24\].*\[7, 24\]"),
        ({"encoders": 4}, r'Missing key.* "classifier.blocks.3.pre_norm.weight"'),
        ({"encoders": 2}, r'Unexpected key.* "classifier.blocks.2.'),
        ({"positional": "none"}, r'Unexpected key.* "classifier.positional_emb"'),
        ({"width": 36}, r"mismatch for .*24.* current model is .*36"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(tmp_path, settings, message):
    path = tmp_path / "weights.safetensors"
    save_file(tiny().state_dict(), path)
    with pytest.raises(UserError, match=message) as caught:
        load_weights(path, replace(TINY, **settings))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


class Call:
    """What a malicious checkpoint could hold: a function that is called while the file is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "malice", [Call(open, "opened", "w"), Call(eval, "open('opened', 'w')"), Call(os.mkdir, "opened")]
)
def test_no_code_in_a_file_is_run(tmp_path, monkeypatch, malice):
    monkeypatch.chdir(tmp_path)
    network = tiny()
    for zipped in (True, False):
        torch.save({"args": malice, "model": network.state_dict()}, "a.pth", _use_new_zipfile_serialization=zipped)
        try:
            assert same(load_weights("a.pth", TINY), network)
        except UserError as refusal:
            assert "a.pth: no readable file of tensors" in str(refusal) and "\n" not in str(refusal)
        assert not Path("opened").exists()


def test_files_that_are_no_checkpoints(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file(tiny().state_dict(), whole)
    files = {name: tmp_path / name for name in ("a.safetensors", "b.pth", "c.pth")}
    files["a.safetensors"].write_bytes(whole.read_bytes()[:-100])
    torch.save(tiny().state_dict(), files["b.pth"])
    files["b.pth"].write_bytes(files["b.pth"].read_bytes()[:-100])
    files["c.pth"].mkdir()
    for path in (*files.values(), tmp_path / "missing.pth"):
        with pytest.raises(UserError, match=r"no readable|no such") as caught:
            load_weights(path, TINY)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
