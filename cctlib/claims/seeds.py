"""Networks trained alike from other seeds, and networks trained otherwise: does what one shows come back in the others
(Method, sections 6 and 8)?

A network of another seed ships small: its manifest, its log and, in place of weights and measurement, the tables named
in `TABLES`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch

from cctlib import stages
from cctlib.claims.rules import Verdict, verdicts_table
from cctlib.heads import ownership as heads
from cctlib.heads.stage import Ownership, heads_tables
from cctlib.model import manifest
from cctlib.model.manifest import Manifest, Model
from cctlib.study import Study
from cctlib.training.recipes import Recipe, from_dict

TABLES = ("accuracy", "by_theta", "controls", "expert_sites", "symmetry", "designation", "verdicts")
RECORD = f"seed.{stages.PROVENANCE}"  # where and from which commit a network of another seed was measured

Tables = dict[str, pd.DataFrame]
Kind = tuple[Recipe, str, str | None]  # how a network was trained, on what, and by what before, where it was


@dataclass(frozen=True)
class Family:
    """Networks that were trained alike. name: of the recipe; networks, manifests: `tables` and manifest, by seed."""

    name: str
    networks: dict[str, Tables]
    manifests: dict[str, Manifest]


def tables(study: Study, owned: Ownership, judged: Sequence[Verdict] = ()) -> Tables:
    """What is compared from seed to seed, of one network, by the names in `TABLES`.

    accuracy, by_theta, controls: see `snp.tables`; the networks that shipped first have no controls.
    expert_sites: see `heads.experts`. symmetry: `Ownership.sites`. designation: site, label, head (`NOBODY`: no head
    owns the label). verdicts: those `judged` on this network alone, with a column commit, of the code that measured it.
    Raises `Missing` as `heads_tables`.
    """
    designated = [
        pd.DataFrame({"site": site, "label": range(len(owner)), "head": owner.cpu().numpy()})
        for site, owner in owned.designation.items()
    ]
    return {
        "accuracy": study.tables["accuracy"],
        "by_theta": study.tables["by_theta"],
        "controls": study.tables["controls"],
        "expert_sites": heads_tables(study)["expert_sites"],
        "symmetry": owned.sites,
        "designation": pd.concat(designated, ignore_index=True),
        "verdicts": verdicts_table(judged).assign(commit=study.provenance["commit"]),
    }


def families(study: Study, owned: Ownership, judged: Sequence[Verdict] = ()) -> list[Family]:
    """The study's own network and those of its architecture that ship for its data set, those trained alike together.

    The family of the study's own network comes first, then the larger ones. Raises `Missing` as `tables`.
    """
    own, shipped = study.model.manifest, dict[Kind | None, dict[str, Model]]()
    for path in sorted((stages.shipped() / study.dataset).glob(f"*/{RECORD}")):
        other = manifest.open_model(path.parent)
        if other.config == own.config:
            shipped.setdefault(trained_on(other.manifest), {})[f"seed {other.manifest.seed}"] = other
    shipped.pop(None, None)
    kind, mine = trained_on(own), f"seed {own.seed}"
    alike = {seed: model for seed, model in shipped.pop(kind, {}).items() if seed != mine}
    rest = _family(kind[0].name if kind else own.name, alike)
    first = replace(
        rest, networks={mine: tables(study, owned, judged)} | rest.networks, manifests={mine: own} | rest.manifests
    )
    others = [_family(kind[0].name, models) for kind, models in shipped.items() if kind is not None]
    return [first, *sorted(others, key=lambda family: -len(family.networks))]


def networks(found: Sequence[Family]) -> dict[str, Tables]:
    """Of the `families` of a study, the networks to compare from seed to seed: its own and those trained as it was;
    where none was, those of the largest other family.
    """
    own, *others = (family.networks for family in found)
    most = max(others, key=len, default={})
    return most if len(own) == 1 and len(most) > 1 else own


def _family(name: str, shipped: Mapping[str, Model]) -> Family:
    networks = {}
    for seed, model in shipped.items():
        there = [table for table in TABLES if (model.folder / f"{table}.parquet").is_file()]
        networks[seed] = stages.read_tables(model.folder, there)
    return Family(name, networks, {seed: model.manifest for seed, model in shipped.items()})


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
