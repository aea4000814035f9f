"""VGG with batch norm (Simonyan and Zisserman, arXiv:1409.1556): the convolutional network beside the CCT.

The siblings' VGG-11 is the first ten convolution layers of VGG-16 and one linear layer without bias (Method,
section 9). A layer is convolution 3x3 without bias -> batch norm -> ReLU [-> max pooling 2x2]. The map of the last
layer is flattened for the linear layer.

Nodes are filters, and are handed out as those of a CCT are, `logits, taps = network(images, taps=["layer3/filters"])`,
with the positions of the map in the place of tokens: [image, position, filter].
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cctlib.errors import UserError
from cctlib.model.sites import BEFORE_RELU, FILTERS, check_sites, layer_sites, parse

# VGG-16: filters of each convolution, in units of the first one's, in the stages that pooling ends.
STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
VARIANTS = {"vgg_11": 10, "vgg_14": 13}  # convolutions; the names count the linear layer


@dataclass(frozen=True)
class VGGConfig:
    """What determines a network's shape; the defaults are the siblings' VGG-11 for CIFAR-100.

    Raises `UserError` when the values cannot make a network.
    """

    convolutions: int = 10
    width: int = 64  # filters of the first convolution
    image_size: int = 32  # pixels, square
    num_classes: int = 100

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"VGG: {field.name} is {value}; it must be a whole number, at least 1")
        most = sum(map(len, STAGES))
        if self.convolutions > most:
            raise UserError(f"VGG: {self.convolutions} convolutions; VGG-16 has {most}")
        if self.side < 1:
            raise UserError(f"VGG: {self.image_size} pixels leave nothing behind its poolings; use larger images")

    @property
    def layers(self) -> tuple[tuple[int, bool], ...]:
        """Of each convolution: the number of its filters, and whether pooling follows it; it follows the last one."""
        plan = [(self.width * filters, n == len(stage)) for stage in STAGES for n, filters in enumerate(stage, 1)]
        *before, (filters, _) = plan[: self.convolutions]
        return (*before, (filters, True))

    @property
    def side(self) -> int:
        """Pixels along one side of the map that the linear layer reads."""
        return self.image_size >> sum(pooled for _, pooled in self.layers)


class Layer(nn.Module):
    """Convolution, batch norm, ReLU: the map before ReLU, and behind it. `pooled` where pooling follows."""

    def __init__(self, before: int, filters: int, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, filters, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(filters)
        self.pooled = pooled

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = self.norm(self.conv(x))
        return before, F.relu(before)


class VGG(nn.Module):
    """The network. Initial weights draw from torch's global generator."""

    def __init__(self, config: VGGConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size  # that a training shows it for now; of any size, see `forward`
        self.nodes = {site: config.layers[parse(site)[0] - 1][0] for site in layer_sites(config.convolutions)}
        channels = [3, *(filters for filters, _ in config.layers)]
        layers = [Layer(before, *layer) for before, layer in zip(channels, config.layers, strict=False)]
        self.layers = nn.ModuleList(layers)
        self.fc = nn.Linear(channels[-1] * config.side**2, config.num_classes, bias=False)
        for layer in layers:
            nn.init.kaiming_normal_(layer.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)

    def hidden_weights(self) -> list[Tensor]:
        """The weights between hidden nodes: those of all convolutions but the first."""
        return [parameter for parameter in self.layers[1:].parameters() if parameter.ndim == 4]

    def forward(
        self, images: Tensor, taps: Sequence[str] = (), *, to_the_end: bool = True
    ) -> (
        Float[Tensor, "image label"]
        | tuple[Float[Tensor, "image label"] | None, dict[str, Float[Tensor, "image position _"]]]
    ):
        """Logits of normalised images [image, 3, height, width]; with `taps`, also what sites hold, before pooling.

        Images of another size than the configuration's are taken: the last map is averaged, or repeated, to the size
        that the linear layer reads. to_the_end: False stops behind the last tapped layer; there are no logits then.
        Raises `UserError` for unknown taps, and for images that are not normalised or have another shape.
        """
        check_sites(taps, self.nodes)
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            shape = f"{images.dtype} {tuple(images.shape)}"
            raise UserError(f"images are {shape}; expected normalised [image, 3, height, width]")
        last = None if to_the_end else max((parse(site)[0] for site in taps), default=0)
        recorded: dict[str, Tensor] = {}
        x = images
        for m, layer in enumerate(self.layers[:last], start=1):
            before, x = layer(x)
            for kind, values in ((BEFORE_RELU, before), (FILTERS, x)):
                if (site := f"layer{m}/{kind}") in taps:
                    recorded[site] = values.flatten(2).transpose(1, 2)
            if layer.pooled:
                x = F.max_pool2d(x, 2)
        if not to_the_end:
            return None, recorded
        logits = self.fc(F.adaptive_avg_pool2d(x, self.config.side).flatten(1))
        return (logits, recorded) if taps else logits
