"""Probes: what a site of the frozen network says about the labels (Method, section 4).

A probe is [LayerNorm without weights, at `ff` only] -> SeqPool -> Linear without bias. The probes of all sites are
trained in the same pass: the frozen trunk runs once a batch and hands out the sites' tokens, and each probe has its
own loss, its own early stopping, and parameters that no other probe shares, so their gradients never mix.

Some sites have a second probe, which differs only in the LayerNorm: without it where the first has it, with it where
the first has none. It shows what that choice of the method decides, and nothing else is read from it.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from cctlib import stages
from cctlib.data.images import Images
from cctlib.errors import UserError
from cctlib.model import sites
from cctlib.model.cct import CCT, seqpool
from cctlib.model.forward import forward
from cctlib.model.precision import Precision


@dataclass(frozen=True)
class ProbeSettings:
    """How probes are trained: AdamW without weight decay, at a rate that falls along a cosine to zero."""

    epochs: int = 2  # passes over the training images, at most
    batch: int = 128
    least_steps: int = 300  # of an epoch: a small set is passed over as often as that takes
    learning_rate: float = 3e-3
    patience: int = 1  # a probe stops after so many epochs without a better held-out accuracy
    normalised: tuple[str, ...] = ("ff",)  # kinds of site that get a LayerNorm without weights in front
    swapped: tuple[str, ...] = ("mha", "ff")  # kinds with a second probe, LayerNorm the other way round
    seed: int = 0
    precision: Precision = "auto"  # of the frozen trunk; probes are fp32

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.least_steps < 1 or not self.learning_rate > 0:
            raise UserError(
                f"probe settings need epochs, batch and least_steps >= 1 and a positive learning rate; got "
                f"{self.epochs}, {self.batch}, {self.least_steps}, {self.learning_rate}"
            )

    def passes(self, images: int) -> int:
        """How often an epoch passes over so many training images."""
        return -(-self.least_steps // -(-images // self.batch))


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


SWAPPED, READOUT = "swapped", "readout"
VARIANTS = (SWAPPED, READOUT)  # second probes with the LayerNorm the other way round; the network's own read-out


def site_of(name: str) -> str:
    """The site that the probe of that name reads: "enc3/mha" of "enc3/mha/swapped"."""
    return "/".join(name.split("/")[:2])


def variant_of(name: str) -> str:
    """Which of a site's probes that is: one of `VARIANTS`, or "" for the probe that everything is measured with."""
    return name[len(site_of(name)) + 1 :]


def sites_of(names: Sequence[str]) -> tuple[str, ...]:
    """The sites that the named probes read, each once."""
    return tuple(dict.fromkeys(map(site_of, names)))


class Probes(nn.ModuleDict):
    """The probes of a network, by site; `probes["enc3/mha/swapped"]` is a variant of `probes["enc3/mha"]`."""

    def __getitem__(self, name: str) -> Probe:
        return cast(Probe, super().__getitem__(name))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all probes."""
        return tuple(self.keys())

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the probed sites, in the order of the network; each names its first probe."""
        return self.of("")

    def of(self, variant: str) -> tuple[str, ...]:
        """Names of the probes of a variant."""
        return tuple(name for name in self.names if variant_of(name) == variant)


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
    """Fresh probes for sites of the given widths. The seed alone decides their initial weights, whatever the device.

    Second probes come last, so that the first ones start from the same weights with and without them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        kinds = {site: sites.parse(site)[1] for site in widths}
        normalised = {site: kind in settings.normalised for site, kind in kinds.items()}
        first = {site: Probe(width, num_labels, normalised[site]) for site, width in widths.items()}
        second = {
            f"{site}/{SWAPPED}": Probe(widths[site], num_labels, not normalised[site])
            for site, kind in kinds.items()
            if kind in settings.swapped
        }
        return Probes(first | second)


def train_probes(
    network: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    probes: Probes,
    train: Images,
    held_out: Images,
    settings: ProbeSettings,
    *,
    device: torch.device | str,
    checkpoint: Path | None = None,
    checkpoint_steps: int = 50,
) -> pd.DataFrame:
    """Train `probes` in place on the sites of the frozen `network`; each ends with the weights of its best epoch.

    `network(images, taps=...)` returns logits and tokens by site. With `checkpoint`, the state is saved there every
    `checkpoint_steps` batches, and a run that was killed goes on from it to the same weights, bit for bit on a CPU.
    Returns the history: one row per epoch and probe, with columns epoch, probe, held_out_accuracy, stopped.
    Raises `UserError` when a probe's loss stops being finite.
    """
    if len(held_out) == 0:
        raise UserError(
            "no held-out images: early stopping of probes decides on them; check the held-out split of the data set"
        )
    steps_per_pass, passes = -(-len(train) // settings.batch), settings.passes(len(train))
    run = _Run(probes.to(device), settings, steps_per_epoch=passes * steps_per_pass)
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)
    total = settings.epochs * run.steps_per_epoch
    with tqdm(total=total, initial=run.step, desc="probes", unit="batch") as bar:
        while run.step < total and run.active:
            number, done = divmod(run.step, steps_per_pass)
            order = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
            drawn = forward(
                network,
                normalise,
                train,
                taps=sites_of(run.active),
                batch=settings.batch,
                device=device,
                precision=settings.precision,
                generator=order,
                skip=done,
            )
            for _, labels, _, tokens in drawn:
                run.learn(tokens, labels)
                bar.update()
                within = run.step % run.steps_per_epoch
                if checkpoint is not None and within and run.step % checkpoint_steps == 0:
                    run.save(checkpoint)
            if run.step % run.steps_per_epoch == 0:
                found = accuracies(network, normalise, probes, held_out, run.active, settings, device=device)
                run.finish_epoch(number // passes, found)
                bar.set_postfix_str(run.summary())
            if checkpoint is not None:
                run.save(checkpoint)
    run.restore_best()
    return pd.DataFrame(run.history)


class _Run:
    """State of a training run: what a checkpoint holds."""

    def __init__(self, probes: Probes, settings: ProbeSettings, steps_per_epoch: int):
        self.probes, self.settings = probes, settings
        self.steps_per_epoch = steps_per_epoch
        self.optimizer = torch.optim.AdamW(probes.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        total = settings.epochs * steps_per_epoch
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, total)
        self.step = 0
        self.active = list(probes.names)
        self.best: dict[str, dict[str, Any]] = {
            name: {"accuracy": -1.0, "epoch": -1, "state": copy.deepcopy(probes[name].state_dict())}
            for name in self.active
        }
        self.history: list[dict] = []

    def learn(self, tokens: Mapping[str, Tensor], labels: Tensor) -> None:
        """One batch: all active probes, one optimizer step."""
        logits = [self.probes[name](tokens[site_of(name)]) for name in self.active]
        loss = torch.stack([cross_entropy(output, labels) for output in logits]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.step += 1

    def finish_epoch(self, epoch: int, accuracy: Mapping[str, float]) -> None:
        """Keep the best weights of each probe, and stop those that no longer improve."""
        for name, value in accuracy.items():
            if not all(bool(weight.isfinite().all()) for weight in self.probes[name].parameters()):
                raise UserError(
                    f"the probe {name} diverged in epoch {epoch + 1}; "
                    f"lower learning_rate ({self.settings.learning_rate})"
                )
            if value > self.best[name]["accuracy"]:
                self.best[name] = {
                    "accuracy": value,
                    "epoch": epoch,
                    "state": copy.deepcopy(self.probes[name].state_dict()),
                }
            stopped = epoch - self.best[name]["epoch"] >= self.settings.patience
            self.history.append({"epoch": epoch + 1, "probe": name, "held_out_accuracy": value, "stopped": stopped})
            if stopped:
                self.active.remove(name)

    def summary(self) -> str:
        """Held-out accuracy of the first and the last site, for the progress bar."""
        first, last = self.probes.sites[0], self.probes.sites[-1]
        return f"held-out {first} {self.best[first]['accuracy']:.1%}, {last} {self.best[last]['accuracy']:.1%}"

    def restore_best(self) -> None:
        """Give each probe the weights of its best epoch."""
        for name, best in self.best.items():
            self.probes[name].load_state_dict(best["state"])

    def save(self, path: Path) -> None:
        """Write the checkpoint, atomically."""
        state = {
            "probes": self.probes.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            **{name: getattr(self, name) for name in ("step", "active", "best", "history")},
        }
        with stages.replacing(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same run (the stage's key guarantees that it is the same)."""
        state = torch.load(path, weights_only=True, map_location=next(self.probes.parameters()).device)
        self.probes.load_state_dict(state["probes"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.active, self.best, self.history = (
            state[name] for name in ("step", "active", "best", "history")
        )


@torch.no_grad()
def accuracies(
    network: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    probes: Probes,
    images: Images,
    names: Sequence[str],
    settings: ProbeSettings,
    *,
    device: torch.device | str,
) -> dict[str, float]:
    """Accuracy of the named probes on `images`, as shares of 1, in one pass."""
    correct = torch.zeros(len(names), device=device)
    how: dict[str, Any] = {"device": device, "batch": settings.batch, "precision": settings.precision}
    for _, labels, _, tokens in forward(network, normalise, images, taps=sites_of(names), **how):
        correct += torch.stack([(probes[name](tokens[site_of(name)]).argmax(1) == labels).sum() for name in names])
    return dict(zip(names, (correct / len(images)).tolist(), strict=True))
