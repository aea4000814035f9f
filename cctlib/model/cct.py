"""Compact Convolutional Transformer (Hassani et al., arXiv:2104.05704), with taps at every node.

What is unusual about a CCT, in the order in which an image meets it:

- Tokens are cut by convolutions: (convolution without bias -> ReLU -> max pooling), once or twice.
- There is no class token.
- The position embedding is drawn with standard deviation 0.2, ten times that of the weights.
- Queries, keys and values have no bias; the projection after the heads has one.
- The trunk itself is normalised, `x = LN(x + Attn(LN(x)))`; FF reads it and adds to it, `x = x + FF(x)`.
- Stochastic depth drops whole branches of single images, at a rate that grows from 0 at the first encoder.
- SeqPool takes the class token's place: a linear layer scores the tokens, and their softmax weighs the mean.

Parameter names are those of the CCT authors' release, so their checkpoints load as they are. In one thing we
differ: its current `sine` variants build a learned position embedding, ours are sinusoids.

Nodes are handed out by name, `logits, taps = network(images, taps=["enc3/mha"])`: see Method, section 3.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cctlib.errors import UserError
from cctlib.model.sites import SITES, check_sites, site_names

POSITIONAL = ("learnable", "sine", "none")
ATTENTION = ("explicit", "fused")

# The families of the release. A name such as cct_7_3x2 adds the tokenizer: two 3x3 convolutions.
VARIANTS: dict[str, dict[str, Any]] = {
    "cct_2": {"encoders": 2, "width": 128, "heads": 2, "mlp_ratio": 1.0},
    "cct_4": {"encoders": 4, "width": 128, "heads": 2, "mlp_ratio": 1.0},
    "cct_6": {"encoders": 6, "width": 256, "heads": 4, "mlp_ratio": 2.0},
    "cct_7": {"encoders": 7, "width": 256, "heads": 4, "mlp_ratio": 2.0},
    "cct_14": {"encoders": 14, "width": 384, "heads": 6, "mlp_ratio": 3.0},
}

Images = Float[Tensor, "image 3 height width"]
Tokens = Float[Tensor, "image token node"]
Logits = Float[Tensor, "image label"]
At = Callable[[str, Tensor], Tensor]  # at(kind, nodes) -> nodes: scales and records them where asked to
AtSite = Callable[[str, str, Tensor], Tensor]  # at(encoder, kind, nodes) -> nodes


@dataclass(frozen=True)
class CCTConfig:
    """What determines a network's shape and regularisation; the defaults are CCT-7/3x2 for CIFAR-100.

    `stride` and `padding` belong to `kernel`: `config` sets them by the release's rule.
    Raises `UserError` when the values cannot make a network.
    """

    encoders: int = 7
    width: int = 256  # nodes of a token
    heads: int = 4
    mlp_ratio: float = 2.0  # FF's hidden nodes over width
    kernel: int = 3  # of the tokenizer's convolutions
    convolutions: int = 2
    stride: int = 1
    padding: int = 1
    pool_kernel: int = 3
    pool_stride: int = 2
    pool_padding: int = 1
    conv_channels: int = 64  # between two convolutions
    image_size: int = 32  # pixels, square
    num_classes: int = 100
    positional: str = "learnable"  # or "sine", "none"
    dropout: float = 0.0
    attention_dropout: float = 0.1
    stochastic_depth: float = 0.1  # of the last encoder; linear from 0 at the first

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if "padding" in field.name else 1
            if field.type is int and (not isinstance(value, int) or value < least):
                raise UserError(f"CCT: {field.name} is {value}; it must be a whole number, at least {least}")
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"CCT: {name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.width % self.heads:
            raise UserError(f"CCT: width {self.width} does not divide into {self.heads} heads")
        if self.hidden < 1:
            raise UserError(f"CCT: mlp_ratio {self.mlp_ratio} leaves FF no hidden node; choose a larger one")
        if self.positional not in POSITIONAL:
            raise UserError(f"CCT: positional is {self.positional!r}; use one of {', '.join(POSITIONAL)}")
        if self.side(self.image_size) < 1:
            steps = f"{self.convolutions} convolutions {self.kernel}x{self.kernel} and poolings"
            raise UserError(f"CCT: {steps} leave no token of {self.image_size} pixels; use larger images")

    def side(self, pixels: int) -> int:
        """Tokens along one side of an image of so many pixels; below 1 when it is too small."""
        for _ in range(self.convolutions):
            pixels = (pixels + 2 * self.padding - self.kernel) // self.stride + 1
            pixels = (pixels + 2 * self.pool_padding - self.pool_kernel) // self.pool_stride + 1
        return pixels

    @property
    def tokens(self) -> int:
        """Number of tokens of an image."""
        return self.side(self.image_size) ** 2

    @property
    def hidden(self) -> int:
        """Number of nodes of `ff_hidden`."""
        return int(self.width * self.mlp_ratio)

    def nodes(self, site: str) -> int:
        """Number of nodes of a site. Raises `UserError` for a site that the network does not have."""
        check_sites([site], site_names(self.encoders))
        return self.hidden if site.endswith("/ff_hidden") else self.width


def config(name: str, **settings: Any) -> CCTConfig:
    """The configuration of a named variant, as `cct_7_3x2`: 7 encoders, two 3x3 convolutions.

    The release's long names, as `cct_7_7x2_224_sine`, have image size and positions too. `settings`: fields
    of `CCTConfig`, which win over the name. Raises `UserError` for a name or a setting that does not exist.
    """
    parts = re.fullmatch(r"(cct_\d+)_(\d+)x(\d+)(?:_(\d+))?(_sine)?", name)
    if not parts or parts[1] not in VARIANTS:
        raise UserError(f"model {name!r} is not known; names are like cct_7_3x2, with {', '.join(VARIANTS)}")
    for setting in settings:
        if setting not in CCTConfig.__dataclass_fields__:
            raise UserError(f"model {name}: {setting!r} is not a setting; see the fields of CCTConfig")
    kernel = int(parts[2])
    named = VARIANTS[parts[1]] | {"kernel": kernel, "convolutions": int(parts[3])}
    named |= {"stride": max(1, kernel // 2 - 1), "padding": max(1, kernel // 2)}
    if parts[4]:
        named["image_size"] = int(parts[4])
    if parts[5]:
        named["positional"] = "sine"
    return CCTConfig(**(named | settings))


class Tokenizer(nn.Module):
    """Images to tokens, row by row."""

    def __init__(self, config: CCTConfig) -> None:
        super().__init__()
        channels = [3, *[config.conv_channels] * (config.convolutions - 1), config.width]
        layers = [
            nn.Sequential(
                nn.Conv2d(before, after, config.kernel, config.stride, config.padding, bias=False),
                nn.ReLU(),
                nn.MaxPool2d(config.pool_kernel, config.pool_stride, config.pool_padding),
            )
            for before, after in pairwise(channels)
        ]
        self.conv_layers = nn.Sequential(*layers)

    def forward(self, images: Images) -> Tokens:
        return self.conv_layers(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """softmax(Q K' / sqrt d) V for every head, then the projection; written out, or torch's fused kernel."""

    def __init__(self, config: CCTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tokens, at: At, fused: bool) -> Tokens:
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [image, head, token, node of the head]
        if fused:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            attention = at("attention", scores.softmax(dim=-1))  # [image, head, token, token]
            mixed = F.dropout(attention, self.dropout, self.training) @ v
        return self.proj(at("mha", mixed.transpose(1, 2).reshape(images, tokens, width)))


def stochastic_depth(branch: Tokens, rate: float) -> Tokens:
    """Drop the branch of each image with probability `rate`; those that stay grow by 1 / (1 - rate)."""
    return branch * F.dropout(branch.new_ones(branch.shape[0], 1, 1), rate)


class Encoder(nn.Module):
    """Attention and FF, with the LayerNorm between them on the trunk itself."""

    def __init__(self, config: CCTConfig, depth_rate: float) -> None:
        super().__init__()
        self.dropout, self.depth_rate = config.dropout, depth_rate
        self.pre_norm = nn.LayerNorm(config.width)
        self.self_attn = Attention(config)
        self.norm1 = nn.LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.hidden)
        self.linear2 = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tokens, at: At, fused: bool) -> Tokens:
        x = x + self.regularised(self.self_attn(self.pre_norm(x), at, fused))
        x = at("trunk", self.norm1(x))
        hidden = at("ff_hidden", F.gelu(self.linear1(x)))
        x = x + self.regularised(self.linear2(F.dropout(hidden, self.dropout, self.training)))
        return at("ff", x)

    def regularised(self, branch: Tokens) -> Tokens:
        """A residual branch after dropout and stochastic depth; the branch itself in eval mode."""
        branch = F.dropout(branch, self.dropout, self.training)
        return stochastic_depth(branch, self.depth_rate) if self.training and self.depth_rate > 0 else branch


def seqpool(tokens: Tokens, scores: Float[Tensor, "image token 1"]) -> Float[Tensor, "image node"]:
    """Mean over tokens, weighted by the softmax of their scores: sum_t softmax_t(score) x_t."""
    return (scores.softmax(dim=1).transpose(1, 2) @ tokens).squeeze(1)


def sinusoids(tokens: int, width: int) -> Float[Tensor, "1 token node"]:
    """Position embedding of token t, node i: sin (i even), cos (i odd) of t / 10000^(2 floor(i/2)/width)."""
    node = torch.arange(width)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] / 10_000 ** (2 * (node // 2) / width)
    return torch.where(node % 2 == 0, angle.sin(), angle.cos()).float()[None]


def on_grid(embedding: Float[Tensor, "1 token node"], tokens: int) -> Float[Tensor, "1 place node"]:
    """A position embedding for another square grid of `tokens`: every place of the image keeps its own (bicubic)."""
    old, new = math.isqrt(embedding.shape[1]), math.isqrt(tokens)
    if old == new:
        return embedding
    grid = embedding.transpose(1, 2).unflatten(2, (old, old))
    return F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)


class Classifier(nn.Module):
    """What follows the tokenizer: positions, encoders, LayerNorm, SeqPool, linear layer."""

    positional_emb: Tensor | None

    def __init__(self, config: CCTConfig) -> None:
        super().__init__()
        if config.positional == "learnable":
            self.positional_emb = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        elif config.positional == "sine":
            self.register_buffer("positional_emb", sinusoids(config.tokens, config.width))
        else:
            self.positional_emb = None
        self.dropout = config.dropout
        rates = torch.linspace(0, config.stochastic_depth, config.encoders, device="cpu").tolist()
        self.blocks = nn.ModuleList(Encoder(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width)
        self.attention_pool = nn.Linear(config.width, 1)
        self.fc = nn.Linear(config.width, config.num_classes)

    def forward(self, x: Tokens, at: AtSite, fused: bool, last: int | None = None) -> Logits | None:
        if self.positional_emb is not None:
            x = x + on_grid(self.positional_emb, x.shape[1])
        return self.encode(F.dropout(x, self.dropout, self.training), 1, at, fused, last)

    def encode(self, x: Tokens, first: int, at: AtSite, fused: bool, last: int | None = None) -> Logits | None:
        """From the tokens that enter encoder `first` to the logits; or to encoder `last` and no further."""
        for m, block in enumerate(self.blocks[first - 1 : last], start=first):
            x = block(x, partial(at, f"enc{m}"), fused)
        if last is not None:
            return None
        x = self.norm(x)
        return self.fc(seqpool(x, self.attention_pool(x)))


class CCT(nn.Module):
    """The network. `attention` is "explicit" (written out) or "fused" (one kernel), free to change later.

    So is `image_size` (pixels, square), at first the configuration's: positions are resized to the grid of tokens that
    images of that size have.

    Both forms give the same logits within 1e-5 in fp32; which is faster depends on the device. Attention maps
    need "explicit". Initial weights, dropout and stochastic depth draw from torch's global generator.
    """

    def __init__(self, config: CCTConfig, attention: str = "explicit") -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        self.image_size = config.image_size
        encoders = range(1, config.encoders + 1)
        self.nodes = {site: config.nodes(site) for site in site_names(config.encoders)}
        self.tap_names = tuple(f"enc{m}/{kind}" for m in encoders for kind in (*SITES, "attention"))
        self._check_names(taps=(), gains={})
        self.tokenizer = Tokenizer(config)
        self.classifier = Classifier(config)
        self.initialise()

    def forward(
        self,
        images: Images,
        taps: Sequence[str] = (),
        gains: Mapping[str, Float[Tensor, "_"]] | None = None,
        *,
        to_the_end: bool = True,
    ) -> Logits | tuple[Logits | None, dict[str, Float[Tensor, "image *_"]]]:
        """Logits of normalised images; with `taps`, also what the named sites hold.

        Args:
            images: normalised, of the network's `image_size` (of any size where it has no positions).
            taps: names such as "enc3/mha", encoders counted from 1: [image, token, node]; or
                "enc3/attention", the maps after their softmax: [image, head, token, token]. A tap is the very
                tensor that the network goes on with: not copied, not detached, in autocast's precision.
            gains: factors for the nodes of sites; 0 silences a node, or at `mha` a head, in the network
                itself. A tap of the same site shows the nodes after their gains.
            to_the_end: False stops behind the last encoder that is tapped; there are no logits then, but None.

        Raises `UserError` for wrong images, unknown taps or gains, and attention maps of fused attention.
        """
        gains = gains or {}
        _check_images(images, self.config, self.image_size)
        self._check_names(taps, gains)
        recorded: dict[str, Tensor] = {}
        at = _scaled_and_recorded(gains, taps, recorded)
        last = None if to_the_end else max((int(site[3 : site.index("/")]) for site in taps), default=0)
        logits = self.classifier(self.tokenizer(images), at, self.attention == "fused", last)
        return (logits, recorded) if taps else logits

    def forward_from(self, encoder: int, tokens: Tokens, gains: Mapping[str, Float[Tensor, "_"]]) -> Logits:
        """Logits from the tokens that enter an encoder (counted from 1), with `gains` as in `forward`.

        The tap "enc2/ff" is what enters encoder 3: where only later nodes change, the encoders before need not run
        again.
        """
        self._check_names((), gains)
        at = _scaled_and_recorded(gains, (), {})
        logits = self.classifier.encode(tokens, encoder, at, self.attention == "fused")
        assert logits is not None
        return logits

    def hidden_weights(self) -> list[Tensor]:
        """The weight matrices between hidden nodes: those of the encoders."""
        return [parameter for parameter in self.classifier.blocks.parameters() if parameter.ndim == 2]

    def initialise(self) -> None:
        """Draw weights as the release does; LayerNorms are left as they are."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        if isinstance(self.classifier.positional_emb, nn.Parameter):
            nn.init.trunc_normal_(self.classifier.positional_emb, std=0.2)

    def _check_names(self, taps: Sequence[str], gains: Mapping[str, Tensor]) -> None:
        if self.attention not in ATTENTION:
            raise UserError(f"attention is {self.attention!r}; use one of {', '.join(ATTENTION)}")
        check_sites(taps, self.tap_names)
        check_sites(gains, self.nodes)
        for site in taps:
            if site.endswith("/attention") and self.attention == "fused":
                raise UserError(f'{site}: fused attention forms no maps; set network.attention = "explicit"')
        for site, gain in gains.items():
            if gain.shape != (self.nodes[site],):
                raise UserError(f"gains: {site} has {self.nodes[site]} nodes, its gains have shape {tuple(gain.shape)}")


def _scaled_and_recorded(gains: Mapping[str, Tensor], taps: Sequence[str], recorded: dict[str, Tensor]) -> AtSite:
    """What the classifier does at a site: apply its gains, and record it where it is tapped."""

    def at(encoder: str, kind: str, nodes: Tensor) -> Tensor:
        site = f"{encoder}/{kind}"
        if site in gains:
            nodes = nodes * gains[site].to(nodes.dtype)
        if site in taps:
            recorded[site] = nodes
        return nodes

    return at


def _check_images(images: Tensor, config: CCTConfig, size: int) -> None:
    if not images.is_floating_point():
        raise UserError(f"images are {images.dtype}; normalise them to floating point first (data.normalise)")
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"images have shape {tuple(images.shape)}; expected [image, 3, height, width]")
    height, width = images.shape[2], images.shape[3]
    if config.side(height) < 1 or config.side(width) < 1:
        raise UserError(f"images of {height}x{width} pixels leave this tokenizer no token; use larger ones")
    if config.positional != "none" and (height != size or width != size):
        raise UserError(f"images are {height}x{width} pixels, this network needs {size}x{size}; resize them")
