"""The real network with nodes silenced in it, and where its heads look (Method, section 6)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.heads.ownership import owners
from cctlib.model.cct import CCT
from cctlib.model.sites import parse
from cctlib.snp.measure import gathered


def head_and_random_sets(nodes: int, heads: int, draws: int, generator: torch.Generator) -> Bool[Tensor, "row node"]:
    """Sets of nodes to silence at an `mha` site: each head's in turn, then `draws` of as many random nodes."""
    owner = owners(nodes, heads)
    of_heads = owner == torch.arange(heads)[:, None]
    ranks = torch.rand(draws, nodes, generator=generator).argsort(dim=1).argsort(dim=1)
    return torch.cat([of_heads, ranks < nodes // heads])


def predict(
    network: CCT,
    normalise: Callable[[Tensor], Tensor],
    images: Images,
    silenced: Mapping[str, Bool[Tensor, "row node"]],
    **how: Any,
) -> tuple[Int64[Tensor, "image"], dict[str, Int64[Tensor, "row image"]]]:
    """The network's predictions as it is, and by site with each set of that site's nodes silenced; on the CPU.

    how: device and precision, as in `forward`. Raises `UserError` without images.
    """
    if len(images) == 0:
        raise UserError(f"no {images.split} images of {images.dataset} to silence nodes on; check that split")
    gains = {site: (~sets).float().to(how["device"]) for site, sets in silenced.items()}
    reads = dict.fromkeys(silenced, lambda logits: logits.argmax(2))
    whole, rows = gathered(_Silenced(network, gains), normalise, reads, images, progress="silence heads", **how)
    return whole.cpu(), {site: of_site.T.cpu() for site, of_site in rows.items()}


class _Silenced(nn.Module):
    """The logits of a network; by site, those with each set of its nodes silenced, [image, row, label]."""

    def __init__(self, network: CCT, gains: Mapping[str, Float[Tensor, "row node"]]) -> None:
        super().__init__()
        self.network, self.gains = network, gains

    def forward(self, x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        before = {site: parse(site)[0] - 1 for site in taps}  # encoders that run once for all sets of a site
        ends = {m: f"enc{m}/ff" for m in before.values() if m}
        logits, tokens = self.network(x, taps=tuple(ends.values())) if ends else (self.network(x), {})
        changed = {}
        for site, m in before.items():
            rows = [
                self.network.forward_from(m + 1, tokens[ends[m]], {site: row})
                if m
                else self.network(x, gains={site: row})
                for row in self.gains[site]
            ]
            changed[site] = torch.stack(rows, dim=1)
        return logits, changed


@torch.no_grad()
def attention_received(
    network: CCT, images: Float[Tensor, "image 3 height width"], encoder: int
) -> Float[Tensor, "image head row column"]:
    """Attention that each token receives, the mean over all queries, for normalised images; tokens sum to 1."""
    before, network.attention = network.attention, "explicit"
    try:
        _, taps = network(images, taps=(f"enc{encoder}/attention",))
    finally:
        network.attention = before
    received = taps[f"enc{encoder}/attention"].mean(dim=2)
    return received.unflatten(-1, (int(received.shape[-1] ** 0.5), -1))
