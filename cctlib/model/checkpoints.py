"""Weights files of any origin: tensors by name, freed of what training scripts wrap around them."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cctlib.errors import UserError

_UNREADABLE = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError)


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a PyTorch checkpoint, by name, on the CPU.

    A checkpoint may hold its tensors bare or under `model` or `state_dict`; prefixes of wrapped modules
    (`module.` of data-parallel training, `_orig_mod.` of torch.compile) are taken off. No code in it is run.
    Raises `UserError` when there is no file, or no tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    safe = path.suffix == ".safetensors"
    try:
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0][:120]
        raise UserError(f"{path}: no readable file of tensors ({type(error).__name__}: {reason})") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{path}: holds no tensors by name, neither bare nor under 'model' or 'state_dict'")
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): tensor for name, tensor in state.items()}
