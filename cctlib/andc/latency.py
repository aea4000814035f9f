"""Is a compact network faster? Its forms against the dense one, in turns, so that other load falls on all alike."""

import time
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from cctlib.andc import compact
from cctlib.andc import masks as andc
from cctlib.andc.sparselayers import FORMS
from cctlib.model.cct import CCT

TURNS = 3  # each row is timed so often at least
EQUAL = 1e-5  # largest difference of logits, as a share of the largest one


def variants(network: CCT, batch: int, seconds: float = 5.0) -> tuple[dict[str, CCT], pd.DataFrame]:
    """A pruned network as it is ("dense"), without its silent nodes, with every sparse layer in one form, and "chosen": with the
    form that is fastest for each layer, which takes `seconds` to find. With the table of `compact.compact` that says which that is.
    """
    rows = {"dense": network}
    for form in FORMS:
        forms = {layer.module: form for layer in andc.layers(network.config.encoders)}
        rows["no silent nodes" if form == "dense" else form], _ = compact.compact(network, batch, forms=forms)
    rows["chosen"], measured = compact.compact(network, batch, seconds=seconds)
    return rows, measured


@torch.no_grad()
def turns(networks: Mapping[str, CCT], images: Tensor, seconds: float) -> pd.DataFrame:
    """Seconds of each network (columns), turn by turn (rows), for about so many seconds in all.

    Raises `AssertionError` when logits differ from those of "dense": a fast wrong answer is none.
    """
    expected = networks["dense"](images)
    for name, network in networks.items():
        difference = (network(images) - expected).abs().max().item()
        if difference > EQUAL * max(1.0, expected.abs().max().item()):
            raise AssertionError(f"{name}: logits differ from those of the dense network by {difference:.2g}")
    rows: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rows) < TURNS:
        rows.append({name: _seconds(network, images) for name, network in networks.items()})
    return pd.DataFrame(rows)


def _seconds(network: CCT, images: Tensor) -> float:
    compact.wait(images.device)
    start = time.perf_counter()
    network(images)
    compact.wait(images.device)
    return time.perf_counter() - start


def ratios(times: pd.DataFrame) -> pd.DataFrame:
    """Per network, over the turns: form, milliseconds (median), ratio (median of time / dense time), low and high (quartiles)."""
    share = times.div(times["dense"], axis=0)
    return pd.DataFrame(
        {
            "form": times.columns,
            "milliseconds": 1000 * times.median().to_numpy(),
            "ratio": share.median().to_numpy(),
            "low": share.quantile(0.25).to_numpy(),
            "high": share.quantile(0.75).to_numpy(),
        }
    )


def measure(network: CCT, batches: Sequence[int], seconds: float) -> pd.DataFrame:
    """`ratios` of a pruned network's variants for each batch size, with the columns batch and sparsity (share of the weights of
    its prunable layers that are zero) before them. `seconds` of measuring for each.
    """
    masks = compact.masks_of(network)
    device = next(network.parameters()).device
    side = network.config.image_size
    tables = []
    for batch in batches:
        networks, _ = variants(network, batch, seconds)
        images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
        found = ratios(turns(networks, images, seconds))
        found.insert(0, "sparsity", 1 - andc.density(masks))
        found.insert(0, "batch", batch)
        tables.append(found)
    return pd.concat(tables, ignore_index=True)
