"""Controls: what chance, and what any direction, would give in the place of nodes (Method, section 5).

For an orthogonal Q, ``(mu Q, W Q)`` is the same probe with the same logits for every image; only what is called a node
changes. Whatever holds in a random basis as well is a property of the *site*, not of its *nodes*. Where nodes belong to
heads, a rotation may keep each head's subspace (within heads), or mix the heads and keep a node's place in its head
(across heads).

The other control, labels shuffled across images, needs the images: `measure` makes its rows, and `tables` puts them
beside these.
"""

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cctlib.model import sites
from cctlib.snp import fields
from cctlib.snp.measure import Measurement

BASIS, WITHIN, ACROSS = "random basis", "rotated within heads", "rotated across heads"


def rotations(count: int, size: int, generator: torch.Generator) -> Float[Tensor, "count size size"]:
    """Orthogonal matrices, each equally likely (Haar measure), in float64 on the generator's device."""
    normal = torch.randn(count, size, size, dtype=torch.float64, generator=generator, device=generator.device)
    Q, R = torch.linalg.qr(normal)
    return Q * R.diagonal(dim1=1, dim2=2).sign()[:, None, :]  # without the signs, QR prefers some matrices


def groups_of(nodes: int, kind: str, heads: int) -> dict[str, Int[Tensor, "group member"]]:
    """The nodes that each control of a kind of site rotates among themselves; those of heads at `mha` alone.

    Of 4 nodes and 2 heads: all of them [[0, 1, 2, 3]]; those of a head, so that what the heads say together and alone
    stays as it is [[0, 1], [2, 3]]; those at the same place in each head [[0, 2], [1, 3]].
    """
    every = torch.arange(nodes)
    if kind != "mha":
        return {BASIS: every[None]}
    by_head = every.view(heads, -1)
    return {BASIS: every[None], WITHIN: by_head, ACROSS: by_head.T}


def rotated(
    mu: Float[Tensor, "true_label node"],
    W: Float[Tensor, "output node"],
    groups: Int[Tensor, "group member"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "true_label node"], Float[Tensor, "output node"]]:
    """mu and W, in float64, with the nodes of each group rotated among themselves."""
    Q, flat = rotations(len(groups), groups.shape[1], generator), groups.flatten()
    turned = [torch.einsum("kgm,gmn->kgn", array.double()[:, groups], Q).flatten(1) for array in (mu, W)]
    return turned[0][:, flat.argsort()], turned[1][:, flat.argsort()]


def table(measurement: Measurement, draws: int, heads: int) -> pd.DataFrame:
    """The columns of `fields.site_row` with `control` and `draw`, one row a site, control and draw.

    28 sites of 256 and 512 nodes take 0.8 seconds a draw on one slow core. Computed on the CPU, where it is quick, in
    float64.
    """
    generator = torch.Generator().manual_seed(0)
    rows = []
    for site, measured in measurement.sites.items():
        mu, W = measured.tensors()
        for name, groups in groups_of(mu.shape[1], sites.parse(site)[1], heads).items():
            rows += [
                fields.site_row(site, fields.measure(*rotated(mu, W, groups, generator)), control=name, draw=draw)
                for draw in range(draws)
            ]
    return pd.DataFrame(rows)
