"""Training recipes: what is trained, for how long, at which learning rate, with which regularisation.

A recipe is all that determines the weights, apart from the images and the hardware. Change one with
`recipe("cpu", epochs=40)`, or on the command line with `--epochs 40`.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Fixed, Suppress

from cctlib.errors import UserError
from cctlib.model import cct
from cctlib.model.precision import Precision
from cctlib.training.augment import Augmentation, check_limits

WARMUP_LR = 1e-6  # where the warm-up begins


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Rates count in optimizer steps, lengths in epochs, and `batch` over all processes.

    Raises `UserError` for values that cannot train.
    """

    name: Annotated[str, Fixed, Suppress] = "cpu"  # not an option of the command line
    model: str = "cct_7_3x2"
    image_size: int = 32  # pixels, square
    positional: Literal["learnable", "sine", "none"] = "learnable"
    stochastic_depth: float = 0.1  # rate at which the last encoder is dropped; linear from 0 at the first
    attention_dropout: float = 0.1

    epochs: int = 20
    sizes: tuple[tuple[int, int], ...] = ()  # (epochs, pixels) of the first epochs, which see smaller images
    batch: int = 128
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the weight matrices of the encoders, AdamW for the rest
    lr: float = 1.2e-3  # the largest, after the warm-up
    schedule: Literal["cosine", "linear"] = "linear"  # how it falls to min_lr
    warmup_epochs: float = 2.0  # it rises linearly from almost nothing
    min_lr: float = 0.0  # the last
    weight_decay: float = 0.06  # none for biases, norms and position embeddings
    clip: float = 1.0  # largest norm of the gradient; 0 is no clipping
    label_smoothing: float = 0.1
    ema: float = 0.0  # decay of the moving average of the weights, which then is the result; 0 is off
    augmentation: Augmentation = field(default_factory=Augmentation)

    precision: Precision = "auto"  # bf16 autocast where the device has it
    seed: int = 0

    def __post_init__(self) -> None:
        title = f"recipe {self.name}"
        check_limits(title, self, epochs=(1, 1e6), batch=(1, 1e6), image_size=(1, 1e4), lr=(1e-12, 1e30))
        check_limits(
            title, self, **dict.fromkeys(("warmup_epochs", "min_lr", "weight_decay", "clip", "seed"), (0, 1e12))
        )
        shares = ("stochastic_depth", "attention_dropout", "label_smoothing", "ema")
        check_limits(title, self, **dict.fromkeys(shares, (0, 0.99999)))
        if self.batch % 2 and self.augmentation.mixes:
            raise UserError(f"{title}: images are mixed in pairs, so batch must be even; it is {self.batch}")
        if self.warmup_epochs >= self.epochs:
            raise UserError(
                f"{title}: a warm-up of {self.warmup_epochs} epochs leaves nothing of {self.epochs}; shorten it"
            )
        if self.augmentation.shift >= self.image_size:
            raise UserError(
                f"{title}: a shift of {self.augmentation.shift} leaves {self.image_size} pixels; shorten it"
            )
        fit = all(epochs > 0 and 0 < pixels < self.image_size for epochs, pixels in self.sizes)
        if not fit or sum(epochs for epochs, _ in self.sizes) >= self.epochs:
            steps = ", ".join(f"{epochs} epochs at {pixels} pixels" for epochs, pixels in self.sizes)
            raise UserError(
                f"{title}: {steps} do not fit {self.epochs} epochs that end at {self.image_size} pixels; "
                "choose fewer epochs or smaller images"
            )

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

    def passes_by_size(self, images: int) -> dict[int, int]:
        """The image passes of a whole run by the size (pixels) of the images, for what they cost.

        What fills no batch at the end of an epoch is left out.
        """
        sizes = [self.size(epoch) for epoch in range(self.epochs)]
        return {size: sizes.count(size) * (images // self.batch * self.batch) for size in dict.fromkeys(sizes)}

    def size(self, epoch: int) -> int:
        """Pixels along one side of the images that an epoch (counted from 0) sees."""
        for epochs, pixels in self.sizes:
            if epoch < epochs:
                return pixels
            epoch -= epochs
        return self.image_size

    def learning_rate(self, epoch: float) -> float:
        """The learning rate after so many epochs, a fraction included.

        The cosine is counted from the start of training, as in timm; the line from the end of the warm-up.
        """
        if epoch < self.warmup_epochs:
            return WARMUP_LR + (self.lr - WARMUP_LR) * epoch / self.warmup_epochs
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

# For a processor: images of 128 pixels have a third of the published tokens, those of the first epochs a fifth. There
# are few epochs, in which Muon gets much further than AdamW. Wide crops, erasing and some mixing fit a run of this
# length; RandAugment and mixing every batch, as published, are for long ones.
FLOWERS_CPU = replace(
    FLOWERS,
    name="flowers-cpu",
    image_size=128,
    epochs=84,
    sizes=((56, 96),),
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
    "flowers-kaggle-cpu": replace(FLOWERS_CPU, name="flowers-kaggle-cpu", epochs=26, sizes=((17, 96),)),
    # Short training: a quarter of the tokens of 3x1, for the first epochs an eighth, a rate that falls to zero. Half of
    # the batches are mixed by CutMix, and the others hardly by mixup. There is no dropout of attention: a processor
    # draws its random numbers one after the other.
    "cpu": Recipe(
        name="cpu",
        epochs=28,
        sizes=((19, 24),),
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
    """An accuracy on test images (a share of 1) that the CCT authors publish for training from scratch."""

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


def recipe(name: str, /, **changes: Any) -> Recipe:
    """The recipe of that name, with settings of `Recipe` and `Augmentation` changed.

    Raises `UserError` for a name or a setting that does not exist, and for values that cannot train.
    """
    if name not in RECIPES:
        raise UserError(f"recipe {name!r} is not known; there are: {', '.join(RECIPES)}")
    base = RECIPES[name]
    settings = flat(base)
    for setting in changes:
        if setting not in settings or setting == "name":
            nearest = difflib.get_close_matches(setting, settings, n=3, cutoff=0.0)
            raise UserError(f"recipe {name}: {setting!r} is not a setting; the nearest are {', '.join(nearest)}")
    of_images = {setting: changes.pop(setting) for setting in asdict(base.augmentation).keys() & changes}
    return replace(base, **changes, augmentation=replace(base.augmentation, **of_images))


def flat(recipe: Recipe) -> dict[str, Any]:
    """Settings of a recipe with those of its augmentation beside the others."""
    settings = asdict(recipe)
    augmentation = settings.pop("augmentation")
    return settings | augmentation


def changed(recipe: Recipe) -> dict[str, Any]:
    """The settings in which a recipe differs from the one in `RECIPES` that has its name."""
    usual = flat(RECIPES[recipe.name])
    return {name: value for name, value in flat(recipe).items() if value != usual[name]}


def from_dict(settings: Mapping[str, Any]) -> Recipe:
    """The recipe whose settings a log or a manifest records, as `dataclasses.asdict` writes them.

    Records made before `sizes` have one step, `small_epochs` at `small_size`, and settings that no recipe used.
    """
    known = {entry.name: settings[entry.name] for entry in fields(Recipe) if entry.name in settings}
    if settings.get("small_epochs"):
        known["sizes"] = ((settings["small_epochs"], settings["small_size"]),)
    known["sizes"] = tuple(tuple(step) for step in known.get("sizes", ()))
    return Recipe(**known | {"augmentation": Augmentation(**settings["augmentation"])})


def fitted(recipe: Recipe, images: int) -> Recipe:
    """The recipe with a batch of at most a tenth of the images, so that an epoch has ten steps at least."""
    batch = max(2, images // 20 * 2)  # even, for mixing
    return recipe if recipe.batch <= batch else replace(recipe, batch=batch)


def recipe_for(dataset: str, device: torch.device | str) -> Recipe:
    """The recipe that suits a data set and a device: the published one on a GPU, a short one on a processor."""
    on_gpu = torch.device(device).type == "cuda"
    if dataset == "demo":
        return RECIPES["demo"]
    if dataset.startswith("flowers102"):
        short = "flowers-kaggle-cpu" if dataset == "flowers102-kaggle" else "flowers-cpu"
        return RECIPES["flowers" if on_gpu else short]
    return RECIPES["paper" if on_gpu else "cpu"]
