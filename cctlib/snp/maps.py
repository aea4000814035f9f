"""Convolutional networks: SNP of filters, which have a value at every position of a map (Method, sections 5 and 9).

The probe is the siblings' own, the flattened map -> Linear without bias, and minimises what the probes of a transformer
do, mean cross-entropy + penalty / 2 |W|^2 (see `fit`). It is softmax regression on up to 65,536 features, most of which
the penalty holds at nothing: maps are smooth.

    accuracy, nodes, by_theta, controls   as in `tables`, for the sites of a convolutional network
    predictions   one row an image: split, label, and what the probe of each site says
    few_labels    the last layer read for fewer labels: number of labels, seed, and the columns of `fields.site_row`
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from cctlib import stages
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.model.forward import forward
from cctlib.model.manifest import Model
from cctlib.model.precision import arithmetic
from cctlib.model.sites import FILTERS, layer_sites
from cctlib.model.vgg import VGGConfig
from cctlib.snp import controls, fields, tables
from cctlib.snp.fit import error
from cctlib.snp.measure import SHUFFLED
from cctlib.snp.probe import ProbeSettings, groups, kept_tokens

NAMES = ("accuracy", "nodes", "by_theta", "controls", "predictions", "few_labels")
ABOUT = "layers.json"  # data set, model, weights and profile, for the line under a figure
SAMPLE = 1000  # images whose second moments make the axes
NEGLIGIBLE = 0.01  # share of the penalty
FEW = (10, 25, 50)  # labels; the siblings find the last layer's clusters to depend little on their number

Maps = Float[Tensor, "image position node"]  # in bf16, as the network gave them
Weights = Float[Tensor, "label position node"]


@dataclass(frozen=True)
class LayerSettings:
    """How the layers of a convolutional network are measured."""

    probe: ProbeSettings
    thetas: tuple[float, ...]
    draws: int = 20  # of shuffled labels, and of random bases
    seeds: int = 3  # of sets of fewer labels


def converge(maps: Maps, labels: Int[Tensor, "image"], num_labels: int, settings: ProbeSettings) -> tuple[Weights, int]:
    """W at the minimum, and the passes over the images that it took; the device is waited for once a pass.

    It has converged when a step of L-BFGS lowers the loss, which is about 1, by less than the settings' tolerance. At
    equal logits the Hessian is the second moments / K + penalty, which are taken to be those of positions times those
    of nodes. Along axes where the penalty outweighs them by `NEGLIGIBLE`, W stays 0: most of a large map's.
    """
    U, V, moments = _axes(maps)
    kept = moments / num_labels > NEGLIGIBLE * settings.penalty
    features = torch.cat([_along(maps[rows], U, V, kept) for rows in _slices(maps, maps[0].numel())])
    scale = (moments[kept] / num_labels + settings.penalty).rsqrt()
    Z = torch.zeros(num_labels, len(scale), device=maps.device)
    passes = 0

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        W, loss, gradient = Z * scale, Z.new_zeros(()), torch.zeros_like(Z)
        for rows in _slices(features, len(scale)):
            x = features[rows].float()
            logits = x @ W.T
            loss += cross_entropy(logits, labels[rows], reduction="sum")
            gradient += error(logits, labels[rows]).T @ x * len(x)
        Z.grad = (gradient / len(maps) + settings.penalty * W) * scale
        return loss / len(maps) + settings.penalty / 2 * W.square().sum()

    how: dict[str, Any] = {
        "tolerance_grad": 0,
        "tolerance_change": settings.tolerance,
        "line_search_fn": "strong_wolfe",
    }
    torch.optim.LBFGS([Z], max_iter=settings.most_passes, history_size=10, **how).step(torch.no_grad()(closure))
    W = torch.zeros(num_labels, *maps.shape[1:], device=maps.device)
    W[:, kept] = Z * scale
    return U @ W @ V.T, passes


def _axes(
    maps: Maps,
) -> tuple[Float[Tensor, "position position"], Float[Tensor, "node node"], Float[Tensor, "position node"]]:
    """Axes of positions and of nodes in which their second moments are diagonal, and the moments along each pair."""
    x = maps[:: max(1, len(maps) // SAMPLE)].float()
    of_positions, of_nodes = torch.einsum("isn,itn->st", x, x) / len(x), torch.einsum("isn,ism->nm", x, x) / len(x)
    (a, U), (b, V) = (torch.linalg.eigh(moments) for moments in (of_positions, of_nodes))
    return U, V, a.clamp(min=0)[:, None] * b.clamp(min=0) / of_nodes.trace().clamp(min=1e-12)


def _along(maps: Maps, U: Tensor, V: Tensor, kept: Bool[Tensor, "position node"]) -> Float[Tensor, "image axis"]:
    """The maps along the kept axes, in bf16."""
    rows, columns = kept.any(1), kept.any(0)
    turned = torch.tensordot(torch.tensordot(maps.float(), U[:, rows], ([1], [0])), V[:, columns], ([1], [0]))
    return turned[:, kept[rows][:, columns]].bfloat16()


def _slices(values: Tensor, entries: int) -> list[slice]:
    """Slices of images, so many that they stay in a processor's cache, or keep a GPU busy."""
    return fields.blocks(len(values), entries, 2**23 if values.device.type == "cpu" else 2**28)


def mean_maps(maps: Maps, labelings: Sequence[Int[Tensor, "image"]], num_labels: int) -> list[Weights]:
    """``mu``, rounded, for each labeling of the images: the mean map of each label (`fields.mean_by_label`)."""
    parts: list[list[Tensor]] = [[] for _ in labelings]
    for positions in fields.blocks(maps.shape[1], maps.shape[0] * maps.shape[2], 2**24):
        pooled = maps[:, positions].flatten(1).to(fields.wide(maps.device))
        for labels, means in zip(labelings, parts, strict=True):
            means.append(fields.mean_by_label(pooled, labels, num_labels))
    return [fields.rounded(torch.cat(means, dim=1)).unflatten(1, maps.shape[1:]) for means in parts]


def says(maps: Maps, W: Weights) -> Int[Tensor, "image"]:
    """The label that the probe gives each image."""
    slices = _slices(maps, maps[0].numel())
    return torch.cat([(maps[rows].flatten(1).float() @ W.flatten(1).T).argmax(1) for rows in slices])


def site_tables(
    site: str, W: Weights, maps: Maps, labels: Int[Tensor, "image"], settings: LayerSettings
) -> dict[str, pd.DataFrame]:
    """Rows of nodes, by_theta and controls of one site, from its probe and the maps of the test images."""
    generator, every, W = torch.Generator().manual_seed(0), torch.arange(W.shape[2])[None], fields.rounded(W)
    shuffled = fields.shuffled(labels.cpu(), settings.draws, generator).to(maps.device)
    mu, *by_chance = mean_maps(maps, [labels, *shuffled], len(W))
    by_theta = [fields.measure_maps(mu, W, theta) for theta in settings.thetas]
    rows = [
        fields.site_row(site, fields.measure_maps(chance, W), control=SHUFFLED, draw=draw)
        for draw, chance in enumerate(by_chance)
    ]
    flat_mu, flat_W = mu.flatten(0, 1).cpu(), W.flatten(0, 1).cpu()
    for draw in range(settings.draws):  # the same rotation at every position
        turned_mu, turned_W = controls.rotated(flat_mu, flat_W, every, generator)
        turned = fields.measure_maps(turned_mu.view(W.shape), turned_W.view(W.shape))
        rows.append(fields.site_row(site, turned, control=controls.BASIS, draw=draw))
    return {
        "nodes": pd.concat([tables.nodes_table(site, statistics) for statistics in by_theta], ignore_index=True),
        "by_theta": pd.DataFrame([fields.site_row(site, statistics) for statistics in by_theta]),
        "controls": pd.DataFrame(rows),
    }


def few_labels(
    site: str, train: tuple[Maps, Tensor], test: tuple[Maps, Tensor], num_labels: int, settings: LayerSettings
) -> pd.DataFrame:
    """The site read for sets of fewer labels, drawn at random, by probes of their own."""
    rows = []
    for count in (*(count for count in FEW if count < num_labels), num_labels):
        for seed in range(settings.seeds if count < num_labels else 1):
            chosen = torch.randperm(num_labels, generator=torch.Generator().manual_seed(seed))[:count].sort().values
            parts = []
            for maps, labels in (train, test):
                of_set = torch.isin(labels.cpu(), chosen).to(maps.device)
                parts.append((maps[of_set], torch.searchsorted(chosen.to(maps.device), labels[of_set])))
            W, _ = converge(*parts[0], count, settings.probe)
            right = (says(parts[1][0], W) == parts[1][1]).double().mean().item()
            [mu] = mean_maps(parts[1][0], [parts[1][1]], count)
            statistics = fields.measure_maps(mu, fields.rounded(W))
            rows.append(fields.site_row(site, statistics, number=count, seed=seed, accuracy=right))
    return pd.DataFrame(rows)


def measure_site(
    site: str, kept: Mapping[str, Maps], images: Mapping[str, Images], settings: LayerSettings, last: bool
) -> dict[str, pd.DataFrame]:
    """All rows of one site. kept, images: by split."""
    labels = {split: part.labels.to(kept[split].device) for split, part in images.items()}
    num_labels = images["train"].num_labels
    W, passes = converge(kept["train"], labels["train"], num_labels, settings.probe)
    made = site_tables(site, W, kept["test"], labels["test"], settings)
    predictions = [says(kept[split], W).cpu() for split in ("held-out", "test")]
    made["predictions"] = pd.DataFrame({site: torch.cat(predictions).to(torch.int16).numpy()})
    made["history"] = pd.DataFrame({"site": [site], "passes": [passes]})
    if last:
        train, test = ((kept[split], labels[split]) for split in ("train", "test"))
        made["few_labels"] = few_labels(site, train, test, num_labels, settings)
    return made


def layers_stage(
    model: Model,
    images: Mapping[str, Images],
    settings: LayerSettings,
    about: Mapping[str, str],
    home: Path,
    device: torch.device,
) -> Path:
    """Measure the layers of a convolutional network; the folder of the tables in `NAMES`, with `about` in `ABOUT`.

    images: train, held-out and test. A run that was killed goes on behind the last site that it finished.
    """
    if not isinstance(model.config, VGGConfig):
        raise UserError(f"the model in {model.folder} is a {model.name}; layers are those of a convolutional network")
    convolutions = model.config.convolutions
    names = layer_sites(convolutions)
    how: dict[str, Any] = {"device": device, "precision": settings.probe.precision}

    def finished(work: Path, site: str) -> Path:
        return work / f"checkpoint-{site.replace('/', '-')}"

    def compute(work: Path) -> None:
        network = model.network(device)
        _, _, _, first = next(iter(forward(network, model.normalise, images["train"], taps=names, batch=1, **how)))
        total = sum(len(part) for part in images.values())
        todo = [site for site in names if not finished(work, site).with_suffix(".done").exists()]
        sizes = {site: 2 * first[site][0].numel() * total for site in todo}  # bytes in bf16
        for group in groups(sizes, settings.probe.kept_gib * 2**30):
            kept = {split: kept_tokens(network, model.normalise, part, group, **how) for split, part in images.items()}
            for site in group:
                of_site = {split: tokens[site].values for split, tokens in kept.items()}
                last = site == f"layer{convolutions}/{FILTERS}"
                made = measure_site(site, of_site, images, settings, last)
                stages.write_tables({f"{finished(work, site).name}-{name}": rows for name, rows in made.items()}, work)
                finished(work, site).with_suffix(".done").touch()
        _join(work, names, images)
        stages.write_json(work / ABOUT, dict(about))

    return stages.stage(
        home,
        "layers",
        compute,
        room="snp",
        reads={"model": model.identity, **{split: part.fingerprint for split, part in images.items()}},
        settings=asdict(settings) | {"about": about},
        arithmetic=arithmetic(device, settings.probe.precision),
        device=device,
    )


def _join(work: Path, names: Sequence[str], images: Mapping[str, Images]) -> None:
    """Make the tables of all sites from those of each."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for site in names:
        for path in sorted(work.glob(f"checkpoint-{site.replace('/', '-')}-*.parquet")):
            parts.setdefault(path.stem.rsplit("-", 1)[1], []).append(pd.read_parquet(path))
    judged = {split: images[split].labels.cpu().numpy().astype(np.int16) for split in ("held-out", "test")}
    predictions = pd.concat(parts.pop("predictions"), axis=1)
    predictions.insert(0, "split", np.repeat(list(judged), [len(labels) for labels in judged.values()]))
    predictions.insert(1, "label", np.concatenate(list(judged.values())))
    test = predictions[predictions.split == "test"]
    joined = {name: pd.concat(rows, ignore_index=True) for name, rows in parts.items()}
    joined["accuracy"] = tables.accuracy_table({site: test[site].to_numpy() for site in names}, test.label.to_numpy())
    stages.write_tables(joined | {"predictions": predictions}, work)
