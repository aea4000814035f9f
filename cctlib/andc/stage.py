"""The stages of pruning: from a measured study to the tables of Method, section 7.

    pruning_tables    ANDC beside other masks, with and without retraining, and its speed: needs weights and images
    saturated_stage   whole networks retrained until they stop gaining: a campaign of hours, whose table ships

Where the images are missing, the tables that ship with the model are read. Held-out images decide (masks), test images
judge.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from cctlib import stages
from cctlib.andc import latency, masks, saturate, sweep
from cctlib.andc.retrain import Retraining, masked
from cctlib.andc.saturate import Saturation
from cctlib.errors import UserError
from cctlib.model.precision import arithmetic
from cctlib.profiles import Profile, PruningSettings
from cctlib.snp import fields, measure
from cctlib.study import Study, load_images
from cctlib.training.processes import refuse_torchrun
from cctlib.training.recipes import from_dict

TIMING = ("latency_thetas", "seconds")  # settings that the sweep does not read
PRUNING = ("pruning", "curves", "latency")
COMPENSATED, SATURATED = "compensated", "saturated"
BATCHES = (1, 128)  # images at a time, for latency
COMPARED = ("andc", "random", "magnitude", "wanda")  # retrained, and drawn along the thresholds


def pruning_tables(study: Study) -> dict[str, pd.DataFrame]:
    """Pruned networks, by the names in `PRUNING`.

    pruning: `sweep.sweep` at theta 0.3, all methods, retrained as the profile says, with the columns images (judged)
    and trained_images (in a whole pass of retraining). curves: the same along the thresholds, without retraining.
    latency: `latency.measure` of ANDC's masks for all layers, with theta.
    Where they are: compensated, linear1 at theta 0.3 by ANDC and random masks, with the mean effect of the cut weights
    in the biases; saturated, `saturate.saturate`, which a campaign makes and no profile.
    Raises `Missing` for a shipped study that came without them.
    """
    if study.profile is None:
        tables = study.shipped_tables(PRUNING, "andc", "latency")
    else:
        swept, timed = sweep_stage(study, study.profile), latency_stage(study, study.profile.pruning)
        tables = stages.read_tables(swept, [*PRUNING[:2], COMPENSATED]) | stages.read_tables(timed, PRUNING[2:])
    for name in (COMPENSATED, SATURATED):
        if name not in tables and (study.model.folder / f"{name}.parquet").is_file():
            tables |= stages.read_tables(study.model.folder, [name])
    return tables


def sweep_stage(study: Study, profile: Profile) -> Path:
    """The folder of the tables pruning, curves and compensated. Raises `UserError` under torchrun."""
    refuse_torchrun("pruning")
    settings = profile.pruning
    images = {
        "held-out": load_images(study.dataset, "held-out", profile.held_out, study.model),
        "test": load_images(study.dataset, "test", settings.test, study.model),
        "curve": load_images(study.dataset, "test", settings.curve_test, study.model),
        "train": load_images(study.dataset, "train", settings.train, study.model),
    }
    retraining = Retraining(precision=profile.probe.precision)

    def compute(work: Path) -> None:
        network = study.network()
        diagonals = {theta: measure.diagonals(study.measurement, theta) for theta in {*settings.thetas, fields.THETA}}

        def swept(
            prunings: list[masks.Pruning], epochs: Sequence[float], test: str, compensate: bool = False
        ) -> pd.DataFrame:
            possible = _possible(prunings, diagonals, study.model.config.encoders)
            table = sweep.sweep(
                network,
                study.model.normalise,
                possible,
                diagonals,
                images[test],
                device=study.device,
                held_out=images["held-out"],
                train=images["train"],
                epochs=epochs,
                settings=retraining,
                folder=work,
                compensate=compensate,
            )
            return table.assign(images=len(images[test]), trained_images=len(images["train"]))

        at, later = (fields.THETA,), tuple(amount for amount in settings.amounts(len(images["train"])) if amount > 0)
        pruned = [swept(sweep.plan(masks.TARGETS, masks.METHODS, at, settings.seeds), (0.0,), "test")]
        if later:
            pruned.append(swept(sweep.plan(settings.retrained, COMPARED, at, settings.seeds), later, "test"))
        curves = swept(sweep.plan(settings.curves, COMPARED, settings.thetas, settings.seeds[:1]), (0.0,), "curve")
        compensated = swept(sweep.plan(("linear1",), ("andc", "random"), at, settings.seeds), (0.0,), "test", True)
        tables = {"pruning": pd.concat(pruned, ignore_index=True), "curves": curves, COMPENSATED: compensated}
        stages.write_tables(tables, work)

    study.folders["andc"] = stages.stage(
        study.home,
        "andc",
        compute,
        room="andc",
        reads={
            "model": study.model.identity,
            "measurement": study.folders["measure"],
            **{split: part.fingerprint for split, part in images.items()},
        },
        settings={key: value for key, value in asdict(settings).items() if key not in TIMING}
        | {"retraining": asdict(retraining)},
        arithmetic=arithmetic(study.device, retraining.precision),
        device=study.device,
    )
    return study.folders["andc"]


def _possible(
    prunings: list[masks.Pruning], diagonals: Mapping[float, masks.Diagonals], encoders: int
) -> list[masks.Pruning]:
    """Those that leave every layer a weight; the others are named on standard error.

    Raises `UserError` when none are left.
    """
    refused: dict[tuple[str, float], str] = {}
    for target, theta in dict.fromkeys((pruning.target, pruning.theta) for pruning in prunings):
        try:
            masks.andc_masks(diagonals[theta], encoders, target)
        except UserError as error:
            refused[target, theta] = str(error)
            print(f"pruning of {target} at theta {theta:g} is left out: {error}", file=sys.stderr, flush=True)
    possible = [pruning for pruning in prunings if (pruning.target, pruning.theta) not in refused]
    if not possible:
        raise UserError(f"nothing can be pruned: {next(iter(refused.values()))}")
    return possible


def latency_stage(study: Study, settings: PruningSettings) -> Path:
    """The folder of the table latency: under ANDC's masks for all layers, at each threshold, on this machine."""

    def compute(work: Path) -> None:
        network = study.network()
        all_layers = [masks.Pruning("all", "andc", theta) for theta in settings.latency_thetas]
        diagonals = {theta: measure.diagonals(study.measurement, theta) for theta in settings.latency_thetas}
        timed = []
        possible = _possible(all_layers, diagonals, study.model.config.encoders)
        for pruning in tqdm(possible, desc="latency", unit="threshold"):
            with masked(network, masks.make_masks(pruning, network, diagonals[pruning.theta])):
                timed.append(latency.measure(network, BATCHES, settings.seconds).assign(theta=pruning.theta))
        stages.write_tables({"latency": pd.concat(timed, ignore_index=True)}, work)

    study.folders["latency"] = stages.stage(
        study.home,
        "latency",
        compute,
        room="andc",
        reads={"model": study.model.identity, "measurement": study.folders["measure"]},
        settings={
            "thetas": settings.latency_thetas,
            "seconds": settings.seconds,
            "machine": stages.device_name(study.device),
        },
        arithmetic=arithmetic(study.device),
        device=study.device,
    )
    return study.folders["latency"]


def saturated_stage(study: Study, settings: Saturation, runs: Path) -> Path:
    """The folder of the table saturated. Rows are kept in `runs`, for campaigns with other settings as well.

    Raises `UserError` under torchrun, and for a model whose recipe is not known.
    """
    refuse_torchrun("pruning")
    training = study.model.manifest.training
    if training is None:
        raise UserError(
            f"{study.model.folder} does not say how its network was trained, so it cannot be retrained alike"
        )
    counts = {"train": settings.train, "held-out": None, "test": settings.test}
    images = {split: load_images(study.dataset, split, count, study.model) for split, count in counts.items()}
    recipe = from_dict(training.recipe)
    diagonals = {theta: measure.diagonals(study.measurement, theta) for theta in settings.thetas}

    def compute(work: Path) -> None:
        campaign = saturate.Campaign(
            study.network(), study.model.normalise, images, recipe, runs / "retrained", study.device
        )
        prunings = sweep.plan(settings.targets, settings.methods, settings.thetas, settings.seeds)
        possible = _possible(prunings, diagonals, study.model.config.encoders)
        table = saturate.saturate(campaign, possible, diagonals, settings.lengths)
        stages.write_tables({SATURATED: table}, work)

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
