"""The networks that are trained and measured here, by their names: a CCT (`cct.py`) or a VGG (`vgg.py`)."""

from typing import Any

from cctlib.errors import UserError
from cctlib.model import cct, vgg
from cctlib.model.cct import CCT, CCTConfig
from cctlib.model.vgg import VGG, VGGConfig

Config = CCTConfig | VGGConfig
Network = CCT | VGG


def config(name: str, *, num_classes: int, image_size: int, **of_cct: Any) -> Config:
    """The configuration of a network by its name, as cct_7_3x2 or vgg_11, which has no settings `of_cct`.

    Raises `UserError` for a name that does not exist, and values that cannot make a network.
    """
    if not name.startswith("vgg"):
        return cct.config(name, num_classes=num_classes, image_size=image_size, **of_cct)
    if name not in vgg.VARIANTS:
        raise UserError(f"model {name!r} is not known; there are {', '.join(vgg.VARIANTS)}")
    return VGGConfig(vgg.VARIANTS[name], num_classes=num_classes, image_size=image_size)


def build(config: Config, attention: str = "explicit") -> Network:
    """An untrained network, on the CPU. attention: the form that a CCT computes it in."""
    return VGG(config) if isinstance(config, VGGConfig) else CCT(config, attention)
