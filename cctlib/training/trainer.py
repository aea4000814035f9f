"""The state of a training run, and one step of it.

The images stay on the device as bytes and are augmented there, a batch at a time; there are no worker processes, and
the device is waited for only where a row of the log or a checkpoint is written.

Everything random is drawn from the recipe's seed and the number of the step, so a checkpoint holds no generators. On a
processor, a run that was killed goes on to the very same weights; on a GPU it does so up to the rounding of sums, whose
order a GPU does not fix. Dropout, stochastic depth and the noise of erasing are drawn on the device: a run that moves
to another kind of device, or to another number of processes, draws them afresh.
"""

import copy
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cctlib import stages
from cctlib.data.datasets import describe
from cctlib.data.images import Images, normalise, to_device
from cctlib.errors import UserError
from cctlib.model import checkpoints, networks, precision
from cctlib.model.forward import forward, on_device
from cctlib.model.manifest import Model
from cctlib.training.augment import augment
from cctlib.training.processes import Place
from cctlib.training.recipes import Recipe

CHECKPOINT, WEIGHTS = "checkpoint.pt", "weights.safetensors"
LAYOUT = torch.channels_last  # convolutions and pooling are faster in it, and the tokens come out contiguous
ORDER, DECISIONS, DROPOUT = range(3)  # what is drawn from the seed


def drawn_from(seed: int, number: int, what: int, rank: int = 0) -> int:
    """The seed for what is drawn at a step (or for an epoch's order), unrelated to that of any other."""
    return int(np.random.SeedSequence([seed, number, what, rank]).generate_state(1)[0])


class Trainer:
    """The state of a run: all that a checkpoint holds, and the images on the device."""

    def __init__(
        self, recipe: Recipe, train: Images, held_out: Images, folder: Path, place: Place, start: Model | None = None
    ):
        self.recipe, self.folder, self.place = recipe, folder, place
        device = place.device
        self.train, self.held_out = on_device(train, device), on_device(held_out, device)
        self.constants = constants(train)
        self.normalise = partial(normalise, **self.constants)
        self.steps_per_epoch = len(train) // recipe.batch  # what is left over at the end of an epoch is left out
        self.steps = recipe.epochs * self.steps_per_epoch
        self.identity = _identity(recipe, train, held_out, start)

        torch.manual_seed(recipe.seed)
        config, attention = recipe.config(train.num_labels), precision.attention(device)
        if start is None:
            network = networks.build(config, attention)
        else:
            network = checkpoints.load_weights(start.weights(), config, attention=attention).train()
        self.network = network.to(device).to(memory_format=LAYOUT)
        self.model: nn.Module = self.network
        if place.world > 1:  # averages gradients over the processes
            self.model = DistributedDataParallel(self.network, [device] if device.type == "cuda" else None)
        self.matrices = _matrices(self.network) if recipe.optimizer == "muon" else {}
        self.optimizers = _optimizers(self.network, self.matrices, recipe)
        self.scaler = precision.scaler(device, recipe.precision)
        self.average = copy.deepcopy(self.network) if recipe.ema else None  # of the weights over the last steps
        self.order = torch.empty(0)

        self.step = 0
        self.sums = torch.zeros(3, device=device)  # since the last row: loss, correct and all images
        self.broken = torch.full((), math.inf, device=device)  # first step whose loss or gradient was not finite
        self.saved_step: int | None = None
        self.began = self.clock = time.monotonic()  # the whole run, as if never interrupted; the next row's steps

    @property
    def seconds(self) -> float:
        """Of the whole run so far, without those between a stop and going on."""
        return time.monotonic() - self.began

    @property
    def result(self) -> networks.Network:
        """What is judged and exported: the network, or the average of its weights."""
        return self.average or self.network

    def learn(self) -> None:
        """One optimizer step."""
        recipe, place = self.recipe, self.place
        images, targets = self._batch()
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = self._rate(self.step)
        size = self.network.image_size = recipe.size(self.step // self.steps_per_epoch)
        if size != recipe.image_size:
            images = interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        # Processes must not drop the same images' branches.
        torch.manual_seed(drawn_from(recipe.seed, self.step, DROPOUT, place.rank))
        with precision.autocast(place.device, recipe.precision):
            logits = self.model(images.contiguous(memory_format=LAYOUT))
        loss = cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
        self.network.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        for weight, matrix in self.matrices.items():
            matrix.grad = _as_matrix(cast(Tensor, weight.grad))
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip or math.inf)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.average is not None:
            get_ema_multi_avg_fn(recipe.ema)(_averaged(self.average), _averaged(self.network), None)
        self.step += 1
        loss, correct = loss.detach(), (logits.argmax(1) == targets.argmax(1)).sum()
        self.sums += torch.stack([loss * len(images), correct, torch.full_like(loss, len(images))])
        finite = loss.isfinite() & (norm.isfinite() | self.scaler.is_enabled())  # the scaler leaves such steps out
        self.broken = torch.minimum(self.broken, torch.where(finite, math.inf, float(self.step)))

    def _rate(self, step: float) -> float:
        return self.recipe.learning_rate(step / self.steps_per_epoch)

    def _batch(self) -> tuple[Tensor, Tensor]:
        """This process's share of the batch: augmented images, and distributions over the labels."""
        recipe, device = self.recipe, self.place.device
        epoch, within = divmod(self.step, self.steps_per_epoch)
        if within == 0 or not len(self.order):
            shuffle = torch.Generator().manual_seed(drawn_from(recipe.seed, epoch, ORDER))
            self.order = torch.randperm(len(self.train), generator=shuffle).to(self.train.labels.device)
        share = recipe.batch // self.place.world
        first = self.place.rank * share
        rows = self.order[within * recipe.batch + first :][:share]
        return augment(
            to_device(self.train.pixels[rows], device),
            to_device(self.train.labels[rows], device),
            recipe,
            seed=drawn_from(recipe.seed, self.step, DECISIONS),
            num_labels=self.train.num_labels,
            first=first,
            **self.constants,
        )

    def row(self) -> dict[str, float]:
        """What happened since the last row. Waits for the device. Raises `UserError` when the loss is not finite."""
        self.check_finite()
        loss, correct, images = self.place.total(self.sums).tolist()
        self.sums.zero_()
        before, self.clock = self.clock, time.monotonic()
        return {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "lr": self._rate(self.step - 1),
            "loss": loss / images,
            "accuracy": correct / images,
            "images_per_second": images / (self.clock - before),
            "seconds": self.seconds,
        }

    def check_finite(self) -> None:
        """Raise `UserError` when a loss or a gradient was not finite."""
        broken = self.broken.item()
        if math.isinf(broken):
            return
        good = "there is no checkpoint yet"
        if self.saved_step is not None:
            good = f"the last good checkpoint is {self.folder / CHECKPOINT} (step {self.saved_step})"
        raise UserError(
            f"training broke down: the loss is not finite at step {broken:.0f} of {self.steps}, "
            f"learning rate {self._rate(broken - 1):.3g}; {good}; start again with a lower lr"
        )

    def evaluate(self) -> dict[str, float]:
        """Cross-entropy and accuracy on the held-out images, which each process computes for itself."""
        network, recipe, images, device = self.result, self.recipe, self.held_out, self.place.device
        network.image_size = recipe.image_size
        network.eval()
        passes = forward(network, self.normalise, images, device=device, batch=recipe.batch, precision=recipe.precision)
        sums = torch.zeros(2, device=device)
        for _, labels, logits, _ in passes:
            loss = cross_entropy(logits.float(), labels, reduction="sum")
            sums += torch.stack([loss, (logits.argmax(1) == labels).sum()])
        network.train()
        loss, accuracy = (sums / len(images)).tolist()
        self.clock = time.monotonic()
        return {"held_out_loss": loss, "held_out_accuracy": accuracy, "seconds": self.seconds}

    def begin(self, resume: bool) -> None:
        """Start in an empty folder, or load its checkpoint. Raises `UserError` when that is not what is there."""
        present = [name for name in (CHECKPOINT, WEIGHTS, stages.LOG) if (self.folder / name).exists()]
        if resume and CHECKPOINT in present:
            self.load(self.folder / CHECKPOINT)
        elif present and (not resume or WEIGHTS in present):
            raise UserError(f"{self.folder} holds a run already ({present[0]}); resume it, or choose another folder")
        steps = sorted(set(self.place.gathered(self.step)))  # and none may write before all have looked
        if len(steps) > 1:
            raise UserError(
                f"the processes do not find the same checkpoint in {self.folder}: theirs are of the steps "
                f"{', '.join(map(str, steps))}; use a folder that all machines share"
            )
        if self.place.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_over in self.folder.glob(f".{CHECKPOINT}.*.tmp"):  # of a process killed while it saved
                left_over.unlink()
            if self.step == 0:
                environment = {"processes": self.place.world, **stages.environment(self.place.device)}
                stages.write_json(self.folder / stages.RUN, {**self.identity, "environment": environment})

    def save(self) -> None:
        """Write the checkpoint, atomically. Raises `UserError` instead when the loss is not finite."""
        self.check_finite()
        state = {
            "identity": self.identity,
            "made": self._circumstances(),
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.place.total(self.sums).cpu(),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }
        if self.place.first:
            with stages.replacing(self.folder / CHECKPOINT) as temporary, temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        self.saved_step = self.step

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises `UserError` when it cannot be read or belongs to another run."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            identity = state["identity"]
        except Exception as error:
            raise UserError(
                f"{path} is not a readable checkpoint ({type(error).__name__}); remove it and start again"
            ) from None
        for part, entries in self.identity.items():
            for name, value in entries.items():
                if (saved := identity.get(part, {}).get(name)) != value:
                    raise UserError(
                        f"{path} belongs to another run: its {part} has {name} {saved}, this one {value}; "
                        "resume with the same recipe and images, or choose another folder"
                    )
        for name, part in self._parts().items():
            if state[name]:  # empty: of a scaler where none was needed
                part.load_state_dict(state[name])
        self.step = self.saved_step = state["step"]
        self.began = time.monotonic() - state["seconds"]
        if self.place.first:
            self.sums.copy_(state["sums"])
            if state["made"] != self._circumstances():
                print(
                    f"{path} was written by {state['made']}, this is {self._circumstances()}: from here on, "
                    "dropout and noise are drawn afresh, and sums are rounded otherwise",
                    file=sys.stderr,
                )

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own, by its name in the checkpoint."""
        optimizers = {type(optimizer).__name__: optimizer for optimizer in self.optimizers}
        average = {} if self.average is None else {"average": self.average}
        return {"network": self.network, **optimizers, "scaler": self.scaler, **average}

    def _circumstances(self) -> str:
        """On what dropout and rounding depend, beside the recipe."""
        arithmetic = precision.resolve(self.place.device, self.recipe.precision)
        return f"{self.place.world} process(es) on {self.place.device.type} in {arithmetic}"

    def export(self) -> Path:
        """Write the weights in fp32, and say in the file what they are."""
        path = self.folder / WEIGHTS
        if self.place.first:
            state = self.result.state_dict()
            tensors = {name: value.float().cpu().contiguous() for name, value in state.items()}
            record = {"cctlib": json.dumps(self.identity)}  # one entry: safetensors writes several in random order
            with stages.replacing(path) as temporary:
                save_file(tensors, temporary, metadata=record)
        return path


def constants(images: Images) -> dict[str, Any]:
    """Mean and deviation (std) of the three channels, which normalise the images of this data set."""
    spec = describe(images.dataset)
    return {"mean": spec.mean, "std": spec.std}


def _identity(recipe: Recipe, train: Images, held_out: Images, start: Model | None) -> dict[str, dict]:
    """What has to be the same for a run to go on."""
    before = start and start.manifest.training
    return {
        "recipe": json.loads(json.dumps(asdict(recipe))),
        "data": {
            "dataset": train.dataset,
            "images": len(train),
            "size": train.pixels.shape[-1],
            "labels": train.num_labels,
            "train": train.fingerprint,
            "held-out": held_out.fingerprint,
        },
        "start": {
            "weights": start and start.manifest.sha256,
            "recipe": before and before.recipe["name"],
            "passes": before and before.passes,
            "minutes": before and before.minutes,
        },
    }


def _averaged(network: nn.Module) -> list[Tensor]:
    """What an average is taken of: weights and running statistics."""
    return [value for value in network.state_dict().values() if value.is_floating_point()]


def _as_matrix(weight: Tensor) -> Tensor:
    """A weight [to, from]; of a convolution, a view [to, input of its kernel], for `LAYOUT` has these together."""
    return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).view(len(weight), -1)


def _matrices(network: networks.Network) -> dict[Tensor, Tensor]:
    """The matrices that Muon steps, which share the memory of the network's hidden weights, by weight."""
    return {
        weight: weight if weight.ndim == 2 else nn.Parameter(_as_matrix(weight.detach()))
        for weight in network.hidden_weights()
    }


def _optimizers(network: nn.Module, matrices: Mapping[Tensor, Tensor], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, without decay for biases, norms and position embeddings; with Muon, only for what Muon does not take.

    Muon takes `matrices`. Its steps are scaled to the size of AdamW's, so that one learning
    rate and one decay serve both. Raises `UserError` where this torch has no Muon.
    """
    decayed, free = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2 or name.endswith("positional_emb"):
            free.append(parameter)
        elif parameter not in matrices:
            decayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, fused=True)]
    if not matrices:
        return optimizers
    if not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"recipe {recipe.name}: Muon needs torch 2.9, this is {torch.__version__}; update, or use optimizer adamw"
        )
    how: dict[str, Any] = {"weight_decay": recipe.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return [*optimizers, torch.optim.Muon(list(matrices.values()), lr=recipe.lr, **how)]
