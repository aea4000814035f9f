"""Why pruning linear1 by ANDC costs more than chance before anything is retrained (Method, section 7).

A hidden node of FF reads z = w . x + b of the trunk's nodes x. Cutting weights changes z in three ways: its mean moves,
its spread shrinks, and what is left of it is no longer the same signal. The first two can be given back to each hidden
node without retraining, by its bias and by one factor on its weights; the third cannot. Accuracy after each repair says
how much of the loss is which. Means and covariances are those of the dense network on held-out images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cctlib.andc import retrain
from cctlib.andc.masks import Masks, density, layers
from cctlib.andc.sweep import Campaign, plan
from cctlib.model.cct import CCT
from cctlib.model.forward import forward

METHODS = ("andc", "random", "magnitude")
AS_CUT, MEAN, SPREAD = "as cut", "mean given back", "mean and spread given back"

Moments = tuple[Float[Tensor, "node"], Float[Tensor, "node node"]]  # mean and covariance


@torch.no_grad()
def trunk_moments(campaign: Campaign) -> dict[str, Moments]:
    """Mean and covariance of the trunk's nodes over all tokens of held-out images, by name of linear1's weight."""
    network, images = campaign.network, campaign.images["held-out"]
    names = {layer.source: layer.weight for layer in layers(network.config.encoders, "linear1")}
    sums: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    how: dict[str, Any] = {"device": network.classifier.fc.weight.device, "precision": campaign.how.precision}
    for *_, nodes in forward(network, campaign.normalise, images, **how, taps=list(names)):
        for site, values in nodes.items():
            flat = values.flatten(0, -2).double()
            sums[site] = sums.get(site, 0) + flat.sum(0)
            products[site] = products.get(site, 0) + flat.T @ flat
    count, moments = len(images) * network.config.tokens, {}
    for site, name in names.items():
        mean = sums[site] / count
        moments[name] = (mean, products[site] / count - torch.outer(mean, mean))
    return moments


def effect(
    weight: Float[Tensor, "output input"], kept: Float[Tensor, "output input"], moments: Moments
) -> dict[str, Float[Tensor, "output"]]:
    """What cutting does to each output: `shift`, the mean that the cut weights took away, in standard deviations of the
    dense output; `explained`, the share of the dense output's variance that the kept part explains (r squared); and
    `factor`, which gives it its spread back. An output without weights explains nothing, and its factor is 0."""
    mean, covariance = moments
    dense, left, both = (((a @ covariance) * b).sum(1) for a, b in ((weight, weight), (kept, kept), (weight, kept)))
    some = left > 0
    return {
        "shift": (weight - kept) @ mean / dense.sqrt(),
        "explained": torch.where(some, both.square() / (left * dense), 0.0),
        "factor": torch.where(some, (dense / left).sqrt(), 0.0),
    }


@torch.no_grad()
def repaired(network: CCT, masks: Masks, moments: Mapping[str, Moments], how: str) -> CCT:
    """The pruned network with the mean, or mean and spread, of each hidden node's input given back."""
    pruned = retrain.prune(network, masks)
    if how == AS_CUT:
        return pruned
    for name in masks:
        weight, kept = (of.get_parameter(name).to(moments[name][0]) for of in (network, pruned))
        if how == SPREAD:
            kept = kept * effect(weight, kept, moments[name])["factor"][:, None]
        pruned.get_parameter(name).copy_(kept)
        pruned.get_parameter(name.replace("weight", "bias")).add_((weight - kept) @ moments[name][0])
    return pruned


def tables(campaign: Campaign, seeds: Sequence[int]) -> dict[str, pd.DataFrame]:
    """Tables of linear1, pruned in all encoders at the thresholds of the campaign, without retraining.

    repaired: method, seed, repair, density, accuracy, accuracy_dense, images. cut: encoder, method, seed, shift (mean
    over hidden nodes) and explained (their median), as in `effect`.
    """
    network, moments = campaign.network, trunk_moments(campaign)
    labels = campaign.images["test"].labels.cpu().numpy()

    def accuracy(of: CCT) -> float:
        return float((campaign.predict(of, "tokens") == labels).mean())

    rows, cut = [], []
    for pruning in plan(["linear1"], METHODS, seeds, campaign.diagonals, network.config.encoders):
        masks = campaign.masks(pruning)
        of_mask = {"method": pruning.method, "seed": pruning.seed}
        for repair in (AS_CUT, MEAN, SPREAD):
            share = accuracy(repaired(network, masks, moments, repair))
            rows.append(of_mask | {"repair": repair, "density": density(masks), "accuracy": share})
        for m, (name, mask) in enumerate(masks.items(), start=1):
            weight = network.get_parameter(name).detach().to(moments[name][0])
            found = effect(weight, weight * mask.to(weight.device), moments[name])
            shift, explained = found["shift"].mean().item(), found["explained"].median().item()
            cut.append(of_mask | {"encoder": m, "shift": shift, "explained": explained})
    about = {"accuracy_dense": accuracy(network), "images": len(labels)}
    return {"repaired": pd.DataFrame(rows).assign(**about), "cut": pd.DataFrame(cut)}
