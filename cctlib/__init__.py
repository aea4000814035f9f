"""cctlib: measure what single nodes of a Compact Convolutional Transformer know about every label.

The names below are what a user needs, in three tiers; everything else is reached by its room (`cctlib.figures`,
`cctlib.andc.sweep`, ...). They are imported when they are first used, so that `import cctlib` costs nothing.
"""

from importlib import import_module
from typing import Any

TIERS: dict[str, dict[str, tuple[str, ...]]] = {
    "Measuring": {
        "study": ("open_study", "Study"),
        "model.sites": ("site_names",),
        "snp.probe": ("Probe", "Probes", "train_probes"),
        "snp.fields": ("measure", "boolean", "clusters"),
        "heads.stage": ("ownership",),
        "andc.masks": ("connected", "andc_masks"),
    },
    "Data, models, training": {
        "data.images": ("load", "Images"),
        "model.cct": ("config", "CCT"),
        "model.checkpoints": ("load_weights",),
        "model.adapters": ("Tapped", "timm_vit", "torchvision_vit", "torchvision_vgg"),
        "training.recipes": ("recipe",),
        "training.run": ("train",),
    },
    "Claims": {"claims.judge": ("all_claims",), "claims.rules": ("Verdict",)},
}

_MODULES = {name: module for tier in TIERS.values() for module, names in tier.items() for name in names}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cctlib' has no attribute {name!r}")
    return getattr(import_module(f"cctlib.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
