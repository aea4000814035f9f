"""The stages of pruning: from a measured study to the tables of Method, section 7. Held-out images decide (masks), test
images judge.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from cctlib import stages
from cctlib.andc import latency, masks, repair, sweep
from cctlib.andc.retrain import Retraining, prune
from cctlib.errors import UserError
from cctlib.model.precision import arithmetic
from cctlib.profiles import Profile, PruningSettings
from cctlib.snp import fields, measure
from cctlib.study import Study, load_images
from cctlib.training.recipes import from_dict

TIMING = ("latency_thetas", "seconds")  # settings that the sweep does not read
PRUNING, SATURATED = ("pruning", "curves", "repaired", "cut", "latency"), "saturated"
BATCHES = (1, 128)  # images at a time, for latency
COMPARED = ("andc", "random", "magnitude", "wanda")  # retrained, and drawn along the thresholds


@dataclass(frozen=True)
class Saturation:
    """What a campaign retrains. lengths: epochs to try, shortest first; train, test: images per label, None for all."""

    targets: tuple[str, ...] = ("all", "fc", "proj", "linear1", "linear2")
    methods: tuple[str, ...] = COMPARED
    thetas: tuple[float, ...] = (fields.THETA,)
    seeds: tuple[int, ...] = (0, 1, 2)  # of random masks
    lengths: tuple[int, ...] = (4, 8, 16)
    train: int | None = None
    test: int | None = None


def pruning_tables(study: Study) -> dict[str, pd.DataFrame]:
    """Pruned networks, by the names in `PRUNING`.

    pruning: `sweep.sweep` at theta 0.3, all methods, retrained as the profile says. curves: the same along the
    thresholds, without retraining. repaired, cut: `repair.tables`. latency: `latency.measure` of ANDC's masks for all
    layers, with theta. And, where it ships, saturated: `sweep.saturate`, which a campaign makes and no profile.
    Raises `Missing` for a shipped study that came without them.
    """
    if study.profile is None:  # repairs may have been made later than the others, and then have a record of their own
        tables = study.shipped_tables(PRUNING, "andc", "latency", "repaired")
    else:
        swept, timed = sweep_stage(study, study.profile), latency_stage(study, study.profile.pruning)
        tables = stages.read_tables(swept, PRUNING[:4]) | stages.read_tables(timed, PRUNING[4:])
    if (study.model.folder / f"{SATURATED}.parquet").is_file():
        tables |= study.shipped_tables([SATURATED], SATURATED)
    return tables


def _diagonals(study: Study, thetas: Sequence[float]) -> dict[float, masks.Diagonals]:
    """By theta, from held-out images."""
    return {theta: measure.diagonals(study.measurement, theta) for theta in thetas}


def sweep_stage(study: Study, profile: Profile) -> Path:
    """The folder of the tables pruning, curves, repaired and cut."""
    settings, encoders = profile.pruning, study.model.cct.encoders
    images = {
        "held-out": load_images(study.dataset, "held-out", profile.held_out, study.model),
        "test": load_images(study.dataset, "test", settings.test, study.model),
        "curve": load_images(study.dataset, "test", settings.curve_test, study.model),
        "train": load_images(study.dataset, "train", settings.train, study.model),
    }
    retraining = Retraining(precision=profile.probe.precision)

    def compute(work: Path) -> None:
        at, thresholds = _diagonals(study, [fields.THETA]), _diagonals(study, settings.thetas)
        campaign = sweep.Campaign(study.network(), study.model.normalise, images, at, work, retraining)
        along = replace(campaign, images=images | {"test": images["curve"]}, diagonals=thresholds)
        prunings = sweep.plan(masks.TARGETS, masks.METHODS, settings.seeds, at, encoders)
        retrained = sweep.plan(settings.targets, COMPARED, settings.seeds, at, encoders)
        curves = sweep.plan(settings.targets, COMPARED, settings.seeds[:1], thresholds, encoders)
        amounts = settings.amounts(len(images["train"]))
        tables = [sweep.sweep(campaign, prunings), sweep.sweep(campaign, retrained, amounts)]
        made = {"pruning": pd.concat(tables, ignore_index=True), "curves": sweep.sweep(along, curves)}
        stages.write_tables(made | repair.tables(campaign, settings.seeds), work)

    read = {key: value for key, value in asdict(settings).items() if key not in TIMING}
    return study.later_stage(
        "andc", "andc", compute, read | {"retraining": asdict(retraining)}, images, retraining.precision
    )


def latency_stage(study: Study, settings: PruningSettings) -> Path:
    """The folder of the table latency: under ANDC's masks for all layers, at each threshold, on this machine."""

    def compute(work: Path) -> None:
        network, diagonals = study.network(), _diagonals(study, settings.latency_thetas)
        timed = []
        prunings = sweep.plan(["all"], ["andc"], [0], diagonals, network.config.encoders)
        for pruning in tqdm(prunings, desc="latency", unit="threshold"):
            pruned = prune(network, masks.make_masks(pruning, network, diagonals[pruning.theta]))
            timed.append(latency.measure(pruned, BATCHES, settings.seconds).assign(theta=pruning.theta))
        stages.write_tables({"latency": pd.concat(timed, ignore_index=True)}, work)

    read = {
        "thetas": settings.latency_thetas,
        "seconds": settings.seconds,
        "machine": stages.machine(study.device),  # on so many threads as it first had: a notebook has fewer
    }
    return study.later_stage("latency", "andc", compute, read)


def saturated_stage(study: Study, settings: Saturation, runs: Path) -> Path:
    """The folder of the table saturated. Rows are kept in `runs`, for campaigns with other settings as well.

    Raises `UserError` for a model whose recipe is not known.
    """
    training = study.model.manifest.training
    if training is None:
        raise UserError(
            f"{study.model.folder} does not say how its network was trained, so it cannot be retrained alike"
        )
    counts = {"train": settings.train, "held-out": None, "test": settings.test}
    images = {split: load_images(study.dataset, split, count, study.model) for split, count in counts.items()}
    recipe, diagonals = from_dict(training.recipe), _diagonals(study, settings.thetas)

    def compute(work: Path) -> None:
        rows, encoders = runs / "retrained", study.model.cct.encoders
        campaign = sweep.Campaign(study.network(), study.model.normalise, images, diagonals, rows, recipe)
        prunings = sweep.plan(settings.targets, settings.methods, settings.seeds, diagonals, encoders)
        stages.write_tables({SATURATED: sweep.saturate(campaign, prunings, settings.lengths)}, work)

    return stages.stage(
        runs,
        SATURATED,
        compute,
        room="andc",
        reads={
            "model": study.model.identity,
            "diagonals": sweep.tensors_hash(sets for of_theta in diagonals.values() for sets in of_theta.values()),
            **{split: part.fingerprint for split, part in images.items()},
        },
        settings=asdict(settings) | {"recipe": training.recipe},
        arithmetic=arithmetic(study.device, recipe.precision),
        device=study.device,
    )
