"""ANDC: applied nodal diagonal connection pruning, and the masks that it has to beat (Method, section 7).

The weight from node a to node b stays iff their diagonal sets D_a and D_b share a label; the weight from a
node of the last encoder to output j stays iff j is in its D. Four kinds of layer join measured sites:

    proj      mha       -> trunk        linear2   ff_hidden         -> ff
    linear1   trunk     -> ff_hidden    fc        ff (last encoder) -> labels

In the order of reading: `andc_masks` -> other masks that keep exactly as many weights of
each layer -> `make_masks`, any of them by its name. `pruned.py` applies masks to a network and retrains it,
`sweep.py` does so for many, `compact.py` turns the zeros into speed. Masks have the name and the shape of
their weight, [output, input].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cctlib.data.images import Images, batches
from cctlib.errors import UserError
from cctlib.model.cct import CCT
from cctlib.model.precision import Precision, autocast
from cctlib.snp import fields

KINDS = ("proj", "linear1", "linear2", "fc")
TARGETS = (*KINDS, "all")
METHODS = ("andc", "shuffled", "random", "magnitude", "wanda")
BY_CHANCE = ("shuffled", "random")  # their masks depend on the seed

Masks = Mapping[str, Bool[Tensor, "_ _"]]  # by name of the weight
Diagonals = Mapping[str, Bool[Tensor, "_ _"]]  # by site: [node, label]


# Layers and the sites that they join ----------------------------------------------------------------------


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
    found = []
    for m in range(1, encoders + 1):
        block = f"classifier.blocks.{m - 1}"
        found += [
            Layer("proj", f"{block}.self_attn.proj", f"enc{m}/mha", f"enc{m}/trunk"),
            Layer("linear1", f"{block}.linear1", f"enc{m}/trunk", f"enc{m}/ff_hidden"),
            Layer("linear2", f"{block}.linear2", f"enc{m}/ff_hidden", f"enc{m}/ff"),
        ]
    found.append(Layer("fc", "classifier.fc", f"enc{encoders}/ff", None))
    return tuple(layer for layer in found if target in ("all", layer.kind))


# Masks of ANDC --------------------------------------------------------------------------------------------


def connected(
    source: Bool[Tensor, "input label"], target: Bool[Tensor, "output label"]
) -> Bool[Tensor, "output input"]:
    """Which pairs of nodes share a label: the mask of the weights between two sites."""
    return target.float() @ source.float().T > 0  # counts of shared labels, exact in float32


def andc_masks(found: Diagonals, encoders: int, target: str = "all") -> dict[str, Bool[Tensor, "_ _"]]:
    """ANDC's masks of a target, by name of the weight.

    Raises `UserError` for an unknown target, a site without diagonal sets, a layer that loses all weights.
    """
    masks = {}
    for layer in layers(encoders, target):
        for site in (layer.source, layer.target):
            if site is not None and site not in found:
                raise UserError(
                    f"site {site} was not measured, and {layer.weight} is pruned by it; measure it, "
                    f"or choose another target than {target!r}"
                )
        source = found[layer.source]
        outputs = torch.eye(source.shape[1], dtype=torch.bool)  # each output stands for one label
        masks[layer.weight] = connected(source, outputs if layer.target is None else found[layer.target])
        if not masks[layer.weight].any():
            raise UserError(
                f"{layer.weight} would lose every weight: no node of {layer.source} shares a label with "
                f"{layer.target or 'an output'}; use a smaller theta, or another target than {target!r}"
            )
    return masks


def shuffle_nodes(found: Diagonals, generator: torch.Generator) -> dict[str, Bool[Tensor, "_ _"]]:
    """The same diagonal sets, dealt at random to the nodes of their site.

    Masks made of these have ANDC's density and ANDC's pattern of rows and columns, but at the wrong nodes:
    the sharpest control, which asks whether it matters *which* node has which labels.
    """
    return {site: sets[torch.randperm(len(sets), generator=generator)] for site, sets in found.items()}


def density(masks: Masks) -> float:
    """Share of the weights that masks keep, over all their layers together."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


# Other masks, with exactly as many weights in each layer --------------------------------------------------


def keep_largest(scores: Float[Tensor, "output input"], count: int) -> Bool[Tensor, "output input"]:
    """The `count` entries with the largest scores; of equal scores, the first in reading order."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.cpu().flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.view(scores.shape)


def keep_largest_per_row(scores: Float[Tensor, "output input"], count: int) -> Bool[Tensor, "output input"]:
    """`count` entries, equally many in each row: those with the row's largest scores.

    What does not divide equally goes to the rows whose next entry has the largest score, one more each.
    """
    scores = scores.cpu()
    each, left = divmod(count, len(scores))
    order = scores.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order[:, :each], True)
    if left:
        following = order[:, each : each + 1]
        rows = keep_largest(scores.gather(1, following), left).flatten()
        mask[rows, following[rows, 0]] = True
    return mask


def random_mask(shape: tuple[int, int], count: int, generator: torch.Generator) -> Bool[Tensor, "output input"]:
    """A mask that keeps exactly `count` entries, each set of them equally likely.

    Raises `UserError` when it would keep none, or more than there are.
    """
    total = shape[0] * shape[1]
    if not 0 < count <= total:
        raise UserError(f"a mask cannot keep {count} of {total} weights (density {count / total:.3g}); keep 1 at least")
    mask = torch.zeros(total, dtype=torch.bool)
    mask[torch.randperm(total, generator=generator)[:count]] = True
    return mask.view(shape)


def random_masks(like: Masks, generator: torch.Generator) -> dict[str, Bool[Tensor, "_ _"]]:
    """Masks that keep as many weights of each layer as `like`, anywhere."""
    return {name: random_mask((len(mask), mask.shape[1]), int(mask.sum()), generator) for name, mask in like.items()}


def weights_of(network: nn.Module, masks: Masks) -> dict[str, nn.Parameter]:
    """The network's own weights that masks belong to.

    Raises `UserError` when there is no mask, or one that has no weight, another shape, or keeps nothing.
    """
    if not masks:
        raise UserError("no masks: a pruning needs at least one layer")
    parameters = dict(network.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise UserError(f"mask {name}: the network has no such weight")
        if parameters[name].shape != mask.shape:
            shape = tuple(parameters[name].shape)
            raise UserError(f"mask {name} has shape {tuple(mask.shape)}; its weight is [output, input] {shape}")
        if not mask.any():
            raise UserError(f"mask {name} keeps no weight (density 0); lower theta, or keep 1 weight at least")
    return {name: parameters[name] for name in masks}


def magnitude_masks(like: Masks, network: nn.Module) -> dict[str, Bool[Tensor, "_ _"]]:
    """Masks that keep as many weights of each layer as `like`: the largest ones."""
    weights = weights_of(network, like)
    return {name: keep_largest(weights[name].detach().abs(), int(mask.sum())) for name, mask in like.items()}


def wanda_masks(
    like: Masks, network: nn.Module, norms: Mapping[str, Float[Tensor, "_"]]
) -> dict[str, Bool[Tensor, "_ _"]]:
    """Masks of Wanda (Sun et al., arXiv:2306.11695): the largest |weight| * norm of its input.

    As published, weights are compared within an output, and every output keeps equally many **(choice)**.
    The layer as a whole keeps as many as `like`. `norms`: from `input_norms`.
    """
    weights = weights_of(network, like)
    return {
        name: keep_largest_per_row(weights[name].detach().abs() * norms[name], int(mask.sum()))
        for name, mask in like.items()
    }


@torch.no_grad()
def input_norms(
    network: CCT,
    normalise: Callable[[Tensor], Tensor],
    images: Images,
    *,
    device: torch.device | str,
    batch: int = 128,
    precision: Precision = "auto",
) -> dict[str, Float[Tensor, "_"]]:
    """Euclidean norm of each input of the prunable layers, over all tokens and images; by name of the weight.

    One pass that keeps running sums. Give held-out images: those that decide must not be those that judge.
    Raises `UserError` when there are none.
    """
    if len(images) == 0:
        raise UserError("no held-out images: Wanda measures the layers' inputs on them; check the held-out split")
    every = layers(network.config.encoders)
    sites = tuple(layer.source for layer in every if layer.kind != "fc")
    squares: dict[str, Tensor] = {}
    for pixels, _ in batches(images, batch, device=device):
        with autocast(device, precision):
            pooled, taps = forward_to_fc(network, normalise(pixels), sites)
        for layer in every:
            nodes = pooled if layer.kind == "fc" else taps[layer.source].flatten(0, 1)
            square = nodes.to(fields.wide(nodes.device)).square().sum(0)
            squares[layer.weight] = squares.get(layer.weight, 0) + square
    return {name: square.sqrt().float() for name, square in squares.items()}


def forward_to_fc(
    network: CCT, images: Tensor, taps: tuple[str, ...] = ()
) -> tuple[Float[Tensor, "image node"], dict[str, Tensor]]:
    """A forward pass without the last layer: what that layer reads, in the place of logits, and the taps."""
    classifier: nn.Module = network.classifier
    fc, classifier.fc = classifier.fc, nn.Identity()
    try:
        found = network(images, taps=taps)
        return found if taps else (found, {})
    finally:
        classifier.fc = fc


# The masks of a pruning, by name --------------------------------------------------------------------------


@dataclass(frozen=True)
class Pruning:
    """What is pruned (`target`), how (`method`), and to whose density: ANDC's at `theta`."""

    target: str
    method: str
    theta: float = fields.THETA
    seed: int = 0  # of masks by chance, and of the order of images in retraining

    def __post_init__(self) -> None:
        if self.target not in TARGETS or self.method not in METHODS:
            raise UserError(
                f"no pruning of {self.target!r} by {self.method!r}; targets are {', '.join(TARGETS)}, "
                f"methods are {', '.join(METHODS)}"
            )


def make_masks(
    pruning: Pruning, network: CCT, found: Diagonals, norms: Mapping[str, Float[Tensor, "_"]] | None = None
) -> dict[str, Bool[Tensor, "_ _"]]:
    """The masks of a pruning. Each method keeps exactly as many weights of each layer as ANDC does.

    `found`: `diagonals` at the pruning's theta; `norms`: from `input_norms`, needed by Wanda alone.
    """
    encoders, generator = network.config.encoders, torch.Generator().manual_seed(pruning.seed)
    masks = andc_masks(found, encoders, pruning.target)
    if pruning.method == "shuffled":
        return andc_masks(shuffle_nodes(found, generator), encoders, pruning.target)
    if pruning.method == "random":
        return random_masks(masks, generator)
    if pruning.method == "magnitude":
        return magnitude_masks(masks, network)
    if pruning.method == "wanda":
        if norms is None:
            raise UserError("Wanda needs norms of the layers' inputs, from held-out images; none were given")
        return wanda_masks(masks, network, norms)
    return masks
