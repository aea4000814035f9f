"""Networks trained alike from other seeds: does what one shows come back in the others (Method, sections 6 and 8)?

A network of another seed ships small: its manifest, its log and, in place of weights and measurement, the tables named
in `TABLES`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from cctlib import stages
from cctlib.claims.rules import Verdict, verdicts_table
from cctlib.heads import ownership as heads
from cctlib.heads.stage import Ownership, heads_tables
from cctlib.model import manifest
from cctlib.model.manifest import Manifest
from cctlib.study import Study
from cctlib.training.recipes import Recipe, from_dict

TABLES = ("accuracy", "by_theta", "expert_sites", "symmetry", "designation", "verdicts")
RECORD = f"seed.{stages.PROVENANCE}"  # where and from which commit a network of another seed was measured

Tables = dict[str, pd.DataFrame]
Kind = tuple[Recipe, str, str | None]  # how a network was trained, on what, and by what before, where it was


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
    """`tables` of networks that differ in their seed alone, by seed: of the study's own and of those trained as it was;
    where none was, of the most that ship for its data set and have its architecture.

    Raises `Missing` as `tables`.
    """
    own, families = study.model.manifest, dict[Kind | None, dict[str, Path]]()
    for path in sorted((stages.shipped() / study.dataset).glob(f"*/{RECORD}")):
        other = manifest.open_model(path.parent).manifest
        if other.config == own.config:
            families.setdefault(trained_on(other), {})[f"seed {other.seed}"] = path.parent
    families.pop(None, None)
    mine, family = f"seed {own.seed}", families.pop(trained_on(own), {})
    most = max(families.values(), key=len, default={})
    if not family and len(most) > 1:
        return _shipped(most)
    family.pop(mine, None)
    return {mine: tables(study, owned, judged)} | _shipped(family)


def _shipped(folders: Mapping[str, Path]) -> dict[str, Tables]:
    return {seed: stages.read_tables(folder, TABLES) for seed, folder in folders.items()}


def trained_on(network: Manifest) -> Kind | None:
    """The recipe without its seed, the fingerprint of the images, and the recipe behind the weights that training began
    with (None: random ones): equal where networks were trained alike.

    None for a network of which this is not recorded.
    """
    if network.training is None or network.data is None:
        return None
    recipe, start = replace(from_dict(network.training.recipe), seed=0), network.training.start or {}
    return recipe, network.data["train"], start.get("recipe") or start.get("weights")


def agreement(compared: Mapping[str, Tables]) -> pd.DataFrame:
    """`ownership.agreement` of all pairs of networks, at every site."""
    owners: dict[str, dict[str, torch.Tensor]] = {}
    for name, of_network in compared.items():
        for site, rows in of_network["designation"].groupby("site", sort=False):
            owners.setdefault(str(site), {})[name] = torch.tensor(rows.sort_values("label")["head"].to_numpy())
    return pd.concat([heads.agreement(site, by_name) for site, by_name in owners.items()], ignore_index=True)
