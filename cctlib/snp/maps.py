"""Convolutional networks: SNP of filters, which have a value at every position of a map (Method, sections 5 and 9).

The probe is the siblings' own, the flattened map -> Linear without bias, trained by their recipe. Its problem is that
of the probes of a transformer without SeqPool, on up to 65,536 features; for so many, SGD is quicker than the solver of
`fit`. On 10,000 images and layer 5 of VGG-11, noise and SNR after 10 epochs were within 2% of those after 30, and of
those of L-BFGS after 157 passes.

    accuracy, nodes, by_theta, controls   as in `tables`, for the sites of a convolutional network
    predictions   one row an image: split, label, and what the probe of each site says
    few_labels    the last layer read for fewer labels: number of labels, seed, and the columns of `fields.site_row`
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cctlib import stages
from cctlib.data.images import Images
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
SAMPLE = 1000  # images whose second moments are taken
BATCH, RATE, FALL, MOMENTUM = 100, 0.01, 0.975, 0.975  # the siblings' (Method, section 4)
FEW = (10, 25, 50)  # labels; the siblings find the last layer's clusters to depend little on their number

Maps = Float[Tensor, "image position node"]  # in bf16, as the network gave them
Weights = Float[Tensor, "label position node"]


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """How the layers of a convolutional network are measured."""

    probe: ProbeSettings  # its penalty, precision and memory
    thetas: tuple[float, ...]
    epochs: int = 10  # over the images
    draws: int = 20  # of shuffled labels, and of random bases
    seeds: int = 3  # of sets of fewer labels


def train_probe(
    maps: Maps, labels: Int[Tensor, "image"], num_labels: int, settings: LayerSettings, passes: int = 1
) -> Weights:
    """W by the siblings' recipe: SGD with Nesterov momentum and weight decay, the rate falling from epoch to epoch.

    passes: over the images in an epoch, so that a part of them makes for as many steps as all.

    It begins at 0, so that the directions in which no image differs stay there. Where maps are large, as at the
    first layer, their rate would overshoot; half of one over the largest curvature does not, which at equal logits is
    the largest second moment / K. The device is waited for once, to find that.
    """
    flat, draw = maps.flatten(1), torch.Generator().manual_seed(0)
    x = flat[:: max(1, len(flat) // SAMPLE)].float()
    curvature = torch.linalg.eigvalsh(x @ x.T / len(x))[-1] / num_labels
    rate = (0.5 / curvature).clamp(max=RATE)
    W = torch.zeros(num_labels, flat.shape[1], device=maps.device)
    how: dict[str, Any] = {"momentum": MOMENTUM, "nesterov": True, "weight_decay": settings.probe.penalty}
    optimizer = torch.optim.SGD([W], lr=rate, fused=W.device.type in ("cpu", "cuda"), **how)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, FALL)
    with products_in_half():
        for _ in range(settings.epochs):
            orders = [torch.randperm(len(flat), generator=draw) for _ in range(passes)]
            for rows in torch.cat(orders).to(labels.device).split(BATCH):
                x = flat[rows].float()
                W.grad = error(x @ W.T, labels[rows])[1].T @ x
                optimizer.step()
            schedule.step()
    return W.unflatten(1, maps.shape[1:])


@contextmanager
def products_in_half() -> Iterator[None]:
    """Products of fp32 matrices in the device's fastest way: the noise of SGD is larger than what they lose."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def mean_maps(maps: Maps, labelings: Sequence[Int[Tensor, "image"]], num_labels: int) -> list[Weights]:
    """``mu``, rounded, for each labeling of the images: the mean map of each label (`fields.mean_by_label`)."""
    parts: list[list[Tensor]] = [[] for _ in labelings]
    for positions in fields.blocks(maps.shape[1], maps.shape[0] * maps.shape[2], 2**24):
        pooled = maps[:, positions].flatten(1).double()
        for labels, means in zip(labelings, parts, strict=True):
            means.append(fields.mean_by_label(pooled, labels, num_labels))
    return [fields.rounded(torch.cat(means, dim=1)).unflatten(1, maps.shape[1:]) for means in parts]


def says(maps: Maps, W: Weights) -> Int[Tensor, "image"]:
    """The label that the probe gives each image."""
    return torch.cat([(part.flatten(1).float() @ W.flatten(1).T).argmax(1) for part in maps.split(500)])


def site_tables(
    site: str, W: Weights, maps: Maps, labels: Int[Tensor, "image"], settings: LayerSettings
) -> dict[str, pd.DataFrame]:
    """Rows of nodes, by_theta and controls of one site, from its probe and the maps of the test images."""
    generator, every, W = torch.Generator().manual_seed(0), torch.arange(W.shape[2])[None], fields.rounded(W)
    mu, *by_chance = mean_maps(maps, [labels, *fields.shuffled(labels, settings.draws, generator)], len(W))
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
    """The site read for sets of fewer labels, drawn at random, by probes of their own, trained for as many steps."""
    rows = []
    for count in (*(count for count in FEW if count < num_labels), num_labels):
        for seed in range(settings.seeds if count < num_labels else 1):
            chosen = torch.randperm(num_labels, generator=torch.Generator().manual_seed(seed))[:count].sort().values
            parts = []
            for maps, labels in (train, test):
                of_set = torch.isin(labels.cpu(), chosen).to(maps.device)
                parts.append((maps[of_set], torch.searchsorted(chosen.to(maps.device), labels[of_set])))
            W = train_probe(*parts[0], count, settings, passes=round(num_labels / count))
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
    W = train_probe(kept["train"], labels["train"], num_labels, settings)
    made = site_tables(site, W, kept["test"], labels["test"], settings)
    predictions = [says(kept[split], W).cpu() for split in ("held-out", "test")]
    made["predictions"] = pd.DataFrame({site: torch.cat(predictions).to(torch.int16).numpy()})
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
    convolutions = cast(VGGConfig, model.config).convolutions
    names = layer_sites(convolutions)
    how: dict[str, Any] = {"device": device, "precision": settings.probe.precision}

    def compute(work: Path) -> None:
        network = model.network(device)
        _, _, _, first = next(iter(forward(network, model.normalise, images["train"], taps=names, batch=1, **how)))
        total = sum(len(part) for part in images.values())
        todo = [site for site in names if not (work / f"{_checkpoint(site)}.done").exists()]
        sizes = {site: 2 * first[site][0].numel() * total for site in todo}  # bytes in bf16
        for group in groups(sizes, settings.probe.kept_gib * 2**30):
            kept = {split: kept_tokens(network, model.normalise, part, group, **how) for split, part in images.items()}
            for site in group:
                of_site = {split: tokens[site].values for split, tokens in kept.items()}
                last = site == f"layer{convolutions}/{FILTERS}"
                made = measure_site(site, of_site, images, settings, last)
                stages.write_tables({f"{_checkpoint(site)}-{name}": rows for name, rows in made.items()}, work)
                (work / f"{_checkpoint(site)}.done").touch()
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


def _checkpoint(site: str) -> str:
    """How the names of the files begin that a stage keeps of a finished site until its end."""
    return f"checkpoint-{site.replace('/', '-')}"


def _join(work: Path, names: Sequence[str], images: Mapping[str, Images]) -> None:
    """Make the tables of all sites from those of each."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for site in names:
        for path in sorted(work.glob(f"{_checkpoint(site)}-*.parquet")):
            parts.setdefault(path.stem.rsplit("-", 1)[1], []).append(pd.read_parquet(path))
    judged = {split: images[split].labels.cpu().numpy().astype(np.int16) for split in ("held-out", "test")}
    predictions = pd.concat(parts.pop("predictions"), axis=1)
    predictions.insert(0, "split", np.repeat(list(judged), [len(labels) for labels in judged.values()]))
    predictions.insert(1, "label", np.concatenate(list(judged.values())))
    test = predictions[predictions.split == "test"]
    joined = {name: pd.concat(rows, ignore_index=True) for name, rows in parts.items()}
    joined["accuracy"] = tables.accuracy_table({site: test[site].to_numpy() for site in names}, test.label.to_numpy())
    stages.write_tables(joined | {"predictions": predictions}, work)
