"""The one loop that shows images to a frozen network: batches, autocast, forward."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cctlib.data.images import Images, to_device
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
    progress: str = "",
    **settings: object,
) -> Iterator[tuple[int, Tensor, Tensor, dict[str, Tensor]]]:
    """Show the images to the network once; gradients are off in the network and nowhere else.

    Yields (first, labels, logits, nodes) for each batch, on the device. first: the position of the batch's first
    image. labels: [image]. logits: [image, label], and nodes: {site: [image, token, node]} of the `taps`, in
    autocast's precision.

    progress: the name of a progress bar; none without a name. settings: more arguments of a network with taps.
    """
    images = on_device(images, device)
    for first in tqdm(range(0, len(images), batch), progress, unit="batch", disable=not progress):
        rows = slice(first, first + batch)
        with torch.no_grad(), autocast(device, precision):  # not around the yield: the loop's body is the caller's
            pixels = normalise(to_device(images.pixels[rows], device))
            logits, nodes = network(pixels, taps=taps, **settings) if taps else (network(pixels), {})
        yield first, to_device(images.labels[rows], device), logits, nodes


def accuracies(
    network: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Images,
    *,
    device: torch.device | str,
    precision: Precision = "auto",
) -> tuple[float, float]:
    """Shares of 1: of the images that are classified correctly, and the mean of this share over the labels.

    Labels without images do not count. Raises `UserError` when there are no images at all.
    """
    if not len(images):
        raise UserError(f"{images.dataset} has no {images.split} images; accuracy cannot be measured")
    passes = forward(network, normalise, images, device=device, precision=precision, batch=256)
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
