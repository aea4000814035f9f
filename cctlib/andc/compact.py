"""Pruning that pays: what a pruned network costs, and how it becomes really smaller and faster.

A zero in a weight matrix saves nothing by itself. `compact` takes a network whose pruned weights are zero
and returns one with the same logits:

1. Silent hidden nodes go. One that nothing reaches is a constant, GELU of its bias, and moves into the next
   bias; one that reaches nothing is dropped.
2. Every layer that has zeros takes the form that is faster for it on this machine, which is measured:

    dense    torch's linear layer, zeros and all
    bags     weighted bags of embeddings: each output adds up those rows of the transposed tokens that its
             weights name, by the kernel behind `embedding_bag`, which runs along the tokens

Two other forms were tried: torch's product of a CSR matrix with the transposed tokens, and outputs with similar inputs
in groups that multiply the union of their inputs densely. In each of the 20 cases that ship, a network in either was
slower than one in bags, and the second form slower than the dense network as well.
"""

import copy
import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cctlib.andc.masks import Masks, layers
from cctlib.model.cct import CCT, CCTConfig, Encoder

TURNS = 3  # each form, and each network, is timed so often at least
WORTH = 0.95  # bags must take less than this share of the dense layer's time
REPEATED = 32  # images whose tokens one call of `Bags` takes; its indices are repeated for so many


@dataclass(frozen=True)
class Cost:
    """parameters: those left, masked ones not counted. macs: multiplications for one image. bytes: on disk, in float16.

    Multiplications are those of convolutions, linear layers, attention and SeqPool. On disk a masked matrix is its
    kept weights, 2 bytes each, and one bit for every entry that says which these are; or all of it where that is less.
    """

    parameters: int
    macs: int
    bytes: int


def count(network: CCT, masks: Masks) -> Cost:
    """What is left of a network under masks; a layer without a mask is dense, whatever its weights."""
    cut = {name: mask.numel() - int(mask.sum()) for name, mask in masks.items()}
    idle = sum(
        number if name == "classifier.fc.weight" else network.config.tokens * number for name, number in cut.items()
    )
    saved = sum(max(0, 2 * number - -(-masks[name].numel() // 8)) for name, number in cut.items())
    return Cost(
        parameters=sum(parameter.numel() for parameter in network.parameters()) - sum(cut.values()),
        macs=dense_macs(network.config) - idle,
        bytes=2 * sum(tensor.numel() for tensor in network.state_dict().values()) - saved,
    )


@functools.cache
def dense_macs(config: CCTConfig) -> int:
    """Multiplications for one image in the dense network, counted by torch where nothing is computed."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        CCT(config).eval()(torch.empty(1, 3, config.image_size, config.image_size))
    return counter.get_total_flops() // 2  # a multiplication and an addition each


@torch.no_grad()
def remove_silent(network: CCT) -> None:
    """Remove, in place, the hidden nodes of FF through which nothing flows; the logits stay the same.

    A node without incoming weights holds GELU(bias), which moves into the bias of linear2. A node without
    outgoing weights reaches nothing.
    """
    for block in network.classifier.blocks:
        assert isinstance(block, Encoder)
        first, second = block.linear1, block.linear2
        incoming = first.weight.count_nonzero(1) > 0
        outgoing = second.weight.count_nonzero(0) > 0
        keep, constant = incoming & outgoing, ~incoming & outgoing
        second.bias.add_(second.weight[:, constant] @ F.gelu(first.bias[constant]))
        first.weight, first.bias = _frozen(first.weight[keep]), _frozen(first.bias[keep])
        second.weight = _frozen(second.weight[:, keep])
        first.out_features = second.in_features = int(keep.sum())


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


class Bags(nn.Module):
    """A sparse linear layer as weighted bags of embeddings.

    The transposed tokens of an image are a table [input, token]; output o is the sum of the rows that its
    weights name. A batch is one tall table, [image * input, token], so indices and weights are repeated for
    `images` images: memory, for fewer calls. The result is a transposed view; GELU keeps it one, and a second
    such layer finds its table ready.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor

    def __init__(self, weight: Float[Tensor, "output input"], bias: Float[Tensor, "output"], images: int = 1):
        super().__init__()
        self.outputs, self.inputs = weight.shape
        rows, columns = weight.nonzero(as_tuple=True)
        each = torch.bincount(rows, minlength=self.outputs)
        image = torch.arange(images, device=weight.device)[:, None]
        self.register_buffer("starts", (image * len(rows) + each.cumsum(0) - each).flatten().int())
        self.register_buffer("columns", (image * self.inputs + columns).flatten().int())
        self.register_buffer("values", weight[rows, columns].detach().repeat(images))
        self.register_buffer("bias", bias.detach().clone()[:, None])
        self.images, self.entries = images, len(rows)

    def forward(self, x: Float[Tensor, "*image token node"]) -> Float[Tensor, "*image token output"]:
        if x.ndim != 3:
            return self(x.reshape(-1, *x.shape[-2:])).reshape(*x.shape[:-1], self.outputs)
        table = x.to(self.values.dtype).transpose(1, 2).contiguous()
        parts = [self._sums(part) for part in table.split(self.images)]
        sums = parts[0] if len(parts) == 1 else torch.cat(parts)
        return sums.view(len(x), self.outputs, -1).add_(self.bias).transpose(1, 2)

    def _sums(self, table: Float[Tensor, "image node token"]) -> Float[Tensor, "sum token"]:
        rows, entries = table.view(-1, table.shape[2]), len(table) * self.entries
        starts = self.starts[: len(table) * self.outputs]
        # F.embedding_bag without its checks, which take as long as a small product does; mode 0 adds up.
        return torch.embedding_bag(rows, self.columns[:entries], starts, False, 0, False, self.values[:entries])[0]


@torch.no_grad()
def compact(network: CCT, batch: int, form: str | None = None, *, seconds: float = 5.0) -> tuple[CCT, dict[str, str]]:
    """A copy of a pruned network without silent nodes, each sparse layer in the form that is fastest here.

    The network is pruned where its weights are zero. The copy is for inference, and best for batches of
    `batch` images: in eval mode, frozen, with fewer nodes at the tap "encM/ff_hidden".

    form: of all sparse layers, where it is not to be measured. seconds: of measuring, during which the machine should
    have nothing else to do.
    Returns the network, and the form of each sparse layer by name.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    remove_silent(network)
    sparse = sparse_layers(network)
    # A batch of fc's inputs is one table, for each is one vector an image.
    images = {name: 1 if name == "classifier.fc" else min(batch, REPEATED) for name in sparse}
    bags = {name: Bags(layer.weight, layer.bias, images[name]) for name, layer in sparse.items()}
    if form is not None:
        forms = dict.fromkeys(sparse, form)
    else:
        times = time_forms(network, {"dense": sparse, "bags": bags}, batch, seconds)
        faster = {name: times["bags"][name] < WORTH * times["dense"][name] for name in sparse}
        forms = {name: "bags" if faster[name] else "dense" for name in sparse}
    for name in sparse:
        network.set_submodule(name, bags[name] if forms[name] == "bags" else sparse[name])
    return network, forms


def masks_of(network: CCT) -> dict[str, Bool[Tensor, "_ _"]]:
    """The masks of a pruned network, taken from the zeros of its prunable layers, by name of the weight."""
    return {f"{name}.weight": module.weight != 0 for name, module in sparse_layers(network).items()}


def sparse_layers(network: CCT) -> dict[str, nn.Linear]:
    """The prunable layers that have zeros, by name."""
    modules = {layer.module: network.get_submodule(layer.module) for layer in layers(network.config.encoders)}
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and bool((module.weight == 0).any())
    }


def time_forms(
    network: CCT, forms: Mapping[str, Mapping[str, nn.Module]], batch: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Seconds of the fastest call of each sparse layer in each form, by form and layer. forms: the layers, likewise.

    Layers are timed in passes of the whole network, which they stay in: alone, a layer's weights would wait in the
    cache, which flatters the dense form. Forms take turns, so that other load falls on all.
    """
    weight, size = network.classifier.fc.weight, network.config.image_size
    images = torch.zeros(batch, 3, size, size, dtype=weight.dtype, device=weight.device)
    timed = {form: {name: _Timed(module) for name, module in modules.items()} for form, modules in forms.items()}
    end, turns = time.perf_counter() + seconds, 0
    while turns < TURNS or time.perf_counter() < end:
        for modules in timed.values():
            for name, module in modules.items():
                network.set_submodule(name, module)
            network(images)
        turns += 1
    return {form: {name: module.seconds for name, module in modules.items()} for form, modules in timed.items()}


class _Timed(nn.Module):
    """A layer that remembers the seconds of its fastest call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.seconds = module, math.inf

    def forward(self, x: Tensor) -> Tensor:
        result, seconds = timed_call(self.module, x)
        self.seconds = min(self.seconds, seconds)
        return result


def timed_call(module: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    """What a module makes of x, and the seconds that it takes, on a GPU until the result is there."""
    wait = torch.cuda.synchronize if x.device.type == "cuda" else lambda _: None
    wait(x.device)
    start = time.perf_counter()
    result = module(x)
    wait(x.device)
    return result, time.perf_counter() - start
