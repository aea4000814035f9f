"""The claims judged on a study: which of its tables go into which claim, and with which random numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Integer

from cctlib import bootstrap
from cctlib.andc.stage import pruning_tables
from cctlib.claims import specifications, verdicts
from cctlib.claims.rules import NOT_TESTED, Verdict, verdicts_table
from cctlib.heads.stage import Ownership, heads_tables, ownership
from cctlib.snp.controls import BASIS
from cctlib.snp.measure import SHUFFLED
from cctlib.study import Missing, Study


def _probes_and_resamples(
    study: Study, split: str
) -> tuple[dict[str, Integer[np.ndarray, "image"]], Float[torch.Tensor, "resample image"]]:
    """The probes' predictions of a split's images, by site, and bootstrap weights of the images."""
    predictions = {site: values.predictions[split] for site, values in study.measurement.sites.items()}
    labels = torch.from_numpy(study.measurement.labels[split]).long()
    return predictions, bootstrap.resample(labels, bootstrap.RESAMPLES, torch.Generator().manual_seed(0))


def along_encoders(study: Study) -> list[Verdict]:
    """C1, C2 and C3, with all three answers."""
    result, tables, controls = study.measurement, study.tables, study.tables["controls"]
    shuffled, rotated = (controls[controls.control == name] for name in (SHUFFLED, BASIS))
    predictions, weights = _probes_and_resamples(study, "test")
    stated = [
        verdicts.progress(predictions, result.labels["test"], weights),
        verdicts.small_clusters(tables["nodes"], shuffled, len(result.names)),
        verdicts.sharpening(tables["nodes"]),
    ]
    curves = readings(study)
    judged = [replace(verdict, robust=specifications.in_words(curves[verdict.claim])) for verdict in stated]
    return verdicts.with_basis(judged, tables["by_theta"], rotated)


def readings(study: Study) -> dict[str, pd.DataFrame]:
    """The specification curves of C1, C2 and C3, by claim (see `specifications`)."""
    result, nodes = study.measurement, study.tables["nodes"]
    both = {split: _probes_and_resamples(study, split) for split in result.labels}
    predictions = {split: of_split for split, (of_split, _) in both.items()}
    weights = {split: of_split for split, (_, of_split) in both.items()}
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
