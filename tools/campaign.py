"""Long computations, which go on where they were stopped.

    python -m tools.campaign andc --dataset cifar100 --targets all fc --lengths 4 8 16

`andc`: pruned networks retrained until they stop gaining (Method, section 7), from the measurement that ships with the
model. The table then ships beside it. Run nothing else on the machine meanwhile.
"""

import shutil
import sys
from pathlib import Path

import tyro

from cctlib import stages
from cctlib.andc.stage import SATURATED, Saturation, saturated_stage
from cctlib.errors import UserError
from cctlib.study import open_study


def andc(
    settings: tyro.conf.OmitArgPrefixes[Saturation],
    dataset: str = "cifar100",
    model: str = "default",
    runs: Path = Path("runs"),
    device: str = "auto",
) -> None:
    """Retrain pruned networks and the dense one until they stop gaining; the table ships with the model."""
    study = open_study(dataset, model, "shipped", runs, device)
    folder = saturated_stage(study, settings, runs / "campaign" / study.model.identity[:12])
    for name, shipped in (
        (f"{SATURATED}.parquet", f"{SATURATED}.parquet"),
        (stages.PROVENANCE, f"{SATURATED}.{stages.PROVENANCE}"),
    ):
        shutil.copyfile(folder / name, study.model.folder / shipped)
    print(stages.read_tables(folder, [SATURATED])[SATURATED].round(4).to_string(index=False))


def main(arguments: list[str] | None = None) -> None:
    """Run a campaign. A user's mistake is one line on standard error, and status 2."""
    try:
        tyro.extras.subcommand_cli_from_dict({"andc": andc}, args=arguments)
    except UserError as error:
        print(f"campaign: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
