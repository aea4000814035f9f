"""The claims judged on a study: which of its tables go into which claim, and with which random numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from cctlib.andc.stage import pruning_tables
from cctlib.claims import seeds, specifications, verdicts
from cctlib.claims.rules import NOT_TESTED, SUB_BLOCKS, Verdict, verdicts_table
from cctlib.heads.stage import Ownership, ownership
from cctlib.model.sites import FILTERS
from cctlib.snp.controls import BASIS
from cctlib.snp.measure import SHUFFLED
from cctlib.study import Missing, Study, convolutional


@dataclass(frozen=True)
class Depth:
    """What C1 to C3 are judged from: sites in the order of a network's depth, of a transformer or a convolutional one.

    tables: accuracy, nodes, by_theta and controls (see `snp.tables`). predictions: of the probes, by split and site;
    labels: by split, [image]. kinds: of site that the claims speak of.
    """

    tables: Mapping[str, pd.DataFrame]
    predictions: Mapping[str, Mapping[str, np.ndarray]]
    labels: Mapping[str, np.ndarray]
    num_labels: int
    kinds: tuple[str, ...] = SUB_BLOCKS


def encoders(study: Study) -> Depth:
    """The encoders of a study."""
    result = study.measurement
    predictions = {
        split: {site: values.predictions[split] for site, values in result.sites.items()} for split in result.labels
    }
    return Depth(study.tables, predictions, result.labels, len(result.names))


def layers(tables: Mapping[str, pd.DataFrame], kind: str = FILTERS) -> Depth:
    """The layers of a convolutional network, from the tables of `snp.maps`."""
    by_split = dict(list(tables["predictions"].groupby("split")))
    predictions = {
        split: {site: rows[site].to_numpy() for site in tables["accuracy"].site} for split, rows in by_split.items()
    }
    labels = {split: rows.label.to_numpy() for split, rows in by_split.items()}
    return Depth(tables, predictions, labels, int(tables["predictions"].label.max()) + 1, (kind,))


def along(depth: Depth) -> list[Verdict]:
    """C1, C2 and C3, with all three answers."""
    accuracy, nodes, by_theta, controls = (depth.tables[name] for name in ("accuracy", "nodes", "by_theta", "controls"))
    shuffled, rotated = (controls[controls.control == name] for name in (SHUFFLED, BASIS))
    readings = [
        specifications.progress(depth.predictions, depth.labels, depth.kinds),
        specifications.small_clusters(nodes, depth.num_labels, depth.kinds),
        specifications.sharpening(nodes, by_theta, depth.kinds),
    ]
    stated = [
        verdicts.progress(readings[0], accuracy, depth.kinds),
        verdicts.small_clusters(nodes, shuffled, depth.num_labels, depth.kinds),
        verdicts.sharpening(readings[2], by_theta, depth.kinds),
    ]
    about_nodes = [
        "no: a rotation of the nodes changes no probe's accuracy, so progress is a property of the site",
        verdicts.clusters_beyond_basis(by_theta, rotated, depth.kinds),
        verdicts.sharpening_beyond_basis(by_theta, rotated, depth.kinds),
    ]
    return [
        replace(verdict, robust=specifications.in_words(curve), nodes=answer)
        for verdict, curve, answer in zip(stated, readings, about_nodes, strict=True)
    ]


def shared_mechanism(study: Study) -> Verdict:
    """C7, from the layers of the convolutional network that ships for the study's data set, if there is one."""
    found = convolutional(study.dataset)
    return verdicts.shared_mechanism(None if found is None else along(layers(found.tables)))


def pruning(study: Study) -> Verdict:
    """C4. Raises `Missing` where its tables neither ship nor can be made."""
    tables = pruning_tables(study)
    return verdicts.pruning(tables.get("saturated"), tables["pruning"])


def heads(study: Study, owned: Ownership | None = None) -> Verdict:
    """C5, over all networks that differ in their seed alone; `owned` where it was computed already.

    How robust it is, and whether it is about nodes, is asked of the study's own network. Raises `Missing` as `pruning`.
    """
    owned = ownership(study) if owned is None else owned
    networks = seeds.networks(study, owned)
    symmetry, gaps = ([tables[name] for tables in networks.values()] for name in ("symmetry", "expert_sites"))
    robust = specifications.in_words(specifications.experts(owned.sites, gaps[0]))
    nodes = verdicts.heads_beyond_basis(owned.sites)
    return replace(verdicts.experts(symmetry, gaps, seeds.agreement(networks)), robust=robust, nodes=nodes)


def all_claims(study: Study, owned: Ownership | None = None) -> list[Verdict]:
    """C1 to C5 and C7; what was not measured is not tested, and says so. owned: as in `heads`."""
    judged = along(encoders(study))
    for claim, judge in (("C4", pruning), ("C5", partial(heads, owned=owned))):
        try:
            judged.append(judge(study))
        except Missing:
            judged.append(Verdict(claim, NOT_TESTED, "not measured"))
    return [*judged, shared_mechanism(study)]


def table(judged: Mapping[str, Sequence[Verdict]]) -> pd.DataFrame:
    """Verdicts by the name of their data set: `rules.verdicts_table` with a column dataset in front."""
    tables = {name: verdicts_table(verdicts) for name, verdicts in judged.items()}
    return pd.concat(tables, names=["dataset"]).reset_index(level="dataset").reset_index(drop=True)
