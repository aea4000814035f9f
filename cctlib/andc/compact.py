"""Pruning that pays: a pruned network made really smaller and, where measurement says so, really faster.

A zero in a weight matrix saves nothing by itself. `compact` takes a network whose pruned weights are zero
and returns one with the same logits:

1. Silent hidden nodes go. One that nothing reaches is a constant, GELU of its bias, and moves into the next
   bias; one that reaches nothing is dropped.
2. Every layer that has zeros takes the form (`sparselayers.py`) that is fastest for it here. Measurement
   decides, and the dense form is among the choices.

`count` says what a network costs whatever its form: the parameters and multiplications that masks leave.
"""

import copy
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from cctlib.andc.masks import Masks, layers
from cctlib.andc.sparselayers import FORMS, make_form
from cctlib.errors import UserError
from cctlib.model.cct import CCT, Encoder

TURNS = 3  # each form is timed so often at least
WORTH = 0.95  # a form other than the dense one must take less than this share of its time


# What a network costs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """parameters: those left, masked ones not counted. macs: multiplications for one image."""

    parameters: int
    macs: int


def count(network: CCT, masks: Masks) -> Cost:
    """What is left of a network under masks; a layer without a mask is dense, whatever its weights.

    Counted are the products of convolutions, linear layers, attention (twice tokens^2 x width) and SeqPool;
    not counted are additions, norms, softmax, GELU and pooling.
    """
    config = network.config
    linears = {name: part.weight for name, part in network.named_modules() if isinstance(part, nn.Linear)}
    kept = {name: weight.numel() for name, weight in linears.items()}
    kept |= {name.removesuffix(".weight"): int(mask.sum()) for name, mask in masks.items()}
    pruned = sum(weight.numel() for weight in linears.values()) - sum(kept.values())
    parameters = sum(parameter.numel() for parameter in network.parameters()) - pruned

    side, macs = config.image_size, 0
    for convolution in (part for part in network.tokenizer.modules() if isinstance(part, nn.Conv2d)):
        side = (side + 2 * config.padding - config.kernel) // config.stride + 1
        macs += side**2 * convolution.weight.numel()
        side = (side + 2 * config.pool_padding - config.pool_kernel) // config.pool_stride + 1
    tokens = config.tokens
    macs += sum(number if name == "classifier.fc" else tokens * number for name, number in kept.items())
    macs += config.encoders * 2 * tokens**2 * config.width  # attention
    macs += tokens * config.width  # SeqPool's mean
    return Cost(parameters, macs)


# Silent hidden nodes --------------------------------------------------------------------------------------


@torch.no_grad()
def remove_silent(network: CCT) -> dict[str, int]:
    """Remove, in place, the hidden nodes of FF through which nothing flows; the logits stay the same.

    A node without incoming weights holds GELU(bias), which moves into the bias of linear2. A node without
    outgoing weights reaches nothing. Returns how many were removed, by site.
    """
    removed = {}
    for m, block in enumerate(network.classifier.blocks, start=1):
        assert isinstance(block, Encoder)
        incoming = block.linear1.weight.count_nonzero(1) > 0
        outgoing = block.linear2.weight.count_nonzero(0) > 0
        keep, constant = incoming & outgoing, ~incoming & outgoing
        removed[f"enc{m}/ff_hidden"] = int((~keep).sum())
        if keep.all():
            continue
        bias = block.linear2.bias + block.linear2.weight[:, constant] @ F.gelu(block.linear1.bias[constant])
        block.linear1 = linear(block.linear1.weight[keep], block.linear1.bias[keep])
        block.linear2 = linear(block.linear2.weight[:, keep], bias)
    return removed


def linear(weight: Float[Tensor, "output input"], bias: Float[Tensor, "output"]) -> nn.Linear:
    """A frozen linear layer with copies of the given weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch finds layers without nodes worth a warning
        module = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    module.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    module.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return module


# The choice -----------------------------------------------------------------------------------------------


@torch.no_grad()
def compact(
    network: CCT, batch: int, *, forms: Mapping[str, str] | Sequence[str] = FORMS, seconds: float = 5.0
) -> tuple[CCT, pd.DataFrame]:
    """A copy of a pruned network without silent nodes, each sparse layer in the form that is fastest here.

    The network is pruned where its weights are zero. The copy is for inference, and best for batches of
    `batch` images: in eval mode, frozen, with fewer nodes at the tap "encM/ff_hidden", and with a state
    dict of its own (pruned networks are stored by `sparsefile`).

    forms: those to choose among; or, to repeat a choice, the form of each layer by name. seconds: of
    measuring, during which the machine should have nothing else to do.
    Returns the network, and a row for each sparse layer and form, with layer, outputs, inputs, density,
    form, seconds (of the fastest call; NaN where the form does not run here, or had no rival) and chosen.
    Raises `UserError` for a form that does not exist, or a layer with zeros that is given none.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    remove_silent(network)
    sparse = sparse_layers(network)
    if isinstance(forms, Mapping):
        for name in sparse.keys() - forms.keys():
            raise UserError(f"{name} has zeros but was given no form; use one of {', '.join(FORMS)}")
        times = {name: {forms[name]: math.nan} for name in sparse}
    else:
        times = time_forms(network, sparse, batch, forms, seconds)
    chosen = {name: fastest(times[name]) for name in sparse}
    _install(network, {name: make_form(chosen[name], sparse[name], _images(name, batch)) for name in sparse})
    columns = ["layer", "outputs", "inputs", "density", "form", "seconds", "chosen"]
    measured = [
        (name, *module.weight.shape, float((module.weight != 0).float().mean()), form, time, form == chosen[name])
        for name, module in sparse.items()
        for form, time in times[name].items()
    ]
    return network, pd.DataFrame(measured, columns=columns)


def masks_of(network: CCT) -> dict[str, Bool[Tensor, "_ _"]]:
    """The masks of a pruned network, read off the zeros of its prunable layers, by name of the weight."""
    return {f"{name}.weight": module.weight != 0 for name, module in sparse_layers(network).items()}


def sparse_layers(network: CCT) -> dict[str, nn.Linear]:
    """The prunable layers that have zeros, by name."""
    found = {}
    for layer in layers(network.config.encoders):
        module = network.get_submodule(layer.module)
        if isinstance(module, nn.Linear) and bool((module.weight == 0).any()):
            found[layer.module] = module
    return found


class _Timed(nn.Module):
    """A layer that remembers the seconds of its fastest call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.seconds = module, math.inf

    def forward(self, x: Tensor) -> Tensor:
        wait(x.device)
        start = time.perf_counter()
        result = self.module(x)
        wait(x.device)
        self.seconds = min(self.seconds, time.perf_counter() - start)
        return result


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to; a processor has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_forms(
    network: CCT, sparse: Mapping[str, nn.Linear], batch: int, forms: Sequence[str], seconds: float
) -> dict[str, dict[str, float]]:
    """Seconds of the fastest call of each sparse layer in each form, by layer and form.

    Layers are timed where they stand, in passes of the whole network: alone, a layer's weights would wait
    in the cache, which flatters the dense form. Forms take turns, so that other load falls on all. NaN: the
    form does not run here.
    """
    if not sparse:
        return {}
    size, some = network.config.image_size, next(iter(sparse.values())).weight
    images = torch.zeros(batch, 3, size, size, dtype=some.dtype, device=some.device)
    timed = {
        form: {name: _Timed(make_form(form, module, _images(name, batch))) for name, module in sparse.items()}
        for form in forms
    }
    failed = set()
    end, turns = time.perf_counter() + seconds, 0
    while turns < TURNS or time.perf_counter() < end:
        for form in (form for form in forms if form not in failed):
            _install(network, timed[form])
            try:
                network(images)
            except (RuntimeError, NotImplementedError):  # no such kernel on this device, or in this build of torch
                failed.add(form)
        turns += 1
    _install(network, sparse)
    return {
        name: {form: math.nan if form in failed else timed[form][name].seconds for form in forms} for name in sparse
    }


def _images(name: str, batch: int) -> int:
    """How many tables a layer gets for a batch: fc reads one vector an image, so that a batch is one table."""
    return 1 if name == "classifier.fc" else batch


def _install(network: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, module)


def fastest(times: Mapping[str, float]) -> str:
    """The form with the least time; but the dense one, if it is there and no other is clearly faster."""
    best = min(times, key=lambda form: math.inf if math.isnan(times[form]) else times[form])
    return best if "dense" not in times or times[best] < WORTH * times["dense"] else "dense"
