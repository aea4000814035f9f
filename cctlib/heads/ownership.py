"""Heads: which head owns which label, and whether that could be chance (Method, section 6).

Everything starts from the diagonal sets of the nodes of an `mha` site, as a Boolean array [node, label]: entry (n, i)
says that label i is on the diagonal of node n's Boolean matrix. Counting is all there is:

    diagonal [node, label] -> counts d_h(i) [head, label] -> designation [label], concentration [label]

There are two kinds of control. The null hypothesis is that the nodes don't care about heads: the same nodes, *dealt*
at random into groups of the same size. And the site is *rotated* (`snp.controls`): what survives within heads alone
belongs to the heads' subspaces and not to their nodes.

Whether a head is any good at its labels is asked in `experts.py`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import one_hot

from cctlib.errors import UserError
from cctlib.model.sites import parse
from cctlib.snp import controls, fields

Counts = Mapping[str, Int64[Tensor, "head label"]]  # d_h(i), by site
Dealt = Mapping[str, Int64[Tensor, "deal head label"]]  # the same of dealt nodes
NOBODY = -1  # the designation of a label that no node has, or that several heads share
SAME = 1e-9  # two means of the same counts may differ by rounding; the null must not lose a tie to that


def owners(nodes: int, heads: int) -> Int64[Tensor, "node"]:
    """The head of each node: head h owns nodes h*N/H .. (h+1)*N/H - 1. `UserError` when N is no multiple of H."""
    if heads < 1 or nodes % heads:
        raise UserError(f"{nodes} nodes cannot be shared equally by {heads} heads; give the network's number of heads")
    return torch.arange(heads).repeat_interleave(nodes // heads)


def count(diagonal: Bool[Tensor, "node label"], heads: int) -> Int64[Tensor, "head label"]:
    """d_h(i): the number of head h's nodes that have label i on their diagonal."""
    owners(len(diagonal), heads)  # refuses a number of heads that does not divide
    return diagonal.unflatten(0, (heads, -1)).sum(dim=1)


def designate(counts: Int64[Tensor, "*deal head label"]) -> Int64[Tensor, "*deal label"]:
    """The head with the largest d_h(i), for each label.

    A label that no node has, and a label whose largest count several heads share, go to NOBODY: giving ties
    to the first head would make its set larger than the others', and would make models agree about labels
    that none of them has decided.
    """
    most = counts.amax(dim=-2)
    decided = ((counts == most.unsqueeze(-2)).sum(dim=-2) == 1) & (most > 0)
    return torch.where(decided, counts.argmax(dim=-2), NOBODY)


def own_labels(designation: Int64[Tensor, "*deal label"], heads: int) -> Int64[Tensor, "*deal label head"]:
    """1 where a label (or an image of it) is designated to a head, else 0; of NOBODY all are 0."""
    return one_hot(designation + 1, heads + 1)[..., 1:]


def concentration(counts: Int64[Tensor, "*deal head label"]) -> Float[Tensor, "*deal label"]:
    """c_i = max_h d_h(i) / sum_h d_h(i), from 1/H (evenly spread) to 1 (one head only); NaN where no node has label i.

    Misleading alone: a label on few diagonals is concentrated by chance (one node gives 1). Compare with dealt nodes.
    """
    return counts.amax(dim=-2) / counts.sum(dim=-2, dtype=torch.float64)


def deal(nodes: int, heads: int, deals: int, generator: torch.Generator) -> Int64[Tensor, "deal node"]:
    """Heads of the nodes, dealt at random into groups of N/H; one row a deal, on the generator's device."""
    order = torch.rand(deals, nodes, generator=generator, device=generator.device).argsort(dim=1)
    return owners(nodes, heads).to(order.device)[order]


def count_dealt(
    diagonal: Bool[Tensor, "node label"], dealt: Int64[Tensor, "deal node"], heads: int
) -> Int64[Tensor, "deal head label"]:
    """d_h(i) for heads that own the nodes as dealt."""
    return (one_hot(dealt.to(diagonal.device), heads).float().mT @ diagonal.float()).long()


def null_counts(
    diagonals: Mapping[str, Bool[Tensor, "node label"]], heads: int, generator: torch.Generator, deals: int = 1000
) -> dict[str, Int64[Tensor, "deal head label"]]:
    """Counts of the null for each site: its nodes dealt `deals` times."""
    return {
        site: count_dealt(diagonal, deal(len(diagonal), heads, deals, generator), heads)
        for site, diagonal in diagonals.items()
    }


def p_value(
    observed: Tensor, null: Float[Tensor, "deal *value"] | Int64[Tensor, "deal *value"]
) -> Float[Tensor, "*value"]:
    """Share of the null that is at least as large as what was observed, the observation itself counted in: never 0.

    Where either is not a number there is no evidence, and it counts as reached.
    """
    return (1 + (~(null < observed - SAME)).sum(dim=0)).double() / (1 + len(null))


def rotated_diagonals(
    mu: fields.Nodes, W: fields.Nodes, groups: Int64[Tensor, "group member"], draws: int, generator: torch.Generator
) -> Iterator[Bool[Tensor, "node label"]]:
    """The diagonal sets of a site whose nodes are rotated within `groups` of them (`snp.controls`), so many times."""
    for _ in range(draws):
        yield fields.diagonals(*controls.rotated(mu, W, groups, generator))


def excess(
    diagonals: Iterable[Bool[Tensor, "node label"]], heads: int, generator: torch.Generator, deals: int = 20
) -> Float[Tensor, "draw"]:
    """How much more concentrated the labels of each draw are than when its nodes are dealt, the mean over the labels.

    Each basis has a null of its own, for the fewer labels a node has, the more concentrated they are by chance.
    """
    shares = []
    for diagonal in diagonals:
        dealt = count_dealt(diagonal, deal(len(diagonal), heads, deals, generator), heads)
        shares.append(concentration(count(diagonal, heads)).nanmean() - concentration(dealt).nanmean())
    return torch.stack(shares)


def symmetry(counts: Counts, null: Dealt, **rotated: Mapping[str, Float[Tensor, "draw"]]) -> pd.DataFrame:
    """Is the symmetry between heads broken? One row a site.

    site, encoder, heads, labels (on some diagonal), undesignated (labels that go to NOBODY), concentration (mean over
    labels), dealt_mean and dealt_95 (of that mean in the null), excess (concentration - dealt_mean), broken (share of
    labels whose concentration exceeds the null's 95th percentile), broken_dealt (the same share in the null, at most
    0.05), deals, p, p_holm (Holm over the sites given).
    For each kind of rotation, as `excess_within={site: excess(...)}`: excess_within_mean, _low and _high (over the
    draws) and _draws.
    A site none of whose nodes has a label has NaN and no evidence, p = 1.
    """
    rows = {}
    for site, of_site in counts.items():
        value, dealt = concentration(of_site), concentration(null[site])
        limit, some = dealt.quantile(0.95, dim=0), of_site.sum(dim=0) > 0
        means = dealt.nanmean(dim=1)
        row = {
            "heads": len(of_site),
            "labels": some.sum(),
            "undesignated": (designate(of_site) == NOBODY).sum(),
            "concentration": value.nanmean(),
            "dealt_mean": means.mean(),
            "dealt_95": means.quantile(0.95),
            "excess": value.nanmean() - means.mean(),
            "broken": (value > limit)[some].double().mean(),
            "broken_dealt": (dealt > limit)[:, some].double().mean(),
            "deals": len(dealt),
            "p": p_value(value.nanmean(), means),
        }
        for name, of_kind in rotated.items():
            turned = of_kind[site]
            numbers = {"mean": turned.mean(), "low": turned.min(), "high": turned.max(), "draws": len(turned)}
            row |= {f"{name}_{key}": number for key, number in numbers.items()}
        rows[site] = row
    return with_holm(_table(rows), "p")


def with_holm(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table with a column of p-values corrected after Holm, over its rows, behind that of `name`."""
    ordered = table[name].sort_values()
    corrected = (ordered * np.arange(len(table), 0, -1)).cummax().clip(upper=1)
    table.insert(list(table).index(name) + 1, f"{name}_holm", corrected)
    return table


def head_sets(counts: Counts) -> pd.DataFrame:
    """How many labels are designated to each head: site, encoder, head, designated."""
    numbers = {site: own_labels(designate(of_site), len(of_site)).sum(dim=0) for site, of_site in counts.items()}
    return _table({site: {"head": range(len(own)), "designated": own} for site, own in numbers.items()})


def overlap(counts: Counts, null: Dealt) -> pd.DataFrame:
    """How much two heads have in common; one row a pair of heads of a site.

    site, encoder, head_a, head_b, shared (labels that both have on some diagonal), jaccard (shared over
    labels that either has), weighted (sum_i min(d_a, d_b) / sum_i max(d_a, d_b), which tells many nodes from
    one), weighted_dealt (its mean in the null), p (share of the null with as little in common, or less).
    Designated sets are disjoint and so have no overlap to report.
    """
    columns = {}
    for site, of_site in counts.items():
        first, second = torch.triu_indices(len(of_site), len(of_site), offset=1, device=of_site.device)
        shared = ((of_site[first] > 0) & (of_site[second] > 0)).sum(dim=1)
        either = ((of_site[first] > 0) | (of_site[second] > 0)).sum(dim=1)
        weighted = _weighted_jaccard(of_site, first, second)
        dealt = _weighted_jaccard(null[site], first, second)
        columns[site] = {
            "head_a": first,
            "head_b": second,
            "shared": shared,
            "jaccard": shared / either,
            "weighted": weighted,
            "weighted_dealt": dealt.nanmean(dim=0),
            "p": p_value(-weighted, -dealt),
        }
    return _table(columns)


def _weighted_jaccard(
    counts: Int64[Tensor, "*deal head label"], first: Tensor, second: Tensor
) -> Float[Tensor, "*deal pair"]:
    a, b = counts.index_select(-2, first), counts.index_select(-2, second)
    return torch.minimum(a, b).sum(dim=-1) / torch.maximum(a, b).sum(dim=-1, dtype=torch.float64)


def agreement(site: str, designations: Mapping[str, Int64[Tensor, "label"]]) -> pd.DataFrame:
    """Do models (by name) divide the labels among heads in the same way? One row a pair of models.

    site, encoder, model_a, model_b, labels (designated in both), rand: the adjusted Rand index of the two
    divisions over these labels, 1 when they are the same up to the heads' numbers, about 0 when they are
    unrelated; NaN for fewer than two labels.
    """
    from sklearn.metrics import adjusted_rand_score  # late: it takes seconds to import, and few need it

    rows = []
    for (model_a, a), (model_b, b) in combinations(designations.items(), 2):
        both = (a != NOBODY) & (b != NOBODY)
        rand = adjusted_rand_score(a[both].tolist(), b[both].tolist()) if both.sum() >= 2 else np.nan
        rows.append((site, parse(site)[0], model_a, model_b, int(both.sum()), rand))
    return pd.DataFrame(rows, columns=["site", "encoder", "model_a", "model_b", "labels", "rand"])


def semantics(
    counts: Counts, null: Dealt, groups: Sequence[int], generator: torch.Generator, shuffles: int = 10_000
) -> pd.DataFrame:
    """Is a head's expertise semantic: do labels of a group (CIFAR-100: a superclass) go to the same head?

    The statistic is the share of pairs of labels of one group, both designated, that are designated to the same head.
    It is compared with the designations shuffled over the labels (is there any meaning in them?), and with dealt nodes
    (is there more than the nodes have by themselves? A single node already holds labels that look alike).
    One row a site: site, encoder, pairs, same, shuffled_mean, shuffled_95, p, p_holm, dealt_mean, dealt_95, p_dealt,
    p_dealt_holm (Holm over the sites).
    """
    rows = {}
    for site, of_site in counts.items():
        head, heads = designate(of_site), len(of_site)
        member = one_hot(torch.as_tensor(groups, device=head.device)).float()
        some = (head != NOBODY).nonzero()[:, 0]
        random = torch.rand(shuffles, len(some), generator=generator, device=generator.device)
        order = random.argsort(dim=1).to(head.device)
        same, pairs = _same_head(head[None], member, heads)
        shuffled, _ = _same_head(head[some][order], member[some], heads)
        dealt, _ = _same_head(designate(null[site]), member, heads)
        rows[site] = {
            "pairs": pairs[0],
            "same": same[0],
            "shuffled_mean": shuffled.nanmean(),
            "shuffled_95": shuffled.nanquantile(0.95),
            "p": p_value(same[0], shuffled),
            "dealt_mean": dealt.nanmean(),
            "dealt_95": dealt.nanquantile(0.95),
            "p_dealt": p_value(same[0], dealt),
        }
    return with_holm(with_holm(_table(rows), "p"), "p_dealt")


def _same_head(
    designation: Int64[Tensor, "deal label"], member: Float[Tensor, "label group"], heads: int
) -> tuple[Float[Tensor, "deal"], Float[Tensor, "deal"]]:
    """Share of the pairs within groups that go to the same head, and the number of pairs; none is with NOBODY."""
    together = own_labels(designation, heads).float().mT @ member  # [deal, head, group]
    sizes = together.sum(dim=1)
    pairs = (sizes * (sizes - 1)).sum(dim=1) / 2
    return (together * (together - 1)).sum(dim=(1, 2)) / 2 / pairs, pairs


def enrichment(counts: Counts, groups: Sequence[int], group_names: Sequence[str]) -> pd.DataFrame:
    """Which groups of labels (CIFAR-100: superclasses) does a head's designated set hold more of than chance gives?

    One-sided hypergeometric test among the designated labels of a site. One row a site, head and group: site,
    encoder, head, group_name, group_labels (designated ones), shared, expected, p, p_holm (Holm over the heads and
    groups of the site). The superclasses have 5 labels, so single cells have little power: a whole superclass in a set
    of 25 has p = 0.0007 before correction. The overall question is answered by `semantics`.
    """
    from scipy.stats import hypergeom  # late, as in `claims.rules`

    tables = []
    member = one_hot(torch.as_tensor(groups), len(group_names))
    for site, of_site in counts.items():
        own = own_labels(designate(of_site), len(of_site)).cpu()
        shared = (own.mT @ member).numpy()  # [head, group]
        labels, sizes, some = shared.sum(axis=1, keepdims=True), shared.sum(axis=0), int(own.sum())
        columns = {
            "head": np.repeat(np.arange(len(shared)), len(group_names)),
            "group_name": np.tile(group_names, len(shared)),
            "group_labels": np.tile(sizes, len(shared)),
            "shared": shared.ravel(),
            "expected": (labels * sizes / max(some, 1)).ravel(),
            "p": hypergeom.sf(shared - 1, some, sizes, labels).ravel(),
        }
        tables.append(with_holm(_table({site: columns}), "p"))
    return pd.concat(tables, ignore_index=True)


def _table(by_site: Mapping[str, Mapping[str, object]]) -> pd.DataFrame:
    """A table from the columns, or the row of numbers, of each site; tensors go to the host here, after the work."""
    tables = []
    for site, columns in by_site.items():
        plain = {name: np.atleast_1d(v.tolist()) if isinstance(v, Tensor) else v for name, v in columns.items()}
        tables.append(pd.DataFrame({"site": site, "encoder": parse(site)[0], **plain}))
    return pd.concat(tables, ignore_index=True)
