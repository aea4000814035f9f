"""The rules by which claims are judged, in words and in numbers (Method, section 8).

A verdict has three parts. *As stated*: the claim at the default choices of the method, by the rule printed here.
*How robust*: how many of the equivalent readings of the claim agree (`specifications`). *Is it about nodes*: whether
the finding survives a random basis, which is another set of directions of the same site.

The words of `RULES` and the numbers that `verdicts` decides by are the same constants, so the page of the method
prints what the code does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from cctlib.errors import UserError
from cctlib.snp.fields import THETA

State = Literal["holds", "holds in part", "does not hold", "not tested"]
HOLDS: State = "holds"
IN_PART: State = "holds in part"
FAILS: State = "does not hold"
NOT_TESTED: State = "not tested"

SUB_BLOCKS = ("mha", "ff")
SIGNIFICANT = 0.05  # of each test
MOST = 0.75  # share of the encoders that counts as most of them
EACH = 0.9  # "each node": at least this share of the nodes has a cluster
SMALL = 0.1  # a small cluster holds at most this share of the labels
DRAWS = 20  # fewer draws with labels shuffled leave a verdict open
HALF = 0.5  # pruning keeps at most this share of the weights
TOLERANCE = 0.5  # loss of accuracy, in points, that counts as none
SEEDS = 3  # fewer networks say nothing about what changes from seed to seed
UNRELATED = 0.1  # divisions of labels with an adjusted Rand index within +-0.1 are unrelated

STATEMENTS = {
    "C1": "The accuracy of probes grows along the encoders.",
    "C2": "Each node recognises small clusters of labels.",
    "C3": "Noise falls and the signal-to-noise ratio rises along the encoders.",
    "C4": "Pruning by diagonal connections (ANDC) leaves the accuracy as it is.",
    "C5": "Attention heads break the symmetry between them and become experts.",
    "C7": "Convolutional networks and transformers share the mechanism.",
}

RULES = {
    "C1": (
        "At mha and at ff, the last encoder's probe is more accurate than the first encoder's (the 95% interval over "
        "test images lies above 0) and Kendall's test (exact where no values are equal) finds a rising trend at 5%. In "
        "part: the first without the second, or both at one of the two."
    ),
    "C2": (
        f"Three conditions, each at {MOST:.0%} of the encoders of both mha and ff: {EACH:.0%} of the nodes have a "
        f"cluster, the mean cluster holds at most {SMALL:.0%} of the labels, and the noise lies below that of every "
        f"draw with labels shuffled across images. In part: two of the three. With fewer than {DRAWS} draws, what "
        f"depends on the third is left open. With fewer than {2 / SMALL:.0f} labels no cluster is small: not tested."
    ),
    "C3": (
        "At mha and at ff, noise is lower and SNR higher at the last encoder than at the first (95% intervals over "
        "nodes), and Kendall's test (as in C1) finds both trends at 5%. In part: all four differences with their "
        "intervals, but not every trend."
    ),
    "C4": (
        f"At the threshold that keeps most of a layer's weights, but at most {HALF:.0%}, after retraining until the "
        f"accuracy stops gaining: within {TOLERANCE} points of the dense network trained as long, and above the mean "
        "of random masks of the same density. Holds: for each kind of layer and for all together. In part: for some "
        "of them."
    ),
    "C5": (
        f"Two conditions, each at {MOST:.0%} of the encoders: labels are more concentrated on heads than when the same "
        "nodes are dealt at random (p < 5%, Holm over encoders); and a head alone is better on its own labels than on "
        "the others' (the 95% interval lies above 0), by more than dealt nodes are (p < 5%). Over at least "
        f"{SEEDS} networks that differ in their seed alone, both hold each time and the divisions of labels are "
        f"unrelated (mean adjusted Rand index within {UNRELATED} of 0). In part: all but the part over networks."
    ),
    "C7": (
        "C1, C2 and C3 hold, as stated, along the layers of a convolutional network. In part: some of them. What is "
        "not tested of these leaves C7 open where it could change the answer."
    ),
}

ABOUT_NODES = {
    "C1": "Never: a rotation of the nodes changes no probe's accuracy, so progress is a property of the site.",
    "C2": f"Noise lies below that of every random basis: at {MOST:.0%} of the sites of mha and ff. In part: at some.",
    "C3": (
        "From the first encoder to the last, noise falls and SNR rises, each by a larger factor than in every random "
        "basis, at mha and at ff. In part: at one of the two."
    ),
    "C5": (
        f"At {MOST:.0%} of the encoders, labels are more concentrated on heads than in every random basis within the "
        "heads, each compared with its own nodes dealt at random. In part: every basis within the heads is more "
        "concentrated so than every basis that mixes them: the subspaces of heads are special and not their nodes."
    ),
    "C7": "C1, C2 and C3 are asked along the layers, each by its own rule.",
}


@dataclass(frozen=True)
class Verdict:
    """A claim judged. `state` and `effect` answer as stated; `interval` is the 95% interval of the effect's first
    number, NaN without one; `robust` and `nodes` answer the two other questions in a sentence."""

    claim: str
    state: State
    effect: str
    interval: tuple[float, float] = (np.nan, np.nan)
    robust: str = "not tested"
    nodes: str = "not tested"


def verdicts_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row a verdict: claim, statement, verdict, effect, low, high (NaN without one), robust, nodes, rule."""
    rows = [
        (v.claim, STATEMENTS[v.claim], v.state, v.effect, *v.interval, v.robust, v.nodes, RULES[v.claim])
        for v in verdicts
    ]
    columns = ["claim", "statement", "verdict", "effect", "low", "high", "robust", "nodes", "rule"]
    return pd.DataFrame(rows, columns=columns)


def trend(values: Float[np.ndarray, "encoder"], sign: int = 1) -> tuple[float, bool]:
    """Kendall's tau with the order of the encoders, and whether values rise (sign 1) or fall (sign -1) significantly.

    The one-sided test is exact where no values are equal. Fewer than four values are never significant.
    """
    from scipy.stats import kendalltau  # late: half a second, which a run that has nothing to do shall not pay

    alternative = "greater" if sign > 0 else "less"
    test = kendalltau(np.arange(len(values)), values, alternative=alternative)
    return float(test.statistic), bool(test.pvalue < SIGNIFICANT)


def by_encoder(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows of a kind of site, in the order of the encoders. Raises `UserError` when there are none."""
    rows = table[table.kind == kind].sort_values("encoder", kind="stable")
    if rows.empty:
        kinds = ", ".join(sorted(set(table.kind))) or "none"
        raise UserError(f"the table has no site of kind {kind!r}, only {kinds}; measure the sites of that kind first")
    return rows


def at_theta(table: pd.DataFrame, theta: float = THETA) -> pd.DataFrame:
    """The rows at a threshold; all of a table without a column theta."""
    return table[np.isclose(table.theta, theta)] if "theta" in table else table


def at_one_theta(saturated: pd.DataFrame) -> pd.DataFrame:
    """The rows of each target at the threshold that C4 is judged at: of those that keep at most `HALF` of the weights
    and at which nothing gains any more, the one that keeps most.

    saturated: as of `verdicts.pruning`. A target that has no such threshold keeps the rows at which it keeps most: they
    can be shown, and decide nothing.
    """
    ordered = saturated.assign(decides=decides(saturated)).sort_values(["decides", "density"], ascending=False)
    return saturated[saturated.theta == saturated.target.map(ordered.groupby("target").theta.first())]


def decides(saturated: pd.DataFrame) -> pd.Series:
    """Whether a pruned network may decide C4: it keeps at most `HALF` of the weights, and nothing gains any more."""
    return saturated.saturated & (saturated.density <= HALF)
