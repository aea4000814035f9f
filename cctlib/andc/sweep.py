"""Many prunings of one network, evaluated on the same images: the table behind the claim C4 (Method,
sections 7 and 8).

Each row is one pruning after one amount of retraining. Its predictions are kept in a file of their own as soon as
they are there, so a sweep that was killed goes on where it was. Intervals come from the predictions afterwards,
from the same resamples of images for all rows and for the dense network.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from cctlib import bootstrap, stages
from cctlib.andc.compact import count
from cctlib.andc.masks import (
    BY_CHANCE,
    Diagonals,
    Inputs,
    Masks,
    Pruning,
    andc_masks,
    density,
    input_statistics,
    make_masks,
)
from cctlib.andc.retrain import Reduced, Retraining, masked, predict, reduce, retrain
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.model.cct import CCT


def plan(
    targets: Iterable[str], methods: Collection[str], thetas: Collection[float], seeds: Sequence[int] = (0, 1, 2)
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
    compensate: bool = False,
) -> pd.DataFrame:
    """Evaluate every pruning after every amount of retraining; `network` is as before when it is done.

    diagonals: `measure.diagonals` by theta, from held-out images. held_out: for Wanda. train: for retraining,
    needed where `epochs` are not all zero. folder: where finished rows are kept, as checkpoint-*.npy; a row
    that is there, made from the same network, masks, images and settings, is not done again. compensate: biases make
    up for the mean effect of the cut weights on held-out images (see `masked`).

    Returns a row for each pruning and amount of retraining, with columns
      target, method, theta, seed, epochs: what was done;
      density: share of the target's weights that is kept;
      accuracy, accuracy_dense: share of the test images that the pruned and the dense network get right;
      low, high: 95% interval of the accuracy by the bootstrap over images, from the resamples' differences to the
      dense network, so that low - accuracy_dense and high - accuracy_dense bound the change;
      parameters, macs, bytes and dense_parameters, dense_macs, dense_bytes: the cost of the whole network, pruned and
      dense (`compact.Cost`).
    Raises `UserError` before anything long is started: for a mask that cannot be made, or images that are
    missing.
    """
    settings = settings or Retraining()
    check(network, prunings, diagonals, held_out, train, epochs)
    inputs = None
    if held_out is not None and (compensate or any(pruning.method == "wanda" for pruning in prunings)):
        inputs = input_statistics(
            network, normalise, held_out, device=device, batch=batch, precision=settings.precision
        )
    means = inputs if compensate else None
    run = _Run(network, normalise, test, train, settings, torch.device(device), folder, batch, means)
    dense_cost = {f"dense_{name}": value for name, value in asdict(count(network, {})).items()}
    rows, predictions, dense = [], [], []
    with tqdm(total=len(prunings) * len(epochs), desc="pruning", unit="row") as bar:
        for pruning in prunings:
            masks = make_masks(pruning, network, diagonals[pruning.theta], inputs)
            cost = asdict(count(network, masks)) | dense_cost
            for amount in epochs:
                rows.append({**asdict(pruning), "epochs": float(amount), "density": density(masks), **cost})
                predictions.append(run.pruned(pruning, masks, float(amount)))
                dense.append(run.dense(pruning.target))
                bar.update()
                bar.set_postfix_str(f"{pruning.target}, {pruning.method}")
    return with_accuracies(pd.DataFrame(rows), np.stack(predictions), np.stack(dense), test.labels.cpu().numpy())


def with_accuracies(
    rows: pd.DataFrame,
    predictions: Int64[np.ndarray, "row image"],
    dense: Int64[np.ndarray, "row image"],
    labels: Int64[np.ndarray, "image"],
    seed: int = 0,
) -> pd.DataFrame:
    """`rows` with the columns accuracy, accuracy_dense, low and high (see `sweep`) after density."""
    truth = torch.from_numpy(labels)
    correct, dense_correct = (torch.from_numpy(part == labels).T.double() for part in (predictions, dense))
    weights = bootstrap.resample(truth, bootstrap.RESAMPLES, torch.Generator().manual_seed(seed))
    change: Float[Tensor, "3 row"] = bootstrap.estimate((correct - dense_correct) / len(truth), weights)
    accuracy_dense = dense_correct.mean(0).numpy()
    numbers = {
        "accuracy": correct.mean(0).numpy(),
        "accuracy_dense": accuracy_dense,
        "low": np.clip(accuracy_dense + change[1].double().numpy(), 0, 1),
        "high": np.clip(accuracy_dense + change[2].double().numpy(), 0, 1),
    }
    after = list(rows.columns).index("density") + 1
    return pd.concat([rows.iloc[:, :after], pd.DataFrame(numbers, index=rows.index), rows.iloc[:, after:]], axis=1)


def check(
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
        andc_masks(diagonals[theta], network.config.encoders, target)


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
    compensate: Mapping[str, Inputs] | None
    reduced: dict[tuple[str, str], Reduced] = field(default_factory=dict)
    densely: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shared = {
            "weights": tensors_hash(tensor for _, tensor in sorted(self.network.state_dict().items())),
            "test": self.test.fingerprint,
            "precision": self.settings.precision,
        }

    def images(self, split: str, target: str) -> Reduced:
        """Test or training images as far as no mask reaches; computed once for fc, once for all others."""
        where = _reached(target)
        if (split, where) not in self.reduced:
            images = self.test if split == "test" else self.train
            assert images is not None
            how = {"device": self.device, "batch": self.batch, "precision": self.settings.precision}
            self.reduced[split, where] = reduce(self.network, self.normalise, images, where, **how)  # type: ignore[arg-type]
        return self.reduced[split, where]

    def dense(self, target: str) -> Int64[np.ndarray, "image"]:
        """Predictions of the unpruned network, from the images as they are prepared for a target."""
        where = _reached(target)
        if where not in self.densely:
            self.densely[where] = self._kept(f"dense-{where}", {}, lambda: self._predict(target))
        return self.densely[where]

    def pruned(self, pruning: Pruning, masks: Masks, epochs: float) -> Int64[np.ndarray, "image"]:
        """Predictions of one pruned network after so many epochs of retraining."""

        def compute() -> np.ndarray:
            with masked(self.network, masks, self.compensate):
                if epochs > 0:
                    generator = torch.Generator().manual_seed(pruning.seed)
                    retrain(self.network, masks, self.images("train", pruning.target), epochs, self.settings, generator)
                return self._predict(pruning.target)

        name = f"{pruning.name}-{epochs:g}"
        inputs: dict[str, object] = {"masks": {key: tensors_hash([mask]) for key, mask in masks.items()}}
        if epochs > 0 and self.train is not None:
            inputs |= {"settings": asdict(self.settings), "train": self.train.fingerprint, "seed": pruning.seed}
        if self.compensate is not None:
            inputs["means"] = tensors_hash(self.compensate[key].mean for key in masks)
        return self._kept(name, inputs | {"epochs": epochs}, compute)

    def _predict(self, target: str) -> Int64[np.ndarray, "image"]:
        return predict(self.images("test", target), batch=self.batch, precision=self.settings.precision).numpy()

    def _kept(self, name: str, inputs: dict, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The row that is in the folder, or computed and put there; its name carries a hash of all that went in."""
        if self.folder is None:
            return compute()
        return kept_array(
            self.folder / f"checkpoint-{name}-{stages.sha256_json(inputs | self.shared)[:12]}.npy", compute
        )


def _reached(target: str) -> str:
    """Up to where images are prepared for a target: the pooled nodes for fc, the tokens for all others."""
    return "fc" if target == "fc" else "all"


def kept_array(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in a file; computed and written there, atomically, where there is none or a damaged one."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        result = compute()
        with stages.replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, result)
        return result


def tensors_hash(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over shapes and contents, in hex."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
