"""The bootstrap over images, once: stratified by label, and shared by every number that is compared.

A *resample* is a row of weights: how often each image is drawn. A share of correct images, a difference of
two such shares, or a mean of them is a sum over images, so all resamples of it are one matrix product with
the same weights: comparisons are paired by construction.
"""

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

LEVEL = 0.95


def resample(
    labels: Integer[Tensor, "image"] | Integer[np.ndarray, "image"], resamples: int = 1000, seed: int = 0
) -> Float[Tensor, "resample image"]:
    """Weights of `resamples` bootstrap samples of the images, drawn with replacement within each label.

    Integers in float32; within a label each row sums to the label's number of images. Drawn on the CPU, so that the
    same seed gives the same weights whatever device `labels` is on, and returned on the device of `labels`.
    """
    labels = (labels if isinstance(labels, Tensor) else torch.tensor(labels)).long()
    order = labels.argsort(stable=True)
    sizes = labels.bincount()
    starts = (sizes.cumsum(0) - sizes)[labels[order]]
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(resamples, len(labels), dtype=torch.float64, generator=generator)
    drawn = order[starts + (uniform.to(labels.device) * sizes[labels[order]]).long()]
    weights = torch.zeros(drawn.shape, device=labels.device)
    return weights.scatter_add_(1, drawn, torch.ones_like(weights))


def interval(samples: Float[Tensor, "resample *value"]) -> Float[Tensor, "2 *value"]:
    """Percentile interval (low, high) of resampled values, at `LEVEL`; NaN where a value is NaN."""
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=samples.dtype, device=samples.device)
    return samples.quantile(ends, dim=0)


def estimate(
    contributions: Float[Tensor, "image value"], weights: Float[Tensor, "resample image"]
) -> Float[Tensor, "3 value"]:
    """Value, low and high end of statistics that are sums over images of `contributions`."""
    contributions = contributions.float()
    return torch.cat([contributions.sum(0)[None], interval(weights @ contributions)])
