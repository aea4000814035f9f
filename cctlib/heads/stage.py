"""The stage of the heads: from a measured study to the tables of Method, section 6. Held-out images decide (designated
labels), test images judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from cctlib import bootstrap, stages
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.heads import experts, silence
from cctlib.heads import ownership as heads
from cctlib.model.sites import parse
from cctlib.profiles import HeadSettings, Profile
from cctlib.snp import controls, fields, measure
from cctlib.study import Study, load_images

HEADS = ("expert_heads", "expert_sites", "ablation_heads", "ablation_sites")


@dataclass(frozen=True)
class Ownership:
    """Which head owns which label at every `mha` site. Tables are described in `ownership.py`.

    counts [head, label], designation [label]: from held-out images, by site. sets, semantics, enrichment: of that
    designation; the last two are None where the labels have no groups. sites, overlap: of the counts on test images,
    against dealt nodes, sites also against the site rotated within and across heads. whole: whole-head performance,
    the columns of `fields.site_row` with heads in the place of nodes, one row a site.
    """

    counts: dict[str, Int64[Tensor, "head label"]]
    designation: dict[str, Int64[Tensor, "label"]]
    sets: pd.DataFrame
    sites: pd.DataFrame
    overlap: pd.DataFrame
    whole: pd.DataFrame
    semantics: pd.DataFrame | None
    enrichment: pd.DataFrame | None


def ownership(study: Study, deals: int = 1000, rotations: int = 20) -> Ownership:
    """Designations, their concentration and their meaning, from the measurement alone."""
    number = study.model.cct.heads
    generator = torch.Generator().manual_seed(0)
    held_out, test = (mha_diagonals(study, split) for split in ("held-out", "test"))
    counts = {site: heads.count(diagonal, number) for site, diagonal in held_out.items()}
    tested = {site: heads.count(diagonal, number) for site, diagonal in test.items()}
    null = heads.null_counts(test, number, generator, deals)
    arrays = {site: study.measurement[site].tensors() for site in test}
    members = controls.groups_of(study.model.cct.width, "mha", number)
    turns, dealing = (torch.Generator().manual_seed(0) for _ in range(2))  # of their own: other draws stay as they are
    turned = {
        name: {
            site: heads.excess(heads.rotated_diagonals(mu, W, members[control], rotations, turns), number, dealing)
            for site, (mu, W) in arrays.items()
        }
        for name, control in (("excess_within", controls.WITHIN), ("excess_across", controls.ACROSS))
    }
    groups, names = study.measurement.groups, study.measurement.group_names
    meaning = enriched = None
    if groups is not None and names is not None:
        dealt = heads.null_counts(held_out, number, generator, deals)
        meaning = heads.semantics(counts, dealt, groups, generator)
        enriched = heads.enrichment(counts, groups, names)
    whole = [fields.site_row(site, fields.measure_heads(mu, W, number)) for site, (mu, W) in arrays.items()]
    return Ownership(
        counts=counts,
        designation={site: heads.designate(of_site) for site, of_site in counts.items()},
        sets=heads.head_sets(counts),
        sites=heads.symmetry(tested, null, **turned),
        overlap=heads.overlap(tested, null),
        whole=pd.DataFrame(whole),
        semantics=meaning,
        enrichment=enriched,
    )


def mha_diagonals(study: Study, split: str) -> dict[str, Bool[Tensor, "node label"]]:
    """Diagonal sets of the nodes of every `mha` site, at theta 0.3."""
    sites = study.measurement.sites.items()
    return {site: fields.diagonals(*values.tensors(split)) for site, values in sites if site.endswith("/mha")}


def heads_tables(study: Study) -> dict[str, pd.DataFrame]:
    """Experts, alone and by what the network loses without them (see `experts.py`), by the names in `HEADS`.

    Raises `Missing` for a shipped study that came without them.
    """
    if study.profile is None:
        return study.shipped_tables(HEADS, "heads")
    return stages.read_tables(heads_stage(study, study.profile), HEADS)


def heads_stage(study: Study, profile: Profile) -> Path:
    """The folder of the tables named in `HEADS`."""
    settings = profile.heads
    test = load_images(study.dataset, "test", settings.test, study.model)

    def compute(work: Path) -> None:
        diagonals = mha_diagonals(study, "held-out")
        counts = {site: heads.count(diagonal, study.model.cct.heads) for site, diagonal in diagonals.items()}
        everywhere = {site: heads.designate(of_site) for site, of_site in counts.items()}
        designation = {site: owner for site, owner in everywhere.items() if (owner != heads.NOBODY).any()}
        if not designation:
            raise UserError("no label is designated to any head; train the probes for longer, or measure more images")
        tables = _experts_alone(study, diagonals, designation, settings.gap_deals)
        tables |= _ablation(study, test, designation, settings)
        stages.write_tables(tables, work)

    return study.later_stage("heads", "heads", compute, asdict(settings), {"test": test})


def _experts_alone(
    study: Study, diagonals: Mapping[str, Tensor], designation: Mapping[str, Tensor], deals: int
) -> dict[str, pd.DataFrame]:
    """Each head alone in the probe, from the pooled nodes of the test images that the measurement kept."""
    labels = torch.from_numpy(study.measurement.labels["test"]).long()
    weights = bootstrap.resample(labels)
    number = study.model.cct.heads
    generator = torch.Generator().manual_seed(0)
    rows = []
    with np.load(study.folders["measure"] / measure.POOLED) as kept:
        for site, of_site in designation.items():
            pooled = torch.from_numpy(kept[site]).to(study.device)
            W = study.measurement[site].tensors()[1].to(study.device)
            owner = heads.owners(pooled.shape[1], number).to(study.device)
            alone = experts.alone(pooled, W, owner, number)
            dealt = experts.dealt_gaps(pooled, W, diagonals[site], labels.to(study.device), number, generator, deals)
            rows.append(experts.expert_accuracy(site, alone.cpu(), labels, of_site, weights, dealt))
    return _joined(rows, "expert")


def _ablation(
    study: Study, test: Images, designation: Mapping[str, Tensor], settings: HeadSettings
) -> dict[str, pd.DataFrame]:
    """Each head silenced in the network, beside as many random nodes; at all sites where none asked for has experts."""
    width, number = study.model.cct.width, study.model.cct.heads
    asked = [site for site in designation if settings.encoders is None or parse(site)[0] in settings.encoders]
    generator = torch.Generator().manual_seed(0)
    sets = {
        site: silence.head_and_random_sets(width, number, settings.draws, generator) for site in asked or designation
    }
    whole, silenced = silence.predict(study.network(), study.model.normalise, test, sets, device=study.device)
    labels = test.labels.long()
    weights = bootstrap.resample(labels)
    rows = [
        experts.ablation(site, whole, of_site[:number], of_site[number:], labels, designation[site], weights)
        for site, of_site in silenced.items()
    ]
    return _joined(rows, "ablation")


def _joined(rows: Sequence[tuple[pd.DataFrame, pd.DataFrame]], name: str) -> dict[str, pd.DataFrame]:
    parts = zip(("heads", "sites"), zip(*rows, strict=True), strict=True)
    return {f"{name}_{part}": pd.concat(of_part, ignore_index=True) for part, of_part in parts}
