"""Profiles: how much of everything is computed, by name.

Counts of images are per label, None for all of them. `quick` is for a processor, `full` takes all images, `scratch`
is `full` after training the network first.
"""

from dataclasses import dataclass, field, replace

import torch

from cctlib.errors import UserError
from cctlib.snp.probe import ProbeSettings


@dataclass(frozen=True)
class HeadSettings:
    """The study of heads. encoders: those whose heads are silenced in the network, None for all of them."""

    gap_deals: int = 200  # of nodes to heads, for the expert gap
    test: int | None = None  # images that the network with silenced heads sees
    encoders: tuple[int, ...] | None = None
    draws: int = 3  # of as many random nodes as a head has


@dataclass(frozen=True)
class PruningSettings:
    """The study of pruning: all methods at theta 0.3 with retraining, and without it along the thresholds.

    test, curve_test: images that judge the networks pruned at theta 0.3, and those along `thetas`. targets: those that
    are retrained, and those along `thetas`. train: images that retraining draws from; epochs: passes over these, over
    sets smaller than `least_images` as many more as make up for it.
    """

    test: int | None = None
    curve_test: int | None = None
    train: int | None = None
    epochs: tuple[float, ...] = (1.0, 3.0)
    least_images: int = 40_000
    targets: tuple[str, ...] = ("proj", "linear1", "linear2", "fc", "all")
    thetas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    seeds: tuple[int, ...] = (0, 1, 2)
    latency_thetas: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6)  # of ANDC's masks whose networks are timed
    seconds: float = 8.0  # of timing each of them, for each batch

    def amounts(self, images: int) -> tuple[float, ...]:
        """`epochs` as passes over so many training images."""
        more = max(1.0, self.least_images / images)
        return tuple(round(more * amount, 2) for amount in self.epochs)


@dataclass(frozen=True)
class Profile:
    """How much is computed. Counts are images per label, None for all of them."""

    name: str
    train: int | None = None
    held_out: int | None = None
    test: int | None = None
    layers_train: int | None = None  # for the probes of a convolutional network
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    thetas: tuple[float, ...] = tuple(round(0.1 + 0.05 * step, 2) for step in range(13))
    null_draws: int = 20  # of the labels shuffled across images
    rotations: int = 20  # of each site into a random basis
    label_orders: int = 10
    heads: HeadSettings = field(default_factory=HeadSettings)
    pruning: PruningSettings = field(default_factory=PruningSettings)
    reduced: bool = False  # on a processor, fewer images judge the heads and the pruned networks

    @property
    def title(self) -> str:
        """The name for readers, which says what was reduced."""
        return f"{self.name}, reduced for a processor" if self.reduced else self.name


FULL = Profile("full")
# Two cores pass some 400 images a second through a CCT-7/3x2, and retrain 150: a tenth of a pass over CIFAR-100 instead
# of three, judged by a third of the test images. Probes on whole maps take longest: they get 200 images a label.
ON_PROCESSOR = replace(
    FULL,
    reduced=True,
    layers_train=200,
    heads=HeadSettings(test=30),
    pruning=PruningSettings(test=30, curve_test=10, epochs=(0.1,)),
)

PROFILES: dict[str, Profile | None] = {
    "shipped": None,
    "quick": Profile(
        "quick",
        # Of so many the tokens of all sites of CIFAR-100 fit in 8 GiB, and the network runs over them once. With 50 a
        # run is half a minute shorter, but probes are too noisy for the expert gap at the first two encoders (C5).
        train=70,
        layers_train=20,
        held_out=20,
        test=30,
        # What they are compared with ships. At six sites, noise and SNR were within 2% of those at a tolerance of 1e-4,
        # in half of the passes.
        probe=ProbeSettings(swapped=(), short=(), tolerance=1e-3),
        thetas=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        null_draws=10,
        label_orders=4,
        heads=HeadSettings(gap_deals=100, test=7, encoders=(1, 4, 7)),
        pruning=PruningSettings(
            test=4,
            curve_test=4,
            train=20,
            epochs=(0.25,),
            least_images=1,
            targets=("fc", "all"),
            seeds=(0, 1),
            thetas=(0.1, 0.3, 0.5),
            latency_thetas=(0.3, 0.5),
            seconds=1.0,
        ),
    ),
    "full": FULL,
    "scratch": replace(FULL, name="scratch"),
}


def resolve_profile(name: str, device: torch.device) -> Profile | None:
    """The profile of a name; None for `shipped`. `auto` is full on a GPU and quick without.

    Raises `UserError` for another name.
    """
    if name == "auto":
        name = "full" if device.type == "cuda" else "quick"
    if name not in PROFILES:
        raise UserError(f"profile {name!r} is not known; use quick, full, scratch, shipped or auto")
    if name in ("full", "scratch") and device.type == "cpu":
        return replace(ON_PROCESSOR, name=name)
    return PROFILES[name]
