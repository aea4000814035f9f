"""What arithmetic a device does well: half precision or fp32, written-out attention or the fused kernel.

Both are chosen by asking the device, never assumed: on a processor without bf16 instructions a bf16 matrix
product is emulated and some hundred times slower than the fp32 one.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch

from cctlib.errors import UserError

Precision = Literal["auto", "bf16", "fp16", "fp32"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Processor features that bring bf16 products; names as in torch.cpu, not all in every version of torch.
_CPU_BF16_FEATURES = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def resolve(device: torch.device | str, precision: Precision = "auto") -> str:
    """The precision that `autocast` uses; this is what a record of a computation states.

    `auto` is bf16 where its products run in hardware (Ampere GPUs and later, AVX512-BF16 or AMX processors), fp16 on
    older GPUs with tensor cores (T4, V100), else fp32. Whoever trains scales the loss by `scaler`.

    Raises `UserError` for another name.
    """
    if precision not in ("auto", *_DTYPES):
        raise UserError(f"precision {precision!r} is not known; use auto, {', '.join(_DTYPES)}")
    if precision != "auto":
        return precision
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        with torch.cuda.device(device):  # torch's question is about the current device
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "fp32"
    native = device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in _CPU_BF16_FEATURES)
    return "bf16" if native else "fp32"


def autocast(device: torch.device | str, precision: Precision = "auto") -> AbstractContextManager:
    """Context in which matrix products run in the resolved precision; weights and optimizer stay fp32.

    Raises `UserError` for a precision that is not known.
    """
    dtype = _DTYPES[resolve(device, precision)]
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32)


def scaler(device: torch.device | str, precision: Precision = "auto") -> torch.amp.GradScaler:
    """What scales the loss of a training in fp16, where small gradients would vanish; else it does nothing."""
    return torch.amp.GradScaler(torch.device(device).type, enabled=resolve(device, precision) == "fp16")


def attention(device: torch.device | str) -> str:
    """The faster form of attention for a CCT on this device.

    A CPU trains 64 to 256 tokens faster with attention written out; accelerators have a fused kernel.
    """
    return "explicit" if torch.device(device).type == "cpu" else "fused"


def arithmetic(device: torch.device | str, precision: Precision = "auto") -> dict[str, str]:
    """What decides the last digits of a result on this device: the resolved precision and the form of attention."""
    return {"precision": resolve(device, precision), "attention": attention(device)}
