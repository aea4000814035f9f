"""Pruned weights on disk: of a matrix with zeros, only the entries that are not zero, and where they stand.

A safetensors file. Dense tensors keep their name; a sparse matrix `NAME` becomes two:

    NAME:kept      uint8, the bitmask of its non-zero entries in reading order, 8 to a byte, LZMA-coded
    where shorter NAME:values    those entries, in the same order

A bitmask costs 1 bit an entry: 1/32 of a dense float32 matrix, 1/16 of a float16 one. Of a mask with
density d no code can take less than H(d) = -d log2 d - (1-d) log2 (1-d) bits an entry where entries are
independent, 0.47 bits at d = 0.1; LZMA comes within 7% of that, and goes below it where rows repeat, as
they do in masks made of label sets.
"""

import json
import lzma
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from cctlib.errors import UserError
from cctlib.stages import replacing

FORMAT = "cctlib-sparse-1"
# Bits of a mask have no context worth modelling: no literal context (lc, lp), no alignment (pb).
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 2**20, "lc": 0, "lp": 0, "pb": 0}]


def save_sparse(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> int:
    """Write tensors by name, floating ones as `dtype`; returns the file's size in bytes. Atomic."""
    content = encode(state, dtype)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def encode(state: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> bytes:
    """The content of the file that `save_sparse` writes."""
    tensors, shapes = {}, {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        stored = tensor.to(dtype) if tensor.is_floating_point() else tensor
        kept = tensor != 0  # before rounding: a kept weight that rounds to zero is still a kept weight
        packed = _pack(kept) if tensor.ndim == 2 and not bool(kept.all()) else None
        values = stored[kept]
        if packed is None or packed.nbytes + values.nbytes >= stored.nbytes:
            tensors[name] = stored.contiguous()
        else:
            shapes[name] = list(tensor.shape)
            tensors[f"{name}:kept"], tensors[f"{name}:values"] = packed, values
    return save(tensors, {"format": FORMAT, "sparse": json.dumps(shapes)})


def load_sparse(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `save_sparse` wrote, all dense, on the CPU, in the precision of the file.

    Raises `UserError` when the file is missing, of another kind, or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of pruned weights")
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        if about.get("format") != FORMAT:
            raise UserError(
                f"{path}: not a file of pruned weights ({FORMAT}); cctlib.model.checkpoints reads dense ones"
            )
        for name, shape in json.loads(about["sparse"]).items():
            kept = _unpack(tensors.pop(f"{name}:kept"), shape)
            values = tensors.pop(f"{name}:values")
            tensors[name] = torch.zeros(shape, dtype=values.dtype).masked_scatter_(kept, _all_of(values, kept))
    except (safetensors.SafetensorError, lzma.LZMAError, KeyError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged ({str(error).partition(chr(10))[0][:100]}); write it again") from None
    return tensors


def _pack(kept: Tensor) -> Tensor:
    """The bitmask of a mask: a first byte that says whether LZMA made it shorter, then the content."""
    bits = np.packbits(kept.numpy()).tobytes()
    coded = lzma.compress(bits, format=lzma.FORMAT_RAW, filters=_FILTERS)
    content = b"\1" + coded if len(coded) < len(bits) else b"\0" + bits
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _unpack(packed: Tensor, shape: list[int]) -> Tensor:
    """The mask [output, input] behind `_pack`. Never expands beyond the size that `shape` asks for."""
    content, entries = packed.numpy().tobytes(), int(np.prod(shape))
    size = -(-entries // 8)
    bits = content[1:]
    if content[:1] == b"\1":
        bits = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(bits, max_length=size)
    if len(bits) != size:
        raise ValueError(f"a bitmask has {len(bits)} bytes, expected {size}")
    mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=entries).astype(bool)
    return torch.from_numpy(mask).view(*shape)


def _all_of(values: Tensor, kept: Tensor) -> Tensor:
    if len(values) != int(kept.sum()):
        raise ValueError(f"{len(values)} values for a bitmask of {int(kept.sum())}")
    return values
