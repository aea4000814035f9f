"""Training recipes: what is trained, for how long, at which learning rate, with which regularisation.

A recipe is all that determines the weights, apart from the images and the hardware. Change one with
`recipe("cpu", epochs=40)`, or on the command line with `--epochs 40`.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Fixed, Suppress

from cctlib.errors import UserError
from cctlib.model import networks
from cctlib.model.precision import Precision

WARMUP_LR = 1e-6  # where the warm-up begins
LIMITS = {  # the least and the largest value of each setting that is a number
    "epochs batch": (1, 1e6),
    "image_size": (1, 1e4),
    "lr": (1e-12, 1e30),
    "warmup_epochs min_lr weight_decay clip seed": (0, 1e12),
    "stochastic_depth attention_dropout label_smoothing ema": (0, 0.99999),
    "shift": (0, 1000),
    "crop_scale": (0.01, 1),
    "randaugment": (0, 10),
    "erasing switch": (0, 1),
    "mixup cutmix": (0, 100),
}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Rates count in optimizer steps, lengths in epochs, and `batch` over all processes.

    The defaults leave the images as they are. Raises `UserError` for values that cannot train.
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
    ema: float = 0.0  # decay, a step, of the moving average of the weights, which then is the result; 0 is off

    shift: int = 0  # largest shift in pixels, in every direction; the border is reflected
    crop_scale: float = 1.0  # smallest share of the area that a resized crop keeps; 1 is no crop
    flip: bool = False  # mirror half of the images
    randaugment: float = 0.0  # magnitude of RandAugment, up to 10; 0 is off
    erasing: float = 0.0  # probability that a rectangle of an image is replaced by noise
    mixup: float = 0.0  # parameter of the Beta distribution of mixup's share; 0 is off
    cutmix: float = 0.0  # the same for CutMix
    switch: float = 0.5  # where both are on, the probability that a batch gets CutMix

    precision: Precision = "auto"  # bf16 autocast where the device has it
    seed: int = 0

    def __post_init__(self) -> None:
        def refuse(problem: str) -> None:
            raise UserError(f"recipe {self.name}: {problem}")

        for names, (least, most) in LIMITS.items():
            for name in names.split():
                if not least <= getattr(self, name) <= most:
                    refuse(f"{name} is {getattr(self, name)}; it must be {least:g} to {most:g}")
        if self.batch % 2 and self.mixes:
            refuse(f"images are mixed in pairs, so batch must be even; it is {self.batch}")
        if self.warmup_epochs >= self.epochs:
            refuse(f"a warm-up of {self.warmup_epochs} epochs leaves nothing of {self.epochs}; shorten it")
        if self.shift >= self.image_size:
            refuse(f"a shift of {self.shift} leaves nothing of {self.image_size} pixels; shorten it")
        fit = all(epochs > 0 and 0 < pixels < self.image_size for epochs, pixels in self.sizes)
        if not fit or sum(epochs for epochs, _ in self.sizes) >= self.epochs:
            steps = ", ".join(f"{epochs} epochs at {pixels} pixels" for epochs, pixels in self.sizes)
            whole = f"{self.epochs} epochs that end at {self.image_size} pixels"
            refuse(f"{steps} do not fit {whole}; choose fewer epochs or smaller images")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    def config(self, num_labels: int) -> networks.Config:
        """Configuration of the network for so many labels."""
        return networks.config(
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


# The CCT authors' recipe for CCT-7/3x1 on CIFAR-100, with their regularisation (Method, section 2); 80.92% is what they
# publish for it. It costs 13.5 million image passes, forward and backward, at 1.2 GMAC forward: for a GPU.
PAPER = Recipe(
    name="paper",
    model="cct_7_3x1",
    epochs=300,
    lr=6e-4,
    schedule="cosine",
    warmup_epochs=10,
    min_lr=1e-5,
    clip=0.0,
    crop_scale=0.8,
    flip=True,
    randaugment=9,
    erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
)

# The authors' batch and rate for Flowers-102 from scratch. Name the split with every number.
FLOWERS = replace(PAPER, name="flowers", model="cct_7_7x2", image_size=224, positional="sine", batch=96, lr=5e-4)

# Short training: a quarter of the tokens of 3x1, for the first epochs an eighth, a rate that falls to zero. Half of the
# batches are mixed by CutMix, and the others hardly by mixup. There is no dropout of attention: a processor draws its
# random numbers one after the other.
CPU = Recipe(
    name="cpu",
    attention_dropout=0.0,
    epochs=28,
    sizes=((19, 24),),
    optimizer="muon",
    lr=2e-3,
    warmup_epochs=0.5,
    weight_decay=0.1,
    shift=4,
    flip=True,
    mixup=0.2,
    cutmix=1.0,
)

# A long run on a processor, of some seven hours on two cores. It averages the weights, so its rate need not fall to
# zero, and has some of the published regularisation, which a long run needs.
CPU_LONG = replace(
    CPU, name="cpu-long", epochs=100, sizes=((40, 20), (30, 24)), min_lr=1.4e-4, ema=0.999, randaugment=5, erasing=0.15
)

# On from the weights of `cpu`, for two more hours on two cores: the rate rises again, to three fifths of its largest,
# and falls with averaged weights and more regularisation, as in the last part of `cpu-long`.
CPU_CONTINUED = replace(CPU_LONG, name="cpu-continued", epochs=CPU.epochs, sizes=CPU.sizes, lr=1.2e-3)

# A twin of `cpu` by the optimizer that most use, to ask what the optimizer changes. It needs more epochs and half the
# rate to come as far.
CPU_ADAMW = replace(CPU, name="cpu-adamw", optimizer="adamw", lr=1e-3, warmup_epochs=1.0, epochs=40, sizes=((28, 24),))

# For a processor: images of 128 pixels have a third of the published tokens, those of the first epochs a fifth. There
# are few epochs, in which Muon gets much further than AdamW. Wide crops, erasing and some mixing fit a run of this
# length; RandAugment and mixing every batch, as published, are for long ones.
FLOWERS_CPU = replace(
    CPU,
    name="flowers-cpu",
    model="cct_7_7x2",
    image_size=128,
    positional="sine",
    epochs=84,
    sizes=((56, 96),),
    batch=64,
    warmup_epochs=1,
    shift=0,
    crop_scale=0.25,
    erasing=0.25,
    switch=0.35,
)

# The siblings' VGG-11, on a processor. Muon's step of its large matrices costs as much as 60 images: the batch is
# twice as large.
VGG_CPU = replace(
    CPU, name="vgg-cpu", model="vgg_11", epochs=20, sizes=((7, 16), (8, 24)), batch=256, lr=3e-3, switch=0.35
)

# The procedural demo set, in a minute or two on two slow cores.
DEMO = Recipe(
    name="demo",
    model="cct_2_3x2",
    stochastic_depth=0.0,
    attention_dropout=0.0,
    epochs=10,
    batch=32,
    lr=3e-3,
    warmup_epochs=1,
    label_smoothing=0.0,
    shift=3,
    flip=True,
)

ALL = (
    PAPER,
    # Sinusoidal positions, a higher rate and less decay are the authors' settings for the long run (82.72% published).
    replace(PAPER, name="paper-1500", epochs=1500, positional="sine", lr=7e-4, weight_decay=5e-2),
    FLOWERS,
    FLOWERS_CPU,
    # As many image passes over three times as many images.
    replace(FLOWERS_CPU, name="flowers-kaggle-cpu", epochs=26, sizes=((17, 96),)),
    CPU,
    CPU_LONG,
    CPU_CONTINUED,
    CPU_ADAMW,
    VGG_CPU,
    # What most would begin with, to compare with: the recipe of the weights that this project started from.
    Recipe(name="plain", shift=4, flip=True),
    DEMO,
)
RECIPES: dict[str, Recipe] = {each.name: each for each in ALL}
USUAL = {  # names of the recipes of a data set, on a GPU and on a processor, where they are not `paper` and `cpu`
    "flowers102": ("flowers", "flowers-cpu"),
    "flowers102-kaggle": ("flowers", "flowers-kaggle-cpu"),
    "demo": ("demo", "demo"),
}


# Accuracies on test images (shares of 1) that the CCT authors publish for training from scratch.
AUTHORS: tuple[dict[str, Any], ...] = (
    {"dataset": "cifar100", "model": "cct_7_3x1", "accuracy": 0.8092, "epochs": 300},
    {"dataset": "cifar100", "model": "cct_7_3x1", "accuracy": 0.8272, "epochs": 1500},
    {"dataset": "cifar100", "model": "cct_7_3x1", "accuracy": 0.8287, "epochs": 5000},
    {"dataset": "flowers102-kaggle", "model": "cct_7_7x2", "accuracy": 0.9719, "epochs": None},
)


def recipe(name: str, /, **changes: Any) -> Recipe:
    """The recipe of that name, with settings changed.

    Raises `UserError` for a name or a setting that does not exist, and for values that cannot train.
    """
    if name not in RECIPES:
        raise UserError(f"recipe {name!r} is not known; there are: {', '.join(RECIPES)}")
    settings = asdict(RECIPES[name])
    for setting in changes:
        if setting not in settings or setting == "name":
            nearest = difflib.get_close_matches(setting, settings, n=3, cutoff=0.0)
            raise UserError(f"recipe {name}: {setting!r} is not a setting; the nearest are {', '.join(nearest)}")
    return replace(RECIPES[name], **changes)


def from_dict(settings: Mapping[str, Any]) -> Recipe:
    """The recipe whose settings a log or a manifest records, as `dataclasses.asdict` writes them.

    Older records have one step of `sizes`, `small_epochs` at `small_size`, those of the images in an entry
    `augmentation`, and settings that no recipe used.
    """
    given = {**settings, **settings.get("augmentation", {})}
    if given.get("small_epochs"):
        given["sizes"] = [(given["small_epochs"], given["small_size"])]
    given["sizes"] = tuple(tuple(step) for step in given.get("sizes", ()))
    return Recipe(**{entry.name: given[entry.name] for entry in fields(Recipe) if entry.name in given})


def fitted(recipe: Recipe, images: int) -> Recipe:
    """The recipe with a batch of at most a tenth of the images, so that an epoch has ten steps at least."""
    batch = max(2, images // 20 * 2)  # even, for mixing
    return recipe if recipe.batch <= batch else replace(recipe, batch=batch)


def recipe_for(dataset: str, device: torch.device | str) -> Recipe:
    """The recipe that suits a data set and a device: the published one on a GPU, a short one on a processor."""
    on_gpu, on_processor = USUAL.get(dataset, ("paper", "cpu"))
    return RECIPES[on_gpu if torch.device(device).type == "cuda" else on_processor]
