"""Training recipes: what is trained, for how long, at which learning rate, with which regularisation.

A recipe is all that determines the weights, apart from the images and the hardware. Change one with
`recipe("cpu", epochs=40)`, or on the command line with `--epochs 40`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from typing import Any, Literal, Optional

import torch

from cctlib.errors import UserError
from cctlib.model import cct
from cctlib.model.precision import Precision
from cctlib.training.augment import Augmentation


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Rates count in optimizer steps, lengths in epochs, and `batch` over all processes.

    Raises `UserError` for values that cannot train.
    """

    name: str = "cpu"
    model: str = "cct_7_3x2"
    image_size: int = 32  # pixels, square
    positional: Literal["learnable", "sine", "none"] = "learnable"
    stochastic_depth: float = 0.1  # rate at which the last encoder is dropped; linear from 0 at the first
    attention_dropout: float = 0.1

    epochs: int = 20
    small_epochs: int = 0  # the first ones see images of `small_size`: fewer tokens, and so less to compute
    small_size: int = 24  # pixels, square
    batch: int = 128
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the weight matrices of the encoders, AdamW for the rest
    lr: float = 1.2e-3  # the largest, after the warm-up
    schedule: Literal["cosine", "linear"] = "linear"  # how it falls to min_lr
    warmup_epochs: float = 2.0  # it rises linearly from warmup_lr
    warmup_lr: float = 1e-6
    min_lr: float = 0.0
    weight_decay: float = 0.06  # none for biases, norms and position embeddings
    clip: float = 1.0  # largest norm of the gradient; 0 is no clipping
    label_smoothing: float = 0.1
    ema: float = 0.0  # decay of the moving average of the weights, which then is the result; 0 is off
    augmentation: Augmentation = field(default_factory=Augmentation)

    precision: Precision = "auto"  # bf16 autocast where the device has it
    attention: Literal["auto", "explicit", "fused"] = "auto"
    compile: bool = False  # torch.compile for the training step
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch": 1, "image_size": 1, "lr": 1e-12}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, int | float) and not least.get(entry.name, 0) <= value < math.inf:
                raise UserError(
                    f"recipe {self.name}: {entry.name} is {value}; it must be at least {least.get(entry.name, 0)}"
                )
        if self.batch % 2 and self.augmentation.mixes:
            raise UserError(f"recipe {self.name}: images are mixed in pairs, so batch must be even; it is {self.batch}")
        if self.warmup_epochs >= self.epochs:
            raise UserError(
                f"recipe {self.name}: a warm-up of {self.warmup_epochs} epochs leaves nothing of {self.epochs}; shorten it"
            )
        if self.small_epochs and not (self.small_epochs < self.epochs and self.small_size < self.image_size):
            raise UserError(
                f"recipe {self.name}: {self.small_epochs} epochs at {self.small_size} pixels do not fit {self.epochs} epochs "
                f"that end at {self.image_size}; choose fewer epochs or smaller images"
            )
        if self.ema >= 1:
            raise UserError(f"recipe {self.name}: ema is {self.ema}; a decay is below 1")

    def config(self, num_labels: int) -> cct.CCTConfig:
        """Configuration of the network for so many labels."""
        return cct.config(
            self.model,
            num_classes=num_labels,
            image_size=self.image_size,
            positional=self.positional,
            stochastic_depth=self.stochastic_depth,
            attention_dropout=self.attention_dropout,
        )

    def image_passes(self, images: int) -> int:
        """How often an image is learned from in a whole run; what fills no batch at the end of an epoch is left out."""
        return sum(self.passes_by_size(images).values())

    def passes_by_size(self, images: int) -> dict[int, int]:
        """The image passes of a whole run by the size (pixels) of the images, for what they cost."""
        epoch, small = images // self.batch * self.batch, self.small_epochs
        passes = {self.small_size: small * epoch, self.image_size: (self.epochs - small) * epoch}
        return {size: number for size, number in passes.items() if number}

    def size(self, epoch: int) -> int:
        """Pixels along one side of the images that an epoch (counted from 0) sees."""
        return self.small_size if epoch < self.small_epochs else self.image_size

    def learning_rate(self, epoch: float) -> float:
        """The learning rate after so many epochs, a fraction included.

        The cosine is counted from the start of training, as in timm; the line from the end of the warm-up.
        """
        if epoch < self.warmup_epochs:
            return self.warmup_lr + (self.lr - self.warmup_lr) * epoch / self.warmup_epochs
        if self.schedule == "linear":
            left = (self.epochs - epoch) / (self.epochs - self.warmup_epochs)
        else:
            left = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.min_lr + (self.lr - self.min_lr) * left


# The CCT authors' regularisation (Method, section 2).
PUBLISHED = Augmentation(crop_scale=0.8, flip=True, randaugment=9, erasing=0.25, mixup=0.8, cutmix=1.0)

# The CCT authors' recipe for CCT-7/3x1 on CIFAR-100; 80.92% is what they publish for it. It costs 13.5 million
# image passes, forward and backward, at 1.2 GMAC forward: for a GPU.
PAPER = Recipe(
    name="paper",
    model="cct_7_3x1",
    epochs=300,
    batch=128,
    lr=6e-4,
    schedule="cosine",
    warmup_epochs=10,
    warmup_lr=1e-6,
    min_lr=1e-5,
    weight_decay=6e-2,
    clip=0.0,
    label_smoothing=0.1,
    augmentation=PUBLISHED,
)

DEMO = Recipe(
    name="demo",
    model="cct_2_3x2",
    epochs=10,
    batch=32,
    lr=3e-3,
    warmup_epochs=1,
    stochastic_depth=0.0,
    attention_dropout=0.0,
    label_smoothing=0.0,
    augmentation=Augmentation(shift=3, flip=True),
)

FLOWERS = replace(PAPER, name="flowers", model="cct_7_7x2", image_size=224, positional="sine", batch=96, lr=5e-4)

# For a processor: a third of the tokens, in two thirds of the epochs a fifth, and few epochs, in which Muon gets much further
# than AdamW. Wide crops, erasing and some mixing fit a run of this length; RandAugment and mixing every batch, as published,
# are for long ones.
FLOWERS_CPU = replace(
    FLOWERS,
    name="flowers-cpu",
    image_size=128,
    epochs=84,
    small_epochs=56,
    small_size=96,
    batch=64,
    optimizer="muon",
    lr=2e-3,
    schedule="linear",
    warmup_epochs=1,
    min_lr=0.0,
    weight_decay=0.1,
    clip=1.0,
    attention_dropout=0.0,
    augmentation=Augmentation(crop_scale=0.25, flip=True, erasing=0.25, mixup=0.2, cutmix=1.0, switch=0.35),
)

RECIPES: dict[str, Recipe] = {
    "paper": PAPER,
    # Sinusoidal positions, a higher rate and less decay are the authors' settings for the long run (82.72% published).
    "paper-1500": replace(PAPER, name="paper-1500", epochs=1500, positional="sine", lr=7e-4, weight_decay=5e-2),
    # The authors' batch and rate for Flowers-102 from scratch. Name the split with every number.
    "flowers": FLOWERS,
    "flowers-cpu": FLOWERS_CPU,
    # As many image passes over three times as many images.
    "flowers-kaggle-cpu": replace(FLOWERS_CPU, name="flowers-kaggle-cpu", epochs=26, small_epochs=17),
    # Short training: a quarter of the tokens of 3x1, for the first epochs an eighth, a rate that falls to zero. Half of the batches
    # are mixed by CutMix, and hardly any by mixup. Without dropout of attention, whose random numbers a processor draws one after
    # the other.
    "cpu": Recipe(
        name="cpu",
        epochs=28,
        small_epochs=19,
        small_size=24,
        optimizer="muon",
        lr=2e-3,
        warmup_epochs=0.5,
        weight_decay=0.1,
        attention_dropout=0.0,
        augmentation=Augmentation(shift=4, flip=True, mixup=0.2, cutmix=1.0),
    ),
    # What most would begin with, to compare with: the recipe of the weights that this project started from.
    "plain": Recipe(name="plain", augmentation=Augmentation(shift=4, flip=True)),
    # The procedural demo set, in a minute or two on two slow cores.
    "demo": DEMO,
}


@dataclass(frozen=True)
class Published:
    """An accuracy on test images (a share of 1) that the CCT authors publish for training from scratch: theirs, not ours."""

    dataset: str  # with its split, a name in `data.DATASETS`
    model: str
    accuracy: float
    epochs: int | None = None  # where it is known


AUTHORS = (
    Published("cifar100", "cct_7_3x1", 0.8092, 300),
    Published("cifar100", "cct_7_3x1", 0.8272, 1500),
    Published("cifar100", "cct_7_3x1", 0.8287, 5000),
    Published("flowers102-kaggle", "cct_7_7x2", 0.9719),
)


# Every setting of a recipe and of its augmentation, by name; None leaves it as the recipe has it. The command line offers these.
SETTINGS = [entry for entry in (*fields(Recipe), *fields(Augmentation)) if entry.name not in ("name", "augmentation")]
Changes = make_dataclass("Changes", [(entry.name, Optional[entry.type], None) for entry in SETTINGS], frozen=True)  # noqa: UP045
Changes.__doc__ = "Settings of the recipe to change, by the names in `Recipe` and `Augmentation`."
UNCHANGED = Changes()


def recipe(name: str, **changes: Any) -> Recipe:
    """The recipe of that name, with settings changed. Raises `UserError` when there is none, or when it could not train."""
    if name not in RECIPES:
        raise UserError(f"recipe {name!r} is not known; there are: {', '.join(RECIPES)}")
    chosen = RECIPES[name]
    augmentation = {key: changes.pop(key) for key in list(changes) if hasattr(chosen.augmentation, key)}
    return replace(chosen, **changes, augmentation=replace(chosen.augmentation, **augmentation))


def flat(chosen: Recipe) -> dict[str, Any]:
    """Settings of a recipe with those of its augmentation beside the others."""
    settings = asdict(chosen)
    augmentation = settings.pop("augmentation")
    return settings | augmentation


def changed(chosen: Recipe) -> dict[str, Any]:
    """The settings in which a recipe differs from the one that has its name here, as `recipe` takes them."""
    usual = flat(recipe(chosen.name))
    return {name: value for name, value in flat(chosen).items() if value != usual[name]}


def from_dict(settings: Mapping[str, Any]) -> Recipe:
    """The recipe that `dataclasses.asdict` made the settings of, as they stand in logs and manifests."""
    return Recipe(**{**settings, "augmentation": Augmentation(**settings["augmentation"])})


def recipe_for(dataset: str, device: torch.device | str) -> Recipe:
    """The recipe that suits a data set and a device: the published one on a GPU, a short one on a processor."""
    on_gpu = torch.device(device).type == "cuda"
    if dataset == "demo":
        return RECIPES["demo"]
    if dataset.startswith("flowers102"):
        short = "flowers-kaggle-cpu" if dataset == "flowers102-kaggle" else "flowers-cpu"
        return RECIPES["flowers" if on_gpu else short]
    return RECIPES["paper" if on_gpu else "cpu"]
