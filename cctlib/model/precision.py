"""What arithmetic a device does well: bf16 autocast or fp32, written-out attention or the fused kernel.

Both are chosen by asking the device, never assumed: on a processor without bf16 instructions a bf16 matrix
product is emulated and some hundred times slower than the fp32 one.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch

from cctlib.errors import UserError

Precision = Literal["auto", "bf16", "fp32"]
Attention = Literal["explicit", "fused"]

# Processor features that bring bf16 products; names as in torch.cpu, not all in every version of torch.
_CPU_BF16_FEATURES = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def has_native_bf16(device: torch.device | str) -> bool:
    """True where bf16 products run in hardware (Ampere GPUs and later, AVX512-BF16 or AMX processors)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        return any(hasattr(torch.cpu, name) and getattr(torch.cpu, name)() for name in _CPU_BF16_FEATURES)
    return False


def resolve(device: torch.device | str, precision: Precision = "auto") -> Literal["bf16", "fp32"]:
    """The precision that `autocast` uses: `auto` is bf16 where it is native, else fp32.

    Raises:
        UserError: `precision` is none of auto, bf16, fp32.
    """
    if precision not in ("auto", "bf16", "fp32"):
        raise UserError(f"precision {precision!r} is not known; use auto, bf16 or fp32")
    if precision == "auto":
        return "bf16" if has_native_bf16(device) else "fp32"
    return precision


def autocast(device: torch.device | str, precision: Precision = "auto") -> AbstractContextManager:
    """Context in which matrix products run in the chosen precision; weights and optimizer stay fp32.

    Raises:
        UserError: `precision` is none of auto, bf16, fp32.
    """
    enabled = resolve(device, precision) == "bf16"
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=enabled)


def attention(device: torch.device | str) -> Attention:
    """The faster form of attention for a CCT on this device.

    A CPU trains 64 to 256 tokens faster with attention written out; accelerators have a fused kernel.
    """
    return "explicit" if torch.device(device).type == "cpu" else "fused"
