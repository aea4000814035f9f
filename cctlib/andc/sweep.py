"""Many prunings of one network, judged by the same images: the tables behind the claim C4 (Method, sections 7 and 8).

    sweep       the masked layers retrained alone, by given amounts, or nothing retrained
    saturate    the whole network retrained until it stops gaining, beside the dense network trained as long

Each row is one pruning after one amount of retraining; with whole networks it takes minutes on a GPU and an hour on a
processor.
"""

import functools
import hashlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from cctlib import bootstrap, stages
from cctlib.andc import retrain
from cctlib.andc.compact import count
from cctlib.andc.masks import BY_CHANCE, Diagonals, Masks, Pruning, andc_masks, density, input_norms, make_masks
from cctlib.andc.retrain import Reduced, Retraining
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.model.cct import CCT
from cctlib.training.recipes import Recipe
from cctlib.training.trainer import CHECKPOINT

LEAST_GAIN = 0.002  # a retraining that gains less accuracy than this in its last quarter has been long enough

Predictions = Int64[np.ndarray, "image"]


def plan(
    targets: Iterable[str],
    methods: Collection[str],
    seeds: Sequence[int],
    diagonals: Mapping[float, Diagonals],
    encoders: int,
) -> list[Pruning]:
    """All combinations, at each theta of the diagonal sets; methods that draw nothing get the first seed only.

    A target that would lose all weights of a layer at some theta, or whose sites were not measured, is left out and
    named on standard error. Raises `UserError` when nothing is left.
    """
    possible, refused = [], UserError("no target or threshold was given")
    for target in targets:
        for theta, sets in diagonals.items():
            try:
                andc_masks(sets, encoders, target)
            except UserError as error:
                refused = error
                print(f"pruning of {target} at theta {theta:g} is left out: {error}", file=sys.stderr, flush=True)
                continue
            for method in methods:
                of_method = seeds if method in BY_CHANCE else seeds[:1]
                possible += [Pruning(target, method, theta, seed) for seed in of_method]
    if not possible:
        raise UserError(f"nothing can be pruned: {refused}")
    return possible


@dataclass(frozen=True)
class Campaign:
    """What all rows share.

    images: "train", "held-out" and "test". diagonals: `measure.diagonals` by theta, from held-out images. folder: where
    finished rows are kept, as checkpoint-*; a row that is there, made from the same network, masks, images and
    settings, is not done again. how: the masked layers alone, or the whole network by the recipe that it was trained
    with.
    """

    network: CCT
    normalise: Callable[[Tensor], Tensor]
    images: Mapping[str, Images]
    diagonals: Mapping[float, Diagonals]
    folder: Path
    how: Retraining | Recipe
    _prepared: dict[tuple[str, str], Reduced] = field(default_factory=dict, init=False, repr=False)

    @functools.cached_property
    def norms(self) -> dict[str, Float[Tensor, "input"]]:
        """Of what the layers read, on held-out images."""
        return input_norms(self.network, self.normalise, self.images["held-out"], self.how.precision)

    def masks(self, pruning: Pruning) -> dict[str, Tensor]:
        """Raises `UserError` as `make_masks`."""
        norms = self.norms if pruning.method == "wanda" else None
        return make_masks(pruning, self.network, self.diagonals[pruning.theta], norms)

    def row(
        self, name: str, target: str, masks: Masks, epochs: float = 0.0, seed: int = 0
    ) -> tuple[Predictions, float]:
        """Predictions of the network under masks after so many epochs of retraining.

        The second number is the accuracy on held-out images that a whole network gained in the last quarter of it.
        Without masks this is the dense network, from the images as they are prepared for a target.
        """
        # Where the part of the network begins that masks or retraining can change.
        start = "pixels" if isinstance(self.how, Recipe) else "pooled" if target == "fc" else "tokens"
        path = self.folder / f"checkpoint-{name}-{start}-{epochs:g}-{self._key(masks, epochs, seed)}.npy"
        log = path.with_suffix("")
        try:
            predictions = np.load(path)
        except (OSError, ValueError, EOFError):  # there is none, or a damaged one
            predictions = self._compute(start, masks, epochs, seed, log)
            with stages.replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, predictions)
        (log / CHECKPOINT).unlink(missing_ok=True)  # three times the weights, and of no more use
        return predictions, retrain.gain_of_last_quarter(log) if log.is_dir() else np.nan

    def _compute(self, start: str, masks: Masks, epochs: float, seed: int, log: Path) -> Predictions:
        network = retrain.prune(self.network, masks)
        if epochs > 0:
            how = self._retraining(epochs, seed)
            if isinstance(how, Recipe):
                retrain.retrain_whole(network, masks, self.images["train"], self.images["held-out"], how, log)
            else:
                generator = torch.Generator().manual_seed(seed)
                retrain.retrain_layers(network, masks, self._reduced("train", start), epochs, how, generator)
        return self.predict(network, start)

    def _retraining(self, epochs: float, seed: int) -> Retraining | Recipe:
        return retrain.retraining_recipe(self.how, int(epochs), seed) if isinstance(self.how, Recipe) else self.how

    def predict(self, network: CCT, start: str) -> Predictions:
        """Labels of the test images by a network that is the campaign's own up to `start` (see `retrain.reduce`)."""
        return retrain.predict(network, self._reduced("test", start), self.how.precision).numpy()

    def _reduced(self, split: str, start: str) -> Reduced:
        """Images as far as nothing changes; computed when a row first needs them."""
        if (split, start) not in self._prepared:
            images, precision = self.images[split], self.how.precision
            self._prepared[split, start] = retrain.reduce(self.network, self.normalise, images, start, precision)
        return self._prepared[split, start]

    def _key(self, masks: Masks, epochs: float, seed: int) -> str:
        """A hash of all that determines a row, beside the start that its name has."""
        inputs: dict[str, object] = {
            "weights": self._weights,
            "masks": {name: tensors_hash([mask]) for name, mask in masks.items()},
            "test": self.images["test"].fingerprint,
            "precision": self.how.precision,
        }
        if epochs > 0:
            learned = {split: self.images[split].fingerprint for split in ("train", "held-out")}
            inputs |= {"how": asdict(self._retraining(epochs, seed)), "epochs": epochs, "seed": seed, **learned}
        return stages.sha256_json(inputs)[:12]

    @functools.cached_property
    def _weights(self) -> str:
        return tensors_hash(tensor for _, tensor in sorted(self.network.state_dict().items()))


def tensors_hash(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over shapes and contents, in hex."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def sweep(campaign: Campaign, prunings: Iterable[Pruning], epochs: Sequence[float] = (0.0,)) -> pd.DataFrame:
    """Evaluate every pruning after every amount of retraining of the masked layers.

    Returns a row for each pruning and amount of retraining, with columns
      target, method, theta, seed, epochs: what was done;
      density: share of the target's weights that is kept;
      accuracy, accuracy_dense: share of the test images that the pruned and the dense network get right;
      low, high: 95% interval of the accuracy by the bootstrap over images, from the resamples' differences to the
      dense network, so that low - accuracy_dense and high - accuracy_dense bound the change;
      parameters, macs, bytes and dense_parameters, dense_macs, dense_bytes: the cost of the whole network, pruned and
      dense (`compact.Cost`);
      images, trained_images: test images, and those in a whole pass of retraining.
    Raises `UserError` for a mask that cannot be made, or where there are no images.
    """
    tables = [_rows(campaign, masks, amount) for masks in _groups(campaign, prunings) for amount in epochs]
    return pd.concat(tables, ignore_index=True).drop(columns=["gain", "gain_dense"])


def saturate(campaign: Campaign, prunings: Iterable[Pruning], lengths: Sequence[int]) -> pd.DataFrame:
    """Retrain every pruned network, and the dense one beside it, until it stops gaining.

    lengths: epochs to try, shortest first. The prunings of one target and theta, and the dense network, are all
    retrained for the first length in whose last quarter none gains `LEAST_GAIN`; for the last one, where some do.

    Returns a row for each pruning, with the columns of `sweep`, where the dense network is trained as long, and
      accuracy_before, accuracy_dense_before: of both, before any retraining;
      gain, gain_dense: of both, in the last quarter, on held-out images; saturated: whether none gained too much.
    Raises `UserError` as `sweep`.
    """
    tables = []
    for masks in _groups(campaign, prunings):
        for epochs in lengths:
            table = _rows(campaign, masks, epochs)
            saturated = table[["gain", "gain_dense"]].max(axis=None, skipna=False) < LEAST_GAIN
            if saturated:
                break
        before = _rows(campaign, masks, 0.0)
        table = table.assign(
            accuracy_before=before.accuracy, accuracy_dense_before=before.accuracy_dense, saturated=saturated
        )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _groups(campaign: Campaign, prunings: Iterable[Pruning]) -> Iterable[dict[Pruning, Masks]]:
    """The masks of prunings that follow each other and have one target and theta, group by group."""
    groups = [list(group) for _, group in groupby(prunings, lambda pruning: (pruning.target, pruning.theta))]
    for group in tqdm(groups, desc="pruning", unit="target"):
        yield {pruning: campaign.masks(pruning) for pruning in group}


def _rows(campaign: Campaign, masks: Mapping[Pruning, Masks], epochs: float) -> pd.DataFrame:
    """The rows of one target and theta after so many epochs: see `sweep` and `saturate`."""
    target = next(iter(masks)).target
    whole = isinstance(campaign.how, Recipe)
    dense, gain_dense = campaign.row("dense", target, {}, epochs if whole else 0.0)
    rows = [campaign.row(pruning.name, target, of_one, epochs, pruning.seed) for pruning, of_one in masks.items()]
    images = campaign.images["test"]
    what = [
        asdict(pruning) | {"epochs": float(epochs), "density": density(of_one)} for pruning, of_one in masks.items()
    ]
    shares = accuracies(np.stack([predictions for predictions, _ in rows]), dense, images.labels.cpu())
    costs = pd.DataFrame([asdict(count(campaign.network, of_one)) for of_one in masks.values()])
    dense_cost = {f"dense_{name}": value for name, value in asdict(count(campaign.network, {})).items()}
    return pd.concat([pd.DataFrame(what), shares, costs], axis=1).assign(
        **dense_cost,
        images=len(images),
        trained_images=len(campaign.images["train"]),
        gain=[gain for _, gain in rows],
        gain_dense=gain_dense,
    )


def accuracies(
    predictions: Int64[np.ndarray, "row image"], dense: Predictions, labels: Int64[Tensor, "image"]
) -> pd.DataFrame:
    """Columns accuracy, accuracy_dense, low and high (see `sweep`), from the same resamples at every call."""
    correct, dense_correct = (torch.from_numpy(part == labels.numpy()).double() for part in (predictions, dense))
    weights = bootstrap.resample(labels)
    change: Float[Tensor, "3 row"] = bootstrap.estimate((correct - dense_correct).T / len(labels), weights)
    accuracy_dense = dense_correct.mean().item()
    low, high = (accuracy_dense + change[1:].double()).clamp(0, 1).numpy()
    return pd.DataFrame(
        {"accuracy": correct.mean(1).numpy(), "accuracy_dense": accuracy_dense, "low": low, "high": high}
    )
