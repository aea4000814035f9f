"""The two findings made with SNP, as stages of a study: heads that become experts, and pruning (Method, sections 6 and 7).

    ownership        which head owns which label, against dealt nodes: from the measurement alone
    heads_tables     is a head better at its own labels, alone and when it is silenced: needs the probes and images
    pruning_tables   ANDC beside other masks, with and without retraining, and its speed: needs weights and images

Where the images are missing, the tables that ship with the model are read; where none ship, `Missing` says what to do.
Held-out images decide (designated labels, masks), test images judge.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from tqdm.auto import tqdm

from cctlib import bootstrap
from cctlib import stages as artifacts
from cctlib.andc import latency, masks, sweep
from cctlib.andc.retrain import Retraining, masked
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.heads import experts, silence
from cctlib.heads import ownership as heads
from cctlib.model.sites import parse
from cctlib.profiles import HeadSettings, Profile, PruningSettings
from cctlib.snp import fields, measure, tables
from cctlib.study import Study, load_images

HEADS = ("expert_heads", "expert_sites", "ablation_heads", "ablation_sites")
PRUNING = ("pruning", "curves", "latency")
BATCHES = (1, 128)  # images at a time, for latency
COMPARED = ("andc", "random", "magnitude", "wanda")  # retrained, and drawn along the thresholds


class Missing(UserError):
    """Tables that do not ship and cannot be made here."""


# Heads ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ownership:
    """Which head owns which label at every `mha` site. Tables are described in `heads.py`.

    counts [head, label], designation [label]: from held-out images, by site. sets, semantics, enrichment: of that designation; the
    last two are None where the labels have no groups. labels, sites, overlap: of the counts on test images, against dealt nodes.
    whole: whole-head performance, the columns of `tables.site_row` with heads in the place of nodes, one row a site.
    """

    counts: dict[str, Int64[Tensor, "head label"]]
    designation: dict[str, Int64[Tensor, "label"]]
    sets: pd.DataFrame
    labels: pd.DataFrame
    sites: pd.DataFrame
    overlap: pd.DataFrame
    whole: pd.DataFrame
    semantics: pd.DataFrame | None
    enrichment: pd.DataFrame | None


def ownership(study: Study, deals: int = 1000) -> Ownership:
    """Designations, their concentration and their meaning, from the measurement alone."""
    number = study.model.config.heads
    generator = torch.Generator().manual_seed(0)
    held_out, test = (mha_diagonals(study, split) for split in ("held-out", "test"))
    counts = {site: heads.count(diagonal, number) for site, diagonal in held_out.items()}
    tested = {site: heads.count(diagonal, number) for site, diagonal in test.items()}
    null = heads.null_counts(test, number, generator, deals)
    labels, sites = heads.symmetry(tested, null)
    groups, names = study.measurement.groups, study.measurement.group_names
    meaning = enriched = None
    if groups is not None and names is not None:
        dealt = heads.null_counts(held_out, number, generator, deals)
        meaning = heads.semantics(counts, dealt, groups, generator)
        enriched = heads.enrichment(counts, groups, names)
    whole = [tables.site_row(site, fields.measure_heads(*study.measurement[site].tensors(), number)) for site in counts]
    return Ownership(
        counts=counts,
        designation={site: heads.designate(of_site) for site, of_site in counts.items()},
        sets=heads.head_sets(counts),
        labels=labels,
        sites=sites,
        overlap=heads.overlap(tested, null),
        whole=pd.DataFrame(whole),
        semantics=meaning,
        enrichment=enriched,
    )


def mha_diagonals(study: Study, split: str) -> dict[str, Bool[Tensor, "node label"]]:
    """Diagonal sets of the nodes of every `mha` site, at theta 0.3."""
    own = {site: values for site, values in study.measurement.sites.items() if parse(site)[1] == "mha"}
    return masks.diagonals(replace(study.measurement, sites=own), fields.THETA, split)


def heads_tables(study: Study) -> dict[str, pd.DataFrame]:
    """Experts, alone and by what the network loses without them (see `experts.py`), by the names in `HEADS`.

    Raises `Missing` for a shipped study that came without them.
    """
    if study.profile is None:
        return _shipped(study, HEADS, "heads")
    return artifacts.read_tables(heads_stage(study, study.profile), HEADS)


def heads_stage(study: Study, profile: Profile) -> Path:
    """The folder of the tables named in `HEADS`."""
    settings = profile.heads
    test = load_images(study.dataset, "test", settings.test, study.model)
    inputs = {
        "measurement": artifacts.sha256_file(study.folders["measure"] / measure.FILE),
        "pooled": artifacts.sha256_file(study.folders["measure"] / measure.POOLED),
        "weights": study.model.weights_hash,
        "data": test.fingerprint,
        "settings": asdict(settings),
        "code": artifacts.CODE,
    }

    def compute(work: Path) -> None:
        diagonals = mha_diagonals(study, "held-out")
        designation = {
            site: heads.designate(heads.count(diagonal, study.model.config.heads))
            for site, diagonal in diagonals.items()
        }
        alone = _experts_alone(study, diagonals, designation, settings.gap_deals)
        artifacts.write_tables(alone | _ablation(study, test, designation, settings), work)

    return artifacts.stage(_home(study), "heads", inputs, compute, device=study.device)


def _experts_alone(
    study: Study, diagonals: Mapping[str, Tensor], designation: Mapping[str, Tensor], deals: int
) -> dict[str, pd.DataFrame]:
    """Each head alone in the probe, from the pooled nodes of the test images that the measurement kept."""
    labels = torch.from_numpy(study.measurement.labels["test"]).long()
    weights = bootstrap.resample(labels, bootstrap.RESAMPLES, torch.Generator().manual_seed(0))
    number = study.model.config.heads
    generator = torch.Generator().manual_seed(0)
    rows = []
    with np.load(study.folders["measure"] / measure.POOLED) as kept:
        for site, of_site in designation.items():
            if (of_site == heads.NOBODY).all():
                continue
            pooled = torch.from_numpy(kept[site]).to(study.device)
            W = torch.from_numpy(study.measurement[site].W).to(study.device)
            owner = heads.owners(pooled.shape[1], number).to(study.device)
            alone = experts.alone(pooled, W, owner, number)
            dealt = experts.dealt_gaps(pooled, W, diagonals[site], labels.to(study.device), number, generator, deals)
            rows.append(experts.expert_accuracy(site, alone.cpu(), labels, of_site, weights, dealt))
    return _joined(rows, "expert")


def _ablation(
    study: Study, test: Images, designation: Mapping[str, Tensor], settings: HeadSettings
) -> dict[str, pd.DataFrame]:
    """Each head silenced in the network, beside as many random nodes."""
    config = study.model.config
    chosen = [
        site
        for site, of_site in designation.items()
        if (settings.encoders is None or parse(site)[0] in settings.encoders) and not (of_site == heads.NOBODY).all()
    ]
    generator = torch.Generator().manual_seed(0)
    sets = {
        site: silence.head_and_random_sets(config.width, config.heads, settings.draws, generator) for site in chosen
    }
    whole, silenced = silence.predict(study.network(), study.model.normalise, test, sets, device=study.device)
    labels = test.labels.long()
    weights = bootstrap.resample(labels, bootstrap.RESAMPLES, torch.Generator().manual_seed(0))
    rows = [
        experts.ablation(
            site,
            whole,
            silenced[site][: config.heads],
            silenced[site][config.heads :],
            labels,
            designation[site],
            weights,
        )
        for site in chosen
    ]
    return _joined(rows, "ablation")


def _joined(rows: Sequence[tuple[pd.DataFrame, pd.DataFrame]], name: str) -> dict[str, pd.DataFrame]:
    if not rows:
        raise UserError("no label is designated to any head; train the probes for longer, or measure more images")
    parts = zip(("heads", "sites"), zip(*rows, strict=True), strict=True)
    return {f"{name}_{part}": pd.concat(of_part, ignore_index=True) for part, of_part in parts}


# Pruning --------------------------------------------------------------------------------------------------


def pruning_tables(study: Study) -> dict[str, pd.DataFrame]:
    """Pruned networks, by the names in `PRUNING`.

    pruning: `sweep.Sweep.table` at theta 0.3, all methods, retrained as the profile says, with the columns images (that judge),
    trained_images (in a whole pass of retraining), dense_parameters, dense_macs, dense_bytes. curves: the same along the thresholds,
    without retraining. latency: `latency.measure` of ANDC's masks for all layers, with theta.
    Raises `Missing` for a shipped study that came without them.
    """
    if study.profile is None:
        return _shipped(study, PRUNING, "andc")
    swept, timed = sweep_stage(study, study.profile), latency_stage(study, study.profile.pruning)
    return artifacts.read_tables(swept, PRUNING[:2]) | artifacts.read_tables(timed, PRUNING[2:])


def sweep_stage(study: Study, profile: Profile) -> Path:
    """The folder of the tables pruning and curves."""
    settings = profile.pruning
    images = {
        "held-out": load_images(study.dataset, "held-out", profile.held_out, study.model),
        "test": load_images(study.dataset, "test", settings.test, study.model),
        "curve": load_images(study.dataset, "test", settings.curve_test, study.model),
        "train": load_images(study.dataset, "train", settings.train, study.model),
    }
    retraining = Retraining(precision=profile.probe.precision)
    inputs = {
        "measurement": artifacts.sha256_file(study.folders["measure"] / measure.FILE),
        "weights": study.model.weights_hash,
        "data": {split: part.fingerprint for split, part in images.items()},
        "settings": asdict(settings) | {"retraining": asdict(retraining)},
        "code": artifacts.CODE,
    }

    def compute(work: Path) -> None:
        network = study.network()
        diagonals = {theta: masks.diagonals(study.measurement, theta) for theta in {*settings.thetas, fields.THETA}}

        def swept(prunings: list[masks.Pruning], epochs: Sequence[float], test: str) -> pd.DataFrame:
            possible = _possible(prunings, diagonals, study.model.config.encoders)
            found = sweep.sweep(
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
            )
            dense = {"parameters": found.cost.parameters, "macs": found.cost.macs, "bytes": found.bytes}
            about = {f"dense_{name}": value for name, value in dense.items()}
            return found.table.assign(images=len(images[test]), trained_images=len(images["train"]), **about)

        at, later = (fields.THETA,), tuple(amount for amount in settings.amounts(len(images["train"])) if amount > 0)
        pruned = [swept(sweep.plan(masks.TARGETS, masks.METHODS, at, settings.seeds), (0.0,), "test")]
        if later:
            pruned.append(swept(sweep.plan(settings.retrained, COMPARED, at, settings.seeds), later, "test"))
        curves = swept(sweep.plan(settings.curves, COMPARED, settings.thetas, settings.seeds[:1]), (0.0,), "curve")
        artifacts.write_tables({"pruning": pd.concat(pruned, ignore_index=True), "curves": curves}, work)

    return artifacts.stage(_home(study), "andc", inputs, compute, device=study.device)


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
    inputs = {
        "measurement": artifacts.sha256_file(study.folders["measure"] / measure.FILE),
        "weights": study.model.weights_hash,
        "thetas": settings.latency_thetas,
        "seconds": settings.seconds,
        "machine": artifacts.device_name(study.device),
        "code": artifacts.CODE,
    }

    def compute(work: Path) -> None:
        network = study.network()
        all_layers = [masks.Pruning("all", "andc", theta) for theta in settings.latency_thetas]
        diagonals = {theta: masks.diagonals(study.measurement, theta) for theta in settings.latency_thetas}
        timed = []
        possible = _possible(all_layers, diagonals, study.model.config.encoders)
        for pruning in tqdm(possible, desc="latency", unit="threshold"):
            with masked(network, masks.make_masks(pruning, network, diagonals[pruning.theta])):
                timed.append(latency.measure(network, BATCHES, settings.seconds).assign(theta=pruning.theta))
        artifacts.write_tables({"latency": pd.concat(timed, ignore_index=True)}, work)

    return artifacts.stage(_home(study), "latency", inputs, compute, device=study.device)


# Folders --------------------------------------------------------------------------------------------------


def stages(study: Study) -> dict[str, Path]:
    """Folders of the stages of both findings, computed where they are not there yet; none for a shipped study."""
    if study.profile is None:
        return {}
    return {
        "heads": heads_stage(study, study.profile),
        "andc": sweep_stage(study, study.profile),
        "latency": latency_stage(study, study.profile.pruning),
    }


def _home(study: Study) -> Path:
    assert study.home is not None  # as every study that has a profile
    return study.home


def _shipped(study: Study, names: Sequence[str], command: str) -> dict[str, pd.DataFrame]:
    try:
        return artifacts.read_tables(study.model.folder, names)
    except UserError:
        raise Missing(
            f"{', '.join(names)} did not ship with {study.model.name} of {study.dataset}, and need its images; where they "
            f"are, run: cctlib {command} --dataset {study.dataset} --profile quick"
        ) from None
