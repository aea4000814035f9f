"""AFCC: how the siblings prune a convolutional network by what its filters recognise (Method, section 9).

ANDC is its form for transformers. The kernel from a filter to one of the next layer stays iff their diagonal sets share
a label; the weights from a filter of the last layer to an output stay iff the filter has that label. Sets come from
held-out images, by the probes of `snp.maps`; towards the outputs by the network's own linear layer. Every other method
keeps as many kernels of each layer.

Like the siblings, the last layers are pruned, and retrained while the others stay as they are.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cctlib import stages
from cctlib.andc import retrain
from cctlib.andc.masks import BY_CHANCE, Diagonals, Masks, connected, density, mask_of
from cctlib.andc.retrain import Retraining
from cctlib.andc.sweep import accuracies
from cctlib.data.images import Images
from cctlib.model.manifest import Model
from cctlib.model.precision import arithmetic
from cctlib.model.sites import FILTERS
from cctlib.model.vgg import VGG
from cctlib.profiles import FULL
from cctlib.snp import fields, maps
from cctlib.snp.probe import kept_tokens
from cctlib.study import Layers, load_images

TABLE = "filters"
METHODS = ("andc", "random", "magnitude")  # the first is AFCC: one rule, two names


@dataclass(frozen=True)
class FilterPruning:
    """What is pruned, and how much is computed.

    convolutions: how many of the last ones are pruned together with the linear layer behind them. seeds: of random
    masks. epochs: of retraining the pruned layers. probe, train, test: images per label, None for all.
    """

    convolutions: tuple[int, ...] = (0, 1, 2, 3)
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: tuple[float, ...] = (0.0, 1.0)
    probe: int | None = 200
    train: int | None = 100
    test: int | None = None


def diagonal_sets(model: Model, images: Mapping[str, Images], layers: int, device: torch.device) -> Diagonals:
    """Labels on the diagonals of the filters behind ReLU, in the last `layers` layers; by site, [node, label].

    "fc": those of the last layer's filters as the network itself reads them, pooled, by its linear layer.
    images: "probe", which trains the probes, and "held-out".
    """
    network, settings = model.network(device), maps.LayerSettings(probe=FULL.probe, thetas=())
    assert isinstance(network, VGG)
    last, num_labels = network.config.convolutions, images["probe"].num_labels
    names = [f"layer{m}/{FILTERS}" for m in range(last - layers + 1, last + 1)]
    how: dict[str, Any] = {"device": device, "precision": settings.probe.precision}
    kept = {
        split: kept_tokens(network, model.normalise, images[split], names, **how) for split in ("probe", "held-out")
    }
    sets = {}
    for site in names:
        learned, decides = kept["probe"][site], kept["held-out"][site]
        W = maps.train_probe(learned.values, learned.labels, num_labels, settings)
        sets[site] = _recognised(W, decides.values, decides.labels)
    read = network.fc.weight.unflatten(1, (-1, network.config.side**2)).transpose(1, 2)
    sets["fc"] = _recognised(read, _pooled(decides.values, network.config.side), decides.labels)
    return sets


def _recognised(
    W: Float[Tensor, "label position node"], values: Float[Tensor, "image position node"], labels: Int[Tensor, "image"]
) -> Bool[Tensor, "node label"]:
    [mu] = maps.mean_maps(values, [labels], len(W))
    return (fields.measure_maps(mu, fields.rounded(W)).assignment >= 0).cpu()


def _pooled(values: Float[Tensor, "image position node"], side: int) -> Float[Tensor, "image _ node"]:
    """The last layer's maps as the linear layer reads them: see `VGG.forward`."""
    square = values.transpose(1, 2).unflatten(2, (math.isqrt(values.shape[1]), -1))
    return F.adaptive_avg_pool2d(F.max_pool2d(square, 2), side).flatten(2).transpose(1, 2)


def connections(sets: Diagonals, network: VGG, convolutions: int) -> dict[str, Bool[Tensor, "output input"]]:
    """Which filters stay connected to which of the next layer, or to which outputs; by the name of the weight."""
    last = network.config.convolutions
    of_layer = {m: sets[f"layer{m}/{FILTERS}"] for m in range(last - convolutions, last + 1)}
    kept = {f"layers.{m - 1}.conv.weight": connected(of_layer[m - 1], of_layer[m]) for m in list(of_layer)[1:]}
    return kept | {"fc.weight": sets["fc"].T}


def kernel_masks(
    network: VGG, afcc: Mapping[str, Bool[Tensor, "output input"]], method: str, seed: int
) -> dict[str, Bool[Tensor, "_ _ *kernel"]]:
    """Masks of weights by one of `METHODS`: of whole kernels, or of all weights from a filter to an output."""
    generator, masks = torch.Generator().manual_seed(seed), {}
    for name, kept in afcc.items():
        weight = network.get_parameter(name).detach().cpu()
        size = weight.abs().reshape(*kept.shape, -1).sum(2)
        of_pairs = mask_of(method, kept, size, None, generator)
        masks[name] = of_pairs.repeat_interleave(weight.numel() // kept.numel(), dim=1).view_as(weight)
    return masks


def filter_table(
    model: Model, sets: Diagonals, images: Mapping[str, Images], settings: FilterPruning, device: torch.device
) -> pd.DataFrame:
    """One row a pruning and length of retraining: convolutions, method, seed, epochs, density, and the columns of
    `sweep.accuracies`, where the dense network has the same layers retrained as long; images: of the test.
    """
    network = model.network(device)
    assert isinstance(network, VGG)
    train, test = (retrain.reduce(network, model.normalise, images[split], "pixels") for split in ("train", "test"))

    def says(masks: Masks, epochs: float, seed: int) -> np.ndarray:
        pruned = retrain.prune(network, masks)
        if epochs:
            generator = torch.Generator().manual_seed(seed)
            retrain.retrain_layers(pruned, masks, train, epochs, Retraining(), generator)
        return retrain.predict(pruned, test).numpy()

    whole, tables, seeds = says({}, 0.0, 0), [], settings.seeds
    todo = [(method, seed) for method in METHODS for seed in (seeds if method in BY_CHANCE else seeds[:1])]
    for convolutions in tqdm(settings.convolutions, desc="filters", unit="layers"):
        afcc = connections(sets, network, convolutions)
        masks = [kernel_masks(network, afcc, method, seed) for method, seed in todo]
        unpruned = {name: torch.ones_like(mask) for name, mask in masks[0].items()}
        rows = pd.DataFrame(todo, columns=["method", "seed"])
        rows = rows.assign(convolutions=convolutions, density=list(map(density, masks)))
        for epochs in settings.epochs:
            dense = says(unpruned, epochs, seeds[0]) if epochs else whole
            predictions = [says(of_one, epochs, seed) for of_one, (_, seed) in zip(masks, todo, strict=True)]
            judged = accuracies(np.stack(predictions), dense, images["test"].labels.cpu())
            tables.append(pd.concat([rows.assign(epochs=epochs), judged], axis=1))
    return pd.concat(tables, ignore_index=True).assign(images=len(images["test"]))


def with_pruning(layers: Layers) -> Layers | None:
    """The same layers with the table `TABLE` and what made it; None where it does not ship with their model."""
    folder = layers.model.folder
    if not (folder / f"{TABLE}.parquet").is_file():
        return None
    record = stages.read_json(folder / f"{TABLE}.{stages.PROVENANCE}")
    made = layers.provenance | {key: record[key] for key in ("commit", "device")}
    return replace(layers, tables={**layers.tables, **stages.read_tables(folder, [TABLE])}, provenance=made)


def filters_stage(model: Model, dataset: str, settings: FilterPruning, runs: Path, device: torch.device) -> Path:
    """The folder of the table `TABLE`. Raises `UserError` where the images are missing."""
    counts = {"probe": settings.probe, "train": settings.train, "held-out": None, "test": settings.test}
    images = {
        name: load_images(dataset, "train" if name == "probe" else name, count, model) for name, count in counts.items()
    }

    def compute(work: Path) -> None:
        sets = diagonal_sets(model, images, max(settings.convolutions) + 1, device)
        stages.write_tables({TABLE: filter_table(model, sets, images, settings, device)}, work)

    return stages.stage(
        runs,
        TABLE,
        compute,
        room="andc",
        reads={"model": model.identity, **{name: part.fingerprint for name, part in images.items()}},
        settings=asdict(settings),
        arithmetic=arithmetic(device),
        device=device,
    )
