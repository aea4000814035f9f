"""Weights files of any origin: the network is found by the names of its tensors, whatever a script wrapped around it.

Read are safetensors and PyTorch's files as the CCT authors, timm, Lightning and our own trainer write them. A network
may be bare or in nested dictionaries of any name, and its tensors may have a prefix, such as `module.` or `model.`.
No code in a file is ever run: objects that are not tensors are read as empty ones.
"""

import logging
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cctlib.errors import UserError
from cctlib.model.cct import CCTConfig, on_grid, sinusoids
from cctlib.model.networks import Config, Network, build

log = logging.getLogger(__name__)

AVERAGED = re.compile(r"(?<![a-z])(ema|averag|swa)", re.IGNORECASE)  # in the names of averaged weights
COUNTERS = ("n_averaged", "total_ops", "total_params")  # buffers that torch's averaging and thop leave among weights
POSITIONS = "classifier.positional_emb"


def load_weights(path: str | Path, config: Config, *, attention: str = "explicit") -> Network:
    """The network of a weights file: fp32, on the CPU, in eval mode. torch's random generators are left alone.

    Where a file holds the last weights and their moving average, the average is taken, and that is logged. A learned
    position embedding of another image size is resized (bicubic); sinusoids are computed anew.
    Raises `UserError` when the file cannot be read, holds no such network, or several, or tensors that do not fit.
    """
    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        network = build(config, attention).eval()
    try:
        state = _network(path, list(network.state_dict()))
        if isinstance(config, CCTConfig):
            _fit_positions(state, config)
        network.load_state_dict(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except RuntimeError as error:  # its first line is a title, the next one names the first tensors that do not fit
        reason = shorten(str(error).splitlines()[1], 200)
        raise UserError(f"{path}: {reason} Choose the configuration it was made with") from None
    return network


def _content(path: Path) -> Any:
    """What a safetensors file or a PyTorch checkpoint holds, tensors on the CPU."""
    if not path.is_file():
        raise UserError("no such weights file")
    with path.open("rb") as file:
        head = file.read(32)
    try:
        return load_file(path) if head[8:9] == b"{" else _unpickled(path)
    except Exception as error:  # each library has exceptions of its own for a damaged file
        reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0][:200]
        raise UserError(
            f"no readable file of tensors ({type(error).__name__}: {reason}); its {path.stat().st_size:,} bytes begin "
            f"with {head!r}; download the file itself, with git lfs pull where it is kept in git"
        ) from None


class _Object:
    """Takes the place of every object in a checkpoint that is no tensor, such as the options of a script."""

    def __init__(self, *_: object) -> None:
        pass

    __setstate__ = __init__


def _unpickled(path: Path) -> Any:
    """A PyTorch checkpoint. What its pickle names besides tensors is never imported or called."""
    # Files written before torch 1.6 are no archives, and torch does not list what they name.
    names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path)) if zipfile.is_zipfile(path) else []
    with torch.serialization.safe_globals([(_Object, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(content: Any, place: str = "") -> dict[str, Tensor]:
    """All tensors of a checkpoint by their place in its nested dictionaries, as `state_dict/module.fc.bias`."""
    if isinstance(content, Tensor):
        return {place: content}
    tensors: dict[str, Tensor] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        tensors |= _tensors(value, f"{place}/{name}" if place else str(name))
    return tensors


def _network(path: Path, expected: list[str]) -> dict[str, Tensor]:
    """The one network in a file that is meant. Raises `UserError` when there is none, or more than one."""
    tensors, first = _tensors(_content(path)), expected[0]
    networks: dict[str, dict[str, Tensor]] = {
        place.removesuffix(first): {} for place in tensors if re.search(rf"(^|[/.]){re.escape(first)}$", place)
    }
    if not networks:
        present, wanted = (shorten(", ".join(names), 160) or "no tensors by name" for names in (tensors, expected))
        raise UserError(
            f"no tensor is called {first}, with or without a prefix; the file has {present}, expected are {wanted}; "
            "choose the configuration it was made with, and save network.state_dict()"
        )
    for place, tensor in tensors.items():
        prefix = max((prefix for prefix in networks if place.startswith(prefix)), key=len, default=None)
        if prefix is not None and "/" not in (name := place.removeprefix(prefix)) and not name.endswith(COUNTERS):
            networks[prefix][name] = tensor
    averages = [prefix for prefix in networks if AVERAGED.search(prefix)]
    prefixes = averages or list(networks)
    if len(prefixes) > 1:
        named = ", ".join(prefix.rstrip("/.") or "no name" for prefix in prefixes)
        raise UserError(f"holds several networks, under {named}; save the one that is meant to its own file")
    if len(networks) > 1:
        log.warning("%s: these are the averaged weights (%s), not the last ones", path, prefixes[0].rstrip("/."))
    return networks[prefixes[0]]


def _fit_positions(state: dict[str, Tensor], config: CCTConfig) -> None:
    """Bring the position embedding of a checkpoint, in place, to the configuration's number of tokens."""
    positions = state.get(POSITIONS, torch.empty(0)).float()
    if positions.shape[::2] != (1, config.width):
        return  # absent or of another width: load_state_dict says so
    tokens = positions.shape[1]
    if config.positional == "learnable" and math.isqrt(tokens) ** 2 == tokens:
        state[POSITIONS] = on_grid(positions, config.tokens)
    if config.positional == "sine":
        # 0.002 lets through the rounding of fp16 and of angles in fp32.
        if not torch.allclose(positions, sinusoids(tokens, config.width), atol=2e-3):
            raise UserError(f'tensor {POSITIONS} is learned, not sinusoidal; positional="learnable" reads it')
        state[POSITIONS] = sinusoids(config.tokens, config.width)
