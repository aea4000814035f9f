"""The rules by which claims are judged, written down before the numbers (Method, section 8).

`RULES` says in words what the functions of `claims.py` carry out. The rules share three parts, so that no
claim is judged more kindly than another:

- **Trend** (`trend`): a quantity rises along the encoders when Kendall's exact one-sided test of its order is
  significant at 5%. The test is repeated on bootstrap resamples. Supported when it holds for the measurement
  and for at least 95% of the resamples; not supported when it fails for the measurement and for at least 95%
  of the resamples; undetermined between, and with fewer than four encoders, where no order is significant.
- **Majority** (`majority`): of several conditions of one kind (encoders, thresholds, layers) three quarters
  must be supported. Not supported when that can no longer be reached by those that are undetermined.
- **All** (`every`): of parts that the claim needs together, one that is not supported decides, then one that
  is undetermined.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import kendalltau

from cctlib.bootstrap import LEVEL, RESAMPLES, resample
from cctlib.errors import UserError

State = Literal["supported", "not supported", "undetermined"]
SUPPORTED: State = "supported"
NOT_SUPPORTED: State = "not supported"
UNDETERMINED: State = "undetermined"

SIGNIFICANT = 0.05  # of each test
CERTAIN = 0.95  # share of resamples that must agree with the measurement
MAJORITY = 0.75  # share of encoders, thresholds, variants or layers
SMALL = 0.1  # a small cluster holds at most this share of the labels
EACH = 0.9  # "each node": at least this share of nodes recognises a cluster
TOLERANCE = 0.5  # loss of accuracy, in points, that counts as none
SAME_DENSITY = 0.01  # largest difference between densities that count as equal
RANDOM_MASKS = 3  # fewer say nothing about random masks
UNRELATED = 0.1  # divisions of labels with an adjusted Rand index within +-0.1 are unrelated
THETA, THETAS = 0.3, (0.1, 0.7)
SNR_VARIANTS = ("snr", "snr_blocks", "snr_node", "snr_field")
SUB_BLOCKS = ("mha", "ff")

STATEMENTS = {
    "C1": "Probe accuracy progresses along the encoders.",
    "C2": "Each node recognises small clusters of labels.",
    "C3": "The signal sharpens along the encoders: noise falls and the signal-to-noise ratio rises.",
    "C4": "Pruning by diagonal connections (ANDC) leaves the accuracy unaffected.",
    "C5": "Heads break the symmetry between them and become experts.",
    "C6": "All of it holds on both data sets.",
    "C7": "Convolutional networks and transformers share the mechanism.",
}

TREND = (
    "A trend: Kendall's exact one-sided test of the order of the encoders is significant at 5%, in the "
    "measurement and in 95% of bootstrap resamples; not supported when it is not, in as many; "
    "else, and with fewer than four encoders, undetermined."
)

RULES = {
    "C1": (
        "Test accuracy of the probes rises along the encoders, at both sub-blocks, mha and ff. "
        f"{TREND} Resampled are the test images, within labels."
    ),
    "C2": (
        "At a site: the 95% node-bootstrap interval of the mean cluster size lies below that of every "
        "draw with labels shuffled across images and below a tenth of the labels, that of the "
        "clusters per node lies above every draw, and at least 90% of the nodes have a cluster. Not "
        "supported at a site where an interval lies on the wrong side. Three quarters of the "
        "encoders, at both mha and ff."
    ),
    "C3": (
        "Noise per node falls and SNR rises along the encoders, at three quarters of the thresholds "
        "from 0.1 to 0.7, the SNR in three quarters of its variants. Both, at both mha and ff. "
        f"{TREND} Resampled are the nodes, where those of the threshold are given."
    ),
    "C4": (
        "After the longest retraining measured at both, mean over seeds: the accuracy falls by at "
        "most 0.5 points against the dense network (95% interval; a gain is no loss), and is above "
        "that of every one of at least 3 random masks of equal density; not supported when it is "
        "below their mean. Three quarters of the pruned targets."
    ),
    "C5": (
        "Concentration of labels on heads is above that of the same nodes dealt at random (p < 0.05, "
        "Holm over encoders), and each head alone is more accurate on its own labels than on the "
        "others' (95% interval above 0) by more than dealt nodes are (p < 0.05); each at three "
        "quarters of the encoders. Where several models are given, the symmetry must be broken in "
        "each, and the 95% interval of the adjusted Rand index between their divisions of labels must "
        "lie within +-0.1. With one model that part is undetermined and decides nothing."
    ),
    "C6": "C1 to C5 are supported on each of at least two data sets.",
    "C7": (
        "C2 and C3 are supported for transformers and, along the layers and for the filters of a "
        "convolutional network, for that."
    ),
}


@dataclass(frozen=True)
class Verdict:
    """A claim judged. `effect` says how much, starting with the number that `interval` (95%, low and high)
    belongs to."""

    claim: str
    statement: str
    verdict: State
    effect: str
    interval: tuple[float, float] | None
    rule: str


def verdict(claim: str, state: State, effect: str, interval: Sequence[float] | None = None) -> Verdict:
    """The verdict on a claim, with its statement and rule."""
    ends = None
    if interval is not None and np.isfinite(interval).all():
        ends = (float(interval[0]), float(interval[1]))
    return Verdict(claim, STATEMENTS[claim], state, effect, ends, RULES[claim])


def not_measured(claim: str) -> Verdict:
    """The verdict on a claim for which there are no measurements."""
    return verdict(claim, UNDETERMINED, "not measured")


# --------------------------------------------------------------------------------------------------------
# What the rules share


def every(states: Iterable[State]) -> State:
    """All parts are needed: the worst decides."""
    states = set(states)
    return next(
        (state for state in (NOT_SUPPORTED, UNDETERMINED) if state in states), SUPPORTED if states else UNDETERMINED
    )


def majority(states: Sequence[State]) -> State:
    """Three quarters of the conditions are needed; those undetermined could fall either way."""
    if not states:
        return UNDETERMINED
    sure = sum(state == SUPPORTED for state in states) / len(states)
    possible = sum(state != NOT_SUPPORTED for state in states) / len(states)
    return SUPPORTED if sure >= MAJORITY else NOT_SUPPORTED if possible < MAJORITY else UNDETERMINED


def trend(values: Float[np.ndarray, "encoder"], samples: Float[np.ndarray, "resample encoder"] | None = None) -> State:
    """Do the values rise along the encoders? See the top of this file. Without samples the measurement alone
    decides."""
    needed = critical_score(len(values))
    if not np.isfinite(needed):
        return UNDETERMINED
    holds = bool(score(values) >= needed)
    agree = 1.0 if samples is None else float(((score(samples) >= needed) == holds).mean())
    if agree < CERTAIN:
        return UNDETERMINED
    return SUPPORTED if holds else NOT_SUPPORTED


def score(values: Float[np.ndarray, "*resample encoder"]) -> Float[np.ndarray, "*resample"]:
    """Kendall's S: pairs of encoders in rising order minus pairs in falling order; ties and pairs with NaN
    count 0."""
    i, j = np.triu_indices(values.shape[-1], 1)
    with np.errstate(invalid="ignore"):  # inf - inf
        return np.asarray(np.nan_to_num(np.sign(values[..., j] - values[..., i])).sum(axis=-1))


def kendall(values: Float[np.ndarray, "encoder"]) -> float:
    """Kendall's tau with the order of the encoders, from -1 to 1."""
    return float(score(values)) / (len(values) * (len(values) - 1) / 2)


def slope(values: Float[np.ndarray, "*resample encoder"]) -> Float[np.ndarray, "*resample"]:
    """Least-squares slope over the encoders, per encoder."""
    steps = np.arange(values.shape[-1]) - (values.shape[-1] - 1) / 2
    return np.asarray(values @ steps / max((steps**2).sum(), 1.0))


@cache
def critical_score(points: int) -> float:
    """The smallest S that Kendall's exact one-sided test of `points` values calls significant; infinite when
    none is."""
    pairs, critical = points * (points - 1) // 2, float("inf")
    for out_of_order in range(pairs + 1 if points > 1 else 0):
        left, remaining, order = list(range(points)), out_of_order, []
        while left:  # a permutation with so many pairs out of order
            move = min(remaining, len(left) - 1)
            order.append(left.pop(move))
            remaining -= move
        if kendalltau(range(points), order, method="exact", alternative="greater").pvalue >= SIGNIFICANT:
            break
        critical = float(pairs - 2 * out_of_order)
    return critical


def percentiles(samples: Float[np.ndarray, "resample"]) -> tuple[float, float]:
    """The 95% percentile interval; NaN where samples are not finite."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def by_encoder(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows of a kind of site, in the order of the encoders. Raises `UserError` when there are none."""
    rows = table[table.kind == kind].sort_values("encoder")
    if rows.empty:
        raise UserError(
            f"the table has no site of kind {kind!r}, only {', '.join(sorted(set(table.kind))) or 'none'}; "
            "measure the sites of that kind first"
        )
    return rows


def central(table: pd.DataFrame) -> pd.DataFrame:
    """The rows at theta 0.3; all of a table without a column theta."""
    return table[np.isclose(table.theta, THETA)] if "theta" in table else table


def draw(items: int, generator: torch.Generator) -> Float[np.ndarray, "resample item"]:
    """Bootstrap weights of things that have no labels: the nodes of a site, pairs of models."""
    return resample(torch.zeros(items, dtype=torch.int64), RESAMPLES, generator).double().numpy()
