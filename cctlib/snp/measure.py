"""The measurement: one pass over a split gathers all that SNP, heads and the book need from a probed network.

The pass keeps the pooled p_n(x) of every image at every probe (about 1 GB for 10,000 images and a CCT-7; tokens are
let go), and the rest is made of them, site by site: the field averages `mu` (Method, section 5), the probe's prediction
of each image, for each node the images with the largest and the smallest p_n(x), and `mu` with the labels shuffled
across images. A measurement is what ships with the book: figures are drawn from it without weights, images or a GPU.
"""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from cctlib import stages
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.model import sites
from cctlib.model.forward import forward
from cctlib.model.precision import Precision
from cctlib.snp import fields
from cctlib.snp.probe import READOUT, VARIANTS, Probe, Probes, own_readout, site_of

FILE, POOLED = "measurement.npz", "pooled.npz"
EXTREMES = 8  # images kept at either end of each node
SHUFFLED = "labels shuffled"  # the control
NODEWISE = "test, node-wise pooling"  # mu of the alternative that silences before SeqPool


@dataclass
class SiteMeasurement:
    """One site, on the CPU. W and mu are rounded here, once, to float16 (`fields.rounded`): all use what is stored.

    W: [label, node], the probe's weights. mu: by split, [label, node], the mean of p_n over the images of each label.
    predictions: by split, [image]. extremes: [node, end, rank], positions of the test images with the largest (end 0)
    and the smallest (end 1) p_n, the most extreme first; None for a probe that is only compared with.
    """

    W: np.ndarray
    mu: dict[str, np.ndarray] = field(default_factory=dict)
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    extremes: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.W = _half(self.W)
        self.mu = {split: _half(values) for split, values in self.mu.items()}

    def tensors(self, split: str = "test") -> tuple[fields.Nodes, fields.Nodes]:
        """(mu, W) of a split, float32, as `fields` wants them. Raises `UserError` for a split that was not measured."""
        if split not in self.mu:
            raise UserError(f"no field averages for split {split!r}; measured are: {', '.join(self.mu)}")
        return torch.from_numpy(self.mu[split]).float(), torch.from_numpy(self.W).float()


def _half(values: np.ndarray) -> np.ndarray:
    return fields.rounded(torch.from_numpy(values).float()).half().numpy()


@dataclass
class Measurement:
    """All sites of a network on the held-out and the test images of a data set.

    alternatives: by variant of the probe (see `probe.VARIANTS`) and site, what that probe gives on the test images;
    the network's own read-out also has the held-out images. Measurements made earlier lack some.
    labels, predictions (of the network itself): by split, [image].
    about: where it comes from (data set, model, hashes, settings, versions), for people and for the line under each
    figure.
    """

    sites: dict[str, SiteMeasurement]
    labels: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    names: tuple[str, ...]
    groups: tuple[int, ...] | None
    group_names: tuple[str, ...] | None
    about: dict
    alternatives: dict[str, dict[str, SiteMeasurement]] = field(default_factory=dict)

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
    """Accuracy that weighs every label alike: the mean, over the labels that have images, of the share that is
    right."""
    return float(pd.Series(predictions == labels).groupby(labels).mean().mean())


def diagonals(measurement: Measurement, theta: float = fields.THETA) -> dict[str, Bool[Tensor, "_ _"]]:
    """D_n of every node, as [node, label], by site; those of the network's own read-out as `enc{L}/readout`.

    From held-out images, which decide; test images judge. Raises `UserError` when they were not measured.
    """
    readout = measurement.alternatives.get(READOUT, {}).items()
    measured = measurement.sites | {f"enc{sites.parse(site)[0]}/{READOUT}": values for site, values in readout}
    return {site: fields.diagonals(*values.tensors("held-out"), theta) for site, values in measured.items()}


def nodewise_pool(probe: Probe, tokens: Float[Tensor, "image token node"]) -> Float[Tensor, "image node"]:
    """p_n when all other nodes are silenced *before* SeqPool: each node then weighs the tokens by itself alone."""
    tokens = probe.norm(tokens.float())
    weights = (tokens * probe.attention_pool.weight[0] + probe.attention_pool.bias).softmax(dim=1)
    return (weights * tokens).sum(dim=1)


def gathered(
    network: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    reads: Mapping[str, Callable[[Tensor], Tensor]],
    images: Images,
    **how: Any,
) -> tuple[Int64[Tensor, "image"], dict[str, Float[Tensor, "image _"] | Int64[Tensor, "image _"]]]:
    """The label that the network gives each image, and what each of `reads` makes of its tokens, on the device.

    reads: functions of tokens [image, token, node], whose names begin with the site. how: as in `forward`.
    """
    predictions: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {name: [] for name in reads}
    taps = tuple(dict.fromkeys(map(site_of, reads)))
    for _, _, logits, nodes in forward(network, normalise, images, taps=taps, **how):
        predictions.append(logits.argmax(1))
        for name, read in reads.items():
            parts[name].append(read(nodes[site_of(name)]))
    return torch.cat(predictions), {name: torch.cat(parts.pop(name)) for name in reads}


@torch.no_grad()
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
    """The measurement of a probed network, the rows of the table `controls` with the labels shuffled across the test
    images (`tables`), and the pooled p_n(x) of the test images at `mha`, [image, node] by site.

    Raises `UserError` when a label has no image in one of the splits.
    """
    probes = own_readout(network, probes)
    splits = {"held-out": (held_out, probes.sites + probes.of(READOUT)), "test": (test, tuple(probes))}
    mu: dict[str, dict[str, np.ndarray]] = {name: {} for name in probes}
    says: dict[str, dict[str, np.ndarray]] = {name: {} for name in ("", *probes)}  # "": the network itself
    for split, (images, names) in splits.items():
        pools: dict[str, Callable[[Tensor], Tensor]] = {name: probes[name].pool for name in names}
        if split == "test":
            pools |= {f"{site}/{NODEWISE}": partial(nodewise_pool, probes[site]) for site in probes.sites}
        how: dict[str, Any] = {"device": device, "precision": precision, "progress": f"measure {split}"}
        predictions, pooled = gathered(network, normalise, pools, images, **how)
        labels = images.labels.to(device)
        says[""][split] = _numpy(predictions)
        for name in names:
            mu[name][split] = _numpy(fields.mean_by_label(pooled[name], labels, images.num_labels))
            says[name][split] = _numpy(probes[name].fc(pooled[name]).argmax(1))
    for site in probes.sites:
        mu[site][NODEWISE] = _numpy(fields.mean_by_label(pooled[f"{site}/{NODEWISE}"], labels, test.num_labels))

    def measured(name: str) -> SiteMeasurement:
        ends = extremes(pooled[name]) if name in probes.sites else None
        return SiteMeasurement(_numpy(probes[name].fc.weight), mu[name], says[name], ends)

    result = Measurement(
        sites={site: measured(site) for site in probes.sites},
        labels={"held-out": _numpy(held_out.labels), "test": _numpy(test.labels)},
        predictions=says[""],
        names=test.names,
        groups=test.groups,
        group_names=test.group_names,
        about=about,
        alternatives={
            variant: {site_of(name): measured(name) for name in probes.of(variant)}
            for variant in VARIANTS
            if probes.of(variant)
        },
    )
    mha = [site for site in probes.sites if sites.parse(site)[1] == "mha"]
    shuffled = shuffled_rows({site: pooled[site] for site in probes.sites}, probes, test, null_draws)
    return result, shuffled, {site: _numpy(pooled[site]) for site in mha}


def extremes(pooled: Float[Tensor, "image node"]) -> np.ndarray:
    """Positions of the images with the largest and the smallest values of each node: [node, end, rank]."""
    ends = [pooled.topk(min(EXTREMES, len(pooled)), dim=0, largest=largest).indices for largest in (True, False)]
    return torch.stack(ends).permute(2, 0, 1).to("cpu", torch.int32).numpy()


def shuffled_rows(
    pooled: Mapping[str, Float[Tensor, "image node"]], probes: Probes, images: Images, draws: int
) -> pd.DataFrame:
    """Columns of `fields.site_row` with `control` and `draw`, one row a site and shuffling of the images' labels."""
    labels, rows = fields.shuffled(images.labels, draws, torch.Generator().manual_seed(0)), []
    for site, values in pooled.items():
        W, values = fields.rounded(probes[site].fc.weight), values.double()  # once for all draws
        for number, row in enumerate(labels):
            mu = fields.rounded(fields.mean_by_label(values, row.to(values.device), images.num_labels))
            rows.append(fields.site_row(site, fields.measure(mu, W), control=SHUFFLED, draw=number))
    return pd.DataFrame(rows)


def _numpy(values: Tensor) -> np.ndarray:
    """To the CPU: float32 as it is, labels and predictions in 16 bits."""
    values = values.detach().cpu()
    return values.numpy() if values.is_floating_point() else values.to(torch.int16).numpy()


def save(result: Measurement, folder: Path) -> None:
    """Write measurement.npz (arrays) and measurement.json (names and where it comes from)."""
    arrays: dict[str, Any] = {}
    for split in result.labels:
        arrays |= {f"labels/{split}": result.labels[split], f"predictions/{split}": result.predictions[split]}
    by_name = dict(result.sites)
    for variant, by_site in result.alternatives.items():
        by_name |= {f"{variant}/{site}": values for site, values in by_site.items()}
    for where, values in by_name.items():
        arrays[f"{where}/W"] = values.W
        if values.extremes is not None:
            arrays[f"{where}/extremes"] = values.extremes
        for name in ("mu", "predictions"):
            arrays |= {f"{where}/{name}/{split}": array for split, array in getattr(values, name).items()}
    np.savez_compressed(folder / FILE, **arrays)
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
    measured: dict[str, dict[str, SiteMeasurement]] = {}
    for where in (key.removesuffix("/W") for key in arrays if key.endswith("/W")):
        first, _, site = where.partition("/")
        variant, site = (first, site) if first in VARIANTS else ("", where)
        measured.setdefault(variant, {})[site] = SiteMeasurement(
            W=arrays[f"{where}/W"],
            extremes=arrays.get(f"{where}/extremes"),
            mu=_by_split(arrays, f"{where}/mu/"),
            predictions=_by_split(arrays, f"{where}/predictions/"),
        )
    tuples: dict[str, Any] = {
        name: tuple(described[name]) if described[name] else None for name in ("names", "groups", "group_names")
    }
    return Measurement(
        measured.pop(""),
        _by_split(arrays, "labels/"),
        _by_split(arrays, "predictions/"),
        about=described["about"],
        alternatives=measured,
        **tuples,
    )


def _by_split(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
