"""A pruned network: masks applied, retrained, evaluated (Method, section 7).

    with masked(network, masks):
        retrain(network, masks, train, epochs=1, ...)
        predictions = predict(test)

Masked weights are zero in the network itself, so whatever is run inside the block runs without them; when
the block ends, the network is as it was. `reduce` computes the part of the network that no mask reaches
once, for all masks.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from cctlib.andc.masks import Masks, forward_to_fc, weights_of
from cctlib.data.images import Images, batches
from cctlib.errors import UserError
from cctlib.model.cct import CCT
from cctlib.model.precision import Precision, autocast

TOKENS_HELD = 512 * 2**20  # bytes of tokens that may be held to save the tokenizer's share of each pass


@contextmanager
def masked(network: nn.Module, masks: Masks) -> Iterator[None]:
    """Within the block, masked weights are exactly zero in the network itself.

    After it the network is as it was: weights and biases of the masked layers are put back, retrained or
    not. Raises `UserError` as `weights_of`.
    """
    weights = weights_of(network, masks)
    touched = list(_trained(network, weights).values())
    saved = [parameter.detach().clone() for parameter in touched]
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.masked_fill_(~masks[name].to(weight.device), 0)
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(touched, saved, strict=True):
                parameter.copy_(before)


def _trained(network: nn.Module, masks: Mapping) -> dict[str, nn.Parameter]:
    """Weights and biases of the masked layers, by name."""
    parameters = dict(network.named_parameters())
    names = [name.removesuffix("weight") + part for name in masks for part in ("weight", "bias")]
    return {name: parameters[name] for name in names if name in parameters}


@dataclass(frozen=True)
class Reduced:
    """Images, taken as far through the network as no mask reaches.

    values: [image, ...], pixels, tokens or pooled nodes. forward: from a batch of them, on `device`, to the
    logits of the network as it is when called.
    """

    values: Tensor
    labels: Int64[Tensor, "image"]
    forward: Callable[[Tensor], Tensor] = field(repr=False)
    device: torch.device

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in batches, shuffled iff a generator is given."""
        count = len(self.labels)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for rows in order.split(size):
            yield self.values[rows.to(self.values.device)].to(self.device), self.labels[rows].to(self.device)


@torch.no_grad()
def reduce(
    network: CCT,
    normalise: Callable[[Tensor], Tensor],
    images: Images,
    target: str,
    *,
    device: torch.device | str,
    batch: int = 128,
    precision: Precision = "auto",
) -> Reduced:
    """`images` as far as no mask of `target` reaches: pooled nodes for fc, else tokens if memory allows.

    `network` is in eval mode. Raises `UserError` when there are no images.
    """
    device = torch.device(device)
    if len(images) == 0:
        raise UserError(f"no {images.split} images to evaluate or retrain a pruned network on; check that split")

    def run(part: Callable[[Tensor], Tensor]) -> Tensor:
        found = []
        for pixels, _ in batches(images, batch, device=device):
            with autocast(device, precision):
                found.append(part(normalise(pixels)).float())
        return torch.cat(found)

    labels = images.labels.cpu()
    if target == "fc":
        pooled = run(lambda x: forward_to_fc(network, x)[0])
        return Reduced(pooled, labels, lambda x: network.classifier.fc(x), device)
    if 4 * len(images) * network.config.tokens * network.config.width <= TOKENS_HELD:
        return Reduced(run(network.tokenizer), labels, lambda x: _from_tokens(network, x), device)
    return Reduced(images.pixels, labels, lambda x: network(normalise(x)), device)


def _from_tokens(network: CCT, tokens: Tensor) -> Tensor:
    return network.classifier(tokens, lambda encoder, kind, nodes: nodes, network.attention == "fused")


@torch.no_grad()
def predict(reduced: Reduced, *, batch: int = 128, precision: Precision = "auto") -> Int64[Tensor, "image"]:
    """The label that the network, as it is now, gives to each image; on the CPU."""
    found = []
    for values, _ in reduced.batches(batch):
        with autocast(reduced.device, precision):
            found.append(reduced.forward(values).argmax(1))
    return torch.cat(found).cpu()


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

    def __post_init__(self) -> None:
        if self.batch < 1 or not self.learning_rate > 0:
            found = f"{self.batch} and {self.learning_rate}"
            raise UserError(f"retraining needs a batch of 1 at least and a positive learning rate; got {found}")

    def steps(self, images: int, epochs: float) -> int:
        """Optimiser steps in so many passes over so many images; any part of a pass is one step at least."""
        return max(1, round(epochs * -(-images // self.batch))) if epochs > 0 else 0


def retrain(
    network: nn.Module, masks: Masks, train: Reduced, epochs: float, settings: Retraining, generator: torch.Generator
) -> float:
    """Train weights and biases of the masked layers, in place, for `epochs` passes or parts of one.

    To be called inside `masked`. Masked weights stay exactly zero: their gradients are set to zero before
    each step, so that Adam's moments and the steps are zero too. Returns the mean loss of the last tenth of
    the steps; NaN for no step. Raises `UserError` when the loss stops being finite.
    """
    weights, trained = weights_of(network, masks), _trained(network, masks)
    gone = {name: ~masks[name].to(weight.device) for name, weight in weights.items()}
    steps = settings.steps(len(train.labels), epochs)
    optimizer = torch.optim.AdamW(trained.values(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / max(1, steps)))
    losses = []
    frozen = {parameter: parameter.requires_grad for parameter in network.parameters()}
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        for values, labels in _endless(train, settings.batch, generator, steps):
            with autocast(train.device, settings.precision):
                logits = train.forward(values)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            for name, weight in weights.items():
                assert weight.grad is not None
                weight.grad.masked_fill_(gone[name], 0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    finally:
        for parameter, before in frozen.items():
            parameter.requires_grad_(before).grad = None
    if not losses:
        return float("nan")
    last = float(torch.stack(losses[-max(1, steps // 10) :]).mean())
    if not math.isfinite(last):
        raise UserError(f"retraining diverged (loss {last}); lower the learning rate, {settings.learning_rate:g}")
    return last


def _endless(train: Reduced, size: int, generator: torch.Generator, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many batches, from pass after pass in fresh order."""
    done = 0
    while done < steps:
        for batch in train.batches(size, generator):
            if done == steps:
                return
            done += 1
            yield batch
