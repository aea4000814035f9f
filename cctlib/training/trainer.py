"""The state of a training run, and one step of it.

The images stay on the device as bytes and are augmented there, a batch at a time; there are no worker processes, and
the device is waited for only where a row of the log or a checkpoint is written. Batches, augmentation and learning rate
depend on nothing but the recipe's seed and the step, and all generators are in the checkpoint, so a run that was killed goes
on to the very same weights.
"""

import copy
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.nn.parallel import DistributedDataParallel

from cctlib import stages
from cctlib.data import images as data
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.model import cct, precision
from cctlib.training.augment import Draw, augment, draw
from cctlib.training.log import FILE as LOG
from cctlib.training.processes import Place
from cctlib.training.recipes import Recipe

CHECKPOINT, WEIGHTS = "checkpoint.pt", "weights.safetensors"
# For image folders, as in datasets.py.
PHOTOGRAPHS: dict[str, tuple[float, ...]] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
LAYOUT = torch.channels_last  # convolutions and pooling are faster in it, and the tokens come out contiguous


class Trainer:
    """The state of a run: all that a checkpoint holds, and the images on the device."""

    def __init__(self, recipe: Recipe, train: Images, held_out: Images, folder: Path, place: Place):
        self.recipe, self.folder, self.place = recipe, folder, place
        device = place.device
        self.pixels, self.labels = train.pixels.to(device), train.labels.to(device)
        self.held_out, self.num_labels = held_out, train.num_labels
        self.constants = constants(train)
        self.steps_per_epoch = len(train) // recipe.batch  # what is left over at the end of an epoch is left out
        self.steps = recipe.epochs * self.steps_per_epoch
        self.identity = _identity(recipe, train, held_out)

        torch.manual_seed(recipe.seed)
        network = cct.CCT(recipe.config(train.num_labels), form_of_attention(recipe, device))
        self.network = network.to(device).to(memory_format=LAYOUT)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False) if recipe.ema else None
        self.model = _wrapped(self.network, recipe, place)
        self.optimizers = _optimizers(self.network, recipe)
        torch.manual_seed(recipe.seed + 1 + place.rank)  # processes must not drop the same images' branches
        self.decisions = torch.Generator().manual_seed(recipe.seed)
        self.noise = torch.Generator(device).manual_seed(recipe.seed)
        self.order = torch.empty(0)

        self.step, self.seconds = 0, 0.0
        self.sums = torch.zeros(3, device=device)  # since the last row: loss, correct and all images
        self.broken = torch.full((), math.inf, device=device)  # first step whose loss or gradient was not finite
        self.saved_step: int | None = None
        self.clock = time.monotonic()

    def learn(self) -> None:
        """One optimizer step."""
        pixels, labels, decisions, noise = self._batch()
        images, targets = augment(pixels, labels, decisions, num_labels=self.num_labels, noise=noise, **self.constants)
        rate = self.recipe.learning_rate(self.step / self.steps_per_epoch)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        self.network.image_size = self.recipe.size(self.step // self.steps_per_epoch)
        with precision.autocast(self.place.device, self.recipe.precision):
            logits = self.model(resized(images, self.network.image_size).contiguous(memory_format=LAYOUT))
        loss = cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing)
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip or math.inf)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        if self.averaged is not None:
            self._average(self.averaged)
        self._count(loss.detach(), norm, (logits.argmax(1) == targets.argmax(1)).sum(), len(labels))

    def _batch(self) -> tuple[Tensor, Tensor, Draw, Tensor | None]:
        """This process's share of the batch: pixels, labels, what is to be done to them, noise to erase with."""
        epoch, within = divmod(self.step, self.steps_per_epoch)
        if within == 0 or not len(self.order):
            shuffle = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
            self.order = torch.randperm(len(self.labels), generator=shuffle).to(self.place.device)
        size, shape = self.recipe.batch, self.pixels.shape[1:]
        decisions = draw(self.recipe.augmentation, size, shape[1], shape[2], self.decisions)
        share = size // self.place.world
        start = self.place.rank * share
        chosen = self.order[within * size + start : within * size + start + share]
        noise = None
        if decisions.erased is not None:  # drawn for the whole batch: the same for any number of processes
            noise = torch.randn(size, *shape, generator=self.noise, device=self.place.device)[start : start + share]
        return self.pixels[chosen], self.labels[chosen], decisions.rows(start, start + share), noise

    @torch.no_grad()
    def _average(self, averaged: nn.Module) -> None:
        """Move the averaged weights towards the present ones, faster at the beginning."""
        decay = min(self.recipe.ema, self.step / (self.step + 10))
        torch._foreach_lerp_(list(averaged.parameters()), list(self.network.parameters()), 1 - decay)

    def _count(self, loss: Tensor, norm: Tensor, correct: Tensor, images: int) -> None:
        self.sums += torch.stack([loss * images, correct, torch.full_like(loss, images)])
        finite = loss.isfinite() & norm.isfinite()
        self.broken = torch.minimum(self.broken, torch.where(finite, math.inf, float(self.step)))

    def row(self) -> dict[str, float]:
        """What happened since the last row. Waits for the device. Raises `UserError` when the loss is not finite."""
        self.check_finite()
        loss, correct, images = self.place.total(self.sums).tolist()
        self.sums.zero_()
        passed, self.clock = time.monotonic() - self.clock, time.monotonic()
        self.seconds += passed
        return {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "lr": self.recipe.learning_rate((self.step - 1) / self.steps_per_epoch),
            "loss": loss / images,
            "accuracy": correct / images,
            "images_per_second": images / passed,
            "seconds": self.seconds,
        }

    def check_finite(self) -> None:
        """Raise `UserError` when a loss or a gradient was not finite."""
        broken = self.broken.item()
        if math.isinf(broken):
            return
        rate = self.recipe.learning_rate((broken - 1) / self.steps_per_epoch)
        good = "there is no checkpoint yet"
        if self.saved_step is not None:
            good = f"the last good checkpoint is {self.folder / CHECKPOINT} (step {self.saved_step})"
        raise UserError(
            f"training broke down: the loss is not finite at step {broken:.0f} of {self.steps}, learning rate {rate:.3g}; "
            f"{good}; start again with a lower lr"
        )

    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the held-out images, of the averaged weights where there are any."""
        network = self.network if self.averaged is None else self.averaged
        self.network.image_size = self.recipe.image_size
        loss, accuracy = evaluate(network, self.held_out, self.constants, self.recipe, self.place)
        self.seconds, self.clock = self.seconds + time.monotonic() - self.clock, time.monotonic()
        return {"held_out_loss": loss, "held_out_accuracy": accuracy, "seconds": self.seconds}

    def begin(self, resume: bool) -> None:
        """Start in an empty folder, or load its checkpoint. Raises `UserError` when that is not what is there."""
        found = [name for name in (CHECKPOINT, WEIGHTS, LOG) if (self.folder / name).exists()]
        if resume and CHECKPOINT in found:
            self.load(self.folder / CHECKPOINT)
        elif found and (not resume or WEIGHTS in found):
            raise UserError(f"{self.folder} holds a run already ({found[0]}); resume it, or choose another folder")
        self.place.wait()  # none may write before all have looked
        if self.place.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_over in self.folder.glob(f".{CHECKPOINT}.*.tmp"):  # of a process killed while it saved
                left_over.unlink()
            if self.step == 0:
                about = {"processes": self.place.world, **stages.environment(self.place.device)}
                stages.write_json(self.folder / stages.RUN, {**self.identity, "environment": about})

    def save(self) -> None:
        """Write the checkpoint, atomically. Raises `UserError` instead when the loss is not finite."""
        self.check_finite()
        now = time.monotonic()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        own = {"torch": torch.get_rng_state(), "noise": self.noise.get_state(), "sums": self.sums.cpu()}
        if self.place.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.place.device)
        state = {
            "identity": self.identity,
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else None,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "decisions": self.decisions.get_state(),
            "processes": self.place.gathered(own),
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
        _refuse_another(identity, self.identity, path)
        self.network.load_state_dict(state["network"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.decisions.set_state(state["decisions"])
        self.step, self.seconds, self.saved_step = state["step"], state["seconds"], state["step"]
        if len(state["processes"]) == self.place.world:  # another number of processes: dropout is drawn afresh
            own = state["processes"][self.place.rank]
            torch.set_rng_state(own["torch"])
            self.sums.copy_(own["sums"])
            if self.place.device.type == "cuda" and "cuda" in own:
                torch.cuda.set_rng_state(own["cuda"], self.place.device)
        self.noise.set_state(state["processes"][0]["noise"])

    def export(self) -> Path:
        """Write the weights as they will be used, and say in the file what they are."""
        path = self.folder / WEIGHTS
        network = self.network if self.averaged is None else self.averaged
        if self.place.first:
            tensors = {name: value.detach().float().cpu().contiguous() for name, value in network.state_dict().items()}
            about = {"cctlib": json.dumps(self.identity)}  # one entry: safetensors writes several in random order
            with stages.replacing(path) as temporary:
                save_file(tensors, temporary, metadata=about)
        return path


def resized(images: Tensor, size: int) -> Tensor:
    """Images [image, channel, height, width] at another size (pixels, square), antialiased."""
    if images.shape[-1] == size:
        return images
    return interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def constants(images: Images) -> dict[str, tuple[float, ...]]:
    """Mean and deviation (std) that normalise the images of this data set."""
    spec = data.DATASETS.get(images.dataset)
    return PHOTOGRAPHS if spec is None else {"mean": tuple(spec.mean), "std": tuple(spec.std)}


@torch.no_grad()
def evaluate(
    network: nn.Module, images: Images, constants: Mapping[str, Sequence[float]], recipe: Recipe, place: Place
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (a share of 1); each process takes its part of the batches."""
    network.eval()
    sums = torch.zeros(2, device=place.device)
    for start in range(place.rank * recipe.batch, len(images), place.world * recipe.batch):
        rows = slice(start, start + recipe.batch)
        pixels, labels = images.pixels[rows].to(place.device), images.labels[rows].to(place.device)
        with precision.autocast(place.device, recipe.precision):
            logits = network(data.normalise(pixels, **constants)).float()
        sums += torch.stack([cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()])
    network.train()
    loss, correct = place.total(sums).tolist()
    return loss / len(images), correct / len(images)


def _identity(recipe: Recipe, train: Images, held_out: Images) -> dict[str, dict]:
    """What has to be the same for a run to go on."""
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
    }


def _refuse_another(saved: dict[str, dict], own: dict[str, dict], path: Path) -> None:
    for part in own:
        for name, value in own[part].items():
            found = saved.get(part, {}).get(name)
            if found != value:
                raise UserError(
                    f"{path} belongs to another run: its {part} has {name} {found}, this one {value}; "
                    "resume with the same recipe and images, or choose another folder"
                )


def form_of_attention(recipe: Recipe, device: torch.device | str) -> str:
    """Written out or fused: what the recipe says, else what suits the device."""
    return precision.attention(device) if recipe.attention == "auto" else recipe.attention


def _wrapped(network: nn.Module, recipe: Recipe, place: Place) -> nn.Module:
    """The network as the training step calls it: compiled, and averaging gradients over the processes."""
    step: nn.Module = network
    if place.world > 1:
        step = DistributedDataParallel(network, [place.device] if place.device.type == "cuda" else None)
    return cast(nn.Module, torch.compile(step)) if recipe.compile else step


def _optimizers(network: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, without decay for biases, norms and position embeddings; with Muon, only for what Muon does not take.

    Muon takes the weight matrices of the encoders. Its steps are scaled to the size of AdamW's, so that one learning
    rate and one decay serve both. Raises `UserError` where this torch has no Muon.
    """
    named = dict(network.named_parameters())
    matrices = [name for name, p in named.items() if recipe.optimizer == "muon" and ".blocks." in name and p.ndim == 2]
    free = [name for name, p in named.items() if p.ndim < 2 or name.endswith("positional_emb")]
    decayed = [name for name in named if name not in {*matrices, *free}]
    groups = [
        {"params": [named[name] for name in names], "weight_decay": decay}
        for names, decay in ((decayed, recipe.weight_decay), (free, 0.0))
    ]
    fused = next(network.parameters()).device.type in ("cpu", "cuda")
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)]
    if matrices:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"recipe {recipe.name}: Muon needs torch 2.9, this is {torch.__version__}; update, or use optimizer adamw"
            )
        taken = [named[name] for name in matrices]
        optimizers.append(
            torch.optim.Muon(taken, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers
