"""Controls: what chance, and what any direction, would give in the place of nodes (Method, section 5).

For an orthogonal Q, ``(mu Q, W Q)`` is the same probe with the same logits for every image; only what is called a node
changes. Whatever holds in a random basis as well is a property of the *site*, not of its *nodes*. Where nodes belong to
heads, a rotation may keep each head's subspace (within heads), or mix the heads and keep a node's place in its head
(across heads).

The other control, labels shuffled across images, needs the images: `measure` sums it in its pass, and `tables.load`
puts it beside these.
"""

from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cctlib.model import sites
from cctlib.snp import fields
from cctlib.snp.measure import Measurement

SHUFFLED = "labels shuffled"
BASIS, WITHIN, ACROSS = "random basis", "rotated within heads", "rotated across heads"

Arrays = tuple[Float[Tensor, "true_label node"], Float[Tensor, "output node"]]  # mu and W
Control = Callable[[Tensor, Tensor, torch.Generator], Arrays]


def rotations(count: int, size: int, generator: torch.Generator) -> Float[Tensor, "count size size"]:
    """Orthogonal matrices, each equally likely (Haar measure), in float64 on the generator's device."""
    normal = torch.randn(count, size, size, dtype=torch.float64, generator=generator, device=generator.device)
    Q, R = torch.linalg.qr(normal)
    return Q * R.diagonal(dim1=1, dim2=2).sign()[:, None, :]  # without the signs, QR prefers some matrices


def random_basis(mu: Tensor, W: Tensor, generator: torch.Generator) -> Arrays:
    """All nodes of the site rotated among themselves."""
    Q = rotations(1, mu.shape[1], generator)[0]
    return mu.double() @ Q, W.double() @ Q


def within_heads(mu: Tensor, W: Tensor, generator: torch.Generator, heads: int) -> Arrays:
    """The nodes of each head rotated among themselves; what the heads say together and alone stays as it is."""
    Q = rotations(heads, mu.shape[1] // heads, generator)
    mu, W = (torch.einsum("khd,hde->khe", array.double().unflatten(1, (heads, -1)), Q).flatten(1) for array in (mu, W))
    return mu, W


def across_heads(mu: Tensor, W: Tensor, generator: torch.Generator, heads: int) -> Arrays:
    """The nodes at the same place in each head rotated among themselves, place by place."""
    Q = rotations(mu.shape[1] // heads, heads, generator)
    mu, W = (torch.einsum("khd,dhg->kgd", array.double().unflatten(1, (heads, -1)), Q).flatten(1) for array in (mu, W))
    return mu, W


def controls_of(kind: str, heads: int) -> dict[str, Control]:
    """The controls of a kind of site by name; those of heads at `mha` alone."""
    if kind != "mha":
        return {BASIS: random_basis}
    of_heads = {WITHIN: partial(within_heads, heads=heads), ACROSS: partial(across_heads, heads=heads)}
    return {BASIS: random_basis, **of_heads}


def table(measurement: Measurement, draws: int, heads: int) -> pd.DataFrame:
    """The columns of `fields.site_row` with `control` and `draw`, one row a site, control and draw.

    28 sites of 256 and 512 nodes take 0.8 seconds a draw on one slow core. Computed on the CPU, where it is quick, in
    float64.
    """
    generator = torch.Generator().manual_seed(0)
    rows = []
    for site, measured in measurement.sites.items():
        mu, W = measured.tensors()
        for name, control in controls_of(sites.parse(site)[1], heads).items():
            rows += [
                fields.site_row(site, fields.measure(*control(mu, W, generator)), control=name, draw=draw)
                for draw in range(draws)
            ]
    return pd.DataFrame(rows)
