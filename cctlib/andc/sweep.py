"""Many prunings of one network, evaluated on the same images: the table behind the claim C4 (Method,
sections 7 and 8).

Each row is one pruning after one amount of retraining. A row is kept in a file of its own as soon as it is
done, so a sweep that was killed goes on where it was. Predictions are kept, not accuracies: intervals come
from them afterwards, from the same resamples of images for all rows and for the dense network.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm.auto import tqdm

from cctlib import bootstrap, stages
from cctlib.andc import compact, sparsefile
from cctlib.andc import masks as andc
from cctlib.andc.masks import BY_CHANCE, Diagonals, Masks, Pruning
from cctlib.andc.retrain import Reduced, Retraining, masked, predict, reduce, retrain
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.model.cct import CCT


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    table: a row for each pruning and amount of retraining, with columns
      target, method, theta, seed, epochs: what was done;
      density: share of the target's weights that is kept;
      accuracy, accuracy_dense: share of the images that the pruned and the dense network get right;
      low, high: 95% interval of the accuracy by the bootstrap over images, from the resamples' differences
      to the
        dense network, so that low - accuracy_dense and high - accuracy_dense bound the change;
      parameters, macs, bytes: of the whole pruned network (`compact.count`; bytes of its file, float16).
    predictions: [row, image] and dense [image], labels as integers. cost, bytes: of the dense network.
    """

    table: pd.DataFrame
    predictions: Int64[np.ndarray, "row image"]
    dense: Int64[np.ndarray, "image"]
    cost: compact.Cost
    bytes: int


def plan(
    targets: Iterable[str], methods: Iterable[str], thetas: Iterable[float], seeds: Sequence[int] = (0, 1, 2)
) -> list[Pruning]:
    """All combinations; methods that draw nothing get the first seed only."""
    return [
        Pruning(target, method, theta, seed)
        for target in targets
        for theta in thetas
        for method in methods
        for seed in (seeds if method in BY_CHANCE else seeds[:1])
    ]


def sweep(
    network: CCT,
    normalise: Callable[[Tensor], Tensor],
    prunings: Sequence[Pruning],
    diagonals: Mapping[float, Diagonals],
    test: Images,
    *,
    device: torch.device | str,
    held_out: Images | None = None,
    train: Images | None = None,
    epochs: Sequence[float] = (0.0,),
    settings: Retraining | None = None,
    folder: Path | None = None,
    batch: int = 128,
) -> Sweep:
    """Evaluate every pruning after every amount of retraining; `network` is as before when it is done.

    diagonals: `measure.diagonals` by theta, from held-out images. held_out: for Wanda. train: for retraining,
    needed where `epochs` are not all zero. folder: where finished rows are kept, as checkpoint-*.npz; a row
    found there, made from the same network, masks, images and settings, is not done again.
    Raises `UserError` before anything long is started: for a mask that cannot be made, or images that are
    missing.
    """
    settings = settings or Retraining()
    _check(network, prunings, diagonals, held_out, train, epochs)
    run = _Run(network, normalise, test, train, settings, torch.device(device), folder, batch)
    norms = None
    if held_out is not None and any(pruning.method == "wanda" for pruning in prunings):
        norms = andc.input_norms(network, normalise, held_out, device=device, batch=batch, precision=settings.precision)
    dense = run.dense(prunings[0].target)
    rows, predictions = [], []
    with tqdm(total=len(prunings) * len(epochs), desc="pruning", unit="row") as bar:
        for pruning in prunings:
            masks = andc.make_masks(pruning, network, diagonals[pruning.theta], norms)
            for amount in epochs:
                found = run.row(pruning, masks, float(amount))
                predictions.append(found["predictions"])
                about = {"epochs": float(amount), "density": andc.density(masks)}
                rows.append({**asdict(pruning), **about, **_numbers(found)})
                bar.update()
                bar.set_postfix_str(f"{pruning.target}, {pruning.method}")
    stacked = np.stack(predictions)
    table = with_accuracies(pd.DataFrame(rows), stacked, dense["predictions"], test.labels.cpu().numpy())
    return Sweep(table, stacked, dense["predictions"], *_cost(dense))


def with_accuracies(
    rows: pd.DataFrame,
    predictions: Int64[np.ndarray, "row image"],
    dense: Int64[np.ndarray, "image"],
    labels: Int64[np.ndarray, "image"],
    seed: int = 0,
) -> pd.DataFrame:
    """`rows` with the columns accuracy, accuracy_dense, low and high (see `Sweep`) after density."""
    truth = torch.from_numpy(labels)
    correct = torch.from_numpy(predictions == labels).T.double()  # [image, row]
    dense_correct = torch.from_numpy(dense == labels).double()
    weights = bootstrap.resample(truth, bootstrap.RESAMPLES, torch.Generator().manual_seed(seed))
    change: Float[Tensor, "3 row"] = bootstrap.estimate((correct - dense_correct[:, None]) / len(truth), weights)
    accuracy_dense = float(dense_correct.mean())
    numbers = {
        "accuracy": correct.mean(0).numpy(),
        "accuracy_dense": accuracy_dense,
        "low": np.clip(accuracy_dense + change[1].double().numpy(), 0, 1),
        "high": np.clip(accuracy_dense + change[2].double().numpy(), 0, 1),
    }
    after = list(rows.columns).index("density") + 1
    return pd.concat([rows.iloc[:, :after], pd.DataFrame(numbers, index=rows.index), rows.iloc[:, after:]], axis=1)


def _check(
    network: CCT,
    prunings: Sequence[Pruning],
    diagonals: Mapping[float, Diagonals],
    held_out: Images | None,
    train: Images | None,
    epochs: Sequence[float],
) -> None:
    """Raise `UserError` for whatever would stop the sweep later."""
    if not prunings or not epochs:
        raise UserError("a sweep needs one pruning and one amount of retraining at least (0 epochs is one)")
    if min(epochs) < 0 or (max(epochs) > 0 and (train is None or len(train) == 0)):
        raise UserError(f"retraining for {max(epochs):g} epochs needs training images and no negative epochs")
    if any(pruning.method == "wanda" for pruning in prunings) and held_out is None:
        raise UserError("Wanda needs held-out images to measure the layers' inputs on; none were given")
    for target, theta in sorted({(pruning.target, pruning.theta) for pruning in prunings}):
        if theta not in diagonals:
            given = ", ".join(f"{known:g}" for known in diagonals)
            raise UserError(f"no diagonal sets at theta {theta:g}; there are those at {given}")
        andc.andc_masks(diagonals[theta], network.config.encoders, target)


@dataclass
class _Run:
    """What all rows share. Images go through the network up to the masks when a row first needs them."""

    network: CCT
    normalise: Callable[[Tensor], Tensor]
    test: Images
    train: Images | None
    settings: Retraining
    device: torch.device
    folder: Path | None
    batch: int

    def __post_init__(self) -> None:
        state = sorted(self.network.state_dict().items())
        self.weights_hash = _hash(tensor for _, tensor in state)
        self.reduced: dict[tuple[str, str], Reduced] = {}

    def images(self, split: str, target: str) -> Reduced:
        """Test or training images as far as no mask reaches; computed once for fc, once for all others."""
        key = (split, "fc" if target == "fc" else "all")
        if key not in self.reduced:
            images = self.test if split == "test" else self.train
            assert images is not None
            self.reduced[key] = reduce(
                self.network,
                self.normalise,
                images,
                key[1],
                device=self.device,
                batch=self.batch,
                precision=self.settings.precision,
            )
        return self.reduced[key]

    def dense(self, target: str) -> dict[str, np.ndarray]:
        """The unpruned network, from the images as prepared for a target, so that no others need be."""
        return self._kept("dense", {}, lambda: self._measure(target, {}))

    def row(self, pruning: Pruning, masks: Masks, epochs: float) -> dict[str, np.ndarray]:
        """One pruning after so many epochs of retraining."""

        def compute() -> dict[str, np.ndarray]:
            with masked(self.network, masks):
                if epochs > 0:
                    generator = torch.Generator().manual_seed(pruning.seed)
                    retrain(self.network, masks, self.images("train", pruning.target), epochs, self.settings, generator)
                return self._measure(pruning.target, masks)

        name = f"{pruning.target}-{pruning.method}-{pruning.theta:g}-{pruning.seed}-{epochs:g}"
        inputs: dict[str, object] = {"masks": {key: _hash([mask]) for key, mask in masks.items()}, "epochs": epochs}
        if epochs > 0 and self.train is not None:
            inputs |= {"settings": asdict(self.settings), "train": self.train.fingerprint, "seed": pruning.seed}
        return self._kept(name, inputs, compute)

    def _measure(self, target: str, masks: Masks) -> dict[str, np.ndarray]:
        cost = compact.count(self.network, masks)
        return {
            "predictions": predict(
                self.images("test", target), batch=self.batch, precision=self.settings.precision
            ).numpy(),
            "parameters": np.array(cost.parameters),
            "macs": np.array(cost.macs),
            "bytes": np.array(len(sparsefile.encode(self.network.state_dict()))),
        }

    def _kept(self, name: str, inputs: dict, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The row found in the folder, or computed and put there; its name carries a hash of all that went
        in.
        """
        if self.folder is None:
            return compute()
        inputs = {
            **inputs,
            "weights": self.weights_hash,
            "test": self.test.fingerprint,
            "precision": self.settings.precision,
        }
        path = self.folder / f"checkpoint-{name}-{stages.sha256_json(inputs)[:12]}.npz"
        try:
            with np.load(path) as found:
                return dict(found)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # not there, or not whole
            result = compute()
            with stages.replacing(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **result)  # type: ignore[arg-type]
            return result


def _hash(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _numbers(found: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name: int(found[name]) for name in ("parameters", "macs", "bytes")}


def _cost(dense: Mapping[str, np.ndarray]) -> tuple[compact.Cost, int]:
    numbers = _numbers(dense)
    return compact.Cost(numbers["parameters"], numbers["macs"]), numbers["bytes"]
