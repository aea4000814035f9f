"""ANDC: applied nodal diagonal connection pruning, and the masks that it has to beat (Method, section 7).

The weight from node a to node b stays iff their diagonal sets D_a and D_b share a label; the weight from a
node of the last encoder to output j stays iff j is in its D. Four kinds of layer join measured sites:

    proj      mha       -> trunk        linear2   ff_hidden -> ff
    linear1   trunk     -> ff_hidden    fc        read-out  -> labels

The diagonal sets of fc's nodes are those of the network's own read-out: its final norm, SeqPool and fc.

In the order of reading: layers -> ANDC's masks -> `mask_of`, other ways to keep exactly as many weights of a layer ->
`make_masks`. `retrain.py` applies masks to a network, `sweep.py` does so for many, `compact.py` turns the zeros into
speed. Masks have the name and the shape of their weight, [output, input].
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.model.cct import CCT
from cctlib.model.forward import forward
from cctlib.model.precision import Precision
from cctlib.snp import fields

KINDS = ("proj", "linear1", "linear2", "fc")
TARGETS = (*KINDS, "all")
METHODS = ("andc", "shuffled", "random", "magnitude", "wanda")
BY_CHANCE = ("shuffled", "random")  # their masks depend on the seed

Masks = Mapping[str, Bool[Tensor, "_ _ *kernel"]]  # by name of the weight
Diagonals = Mapping[str, Bool[Tensor, "_ _"]]  # by site: [node, label]


@dataclass(frozen=True)
class Layer:
    """A prunable layer: its name in the network, and the sites before and after it (None: the labels)."""

    kind: str
    module: str
    source: str
    target: str | None

    @property
    def weight(self) -> str:
        """Name of its weight, [output, input]."""
        return f"{self.module}.weight"


def layers(encoders: int, target: str = "all") -> tuple[Layer, ...]:
    """The layers that a target prunes: one kind over all encoders, or "all"; in the order of the network.

    Raises `UserError` for a target that does not exist.
    """
    if target not in TARGETS:
        raise UserError(f"pruning target {target!r} is not known; use one of {', '.join(TARGETS)}")
    every = []
    for m in range(1, encoders + 1):
        block = f"classifier.blocks.{m - 1}"
        every += [
            Layer("proj", f"{block}.self_attn.proj", f"enc{m}/mha", f"enc{m}/trunk"),
            Layer("linear1", f"{block}.linear1", f"enc{m}/trunk", f"enc{m}/ff_hidden"),
            Layer("linear2", f"{block}.linear2", f"enc{m}/ff_hidden", f"enc{m}/ff"),
        ]
    every.append(Layer("fc", "classifier.fc", f"enc{encoders}/readout", None))
    return tuple(layer for layer in every if target in ("all", layer.kind))


def titled(target: str) -> str:
    """A target in words."""
    return "all layers together" if target == "all" else target


def weights_of(network: nn.Module, masks: Masks) -> dict[str, nn.Parameter]:
    """The network's own weights that masks belong to. Raises `UserError` when one has no weight, or another shape."""
    parameters = dict(network.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise UserError(f"mask {name}: the network has no such weight")
        if parameters[name].shape != mask.shape:
            shape = tuple(parameters[name].shape)
            raise UserError(f"mask {name} has shape {tuple(mask.shape)}; its weight is [output, input, ...] {shape}")
    return {name: parameters[name] for name in masks}


def density(masks: Masks) -> float:
    """Share of the weights that masks keep, over all their layers together."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def connected(
    source: Bool[Tensor, "input label"], target: Bool[Tensor, "output label"]
) -> Bool[Tensor, "output input"]:
    """Which pairs of nodes share a label: the mask of the weights between two sites."""
    return target.float() @ source.float().T > 0  # counts of shared labels, exact in float32


def keep_largest(
    scores: Float[Tensor, "output input"], count: int, *, each_row: bool = False
) -> Bool[Tensor, "output input"]:
    """The `count` entries with the largest scores; of equal scores, the first in reading order.

    each_row: equally many in each row, those with the row's largest scores. What does not divide equally goes to the
    rows whose next entry has the largest score, one more each.
    """
    scores = scores.cpu()
    order = scores.flatten().argsort(descending=True, stable=True)
    if each_row:  # the best of all rows first, then the second best of all rows, and so on
        ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1).flatten()
        order = order[ranks[order].argsort(stable=True)]
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(scores.shape)


def andc_masks(diagonals: Diagonals, encoders: int, target: str = "all") -> dict[str, Bool[Tensor, "_ _"]]:
    """ANDC's masks of a target, by name of the weight: nodes that share a label stay connected.

    Raises `UserError` for an unknown target, a site without diagonal sets, a layer that loses all weights.
    """
    masks = {}
    for layer in layers(encoders, target):
        for site in (layer.source, layer.target):
            if site is not None and site not in diagonals:
                raise UserError(
                    f"site {site} was not measured, and {layer.weight} is pruned by it; measure it, "
                    f"or choose another target than {target!r}"
                )
        source = diagonals[layer.source]
        outputs = torch.eye(source.shape[1], dtype=torch.bool)  # each output speaks for one label
        masks[layer.weight] = connected(source, outputs if layer.target is None else diagonals[layer.target])
        if not masks[layer.weight].any():
            raise UserError(
                f"{layer.weight} would lose every weight: no node of {layer.source} shares a label with "
                f"{layer.target or 'an output'}; use a smaller theta, or another target than {target!r}"
            )
    return masks


def mask_of(
    method: str,
    andc: Bool[Tensor, "output input"],
    weight: Float[Tensor, "output input"],
    norm: Float[Tensor, "input"] | None,
    generator: torch.Generator,
) -> Bool[Tensor, "output input"]:
    """The mask of one layer by one of `METHODS`, which keeps exactly as many weights as ANDC's.

    andc, shuffled: ANDC's own, of the measured sets or of those sets dealt at random to the nodes of their site. The
    latter has ANDC's density and its pattern of rows and columns at the wrong nodes: does it matter which node has
    which labels?
    random: anywhere.
    magnitude: the largest weights.
    wanda: the largest |weight| * norm of its input (Sun et al., arXiv:2306.11695). As published, weights are compared
    within an output, and every output keeps equally many **(choice)**. Raises `UserError` without norms.
    """
    count = int(andc.sum())
    if method == "random":
        return keep_largest(torch.rand(andc.shape, generator=generator), count)
    if method == "magnitude":
        return keep_largest(weight.abs(), count)
    if method == "wanda":
        if norm is None:
            raise UserError("Wanda needs norms of the layers' inputs, from held-out images; none were given")
        return keep_largest(weight.abs() * norm, count, each_row=True)
    return andc


@dataclass(frozen=True)
class Pruning:
    """What is pruned (`target`), how (`method`), and to whose density: ANDC's at `theta`."""

    target: str
    method: str
    theta: float = fields.THETA
    seed: int = 0  # of masks by chance, and of the order of images in retraining

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"no pruning by {self.method!r}; methods are {', '.join(METHODS)}")

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.target}-{self.method}-{self.theta:g}-{self.seed}"


def make_masks(
    pruning: Pruning, network: CCT, diagonals: Diagonals, norms: Mapping[str, Tensor] | None = None
) -> dict[str, Bool[Tensor, "_ _"]]:
    """The masks of a pruning. Each method keeps exactly as many weights of each layer as ANDC does.

    diagonals: sets of labels by site, at the pruning's theta. norms: from `input_norms`.
    Raises `UserError` as `andc_masks` and `mask_of`.
    """
    generator = torch.Generator().manual_seed(pruning.seed)
    if pruning.method == "shuffled":
        diagonals = {site: sets[torch.randperm(len(sets), generator=generator)] for site, sets in diagonals.items()}
    of_andc = andc_masks(diagonals, network.config.encoders, pruning.target)
    return {
        name: mask_of(pruning.method, of_andc[name], weight.detach(), norms[name] if norms else None, generator)
        for name, weight in weights_of(network, of_andc).items()
    }


def input_norms(
    network: CCT, normalise: Callable[[Tensor], Tensor], images: Images, precision: Precision = "auto"
) -> dict[str, Float[Tensor, "input"]]:
    """Euclidean norm of each input of the prunable layers, over all tokens of all images, by name of the weight.

    Give held-out images: those that decide must not be those that judge. Without images there are no norms.
    """
    squares: dict[str, Tensor] = {}

    def add_up(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nodes = inputs[0].flatten(0, -2).double()
        squares[name] = squares.get(name, 0) + nodes.square().sum(0)

    with ExitStack() as hooks:
        for layer in layers(network.config.encoders):
            module = network.get_submodule(layer.module)
            hooks.enter_context(module.register_forward_pre_hook(partial(add_up, layer.weight)))
        for _ in forward(network, normalise, images, device=network.classifier.fc.weight.device, precision=precision):
            pass
    return {name: total.sqrt().float() for name, total in squares.items()}
