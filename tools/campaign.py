"""Long computations, which go on where they were stopped.

    python -m tools.campaign andc --dataset cifar100 --targets all fc --lengths 4 8 16
    python -m tools.campaign filters

`andc`: pruned networks retrained until they stop gaining (Method, section 7), from the measurement that ships with the
model. `filters`: a convolutional network pruned by its filters (section 9). The table then ships with the model. Run
nothing else on the machine meanwhile.
"""

import shutil
import sys
from pathlib import Path

import tyro

from cctlib import stages
from cctlib.andc import filters as convolutional
from cctlib.andc.stage import SATURATED, Saturation, saturated_stage
from cctlib.errors import UserError
from cctlib.model.manifest import Model
from cctlib.study import open_layers, open_study, resolve_device


def andc(
    settings: tyro.conf.OmitArgPrefixes[Saturation],
    dataset: str = "cifar100",
    model: str = "default",
    runs: Path = Path("runs"),
    device: str = "auto",
) -> None:
    """Retrain pruned networks and the dense one until they stop gaining; the table ships with the model."""
    study = open_study(dataset, model, "shipped", runs, device)
    _ship(SATURATED, saturated_stage(study, settings, _place(runs, study.model)), study.model)


def filters(
    settings: tyro.conf.OmitArgPrefixes[convolutional.FilterPruning],
    dataset: str = "cifar100",
    model: str = "vgg_11",
    runs: Path = Path("runs"),
    device: str = "auto",
) -> None:
    """Prune the last layers of a convolutional network by what their filters recognise; the table ships with it."""
    found = open_layers(dataset, model, "shipped", runs, device).model
    where = resolve_device(device)
    _ship(convolutional.TABLE, convolutional.filters_stage(found, dataset, settings, _place(runs, found), where), found)


def _place(runs: Path, model: Model) -> Path:
    return runs / "campaign" / model.identity[:12]


def _ship(table: str, folder: Path, model: Model) -> None:
    """Copy a table and the record of what made it to the model's folder, and print it."""
    for name, shipped in (
        (f"{table}.parquet", f"{table}.parquet"),
        (stages.PROVENANCE, f"{table}.{stages.PROVENANCE}"),
    ):
        shutil.copyfile(folder / name, model.folder / shipped)
    print(stages.read_tables(folder, [table])[table].round(4).to_string(index=False))


def main(arguments: list[str] | None = None) -> None:
    """Run a campaign. A user's mistake is one line on standard error, and status 2."""
    try:
        tyro.extras.subcommand_cli_from_dict({"andc": andc, "filters": filters}, args=arguments)
    except UserError as error:
        print(f"campaign: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
