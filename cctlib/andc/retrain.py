"""A pruned network: masks applied, retrained, evaluated (Method, section 7).

    pruned = prune(network, masks)
    retrain_layers(pruned, masks, train, epochs=1, ...)
    labels = predict(pruned, test)

There are two ways to retrain. `retrain_whole` trains all weights as the trainer does, with its augmentation, to
saturation: the method's own way, which takes hours on a processor. `retrain_layers` trains the masked layers alone, for
a part of an epoch, from what `reduce` has computed once for all masks: the listed alternative, which takes seconds.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from cctlib import stages
from cctlib.andc.masks import Masks, weights_of
from cctlib.data.images import Images, to_device
from cctlib.errors import UserError
from cctlib.model.cct import CCT
from cctlib.model.forward import forward, on_device
from cctlib.model.networks import Network
from cctlib.model.precision import Precision, autocast, resolve, scaler
from cctlib.training.log import Log, read_log
from cctlib.training.processes import Place
from cctlib.training.recipes import Recipe
from cctlib.training.trainer import Trainer

TOKENS_HELD = 2 * 2**30  # bytes of tokens kept on a processor; half of what is free on a GPU
Net = TypeVar("Net", bound=nn.Module)
LOW_RATE = 0.1  # of the recipe's largest learning rate, to retrain the whole network with


def prune(network: Net, masks: Masks) -> Net:
    """A copy of the network whose masked weights are zero. Raises `UserError` as `weights_of`."""
    pruned = copy.deepcopy(network)
    apply(pruned, masks)
    return pruned


@torch.no_grad()
def apply(network: nn.Module, masks: Masks) -> None:
    """Set the masked weights to zero, in place. Raises `UserError` as `weights_of`."""
    for name, weight in weights_of(network, masks).items():
        weight.masked_fill_(~masks[name].to(weight.device), 0)


@dataclass(frozen=True)
class Reduced:
    """Images, taken as far through the network as no mask reaches.

    values: [image, ...], pixels, tokens or pooled nodes. labels: on `device`. rest: the rest of a network, from a batch
    of values on `device` to its logits.
    """

    values: Tensor
    labels: Int64[Tensor, "image"]
    rest: Callable[[Any, Tensor], Tensor] = field(repr=False)
    device: torch.device

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in batches, shuffled iff a generator is given."""
        count = len(self.labels)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        places = (order.to(device).split(size) for device in (self.values.device, self.labels.device))
        for of_values, of_labels in zip(*places, strict=True):
            yield to_device(self.values[of_values], self.device), self.labels[of_labels]


def reduce(
    network: Network, normalise: Callable[[Tensor], Tensor], images: Images, start: str, precision: Precision = "auto"
) -> Reduced:
    """`images` as the rest of the network takes them from its `start` on: "pooled" nodes, "tokens" or "pixels".

    Tokens are kept to save the tokenizer's share of each pass; where they would take too much memory, the pixels are,
    and so they are of a convolutional network.
    Values are kept in the precision that they are computed in. `network` is in eval mode. Raises `UserError` when there
    are no images.
    """
    device = next(network.parameters()).device
    if len(images) == 0:
        raise UserError(f"no {images.split} images to evaluate or retrain a pruned network on; check that split")

    def outputs(part: nn.Module) -> Tensor:
        passes = forward(part, normalise, images, device=device, precision=precision)
        return torch.cat([output for _, _, output, _ in passes])

    labels = images.labels.to(device)
    if isinstance(network, CCT) and start == "pooled":
        headless = copy.deepcopy(network)
        headless.classifier.fc = nn.Identity()  # type: ignore[assignment]
        return Reduced(outputs(headless), labels, lambda net, nodes: net.classifier.fc(nodes), device)
    number = len(images) * (4 if resolve(device, precision) == "fp32" else 2)  # bytes of one number of every image
    memory = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else TOKENS_HELD
    if (
        isinstance(network, CCT)
        and start == "tokens"
        and number * network.config.tokens * network.config.width <= memory
    ):
        return Reduced(outputs(network.tokenizer), labels, _from_tokens, device)
    return Reduced(on_device(images, device).pixels, labels, lambda net, pixels: net(normalise(pixels)), device)


def _from_tokens(network: CCT, tokens: Tensor) -> Tensor:
    return network.classifier(tokens, lambda encoder, kind, nodes: nodes, network.attention == "fused")


@torch.no_grad()
def predict(network: nn.Module, reduced: Reduced, precision: Precision = "auto") -> Int64[Tensor, "image"]:
    """The label that a network gives to each image; on the CPU."""
    labels = []
    for values, _ in reduced.batches(128):
        with autocast(reduced.device, precision):
            labels.append(reduced.rest(network, values).argmax(1))
    return torch.cat(labels).cpu()


@dataclass(frozen=True)
class Retraining:
    """How masked layers are retrained: AdamW without weight decay, learning rate falling linearly to zero.

    The rest of the network stays frozen and in eval mode, and the images are not augmented **(choice)**. Batch and rate
    were chosen on held-out images, for a tenth of a pass with all layers of an earlier model for CIFAR-100 pruned.
    """

    batch: int = 64
    learning_rate: float = 1e-3
    label_smoothing: float = 0.1
    precision: Precision = "auto"


def retrain_layers(
    network: nn.Module, masks: Masks, train: Reduced, epochs: float, settings: Retraining, generator: torch.Generator
) -> None:
    """Train weights and biases of the masked layers, in place, for `epochs` passes or parts of one.

    With a convolution goes its batch norm, whose statistics are taken anew. Any part of a pass is one step at least.
    Masked weights are set to zero after each step. The network is frozen afterwards, in eval mode. Raises `UserError`
    when the loss stops being finite.
    """
    network.requires_grad_(False)
    names = [weight.removesuffix(".weight").removesuffix(".conv") for weight in masks]
    layers = [network.get_submodule(name).requires_grad_().train() for name in names]
    trained = [parameter for layer in layers for parameter in layer.parameters()]
    masks = {name: mask.to(train.device) for name, mask in masks.items()}
    steps = max(1, round(epochs * math.ceil(len(train.labels) / settings.batch)))
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    scale = scaler(train.device, settings.precision)
    total = torch.zeros((), device=train.device)
    passes = (train.batches(settings.batch, generator) for _ in itertools.count())  # each in fresh order
    for values, labels in itertools.islice(itertools.chain.from_iterable(passes), steps):
        with autocast(train.device, settings.precision):
            logits = train.rest(network, values)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        scale.scale(loss).backward()
        scale.step(optimizer)
        scale.update()
        apply(network, masks)
        schedule.step()
        total += loss.detach()
    network.requires_grad_(False).eval()
    if not total.isfinite():
        raise UserError(f"retraining diverged (loss {total:g}); lower the learning rate, {settings.learning_rate:g}")


def retraining_recipe(recipe: Recipe, epochs: int, seed: int = 0) -> Recipe:
    """The recipe of a network, to retrain it with: a low rate that falls to zero, images at their full size.

    Optimizer, weight decay, augmentation and dropout are those that the network was trained with; weights are not
    averaged, for an average would begin with weights that no mask has touched.
    """
    return replace(
        recipe,
        epochs=epochs,
        sizes=(),
        lr=LOW_RATE * recipe.lr,
        schedule="linear",
        warmup_epochs=0.0,
        min_lr=0.0,
        ema=0.0,
        seed=seed,
    )


def retrain_whole(network: CCT, masks: Masks, train: Images, held_out: Images, recipe: Recipe, folder: Path) -> None:
    """Train all weights of the network, in place, by a recipe, with the masked ones at zero after every step.

    Without masks this is the dense network, trained as long. Each step is the trainer's own, on augmented images.
    folder: of the log, which has the accuracy on held-out images after each epoch, and of a checkpoint at the same
    places, from which a retraining that was killed goes on.
    Raises `UserError` as the trainer does, and as `weights_of`.
    """
    device = network.classifier.fc.weight.device
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):  # the trainer seeds the global generators
        run = Trainer(recipe, train, held_out, folder, Place(0, 1, device))
        run.network.load_state_dict(network.state_dict())
        run.begin(resume=True)
        masks = {name: mask.to(device) for name, mask in masks.items()}
        apply(run.network, masks)
        log = Log(folder, run.step)
        while run.step < run.steps:
            run.learn()
            apply(run.network, masks)
            if run.step % run.steps_per_epoch == 0:
                log.write(run.row() | run.evaluate())
                run.save()
    network.load_state_dict(run.network.state_dict())


def gain_of_last_quarter(folder: Path) -> float:
    """Accuracy on held-out images that a whole retraining gained over its last quarter; NaN for a single epoch."""
    accuracies = read_log(folder / stages.LOG).held_out_accuracy.dropna().to_numpy()
    quarter = -(-len(accuracies) // 4)
    return float(accuracies[-1] - accuracies[-1 - quarter]) if len(accuracies) > quarter else math.nan
