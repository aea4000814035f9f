"""cctlib: measure what single nodes of a Compact Convolutional Transformer know about every label.

The names below are what a user needs, in three tiers; everything else is reached by its room (`cctlib.figures`,
`cctlib.andc.sweep`, ...). They are imported when they are first used, so that `import cctlib` costs nothing.
"""

from importlib import import_module
from typing import Any

CORE = {
    "open_study": "study",
    "Study": "study",
    "site_names": "model.sites",
    "Probe": "snp.probe",
    "Probes": "snp.probe",
    "train_probes": "snp.probe",
    "measure": "snp.fields",  # mu and W of a site -> its statistics
    "boolean": "snp.fields",
    "clusters": "snp.fields",
    "ownership": "heads.stage",
    "connected": "andc.masks",
    "andc_masks": "andc.masks",
}
DATA_MODELS_TRAINING = {
    "load": "data.images",
    "Images": "data.images",
    "config": "model.cct",
    "CCT": "model.cct",
    "load_weights": "model.checkpoints",
    "train": "training.run",
    "recipe": "training.recipes",
    "Tapped": "model.adapters",
    "timm_vit": "model.adapters",
    "torchvision_vit": "model.adapters",
    "torchvision_vgg": "model.adapters",
}
CLAIMS = {"all_claims": "claims.judge", "Verdict": "claims.rules"}

_MODULES = CORE | DATA_MODELS_TRAINING | CLAIMS
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cctlib' has no attribute {name!r}")
    return getattr(import_module(f"cctlib.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
