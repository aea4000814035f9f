"""The real network with nodes silenced in it, and where its heads look (Method, section 6)."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm.auto import tqdm

from cctlib.data.images import Images, batches
from cctlib.errors import UserError
from cctlib.heads.ownership import owners
from cctlib.model.cct import CCT
from cctlib.model.precision import Precision, autocast
from cctlib.model.sites import parse


def head_and_random_sets(nodes: int, heads: int, draws: int, generator: torch.Generator) -> Bool[Tensor, "row node"]:
    """Sets of nodes to silence at an `mha` site: each head's in turn, then `draws` of as many random nodes."""
    owner = owners(nodes, heads)
    of_heads = owner == torch.arange(heads)[:, None]
    ranks = torch.rand(draws, nodes, generator=generator).argsort(dim=1).argsort(dim=1)
    return torch.cat([of_heads, ranks < nodes // heads])


@torch.no_grad()
def predict(
    network: CCT,
    normalise: Callable[[Tensor], Tensor],
    images: Images,
    silenced: Mapping[str, Bool[Tensor, "row node"]],
    *,
    device: torch.device | str,
    batch: int = 128,
    precision: Precision = "auto",
) -> tuple[Int64[Tensor, "image"], dict[str, Int64[Tensor, "row image"]]]:
    """The network's predictions as it is, and by site with each set of that site's nodes silenced; on the CPU.

    The encoders before a site are run once for all its sets. Raises `UserError` without images.
    """
    if len(images) == 0:
        raise UserError(f"no {images.split} images of {images.dataset} to silence nodes on; check that split")
    entries = {site: f"enc{parse(site)[0] - 1}/ff" for site in silenced if parse(site)[0] > 1}
    taps = tuple(dict.fromkeys(entries.values()))
    gains = {site: (~sets).float().to(device) for site, sets in silenced.items()}
    whole: list[Tensor] = []
    found: dict[str, list[Tensor]] = {site: [] for site in silenced}
    total = -(-len(images) // batch)
    for pixels, _ in tqdm(batches(images, batch, device=device), total=total, desc="silence heads", unit="batch"):
        x = normalise(pixels)
        with autocast(device, precision):
            logits, tokens = network(x, taps=taps) if taps else (network(x), {})
            whole.append(logits.argmax(1))
            for site, rows in gains.items():
                if site in entries:
                    each = [network.forward_from(parse(site)[0], tokens[entries[site]], {site: row}) for row in rows]
                else:
                    each = [network(x, gains={site: row}) for row in rows]
                found[site].append(torch.stack([logits.argmax(1) for logits in each]))
    return torch.cat(whole).cpu(), {site: torch.cat(parts, dim=1).cpu() for site, parts in found.items()}


@torch.no_grad()
def attention_received(
    network: CCT, images: Float[Tensor, "image 3 height width"], encoder: int
) -> Float[Tensor, "image head row column"]:
    """Attention that each token receives, averaged over all queries, for normalised images; it sums to 1 over the tokens."""
    before, network.attention = network.attention, "explicit"
    try:
        _, taps = network(images, taps=(f"enc{encoder}/attention",))
    finally:
        network.attention = before
    received = taps[f"enc{encoder}/attention"].mean(dim=2)
    return received.unflatten(-1, (int(received.shape[-1] ** 0.5), -1))
