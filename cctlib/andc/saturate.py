"""Pruned networks, retrained until they stop gaining, beside the dense network trained as long (Method, section 7).

This is what C4 is judged by. A row takes minutes on a GPU and an hour on a processor, so it is a campaign: each row is
kept as soon as it is done, and one that was killed goes on from its last epoch.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor

from cctlib import stages
from cctlib.andc.masks import Diagonals, Masks, Pruning, density, input_statistics, make_masks
from cctlib.andc.retrain import SATURATED, gain_of_last_quarter, masked, retrain_whole, retraining_recipe
from cctlib.andc.sweep import check, kept_array, tensors_hash, with_accuracies
from cctlib.data.images import Images
from cctlib.model.cct import CCT
from cctlib.model.forward import forward
from cctlib.snp import fields
from cctlib.training.recipes import Recipe
from cctlib.training.trainer import CHECKPOINT


@dataclass(frozen=True)
class Saturation:
    """What a campaign retrains. lengths: epochs to try, shortest first; train, test: images per label, None for all."""

    targets: tuple[str, ...] = ("all", "fc", "proj", "linear1", "linear2")
    methods: tuple[str, ...] = ("andc", "random", "magnitude", "wanda")
    thetas: tuple[float, ...] = (fields.THETA,)
    seeds: tuple[int, ...] = (0, 1, 2)  # of random masks
    lengths: tuple[int, ...] = (4, 8, 16)
    train: int | None = None
    test: int | None = None


Predictions = Int64[np.ndarray, "image"]


def saturate(
    campaign: "Campaign", prunings: Sequence[Pruning], diagonals: Mapping[float, Diagonals], lengths: Sequence[int]
) -> pd.DataFrame:
    """Retrain every pruned network until it stops gaining.

    lengths: epochs to try, shortest first. The prunings of one target and theta, and the dense network beside them, are
    all retrained for the first length in whose last quarter none gains `SATURATED`; for the last one, where some do.

    Returns a row for each pruning, with columns
      target, method, theta, seed, epochs, density: what was done;
      accuracy: share of the test images; accuracy_dense: of the dense network, trained as long; low, high: 95% interval
      of the accuracy by the bootstrap over images, from the resamples' differences to that network;
      accuracy_before, accuracy_dense_before: of both, before any retraining;
      gain, gain_dense: of both, in the last quarter, on held-out images; saturated: whether none gained too much;
      images: test images.
    Raises `UserError` before anything long is started, as `sweep.sweep`.
    """
    network, images = campaign.network, campaign.images
    check(network, prunings, diagonals, images["held-out"], images["train"], lengths)
    inputs = input_statistics(network, campaign.normalise, images["held-out"], device=campaign.device)
    tables = []
    for target, theta in dict.fromkeys((pruning.target, pruning.theta) for pruning in prunings):
        group = [pruning for pruning in prunings if (pruning.target, pruning.theta) == (target, theta)]
        masks = {pruning: make_masks(pruning, network, diagonals[theta], inputs) for pruning in group}
        tables.append(_equally_long(campaign, masks, lengths))
    return pd.concat(tables, ignore_index=True)


def _equally_long(campaign: "Campaign", masks: Mapping[Pruning, Masks], lengths: Sequence[int]) -> pd.DataFrame:
    """The rows of one target and theta (see `saturate`)."""
    for epochs in lengths:
        dense, gain_dense = campaign.retrained("dense", {}, epochs)
        retrained = [
            campaign.retrained(pruning.name, of_one, epochs, pruning.seed) for pruning, of_one in masks.items()
        ]
        gains = [gain for _, gain in retrained]
        saturated = max(gain_dense, *gains) < SATURATED
        if saturated:
            break
    truth = campaign.images["test"].labels.cpu().numpy()
    before = [(campaign.predictions(of_one) == truth).mean() for of_one in masks.values()]
    rows = pd.DataFrame([asdict(pruning) for pruning in masks]).assign(
        epochs=float(epochs),
        density=[density(of_one) for of_one in masks.values()],
        accuracy_before=before,
        accuracy_dense_before=(campaign.predictions({}) == truth).mean(),
        gain=gains,
        gain_dense=gain_dense,
        saturated=saturated,
        images=len(truth),
    )
    predictions = np.stack([of_row for of_row, _ in retrained])
    return with_accuracies(rows, predictions, np.broadcast_to(dense, predictions.shape), truth)


@dataclass(frozen=True)
class Campaign:
    """What all rows share. images: train, held-out and test. recipe: what the network was trained with."""

    network: CCT
    normalise: Callable[[Tensor], Tensor]
    images: Mapping[str, Images]
    recipe: Recipe
    folder: Path
    device: torch.device

    def retrained(self, name: str, masks: Masks, epochs: int, seed: int = 0) -> tuple[Predictions, float]:
        """The network's predictions after so many epochs of retraining, and what it gained in the last quarter.

        They are read from the row's folder where they are done: its name has a hash of all that decides them.
        """
        recipe = retraining_recipe(self.recipe, epochs, seed)
        given = [part.fingerprint for part in self.images.values()]
        tensors = [tensor for _, tensor in sorted(self.network.state_dict().items())] + list(masks.values())
        key = stages.sha256_json([asdict(recipe), given, tensors_hash(tensors)])[:12]
        folder = self.folder / f"{name}-{epochs}-{key}"

        def compute() -> Predictions:
            network = copy.deepcopy(self.network)
            images = self.images["train"], self.images["held-out"]
            retrain_whole(network, masks, *images, recipe, folder, device=self.device)
            return self.predictions({}, network)

        predictions = kept_array(folder / "predictions.npy", compute)
        (folder / CHECKPOINT).unlink(missing_ok=True)  # three times the weights, and of no more use
        return predictions, gain_of_last_quarter(folder)

    def predictions(self, masks: Masks, network: CCT | None = None) -> Predictions:
        """The label that a network, or the campaign's own under masks, gives to each test image."""
        network = network or self.network
        with masked(network, masks) if masks else nullcontext():
            passes = forward(
                network, self.normalise, self.images["test"], device=self.device, precision=self.recipe.precision
            )
            return torch.cat([logits.argmax(1) for _, _, logits, _ in passes]).cpu().numpy()
