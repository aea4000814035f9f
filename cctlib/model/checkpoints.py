"""Weights files of any origin: the network is found by the names of its tensors, whatever a script wrapped around it.

Read are safetensors and PyTorch's files as the CCT authors, timm, Lightning and our own trainer write them. A network
may be bare or in nested dictionaries of any name, and its tensors may have a prefix, such as `module.` or `model.`.
No code in a file is ever run: objects that are not tensors are read as empty ones.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cctlib.errors import UserError
from cctlib.model.cct import CCT, CCTConfig, on_grid, sinusoids

log = logging.getLogger(__name__)

AVERAGED = re.compile(
    r"(?<![a-z])(ema|averag|swa)", re.IGNORECASE
)  # in the names under which scripts keep averaged weights
COUNTERS = ("n_averaged", "total_ops", "total_params")  # buffers that torch's averaging and thop leave among weights


def load_weights(path: str | Path, config: CCTConfig, *, attention: str = "explicit", averaged: bool = True) -> CCT:
    """The network of a weights file: fp32, on the CPU, in eval mode. torch's random generators are left alone.

    averaged: where a file holds the last weights and their moving average, take the average, and log that; else
    take the last ones. A learned position embedding of another image size is resized (bicubic); sinusoids are
    computed anew.
    Raises `UserError` when the file cannot be read, holds no such network, or several, and naming the first tensor
    that does not fit.
    """
    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        network = CCT(config, attention).eval()
    expected = network.state_dict()
    state = _network(path, list(expected), averaged)
    try:
        _fit_positions(state, config)
        _check_shapes(state, expected)
    except UserError as error:
        raise UserError(f"{path}: {error}; choose the configuration it was made with") from None
    network.load_state_dict(state)
    return network


def read(path: str | Path) -> Mapping[Any, Any]:
    """The content of a safetensors file or a PyTorch checkpoint, tensors on the CPU.

    Raises `UserError` when there is no file, or none of these kinds, saying what it is instead.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    with path.open("rb") as file:
        head = file.read(512)
    _refuse_text(path, head)
    try:
        content = load_file(path) if head[8:9] == b"{" else _unpickled(path)
    except Exception as error:  # each library has exceptions of its own for a damaged file
        reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0][:200]
        raise UserError(f"{path}: no readable file of tensors ({type(error).__name__}: {reason})") from None
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path}: holds {_described(content)}, no tensors by name; save network.state_dict() where it was made"
        )
    return content


def _refuse_text(path: Path, head: bytes) -> None:
    size = f"{path.stat().st_size:,} bytes"
    if not head:
        raise UserError(f"{path}: no readable file of tensors: it is empty; download or copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path}: no readable file of tensors: a Git LFS pointer of {size}, not the weights; run git lfs pull"
        )
    if b"\0" not in head and all(byte >= 32 or byte in b"\t\n\f\r" for byte in head):
        kind = "an HTML page" if re.match(rb"\s*<(!doctype|html|head|\?xml)", head, re.IGNORECASE) else "a text file"
        raise UserError(f"{path}: no readable file of tensors: {kind} of {size}, not weights; download the file itself")


class _Object:
    """Takes the place of every object in a checkpoint that is no tensor, such as the options of a script."""

    def __new__(cls, *_: object) -> "_Object":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _unpickled(path: Path) -> Any:
    """A PyTorch checkpoint. What its pickle names besides tensors is never imported or called."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except ValueError:  # written before torch 1.6
        names = []
    with torch.serialization.safe_globals([(_Object, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _networks(content: Mapping[Any, Any], first: str, place: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All networks in a checkpoint, by their place in it; `first` is a tensor that each must have."""
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    prefixes = [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]
    for prefix in prefixes:
        others = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        yield (
            place + prefix,
            {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix) and not name.startswith(others) and not name.endswith(COUNTERS)
            },
        )
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _networks(value, first, f"{place}{name}/")


def _network(path: Path, expected: list[str], averaged: bool) -> dict[str, Tensor]:
    """The one network in a file that is meant. Raises `UserError` when there is none, or more than one."""
    content = read(path)
    networks = dict(_networks(content, expected[0]))
    if not networks:
        raise UserError(
            f"{path}: no tensor is called {expected[0]}, with or without a prefix; the file has "
            f"{_some(_names(content))}, expected are {_some(expected)}; choose the configuration it was made with"
        )
    averages = {place for place in networks if AVERAGED.search(place)}
    places = sorted((averages if averaged else networks.keys() - averages) or networks)
    if len(places) > 1:
        named = ", ".join(place.rstrip("/.") or "no name" for place in places)
        raise UserError(f"{path}: holds several networks, under {named}; save the one that is meant to its own file")
    if averages and averaged and len(networks) > 1:
        log.warning("%s: these are the averaged weights (%s), not the last ones", path, places[0].rstrip("/."))
    return networks[places[0]]


def _names(content: Mapping[Any, Any], place: str = "") -> Iterator[str]:
    """What a checkpoint holds, by place; of what is no tensor, also what it is."""
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _names(value, f"{place}{name}/")
        else:
            yield f"{place}{name}" if isinstance(value, Tensor) else f"{place}{name} ({_described(value)})"


def _described(value: object) -> str:
    return "an object of some class" if isinstance(value, _Object) else f"a {type(value).__name__}"


def _some(names: Iterable[str], shown: int = 4) -> str:
    """The first few of the names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _check_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in (*expected, *state):
        if name not in state:
            raise UserError(f"tensor {name} {tuple(expected[name].shape)} is missing")
        shape = tuple(state[name].shape)
        if name not in expected:
            raise UserError(f"tensor {name} {shape} has no place in this network")
        if shape != expected[name].shape:
            raise UserError(f"tensor {name} has shape {shape}, expected {tuple(expected[name].shape)}")


def _fit_positions(state: dict[str, Tensor], config: CCTConfig) -> None:
    """Bring the position embedding of a checkpoint, in place, to the configuration's number of tokens."""
    name = "classifier.positional_emb"
    positions = state.get(name, torch.empty(0)).float()
    if positions.ndim != 3 or positions.shape[0] != 1 or positions.shape[2] != config.width:
        return  # absent or of another width: the comparison of shapes says so
    if config.positional == "sine":
        # 0.002 lets through the rounding of fp16 and of angles in fp32.
        if not torch.allclose(positions, sinusoids(positions.shape[1], config.width), atol=2e-3):
            raise UserError(f'tensor {name} is learned, not sinusoidal; positional="learnable" reads it')
        state[name] = sinusoids(config.tokens, config.width)
    old, new = round(positions.shape[1] ** 0.5), config.side(config.image_size)
    if config.positional == "learnable" and old != new and old**2 == positions.shape[1]:
        state[name] = on_grid(positions, config.tokens)
