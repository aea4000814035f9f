"""The claims judged on a study: which of its tables go into which claim, and with which random numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch

from cctlib import bootstrap
from cctlib.andc.stage import pruning_tables
from cctlib.claims import specifications, verdicts
from cctlib.claims.rules import NOT_TESTED, Verdict, verdicts_table
from cctlib.heads.stage import Ownership, heads_tables, ownership
from cctlib.snp.controls import BASIS
from cctlib.snp.measure import SHUFFLED
from cctlib.study import Missing, Study


def along_encoders(study: Study) -> list[Verdict]:
    """C1, C2 and C3, with all three answers; that about nodes is left open where no basis was rotated."""
    tables, curves = study.tables, readings(study)
    by_theta, controls = tables["by_theta"], tables["controls"]
    shuffled, rotated = (controls[controls.control == name] for name in (SHUFFLED, BASIS))
    stated = [
        verdicts.progress(curves["C1"], tables["accuracy"]),
        verdicts.small_clusters(tables["nodes"], shuffled, len(study.measurement.names)),
        verdicts.sharpening(curves["C3"], by_theta),
    ]
    progress, clusters, sharpening = (replace(v, robust=specifications.in_words(curves[v.claim])) for v in stated)
    if not rotated.empty:
        clusters = replace(clusters, nodes=verdicts.clusters_beyond_basis(by_theta, rotated))
        sharpening = replace(sharpening, nodes=verdicts.sharpening_beyond_basis(by_theta, rotated))
    return [progress, clusters, sharpening]


def readings(study: Study) -> dict[str, pd.DataFrame]:
    """The specification curves of C1, C2 and C3, by claim (see `specifications`)."""
    result, nodes = study.measurement, study.tables["nodes"]
    predictions = {
        split: {site: values.predictions[split] for site, values in result.sites.items()} for split in result.labels
    }
    weights = {
        split: bootstrap.resample(
            torch.from_numpy(labels).long(), bootstrap.RESAMPLES, torch.Generator().manual_seed(0)
        )
        for split, labels in result.labels.items()
    }
    return {
        "C1": specifications.progress(predictions, result.labels, weights),
        "C2": specifications.small_clusters(nodes, len(result.names)),
        "C3": specifications.sharpening(nodes, study.tables["by_theta"]),
    }


def pruning(study: Study) -> Verdict:
    """C4. Raises `Missing` where its tables neither ship nor can be made."""
    tables = pruning_tables(study)
    return verdicts.pruning(tables.get("saturated"), tables["pruning"])


def heads(study: Study, owned: Ownership | None = None) -> Verdict:
    """C5 on one network; `owned` where it was computed already. Raises `Missing` as `pruning`."""
    owned = ownership(study) if owned is None else owned
    gaps = heads_tables(study)["expert_sites"]
    robust = specifications.in_words(specifications.experts(owned.sites, gaps))
    nodes = verdicts.heads_beyond_basis(owned.sites)
    return replace(verdicts.experts([owned.sites], [gaps]), robust=robust, nodes=nodes)


def all_claims(study: Study) -> list[Verdict]:
    """C1 to C5 and C7; what was not measured is not tested, and says so."""
    judged = along_encoders(study)
    for claim, judge in (("C4", pruning), ("C5", heads)):
        try:
            judged.append(judge(study))
        except Missing:
            judged.append(Verdict(claim, NOT_TESTED, "not measured"))
    return [*judged, verdicts.shared_mechanism(None)]


def table(judged: Mapping[str, Sequence[Verdict]]) -> pd.DataFrame:
    """Verdicts by the name of their data set: `rules.verdicts_table` with a column dataset in front."""
    tables = {name: verdicts_table(verdicts) for name, verdicts in judged.items()}
    return pd.concat(tables, names=["dataset"]).reset_index(level="dataset").reset_index(drop=True)
