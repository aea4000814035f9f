"""The measurement: one pass over a split gathers all that SNP, heads and the book need from a probed network.

Gathered per site: the field averages `mu` (Method, section 5), the probe's prediction of each image, and for each node the
images with the largest and the smallest p_n(x). Nothing of the size images x tokens x nodes is kept; of `mha` the pooled p_n(x)
of the test images are, beside the measurement, for the study of heads. A measurement is what ships with the book:
figures are drawn from it without weights, images or a GPU.
"""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from cctlib import stages
from cctlib.data.images import Images, batches
from cctlib.errors import UserError
from cctlib.model import sites
from cctlib.model.precision import Precision, autocast
from cctlib.snp import fields
from cctlib.snp.probe import Probe, Probes, site_of

FILE, POOLED = "measurement.npz", "pooled.npz"
EXTREMES = 8  # images kept at either end of each node
SWAPPED = "swapped/"  # in front of the arrays of second probes, in the file
NODEWISE = "test, node-wise pooling"  # mu of the alternative that silences before SeqPool


@dataclass
class SiteMeasurement:
    """One site. Arrays are float32 or integer, on the CPU.

    W: [label, node], the probe's weights. mu: by split, [label, node], the mean of p_n over the images of each label.
    predictions: by split, [image]. extremes: [node, end, rank], positions of the test images with the largest (end 0) and the smallest
    (end 1) p_n, the most extreme first; None for second probes.
    """

    W: np.ndarray
    mu: dict[str, np.ndarray] = field(default_factory=dict)
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    extremes: np.ndarray | None = None

    def tensors(self, split: str = "test") -> tuple[Float[Tensor, "label node"], Float[Tensor, "label node"]]:
        """(mu, W) of a split, as the functions of `snp` want them. Raises `UserError` for a split that was not measured."""
        if split not in self.mu:
            raise UserError(f"no field averages for split {split!r}; measured are: {', '.join(self.mu)}")
        return torch.from_numpy(self.mu[split]), torch.from_numpy(self.W)


@dataclass
class Measurement:
    """All sites of a network on the held-out and the test images of a data set.

    swapped: by site, what its second probe found on the test images (see `probe`); none in measurements made before there were any.
    labels, predictions (of the network itself): by split, [image].
    about: where it comes from (data set, model, hashes, settings, versions), for people and for the line under each figure.
    """

    sites: dict[str, SiteMeasurement]
    labels: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    names: tuple[str, ...]
    groups: tuple[int, ...] | None
    group_names: tuple[str, ...] | None
    about: dict
    swapped: dict[str, SiteMeasurement] = field(default_factory=dict)

    def __getitem__(self, site: str) -> SiteMeasurement:
        if site not in self.sites:
            raise UserError(f"site {site!r} was not measured; measured are: {', '.join(self.sites)}")
        return self.sites[site]

    @property
    def encoders(self) -> int:
        """Number of encoders L."""
        return max(sites.parse(site)[0] for site in self.sites)

    def accuracy(self, split: str = "test") -> float:
        """Share of the split's images that the network itself gets right."""
        return float((self.predictions[split] == self.labels[split]).mean())

    def accuracy_per_label(self, split: str = "test") -> float:
        """The same share label by label, and then the mean over the labels that have images."""
        return per_label(self.predictions[split], self.labels[split])


def per_label(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy that weighs every label alike: the mean, over the labels that have images, of the share that is read right."""
    return float(pd.Series(predictions == labels).groupby(labels).mean().mean())


class _Extremes:
    """The EXTREMES largest values of each node and where they stand, streamed over batches; the smallest, by negation."""

    def __init__(self, nodes: int, device: torch.device | str):
        self.values = torch.full((2, EXTREMES, nodes), -torch.inf, device=device)
        self.positions = torch.full((2, EXTREMES, nodes), -1, dtype=torch.int64, device=device)

    def add(self, pooled: Float[Tensor, "image node"], first: int) -> None:
        both = torch.stack([pooled, -pooled])
        position = torch.arange(first, first + len(pooled), device=pooled.device)[:, None].expand_as(both)
        values = torch.cat([self.values, both], dim=1)
        positions = torch.cat([self.positions, position], dim=1)
        self.values, kept = values.topk(EXTREMES, dim=1)
        self.positions = positions.gather(1, kept)

    def numpy(self) -> np.ndarray:
        return self.positions.permute(2, 0, 1).to("cpu", torch.int32).numpy()


def nodewise_pool(probe: Probe, tokens: Float[Tensor, "image token node"]) -> Float[Tensor, "image node"]:
    """p_n when all other nodes are silenced *before* SeqPool: each node then weighs the tokens by itself alone."""
    tokens = probe.norm(tokens.float())
    weights = (tokens * probe.attention_pool.weight[0] + probe.attention_pool.bias).softmax(dim=1)
    return (weights * tokens).sum(dim=1)


@dataclass
class Reading:
    """What one pass over one split leaves behind: per site, on the device that it was made on."""

    sums: dict[str, fields.FieldSums]  # by probe
    predictions: dict[str, Tensor]  # by probe, and of the network under ""
    pooled: dict[str, Tensor]  # of the sites asked for, [image, node]
    nodewise: dict[str, fields.FieldSums]
    null: dict[str, fields.FieldSums]
    extremes: dict[str, _Extremes]


@torch.no_grad()
def read(
    network: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    probes: Probes,
    images: Images,
    *,
    device: torch.device | str,
    precision: Precision = "auto",
    batch: int = 128,
    null_draws: int = 0,
    keep_pooled: tuple[str, ...] = (),
    alternatives: bool = False,
    seed: int = 0,
) -> Reading:
    """One pass over `images`. The field averages always; with `alternatives` also node-wise pooling, the second probes and the
    extreme images; with `null_draws` the averages under so many shufflings of the labels across images; `keep_pooled` names
    sites to keep p_n(x) of.
    """
    labels = images.labels.to(device)
    shuffled = fields.shuffled(labels, null_draws, torch.Generator().manual_seed(seed)) if null_draws else None
    result = _empty_reading(probes, images.num_labels, device, null_draws, alternatives)
    predicted: dict[str, list[Tensor]] = {name: [] for name in ("", *result.sums)}
    pooled_parts: dict[str, list[Tensor]] = {site: [] for site in keep_pooled}
    for first, pixels, batch_labels in _numbered(images, batch, device):
        with autocast(device, precision):
            logits, tokens = network(normalise(pixels), taps=probes.sites)
        predicted[""].append(logits.argmax(1))
        for name in result.sums:
            site = site_of(name)
            pooled = probes[name].pool(tokens[site])
            predicted[name].append(probes[name].fc(pooled).argmax(1))
            result.sums[name].add(pooled, batch_labels)
            if name != site:
                continue
            if site in pooled_parts:
                pooled_parts[site].append(pooled)
            if shuffled is not None:
                result.null[site].add(pooled, shuffled[:, first : first + len(pooled)])
            if alternatives:
                result.nodewise[site].add(nodewise_pool(probes[site], tokens[site]), batch_labels)
                result.extremes[site].add(pooled, first)
    result.predictions = {name: torch.cat(parts) for name, parts in predicted.items()}
    result.pooled = {site: torch.cat(parts) for site, parts in pooled_parts.items()}
    return result


def _empty_reading(
    probes: Probes, num_labels: int, device: torch.device | str, null_draws: int, alternatives: bool
) -> Reading:
    widths = {name: probes[name].fc.in_features for name in probes.names}

    def sums(names: tuple[str, ...], repeats: int | None = None) -> dict[str, fields.FieldSums]:
        return {name: fields.FieldSums.zeros(num_labels, widths[name], repeats, device) for name in names}

    return Reading(
        sums=sums(probes.names if alternatives else probes.sites),
        predictions={},
        pooled={},
        nodewise=sums(probes.sites) if alternatives else {},
        null=sums(probes.sites, null_draws) if null_draws else {},
        extremes={site: _Extremes(widths[site], device) for site in probes.sites} if alternatives else {},
    )


def _numbered(images: Images, size: int, device: torch.device | str) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Batches in order, each with the position of its first image, under a progress bar."""
    total = -(-len(images) // size)
    for number, (pixels, labels) in enumerate(
        tqdm(batches(images, size, device=device), total=total, desc=f"measure {images.split}", unit="batch")
    ):
        yield number * size, pixels, labels


def measure(
    network: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    probes: Probes,
    held_out: Images,
    test: Images,
    *,
    null_draws: int,
    device: torch.device | str,
    about: dict,
    precision: Precision = "auto",
) -> tuple[Measurement, pd.DataFrame, dict[str, np.ndarray]]:
    """The measurement of a probed network, the sites' numbers with labels shuffled across the test images (columns of
    `tables.site_row`, and `draw`), and the pooled p_n(x) of the test images at `mha`, [image, node] by site.

    Raises `UserError` when a label has no image in one of the splits.
    """
    from cctlib.snp.tables import site_row  # late: tables read measurements

    how: dict[str, Any] = {"device": device, "precision": precision}
    mha = tuple(site for site in probes.sites if sites.parse(site)[1] == "mha")
    readings = {
        "held-out": read(network, normalise, probes, held_out, **how),
        "test": read(
            network, normalise, probes, test, null_draws=null_draws, keep_pooled=mha, alternatives=True, **how
        ),
    }
    tested = readings["test"]
    measured = {}
    for site in probes.sites:
        mu = {split: reading.sums[site].mean() for split, reading in readings.items()}
        mu[NODEWISE] = tested.nodewise[site].mean()
        measured[site] = SiteMeasurement(
            W=_numpy(probes[site].fc.weight),
            mu={split: _numpy(value) for split, value in mu.items()},
            predictions={split: _numpy(reading.predictions[site]) for split, reading in readings.items()},
            extremes=tested.extremes[site].numpy(),
        )
    swapped = {
        site: SiteMeasurement(
            W=_numpy(probes[name].fc.weight),
            mu={"test": _numpy(tested.sums[name].mean())},
            predictions={"test": _numpy(tested.predictions[name])},
        )
        for site, name in probes.swapped.items()
    }
    null = [
        site_row(site, fields.measure(mu, probes[site].fc.weight.detach())) | {"draw": draw}
        for site in probes.sites
        if null_draws
        for draw, mu in enumerate(tested.null[site].mean())
    ]
    result = Measurement(
        sites=measured,
        labels={"held-out": _numpy(held_out.labels), "test": _numpy(test.labels)},
        predictions={split: _numpy(reading.predictions[""]) for split, reading in readings.items()},
        names=test.names,
        groups=test.groups,
        group_names=test.group_names,
        about=about,
        swapped=swapped,
    )
    return result, pd.DataFrame(null), {site: _numpy(pooled) for site, pooled in tested.pooled.items()}


def _numpy(values: Tensor) -> np.ndarray:
    """To the CPU: float32 as it is, labels and predictions in 16 bits."""
    values = values.detach().cpu()
    return values.numpy() if values.is_floating_point() else values.to(torch.int16).numpy()


def save(result: Measurement, folder: Path) -> None:
    """Write measurement.npz (arrays) and measurement.json (names and where it comes from), atomically."""
    arrays: dict[str, Any] = {}
    for split in result.labels:
        arrays |= {f"labels/{split}": result.labels[split], f"predictions/{split}": result.predictions[split]}
    swapped = {f"{SWAPPED}{site}": values for site, values in result.swapped.items()}
    for where, values in (result.sites | swapped).items():
        arrays[f"{where}/W"] = values.W
        if values.extremes is not None:
            arrays[f"{where}/extremes"] = values.extremes
        for name in ("mu", "predictions"):
            arrays |= {f"{where}/{name}/{split}": array for split, array in getattr(values, name).items()}
    with stages.replacing(folder / FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    described = {name: getattr(result, name) for name in ("names", "groups", "group_names", "about")}
    stages.write_json(folder / "measurement.json", described)


def load(folder: Path) -> Measurement:
    """Read what `save` wrote. Raises `UserError` for missing or damaged files."""
    described = stages.read_json(folder / "measurement.json")
    path = folder / FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); remove its folder and measure again") from None
    found = {
        where: SiteMeasurement(
            W=arrays[f"{where}/W"],
            extremes=arrays.get(f"{where}/extremes"),
            mu=_by_split(arrays, f"{where}/mu/"),
            predictions=_by_split(arrays, f"{where}/predictions/"),
        )
        for where in (key.removesuffix("/W") for key in arrays if key.endswith("/W"))
    }
    measured = {where: values for where, values in found.items() if not where.startswith(SWAPPED)}
    swapped = {where.removeprefix(SWAPPED): values for where, values in found.items() if where not in measured}
    tuples: dict[str, Any] = {
        name: tuple(described[name]) if described[name] else None for name in ("names", "groups", "group_names")
    }
    return Measurement(
        measured,
        _by_split(arrays, "labels/"),
        _by_split(arrays, "predictions/"),
        about=described["about"],
        swapped=swapped,
        **tuples,
    )


def _by_split(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
