"""Other people's networks in our call form: `Tapped(vit, timm_vit(vit))(images, taps=["enc3/mha"])`.

`Tapped` hands out their nodes by hooks; the functions below it say where the sites of a network are.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from cctlib.errors import UserError
from cctlib.model.sites import FILTERS, parse, unknown_site

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

        Raises `UserError` for unknown sites, and where hooks cannot be trusted: a module that is not called,
        or called twice, or gives neither token vectors nor feature maps, or whose values are overwritten
        later in the same pass (which `torch.inference_mode` hides; use `torch.no_grad`).
        """
        if isinstance(taps, str):
            raise UserError(f"taps is the text {taps!r}; give a list of names, as [{taps!r}]")
        for site in taps:
            if site not in self.places:
                raise unknown_site(site, self.places)
        recorded: dict[str, list[tuple[Tensor, int]]] = {site: [] for site in taps}
        hooks = []
        try:
            for site in recorded:
                name, side = self.places[site]
                module = self.module.get_submodule(name)
                hooks.append(module.register_forward_hook(partial(_record, recorded[site], side)))
            logits = self.module(images)
        finally:
            for hook in hooks:
                hook.remove()
        nodes = {site: self._nodes(site, calls) for site, calls in recorded.items()}
        return (logits, nodes) if taps else logits

    def _nodes(self, site: str, calls: list[tuple[Any, int]]) -> Float[Tensor, "image token _"]:
        name, side = self.places[site]
        if len(calls) != 1:
            raise UserError(f"site {site}: {name} is called {len(calls)} times in a pass, not once")
        value, version = calls[0]
        if not isinstance(value, Tensor) or value.ndim not in (3, 4):
            given = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"site {site}: {name} {side} is {given}; expected token vectors or a feature map")
        if _version(value) != version:
            raise UserError(f"site {site}: {name} {side} is overwritten in place; tap what overwrites it")
        return value.flatten(2).transpose(1, 2) if value.ndim == 4 else value


def _record(calls: list[tuple[Any, int]], side: str, module: nn.Module, inputs: tuple, output: Any) -> None:
    value = output if side == "output" else inputs[0] if inputs else None
    calls.append((value, _version(value)))


def _version(value: Any) -> int:
    """How often a tensor was written to; constant where torch does not count."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def timm_vit(module: nn.Module) -> dict[str, tuple[str, str]]:
    """Places of all four sites in timm's VisionTransformer; `mha` is taken before the projection."""
    places = {}
    for m in range(1, _count(module, r"blocks\.\d+", "timm VisionTransformer") + 1):
        block = f"blocks.{m - 1}"
        places[f"enc{m}/mha"] = (f"{block}.attn.proj", "input")
        places[f"enc{m}/trunk"] = (f"{block}.norm2", "output")
        places[f"enc{m}/ff_hidden"] = (f"{block}.mlp.fc2", "input")
        places[f"enc{m}/ff"] = (block, "output")
    return places


def torchvision_vit(module: nn.Module) -> dict[str, tuple[str, str]]:
    """Places in torchvision's VisionTransformer (vit_b_16 ...): trunk, ff_hidden and ff.

    There is no `mha`: its attention runs inside one function that never calls the projection as a module.
    """
    places = {}
    encoders = _count(module, r"encoder\.layers\.encoder_layer_\d+", "torchvision VisionTransformer")
    for m in range(1, encoders + 1):
        block = f"encoder.layers.encoder_layer_{m - 1}"
        places[f"enc{m}/trunk"] = (f"{block}.ln_2", "output")
        places[f"enc{m}/ff_hidden"] = (f"{block}.mlp.3", "input")
        places[f"enc{m}/ff"] = (block, "output")
    return places


def torchvision_vgg(module: nn.Module) -> dict[str, tuple[str, str]]:
    """Places in torchvision's VGG, with or without batch norm: the filters of convolution m after ReLU."""
    _count(module, r"features\.\d+", "torchvision VGG")
    features = module.get_submodule("features").named_children()
    relus = [f"features.{name}" for name, layer in features if isinstance(layer, nn.ReLU)]
    return {f"layer{m}/{FILTERS}": (name, "output") for m, name in enumerate(relus, start=1)}


def _count(module: nn.Module, pattern: str, kind: str) -> int:
    count = sum(re.fullmatch(pattern, name) is not None for name, _ in module.named_modules())
    if count == 0:
        raise UserError(f"{type(module).__name__} is no {kind}: it has no modules named like {pattern}")
    return count
