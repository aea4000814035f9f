"""The claims judged on a study: which of its tables go into which claim, and with which random numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from cctlib.andc.stage import pruning_tables
from cctlib.claims import seeds, specifications, verdicts
from cctlib.claims.rules import NOT_TESTED, SUB_BLOCKS, Verdict, verdicts_table
from cctlib.heads.stage import Ownership, heads_tables, ownership
from cctlib.model.sites import FILTERS
from cctlib.snp.controls import BASIS
from cctlib.snp.measure import SHUFFLED
from cctlib.study import Missing, Study, convolutional


def encoders(study: Study) -> dict[str, pd.DataFrame]:
    """What C1 to C3 are judged from: the tables of a study, and the predictions of its probes.

    predictions: split, label, and a column for each site; one row an image. So `snp.maps` has them for layers.
    """
    result = study.measurement
    by_split = []
    for split, labels in result.labels.items():
        of_sites = {site: values.predictions[split] for site, values in result.sites.items()}
        by_split.append(pd.DataFrame({"split": split, "label": labels, **of_sites}))
    return {**study.tables, "predictions": pd.concat(by_split)}


def along(tables: Mapping[str, pd.DataFrame], kinds: Sequence[str] = SUB_BLOCKS) -> list[Verdict]:
    """C1, C2 and C3, with all three answers.

    tables: accuracy, nodes, by_theta, controls (see `snp.tables`) and predictions, of the `encoders` of a transformer
    or of the layers of a convolutional network. kinds: of site that the claims speak of.
    """
    nodes, by_theta, controls = tables["nodes"], tables["by_theta"], tables["controls"]
    num_labels = int(tables["predictions"].label.max()) + 1
    shuffled, rotated = (controls[controls.control == name] for name in (SHUFFLED, BASIS))
    readings = [
        specifications.progress(tables["predictions"], kinds),
        specifications.small_clusters(nodes, num_labels, kinds),
        specifications.sharpening(nodes, by_theta, kinds),
    ]
    stated = [
        verdicts.progress(readings[0], tables["accuracy"], kinds),
        verdicts.small_clusters(nodes, shuffled, num_labels, kinds),
        verdicts.sharpening(readings[2], by_theta, kinds),
    ]
    about_nodes = [
        "no: a rotation of the nodes changes no probe's accuracy, so progress is a property of the site",
        verdicts.clusters_beyond_basis(by_theta, rotated, kinds),
        verdicts.sharpening_beyond_basis(by_theta, rotated, kinds),
    ]
    return [
        replace(verdict, robust=specifications.in_words(curve), nodes=answer)
        for verdict, curve, answer in zip(stated, readings, about_nodes, strict=True)
    ]


def shared_mechanism(study: Study) -> Verdict:
    """C7, from the layers of the convolutional network that ships for the study's data set, if there is one."""
    found = convolutional(study.dataset)
    return verdicts.shared_mechanism(None if found is None else along(found.tables, [FILTERS]))


def pruning(study: Study) -> Verdict:
    """C4. Raises `Missing` where its tables neither ship nor can be made."""
    tables = pruning_tables(study)
    return verdicts.pruning(tables.get("saturated"), tables["pruning"])


def heads(study: Study, owned: Ownership | None = None) -> Verdict:
    """C5, with `seeds.networks` for the part over networks; `owned` where it was computed already.

    How robust it is, and whether it is about nodes, is asked of the study's own network. Raises `Missing` as `pruning`.
    """
    owned = ownership(study) if owned is None else owned
    own, networks = (owned.sites, heads_tables(study)["expert_sites"]), seeds.networks(seeds.families(study, owned))
    pairs = [(tables["symmetry"], tables["expert_sites"]) for tables in networks.values()]
    robust = specifications.in_words(specifications.experts(*own))
    nodes = verdicts.heads_beyond_basis(owned.sites)
    return replace(verdicts.experts(own, pairs, seeds.agreement(networks)), robust=robust, nodes=nodes)


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
