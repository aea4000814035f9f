"""The command line: a thin skin over the functions that the notebooks call.

`cctlib --help` lists the commands. A user's mistake is one line on standard error and exit status 2.
"""

import argparse
import functools
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import pandas as pd
import tyro

from cctlib.data import images as data
from cctlib.errors import UserError
from cctlib.snp import measure
from cctlib.stages import PACKAGE, replacing
from cctlib.study import Study, open_layers, open_study, resolve_device
from cctlib.training import recipes

DESCRIPTION = "Measure what single nodes of a Compact Convolutional Transformer know about every label."

Dataset = Annotated[
    str, tyro.conf.arg(help="cifar100, flowers102, flowers102-kaggle, demo, or folder:PATH", metavar="NAME")
]
Device = Annotated[str, tyro.conf.arg(help="cpu, cuda, or auto", metavar="NAME")]
Csv = Annotated[Path | None, tyro.conf.arg(help="write the whole table to this file")]
Theta = Annotated[float, tyro.conf.arg(help="threshold, one of the measured ones; only at 0.3 networks are retrained")]


@dataclass(frozen=True)
class StudyOptions:
    """Which network is measured on which images."""

    dataset: Dataset = "cifar100"
    model: str = "default"
    """a shipped model, a folder with a manifest.json, or default"""
    profile: str = "auto"
    """quick: a subset of images; full: all; scratch: train a CCT first; shipped: compute nothing; auto: full on GPUs"""
    runs: Path = Path("runs")
    """where finished and half-finished stages are kept"""
    device: Device = "auto"

    def open(self) -> Study:
        """The study, found or measured now; says on standard output what it is."""
        study = open_study(**vars(self))
        about = study.provenance
        network = f"{about['model']} (weights {about['weights'][:10]})"
        print(
            f"{about['dataset']}, {network}, profile {about['profile']}, {study.source}: "
            f"{study.measurement.accuracy():.2%} of {len(study.measurement.labels['test']):,} test images"
        )
        return study


DEFAULTS = StudyOptions()
CONVOLUTIONAL = StudyOptions(model="vgg_11")


def data_command(dataset: Dataset = "cifar100") -> None:
    """Find or download a data set, decode it once, and say what is in it."""
    rows = []
    for split in data.SPLITS:
        images = data.load(dataset, split)
        counts = images.labels.bincount(minlength=images.num_labels)
        per_label, size = f"{counts.min()}-{counts.max()}", "x".join(map(str, images.pixels.shape[2:]))
        rows.append((split, len(images), images.num_labels, size, per_label, images.fingerprint[:12]))
    _show(pd.DataFrame(rows, columns=["split", "images", "labels", "size", "per label", "fingerprint"]))


def probe_command(study: StudyOptions = DEFAULTS) -> None:
    """Train a probe on every site and show its accuracy on test images, per image and per label."""
    opened = study.open()
    table, result = opened.tables["accuracy"], opened.measurement
    by_label = [measure.per_label(result[site].predictions["test"], result.labels["test"]) for site in table.site]
    _show(table.assign(per_label=by_label), digits=4)


def snp_command(study: StudyOptions = DEFAULTS, theta: Theta = 0.3, csv: Csv = None) -> None:
    """Single-nodal performance: clusters, noise and signal to noise of every site."""
    opened = study.open()
    columns = "site nodes silent clusters cluster_size labels noise column_noise foreign_noise snr"
    _show(_at(theta, opened.tables["by_theta"]), columns, digits=2)
    _write(opened.tables["nodes"], csv)


def layers_command(study: StudyOptions = CONVOLUTIONAL) -> None:
    """The filters of a convolutional network: probes, clusters, noise and signal to noise of every layer."""
    opened = open_layers(**vars(study))
    rows = _at(0.3, opened.tables["by_theta"]).merge(opened.tables["accuracy"][["site", "accuracy"]], on="site")
    columns = "site nodes silent accuracy clusters cluster_size labels noise column_noise foreign_noise snr"
    _show(rows, columns, f"{opened.model.name} of {study.dataset}, probes judged by test images")


def heads_command(study: StudyOptions = DEFAULTS) -> None:
    """Heads: the labels they own, whether that could be chance, and whether they are experts at them."""
    from cctlib.heads.stage import heads_tables, ownership

    opened = study.open()
    owned = ownership(opened)
    sites = owned.sites.drop(columns="site")
    _show(sites, title="Concentration of labels on heads, against dealt nodes (test images)")
    sets = owned.sets.pivot(index="encoder", columns="head", values="designated").add_prefix("head ").reset_index()
    _show(sets, title="Labels that each head owns (held-out images)")
    tables = heads_tables(opened)
    columns = "encoder own others gap gap_low gap_high dealt_mean dealt_95 p"
    title = "Accuracy of a head alone, on own labels and on the others' (test images)"
    _show(tables["expert_sites"], columns, title)
    columns = "encoder images drop_own drop_others random_own random_others excess excess_low excess_high"
    _show(tables["ablation_sites"], columns, "Accuracy that the network loses with a head silenced (test images)")


def andc_command(study: StudyOptions = DEFAULTS, theta: Theta = 0.3, csv: Csv = None) -> None:
    """Pruning by diagonal connections, beside other masks that keep as many weights; cost and latency."""
    from cctlib.andc.stage import pruning_tables

    tables = pruning_tables(study.open())
    pruned = _at(theta, tables["pruning" if abs(theta - 0.3) < 1e-6 else "curves"])
    columns = "target method seed epochs density accuracy low high accuracy_dense parameters macs bytes"
    title = f"Pruned networks at theta {theta:g}, judged by {int(pruned.images.iloc[0]):,} test images"
    _show(pruned, columns, title, digits=4)
    _show(tables["latency"], title="Latency of ANDC-pruned networks, all layers, on this or the shipping machine")
    _write(tables["pruning"], csv)


def train_command(
    recipe: Annotated[str, tyro.conf.arg(help=", ".join(recipes.RECIPES), metavar="NAME")] = "cpu",
    dataset: Dataset = "cifar100",
    folder: Annotated[Path, tyro.conf.arg(help="where checkpoints, log and weights go", metavar="DIR")] = Path(
        "runs/train"
    ),
    start: Annotated[
        str | None, tyro.conf.arg(help="begin with the weights of this model (name or folder)", metavar="MODEL")
    ] = None,
    resume: Annotated[bool, tyro.conf.arg(help="go on from the checkpoint in the folder")] = False,
    hours: Annotated[float | None, tyro.conf.arg(help="stop after so many hours, to be resumed later")] = None,
    per_label: Annotated[
        int | None, tyro.conf.arg(help="learn from the first so many images of each label only, for a short trial")
    ] = None,
    checkpoint_minutes: Annotated[float, tyro.conf.arg(help="from one checkpoint to the next")] = 10.0,
    device: Device = "auto",
    settings: tyro.conf.FlagConversionOff[recipes.Recipe] = recipes.RECIPES["cpu"],
) -> None:
    """Train a network with a named recipe; under torchrun, on several processes."""
    from cctlib.model import manifest
    from cctlib.training import run, trainer

    begun = None if start is None else manifest.find(dataset, start)
    if start is not None and begun is None:
        raise UserError(f"no model ships for {dataset}, so --start needs a folder with a {manifest.FILE}")
    images = {split: data.load(dataset, split, image_size=settings.image_size) for split in data.SPLITS}
    weights = run.train(
        settings,
        images["train"] if per_label is None else images["train"].subset(per_label=per_label),
        images["held-out"],
        folder,
        start=begun,
        test=images["test"],
        device=resolve_device(device),
        resume=resume,
        hours=hours,
        checkpoint_minutes=checkpoint_minutes,
    )
    print(f"wrote {weights}" + ("; go on with --resume" if weights.name == trainer.CHECKPOINT else ""))


def reproduce_command(study: StudyOptions = DEFAULTS) -> None:
    """Measure, execute all notebooks and build the book; what is done already is not done again."""
    clone = PACKAGE.parent
    if not (clone / "tools" / "reproduce.py").is_file():
        raise UserError(
            "reproduce needs a clone of the repository, which holds the notebooks: "
            "git clone https://github.com/cctlib/cctlib, then make reproduce in it"
        )
    sys.path.insert(0, str(clone))  # tools are not installed
    from tools.reproduce import reproduce

    page = reproduce(**vars(study))
    print(f"The book is built: open {page}")


def _show(table: pd.DataFrame, columns: str = "", title: str = "", digits: int = 3) -> None:
    """Print a table: all its columns, or those named, under a title if there is one."""
    shown = table[columns.split()] if columns else table
    print((f"\n{title}\n" if title else "") + shown.round(digits).to_string(index=False))


def _at(theta: float, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a threshold. Raises `UserError`, with the measured ones, where there are none."""
    rows = table[(table.theta - theta).abs() < 1e-6]
    if rows.empty:
        measured = ", ".join(f"{value:g}" for value in sorted(table.theta.unique()))
        raise UserError(f"theta {theta:g} was not measured; measured are {measured}")
    return rows


def _write(table: pd.DataFrame, path: Path | None) -> None:
    """Write a table as CSV, if a path was given."""
    if path is not None:
        with replacing(path) as temporary:
            table.to_csv(temporary, index=False)
        print(f"wrote {path}: {len(table):,} rows")


def commands(recipe: str = "cpu") -> dict[str, Callable]:
    """The sub-commands by name; the settings that `train` offers start from those of the `recipe`."""
    return {
        "data": data_command,
        "train": functools.partial(train_command, settings=recipes.recipe(recipe)),
        "probe": probe_command,
        "snp": snp_command,
        "layers": layers_command,
        "heads": heads_command,
        "andc": andc_command,
        "reproduce": reproduce_command,
    }


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `cctlib` and `python -m cctlib`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character still shows the rest
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--recipe", default="cpu")
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands(early.parse_known_args(arguments)[0].recipe),
            prog="cctlib",
            description=DESCRIPTION,
            args=arguments,
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        )
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from what is finished (train: with --resume)", 130)
    except OSError as error:
        where = error.filename or "the system"
        _fail(f"{where}: {error.strerror or error}; free the space or mend the path, then run again", 1)


def _fail(message: str, status: int) -> NoReturn:
    print(f"cctlib: {message}", file=sys.stderr)
    sys.exit(status)
