"""The claims judged on a study: from its measurement and tables to verdicts, for its own pages and for the page of both data sets.

`claims.py` has the rules' arithmetic on plain tables; here stands which table of a study goes into which claim, and with which
random numbers.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from cctlib import bootstrap
from cctlib.andc.stage import pruning_tables
from cctlib.claims import verdicts as claims
from cctlib.claims.rules import Verdict, central, not_measured
from cctlib.heads.stage import Ownership, heads_tables, ownership
from cctlib.study import Missing, Study

BOTH = ("cifar100", "flowers102")  # the paper's data sets; Flowers-102 in its official split


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def along_encoders(study: Study) -> list[Verdict]:
    """C1, C2 and C3: progress, small clusters, sharpening."""
    result, tables = study.measurement, study.tables
    labels = torch.from_numpy(result.labels["test"]).long()
    weights = bootstrap.resample(labels, bootstrap.RESAMPLES, _generator())
    predictions = {site: values.predictions["test"] for site, values in result.sites.items()}
    nodes = central(tables["nodes"])
    return [
        claims.progress(predictions, result.labels["test"], weights),
        claims.small_clusters(nodes, tables["null"], len(result.names), _generator()),
        claims.sharpening(tables["by_theta"], nodes, _generator()),
    ]


def pruning(study: Study) -> Verdict:
    """C4. Raises `Missing` where its tables neither ship nor can be made."""
    return claims.pruning(pruning_tables(study)["pruning"])


def heads(study: Study, owned: Ownership | None = None) -> Verdict:
    """C5; `owned` where it is at hand already. Raises `Missing` as `pruning`."""
    tables = heads_tables(study)
    owned = ownership(study) if owned is None else owned
    return claims.experts(owned.sites, tables["expert_sites"], _generator())


def all_claims(study: Study) -> list[Verdict]:
    """C1 to C5; what was not measured is undetermined, and says so."""
    found = along_encoders(study)
    for claim, judged in (("C4", pruning), ("C5", heads)):
        try:
            found.append(judged(study))
        except Missing:
            found.append(not_measured(claim))
    return found


def table(judged: Mapping[str, Sequence[Verdict]]) -> pd.DataFrame:
    """Verdicts by the name of their data set: `claims.verdicts_table` with a column dataset in front."""
    tables = {name: claims.verdicts_table(verdicts) for name, verdicts in judged.items()}
    return pd.concat(tables, names=["dataset"]).reset_index(level="dataset").reset_index(drop=True)


def both_data_sets(studies: Mapping[str, Study], judged: Mapping[str, Sequence[Verdict]]) -> Verdict:
    """C6, from the verdicts on the paper's two data sets; undetermined where one of them was not measured."""
    return claims.both_data_sets({name: judged[name] for name, study in studies.items() if study.dataset in BOTH})
