"""Experts: is a head better at the labels it owns (Method, section 6)?

Two measurements of the same question. *Alone*: in the probe, silence the fields of all other heads, and compare the
head's accuracy on images of its own labels with its accuracy on images of the other heads' labels. *Ablation*: in the
real network, silence the head, and compare the loss of accuracy on its own labels with the loss on the others'. Own
labels are designated on held-out images (`heads.designate`), accuracy is measured on test images.

Both differences have a null that is not zero: labels are given to the group of nodes that holds most of them, so a
random group of nodes is an "expert" too. Hence the comparison with dealt nodes, and with 64 silenced random nodes.

Every number is a sum over images, bootstrapped with the weights of `bootstrap.resample`; images of labels that no head
owns take no part.
"""

from collections.abc import Mapping

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

from cctlib.bootstrap import estimate
from cctlib.errors import UserError
from cctlib.heads.ownership import NOBODY, count_dealt, deal, designate, own_labels, p_value
from cctlib.model.sites import parse


def alone(
    pooled: Float[Tensor, "image node"], W: Float[Tensor, "label node"], owner: Int64[Tensor, "node"], heads: int
) -> Int64[Tensor, "head image"]:
    """Predictions of each head alone: the label with the largest field when all nodes of other owners are silenced."""
    by_node = pooled.T  # whole rows are taken, which is quick where the nodes lie together in memory
    nodes_of = owner.argsort(stable=True).view(heads, -1)  # heads own equally many; a sort does not wait for a GPU
    return torch.stack([(W[:, nodes] @ by_node[nodes]).argmax(dim=0) for nodes in nodes_of])


def expert_accuracy(
    site: str,
    predictions: Integer[Tensor, "head image"],
    labels: Integer[Tensor, "image"],
    designation: Int64[Tensor, "label"],
    weights: Float[Tensor, "resample image"],
    dealt: Float[Tensor, "deal"],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy of each head alone, as shares of 1, with 95% bootstrap intervals (columns *_low and *_high).

    heads, one row a head: site, encoder, head, labels, images (of its own labels), own (accuracy on these),
    others (on images of the other heads' labels), gap (own - others). A head that owns no label has NaN.
    sites, one row: site, encoder, heads (that own labels), images, and the mean over these heads of the same
    quantities; then dealt_mean, dealt_95, deals, p: the gap of dealt nodes (`dealt`, from `dealt_gaps`) and
    the share of it that reaches this one.
    Raises `UserError` when no image has a designated label.
    """
    (own, others), correct = _roles(designation, labels, len(predictions)), _correct(predictions, labels)
    parts = {"own": own * correct, "others": others * correct, "gap": (own - others) * correct}
    per_head, mean = _tables(site, parts, designation, own, weights)
    dealt = dealt.cpu().double()
    null = {"dealt_mean": dealt.nanmean().item(), "dealt_95": dealt.nanquantile(0.95).item(), "deals": len(dealt)}
    return per_head, mean.assign(**null, p=p_value(torch.tensor(mean.gap[0]), dealt).item())


def dealt_gaps(
    pooled: Float[Tensor, "image node"],
    W: Float[Tensor, "label node"],
    diagonal: Bool[Tensor, "node label"],
    labels: Integer[Tensor, "image"],
    heads: int,
    generator: torch.Generator,
    deals: int = 100,
) -> Float[Tensor, "deal"]:
    """The expert gap (mean over heads of own - others) when the nodes are dealt at random into heads.

    `diagonal` is of the held-out images, `pooled` (p of the probe) and `labels` of the test images, as for the real
    heads. Each deal designates the labels anew; NaN for one in which every label is tied.
    """
    pooled = pooled.T.contiguous().T
    dealt = deal(len(diagonal), heads, deals, generator).to(pooled.device)
    designations = designate(count_dealt(diagonal, dealt, heads)).to(pooled.device)
    gaps = []
    for owner, designation in zip(dealt, designations, strict=True):
        own, others = _roles(designation, labels, heads)
        correct = _correct(alone(pooled, W, owner, heads), labels)
        gaps.append(((own - others) * correct).sum(dim=0).nanmean())
    return torch.stack(gaps)


def ablation(
    site: str,
    baseline: Integer[Tensor, "image"],
    silenced: Integer[Tensor, "head image"],
    random: Integer[Tensor, "draw image"],
    labels: Integer[Tensor, "image"],
    designation: Int64[Tensor, "label"],
    weights: Float[Tensor, "resample image"],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy that the network loses when a head is silenced in it, as shares of 1, with 95% bootstrap intervals
    (*_low, *_high).

    baseline, silenced, random: predictions of the network as it is, with each head silenced, and with as many random
    nodes of the site silenced.
    heads, one row a head: site, encoder, head, labels, images (of its own labels), drop_own (accuracy lost on
    these), drop_others (lost on the other heads' labels), difference (drop_own - drop_others), random_own,
    random_others, random_difference (the same for the random nodes, mean over draws), excess (difference -
    random_difference), draws.
    sites, one row: site, encoder, heads, images, and the means over heads of the same quantities. The interval of
    `excess` is that of the images, for these draws of nodes.
    Raises `UserError` without random draws, and when no image has a designated label.
    """
    if len(random) == 0:
        raise UserError(
            f"ablation of {site} has no predictions with random nodes silenced to compare with; "
            "silence at least one random draw of nodes"
        )
    own, others = _roles(designation, labels, len(silenced))
    before = _correct(baseline[None], labels)
    lost = before - _correct(silenced, labels)  # 1 where only the silenced network errs, -1 where only the other does
    by_random = (before - _correct(random, labels)).mean(dim=1, keepdim=True)
    parts = {
        "drop_own": own * lost,
        "drop_others": others * lost,
        "difference": (own - others) * lost,
        "random_own": own * by_random,
        "random_others": others * by_random,
        "random_difference": (own - others) * by_random,
        "excess": (own - others) * (lost - by_random),
    }
    per_head, mean = _tables(site, parts, designation, own, weights)
    return per_head.assign(draws=len(random)), mean.assign(draws=len(random))


def _correct(predictions: Integer[Tensor, "row image"], labels: Integer[Tensor, "image"]) -> Float[Tensor, "image row"]:
    """1 for a correct prediction, else 0."""
    return (predictions == labels).float().T


def _roles(
    designation: Int64[Tensor, "label"], labels: Integer[Tensor, "image"], heads: int
) -> tuple[Float[Tensor, "image head"], Float[Tensor, "image head"]]:
    """Averaging weights of each head's own images, and of the other heads' images; NaN for a head that has none."""
    owner = designation.to(labels.device)[labels.long()]
    own = own_labels(owner, heads).float()
    others = (owner != NOBODY).float()[:, None] - own
    return own / own.sum(dim=0), others / others.sum(dim=0)


def _tables(
    site: str,
    parts: Mapping[str, Float[Tensor, "image head"]],
    designation: Int64[Tensor, "label"],
    own: Float[Tensor, "image head"],
    weights: Float[Tensor, "resample image"],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Estimates of the parts (each a sum over images) of every head, and of their means over heads that own labels."""
    heads = own.shape[1]
    owns = own.sum(dim=0).isfinite()
    if not owns.any():
        raise UserError(
            f"no image has a label that is designated to a head of {site}; "
            "designate the labels from held-out images of the same data set"
        )
    labels = own_labels(designation, heads).sum(dim=0)
    images = (own > 0).sum(dim=0)
    per_head = {"head": range(heads), "labels": labels.tolist(), "images": images.tolist()}
    mean = {"heads": int(owns.sum()), "images": int(images.sum())}
    for name, part in parts.items():
        both = torch.cat([part, part[:, owns].mean(dim=1, keepdim=True)], dim=1)
        for suffix, row in zip(("", "_low", "_high"), estimate(both, weights.to(both.device)).tolist(), strict=True):
            per_head[name + suffix], mean[name + suffix] = row[:heads], row[heads]
    where = {"site": site, "encoder": parse(site)[0]}
    return pd.DataFrame({**where, **per_head}), pd.DataFrame([{**where, **mean}])
