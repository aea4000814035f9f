"""Networks trained alike from other seeds: does what one shows come back in the others (Method, sections 6 and 8)?

A network of another seed ships small: its manifest, its log and, in place of weights and measurement, the tables named
in `TABLES`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch

from cctlib import stages
from cctlib.claims.rules import Verdict, verdicts_table
from cctlib.heads import ownership as heads
from cctlib.heads.stage import Ownership, heads_tables
from cctlib.model import manifest
from cctlib.model.manifest import Manifest
from cctlib.study import Study
from cctlib.training.recipes import from_dict

TABLES = ("accuracy", "by_theta", "expert_sites", "symmetry", "designation", "verdicts")
RECORD = f"seed.{stages.PROVENANCE}"  # where and from which commit a network of another seed was measured

Tables = dict[str, pd.DataFrame]


def tables(study: Study, owned: Ownership, judged: Sequence[Verdict] = ()) -> Tables:
    """What is compared from seed to seed, of one network, by the names in `TABLES`.

    accuracy, by_theta: see `snp.tables`. expert_sites: see `heads.experts`. symmetry: `Ownership.sites`. designation:
    site, label, head (`NOBODY`: no head owns the label). verdicts: those `judged` on this network alone,
    with a column commit, of the code that measured it.
    Raises `Missing` as `heads_tables`.
    """
    designated = [
        pd.DataFrame({"site": site, "label": range(len(owner)), "head": owner.cpu().numpy()})
        for site, owner in owned.designation.items()
    ]
    return {
        "accuracy": study.tables["accuracy"],
        "by_theta": study.tables["by_theta"],
        "expert_sites": heads_tables(study)["expert_sites"],
        "symmetry": owned.sites,
        "designation": pd.concat(designated, ignore_index=True),
        "verdicts": verdicts_table(judged).assign(commit=study.provenance["commit"]),
    }


def networks(study: Study, owned: Ownership, judged: Sequence[Verdict] = ()) -> dict[str, Tables]:
    """`tables` of a study's network, and of the `others`; by seed. Raises `Missing` as `tables`."""
    return {f"seed {study.model.manifest.seed}": tables(study, owned, judged)} | others(study)


def others(study: Study) -> dict[str, Tables]:
    """Tables of the networks that ship for a study's data set, trained as its own was but from other seeds; by seed."""
    own, found = study.model.manifest, {}
    for path in sorted((stages.shipped() / study.dataset).glob(f"*/{RECORD}")):
        other = manifest.open_model(path.parent).manifest
        if other.seed != own.seed and trained_alike(own, other):
            found[f"seed {other.seed}"] = stages.read_tables(path.parent, TABLES)
    return found


def trained_alike(first: Manifest, second: Manifest) -> bool:
    """Whether two networks had the same images and the same recipe, but for the seed."""
    if first.training is None or second.training is None or first.data is None or second.data is None:
        return False
    one, two = (replace(from_dict(training.recipe), seed=0) for training in (first.training, second.training))
    return one == two and first.data["train"] == second.data["train"]


def agreement(compared: Mapping[str, Tables]) -> pd.DataFrame:
    """`ownership.agreement` of all pairs of networks, at every site."""
    owners: dict[str, dict[str, torch.Tensor]] = {}
    for name, of_network in compared.items():
        for site, rows in of_network["designation"].groupby("site", sort=False):
            owners.setdefault(str(site), {})[name] = torch.tensor(rows.sort_values("label")["head"].to_numpy())
    return pd.concat([heads.agreement(site, by_name) for site, by_name in owners.items()], ignore_index=True)
