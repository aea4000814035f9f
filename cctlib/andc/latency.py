"""Is a compact network faster? Its forms against the dense one, in turns, so that other load falls on all alike."""

import sys
import time
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from cctlib.andc.compact import TURNS, compact, masks_of, timed_call
from cctlib.andc.masks import density
from cctlib.model.cct import CCT


def variants(network: CCT, batch: int, seconds: float = 5.0) -> tuple[dict[str, CCT], dict[str, str]]:
    """A pruned network as it is ("dense"), and compact: without its silent nodes ("no silent nodes"), with every sparse
    layer as bags ("bags"), and with the form that is fastest for each layer ("chosen"), which takes `seconds` to find.

    Returns the networks by these names, and the form that was chosen for each layer.
    """
    networks = {"dense": network}
    networks["no silent nodes"], _ = compact(network, batch, "dense")
    networks["bags"], _ = compact(network, batch, "bags")
    networks["chosen"], chosen = compact(network, batch, seconds=seconds)
    return networks, chosen


@torch.no_grad()
def turns(networks: Mapping[str, CCT], images: Tensor, seconds: float) -> pd.DataFrame:
    """Seconds of each network (columns), turn by turn (rows), for about so many seconds in all.

    NaN for a network whose logits are not those of "dense", half of the digits of its numbers: a fast wrong answer is
    none. Standard error says which.
    """
    expected = networks["dense"](images)
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * max(1.0, expected.abs().max().item())
    right = {}
    for name, network in networks.items():
        difference = (network(images) - expected).abs().max().item()
        if difference <= tolerance:
            right[name] = network
        else:
            reason = f"its logits differ from those of the dense network by {difference:.2g}"
            print(f"form {name} is not timed: {reason}", file=sys.stderr, flush=True)
    rows: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rows) < TURNS:
        rows.append({name: timed_call(net, images)[1] for name, net in right.items()})
    return pd.DataFrame(rows, columns=list(networks))


def ratios(times: pd.DataFrame) -> pd.DataFrame:
    """Per network, over the turns: form, milliseconds (median), ratio (median of time / dense time), low and high
    (quartiles); NaN for a form that was not timed.
    """
    share = times.div(times["dense"], axis=0).quantile([0.5, 0.25, 0.75]).T.set_axis(["ratio", "low", "high"], axis=1)
    share.insert(0, "milliseconds", 1000 * times.median())
    return share.rename_axis("form").reset_index()


def measure(network: CCT, batches: Sequence[int], seconds: float) -> pd.DataFrame:
    """`ratios` of a pruned network's variants for each batch size, with the columns batch and sparsity (share of the
    weights of its prunable layers that are zero) before them. `seconds` of measuring for each.
    """
    sparsity = 1 - density(masks_of(network))
    device, side = next(network.parameters()).device, network.config.image_size
    tables = []
    for batch in batches:
        networks, _ = variants(network, batch, seconds)
        images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
        table = ratios(turns(networks, images, seconds))
        tables.append(pd.DataFrame({"batch": batch, "sparsity": sparsity, **table}))
    return pd.concat(tables, ignore_index=True)
