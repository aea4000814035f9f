"""Other people's networks in our call form: `Tapped(vit, timm_vit(vit))(images, taps=["enc3/mha"])`.

`Tapped` hands out their nodes by hooks; the functions below it say where the sites of a network are.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from cctlib.errors import UserError
from cctlib.model.sites import FILTERS, check_sites, parse

Places = Mapping[str, tuple[str, str]]  # site -> (name of a module, "input" or "output")


class Tapped(nn.Module):
    """Somebody else's network in our call form: `network(images, taps=[...])` -> (logits, taps).

    `places` says where each site is: `{"enc1/ff": ("blocks.0", "output")}`. Token vectors [image, token,
    node] are handed out as they are, class tokens included; feature maps [image, filter, height, width]
    become [image, position, filter]. Hooks exist only during a call with taps, at the sites it asks for.
    """

    def __init__(self, module: nn.Module, places: Places) -> None:
        super().__init__()
        self.module = module
        self.places = dict(places)
        modules = dict(module.named_modules())
        for site, (name, side) in self.places.items():
            parse(site)
            if name not in modules:
                raise UserError(f"site {site}: the network has no module {name!r}; see its named_modules()")
            if side not in ("input", "output"):
                raise UserError(f'site {site}: side {side!r} of {name} is not known; use "input" or "output"')

    def forward(
        self, images: Float[Tensor, "image channel height width"], taps: Sequence[str] = ()
    ) -> Float[Tensor, "image label"] | tuple[Float[Tensor, "image label"], dict[str, Float[Tensor, "image token _"]]]:
        """Logits, or (logits, {site: nodes}) when taps are asked for.

        Nodes are copies, so what overwrites them later in the same pass does not matter. Raises `UserError` for
        unknown sites, and for a module that is not called once, or gives neither token vectors nor feature maps.
        """
        check_sites(taps, self.places)
        recorded: dict[str, list[Any]] = {site: [] for site in taps}
        with ExitStack() as hooks:
            for site, values in recorded.items():
                name, side = self.places[site]
                module = self.module.get_submodule(name)
                hook = module.register_forward_hook if side == "output" else module.register_forward_pre_hook
                hooks.enter_context(hook(partial(_record, values)))
            logits = self.module(images)
        nodes = {site: self._nodes(site, values) for site, values in recorded.items()}
        return (logits, nodes) if taps else logits

    def _nodes(self, site: str, values: list[Any]) -> Float[Tensor, "image token _"]:
        name, side = self.places[site]
        if len(values) != 1:
            raise UserError(f"site {site}: {name} is called {len(values)} times in a pass, not once")
        [value] = values
        if not isinstance(value, Tensor) or value.ndim not in (3, 4):
            given = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"site {site}: {name} {side} is {given}; expected token vectors or a feature map")
        return value.flatten(2).transpose(1, 2) if value.ndim == 4 else value


def _record(values: list[Any], module: nn.Module, inputs: tuple, *outputs: Any) -> None:
    """A hook that keeps a copy of what a module gives or, called before the module, of its first input."""
    value = outputs[0] if outputs else inputs[0] if inputs else None
    values.append(value.clone() if isinstance(value, Tensor) else value)


def timm_vit(module: nn.Module) -> Places:
    """Places of all four sites in timm's VisionTransformer; `mha` is taken before the projection."""
    inside = {"mha": ("attn.proj", "input"), "trunk": ("norm2", "output"), "ff_hidden": ("mlp.fc2", "input")}
    return _in_blocks(module, r"blocks\.\d+", "timm VisionTransformer", inside)


def torchvision_vit(module: nn.Module) -> Places:
    """Places in torchvision's VisionTransformer (vit_b_16 ...): trunk, ff_hidden and ff.

    There is no `mha`: its attention runs inside one function that never calls the projection as a module.
    """
    inside = {"trunk": ("ln_2", "output"), "ff_hidden": ("mlp.3", "input")}
    return _in_blocks(module, r"encoder\.layers\.encoder_layer_\d+", "torchvision VisionTransformer", inside)


def torchvision_vgg(module: nn.Module) -> Places:
    """Places in torchvision's VGG, with or without batch norm: the filters of convolution m after ReLU."""
    features = _named(module, r"features\.\d+", "torchvision VGG")
    relus = [name for name in features if isinstance(module.get_submodule(name), nn.ReLU)]
    return {f"layer{m}/{FILTERS}": (name, "output") for m, name in enumerate(relus, start=1)}


def _in_blocks(module: nn.Module, pattern: str, kind: str, inside: Places) -> Places:
    """Places in the blocks of a transformer, which are the same in each; a block's own output is `ff`."""
    places: dict[str, tuple[str, str]] = {}
    for m, block in enumerate(_named(module, pattern, kind), start=1):
        places |= {f"enc{m}/{site}": (f"{block}.{name}", side) for site, (name, side) in inside.items()}
        places[f"enc{m}/ff"] = (block, "output")
    return places


def _named(module: nn.Module, pattern: str, kind: str) -> list[str]:
    names = [name for name, _ in module.named_modules() if re.fullmatch(pattern, name)]
    if not names:
        raise UserError(f"{type(module).__name__} is no {kind}: it has no modules named like {pattern}")
    return names
