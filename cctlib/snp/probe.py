"""Probes: what a site of the frozen network says about the labels (Method, section 4).

A probe is [LayerNorm without weights, at `ff` only] -> SeqPool, p = sum_t softmax_t(a . x_t) x_t -> W p, without bias.
The network is frozen and images are not augmented, so it runs once for each group of sites whose tokens fit in memory,
and `fit` takes what passes over these tokens it needs until the probe has converged.

Some sites have more probes, which show what a choice of the method decides and are read for nothing else: `swapped`
has the LayerNorm where the first has none, and none where it has one; `short` is trained as in the first version.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from cctlib import stages
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.model import sites
from cctlib.model.cct import CCT, seqpool
from cctlib.model.forward import forward
from cctlib.model.precision import Precision
from cctlib.model.vgg import VGG
from cctlib.snp import fit
from cctlib.snp.fit import Tokens


@dataclass(frozen=True)
class ProbeSettings:
    """How probes are trained, and at which kinds of site there are which."""

    penalty: float = 1e-3  # the weight decay of the siblings' recipe
    tolerance: float = 1e-4  # a probe has converged when a step of L-BFGS lowers its loss by less than this share
    most_passes: int = 60  # over the tokens; the history says when that was not enough
    kept_gib: float = 8.0  # of tokens at a time; one site at least, whatever it takes
    probed: tuple[str, ...] = sites.SITES  # kinds of site
    normalised: tuple[str, ...] = ("ff",)  # those that get a LayerNorm without weights in front
    swapped: tuple[str, ...] = ("mha", "ff")
    short: tuple[str, ...] = ("mha", "ff")
    short_steps: int = 300  # of an epoch of `short`, at least: a small set is passed over as often as that takes
    precision: Precision = "auto"  # of the frozen network; probes are fp32

    def __post_init__(self) -> None:
        numbers = (self.penalty, self.tolerance, self.kept_gib, self.most_passes, self.short_steps)
        if not all(number > 0 for number in numbers):
            names = "positive penalty, tolerance, kept_gib, most_passes and short_steps"
            raise UserError(f"probe settings need a {names}, and not {', '.join(map(str, numbers))}")


class Probe(nn.Module):
    """Reader of one site with `width` nodes. `fc.weight` is W of the method: [label, node]."""

    def __init__(self, width: int, num_labels: int, normalised: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False) if normalised else nn.Identity()
        self.attention_pool = nn.Linear(width, 1)
        self.fc = nn.Linear(width, num_labels, bias=False)

    def pool(self, tokens: Float[Tensor, "image token node"]) -> Float[Tensor, "image node"]:
        """SeqPool: p = sum_t softmax_t(a . x_t + b) x_t."""
        tokens = self.norm(tokens.float())
        return seqpool(tokens, self.attention_pool(tokens))

    def forward(self, tokens: Float[Tensor, "image token node"]) -> Float[Tensor, "image label"]:
        """Logits of the site."""
        return self.fc(self.pool(tokens))


SWAPPED, SHORT, READOUT = "swapped", "short", "readout"
VARIANTS = (SWAPPED, SHORT, READOUT)  # LayerNorm the other way round; the first version's; the network's own read-out


def site_of(name: str) -> str:
    """The site that the probe of that name reads: "enc3/mha" of "enc3/mha/swapped"."""
    return "/".join(name.split("/")[:2])


def variant_of(name: str) -> str:
    """Which of a site's probes that is: one of `VARIANTS`, or "" for the probe that everything is measured with."""
    return name[len(site_of(name)) + 1 :]


class Probes(nn.ModuleDict):
    """The probes of a network, by site; `probes["enc3/mha/swapped"]` is a variant of `probes["enc3/mha"]`."""

    def __getitem__(self, name: str) -> Probe:
        return cast(Probe, super().__getitem__(name))

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the probed sites, in the order of the network; each names its first probe."""
        return self.of("")

    def of(self, variant: str) -> tuple[str, ...]:
        """Names of the probes of a variant."""
        return tuple(name for name in self if variant_of(name) == variant)


def own_readout(network: nn.Module, probes: Probes) -> Probes:
    """The probes and, of a CCT, its own read-out of the last `ff`: final norm, SeqPool and fc (Method, section 5)."""
    if not isinstance(network, CCT):
        return probes
    classifier, site = network.classifier, f"enc{network.config.encoders}/ff"
    with torch.device("meta"):  # its modules are replaced at once
        readout = Probe(network.config.width, network.config.num_classes, normalised=False)
    readout.norm, readout.attention_pool, readout.fc = classifier.norm, classifier.attention_pool, classifier.fc
    return Probes({**probes, f"{site}/{READOUT}": readout})


def make_probes(widths: Mapping[str, int], num_labels: int, settings: ProbeSettings) -> Probes:
    """Fresh probes for sites of the given widths, by the settings' kinds of site; the variants come last."""
    kinds = {site: sites.parse(site)[1] for site in widths}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = {site: Probe(width, num_labels, kinds[site] in settings.normalised) for site, width in widths.items()}
        variants = {
            f"{site}/{variant}": Probe(widths[site], num_labels, (kind in settings.normalised) != (variant == SWAPPED))
            for variant, having in ((SWAPPED, settings.swapped), (SHORT, settings.short))
            for site, kind in kinds.items()
            if kind in having
        }
        return Probes(first | variants)


def groups(sizes: Mapping[str, int], room: float) -> list[list[str]]:
    """Sites in order, as many together as have room by their sizes; one at least."""
    made: list[list[str]] = []
    used = 0.0
    for site, size in sizes.items():
        if not made or used + size > room:
            made.append([])
            used = 0.0
        made[-1].append(site)
        used += size
    return made


def kept_tokens(
    network: nn.Module, normalise: Callable[[Tensor], Tensor], images: Images, group: Sequence[str], **how: Any
) -> dict[str, Tokens]:
    """Tokens of a group of sites, from one pass, which of our own networks stops behind them; `how` as in `forward`."""
    labels = images.labels.to(how["device"])
    if isinstance(network, CCT | VGG):
        how["to_the_end"] = False
    kept: dict[str, Tensor] = {}
    for first, _, _, nodes in forward(
        network, normalise, images, taps=group, progress=f"tokens of {group[0]} ...", **how
    ):
        for site, values in nodes.items():
            if site not in kept:
                kept[site] = values.new_empty(len(images), *values.shape[1:], dtype=torch.bfloat16)
            kept[site][first : first + len(values)] = values
    return {site: Tokens(values, labels) for site, values in kept.items()}


def train_probes(
    network: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    probes: Probes,
    images: Images,
    settings: ProbeSettings,
    *,
    device: torch.device | str,
    checkpoint: Path | None = None,
) -> pd.DataFrame:
    """Train `probes` in place on the sites of the frozen `network`.

    `network(images, taps=...)` returns logits and tokens by site. On a CPU each core fits a probe of its own. With
    `checkpoint`, each finished probe is saved there, and a run that was killed goes on behind it to the same weights,
    bit for bit on a CPU.
    Returns the history: one row a probe with passes over the tokens, loss with penalty, and whether it converged.
    """
    how: dict[str, Any] = {"device": device, "precision": settings.precision}
    done = torch.load(checkpoint, weights_only=True, map_location=device) if checkpoint and checkpoint.exists() else {}
    _, _, _, first = next(iter(forward(network, normalise, images, taps=probes.sites, batch=1, **how)))
    sizes = {site: 2 * nodes[0].numel() * len(images) for site, nodes in first.items()}  # bytes in bf16
    with tqdm(total=len(probes), initial=len(done), desc="probes", unit="probe") as bar:
        for group in groups(sizes, settings.kept_gib * 2**30):
            todo = [name for name in probes if site_of(name) in group and name not in done]
            if not todo:
                continue
            kept = kept_tokens(network, normalise, images, group, **how)
            for site in group:
                if not kept[site].values.sum().isfinite():
                    raise UserError(f"tokens of {site} hold NaN or infinity: check the weights, or use precision fp32")
            with _a_core_each(device) as pool:
                fits = {
                    pool.submit(_fit, probes[name], kept[site_of(name)], variant_of(name), settings): name
                    for name in todo
                }
                for finished in as_completed(fits):
                    done[fits[finished]] = tuple(finished.result())
                    bar.update()
                    if checkpoint:
                        with stages.replacing(checkpoint) as temporary:
                            torch.save(done, temporary)
            del kept  # before the next group is made
    for name, (a, W, *_) in done.items():
        probes[name].load_state_dict(
            {"attention_pool.weight": a[None], "attention_pool.bias": a.new_zeros(1), "fc.weight": W}
        )
    history = [(name, *done[name][2:]) for name in probes]
    return pd.DataFrame(history, columns=["probe", "passes", "loss", "converged"])


@contextmanager
def _a_core_each(device: torch.device | str) -> Iterator[ThreadPoolExecutor]:
    """Threads that each compute on one core, as many as torch has threads on a CPU; elsewhere one."""
    threads = torch.get_num_threads()
    workers = threads if torch.device(device).type == "cpu" else 1
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # the workers' setting reaches this thread, too


def _fit(probe: Probe, kept: Tokens, variant: str, settings: ProbeSettings) -> fit.Fitted:
    tokens = kept.behind(probe.norm)
    if variant == SHORT:
        a, W = (layer.weight.detach().to(kept.values.device) for layer in (probe.attention_pool, probe.fc))
        return fit.short(tokens, a[0], W, settings.short_steps)
    return fit.converge(tokens, probe.fc.out_features, settings.penalty, settings.tolerance, settings.most_passes)
