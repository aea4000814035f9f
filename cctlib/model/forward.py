"""The one loop that shows images to a frozen network: batches, autocast, forward."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cctlib.data.images import Images, batches
from cctlib.errors import UserError
from cctlib.model.precision import Precision, autocast


def forward(
    network: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Images,
    *,
    device: torch.device | str,
    taps: Sequence[str] = (),
    batch: int = 128,
    precision: Precision = "auto",
    generator: torch.Generator | None = None,
    skip: int = 0,
    progress: str = "",
    **settings: object,
) -> Iterator[tuple[int, Tensor, Tensor, dict[str, Tensor]]]:
    """Show the images to the network once; gradients are off in the network and nowhere else.

    Yields (first, labels, logits, nodes) for each batch, on the device. first: the position of the batch's first
    image. labels: [image]. logits: [image, label], and nodes: {site: [image, token, node]} of the `taps`, in
    autocast's precision.

    generator, skip: a shuffled pass, or the rest of one, as in `batches`; positions then count in the order drawn.
    progress: the name of a progress bar; none without a name. settings: more arguments of a network with taps.
    """
    images = on_device(images, device)
    pixels_and_labels = batches(images, batch, device=device, generator=generator, skip=skip)
    total = -(-len(images) // batch)
    bar = tqdm(pixels_and_labels, progress, total=total, initial=skip, unit="batch", disable=not progress)
    for number, (pixels, labels) in enumerate(bar, start=skip):
        with torch.no_grad(), autocast(device, precision):  # not around the yield: the loop's body is the caller's
            pixels = normalise(pixels)
            logits, nodes = network(pixels, taps=taps, **settings) if taps else (network(pixels), {})
        yield number * batch, labels, logits, nodes


def accuracies(
    network: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Images,
    *,
    device: torch.device | str,
    precision: Precision = "auto",
    batch: int = 256,
) -> tuple[float, float]:
    """Shares of 1: of the images that are classified correctly, and the mean of this share over the labels.

    Labels without images do not count. Raises `UserError` when there are no images at all.
    """
    if not len(images):
        raise UserError(f"{images.dataset} has no {images.split} images; accuracy cannot be measured")
    passes = forward(network, normalise, images, device=device, precision=precision, batch=batch)
    correct = torch.cat([logits.argmax(1) == labels for _, labels, logits, _ in passes]).cpu()
    labels = images.labels.cpu()
    per_label = [correct[labels == label].double().mean() for label in labels.unique()]
    return correct.double().mean().item(), torch.stack(per_label).mean().item()


def on_device(images: Images, device: torch.device | str) -> Images:
    """The images on a GPU, if they take at most half of its free memory; else as they are.

    Whoever passes over the same images several times moves them once, before the first pass.
    """
    device = torch.device(device)
    if device.type != "cuda" or images.pixels.device.type == "cuda":
        return images
    free, _ = torch.cuda.mem_get_info(device)
    return images.to(device) if images.pixels.numel() <= free // 2 else images
