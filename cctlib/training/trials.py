"""What was tried in training, and what it gave: short runs that ship as their logs, in groups to compare.

    artifacts/trials/<group>/about.json          {"title": what is compared, "per_label": images of a label, if not all}
    artifacts/trials/<group>/<trial>/run.json    recipe, images, machine and commit
    artifacts/trials/<group>/<trial>/log.jsonl   its course

A trial is a folder that `cctlib train` wrote, without its weights; `--per-label` makes it a short one. Trials of a
group had the same images and about as much time on the same machine; failures stay in it.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from cctlib import stages
from cctlib.errors import UserError
from cctlib.training import log as trainlog
from cctlib.training.recipes import changed, flat, from_dict

FOLDER, ABOUT = "trials", "about.json"
TOLD = ("name", "epochs")  # of the settings: told in columns of their own


def groups(folder: Path | None = None) -> list[str]:
    """Names of the groups that ship, in alphabetical order."""
    return sorted({path.parent.parent.name for path in _home(folder).glob(f"*/*/{stages.RUN}")})


def title(group: str, folder: Path | None = None) -> str:
    """What a group compares, in words."""
    return stages.read_json(_home(folder) / group / ABOUT)["title"]


def courses(group: str, folder: Path | None = None) -> pd.DataFrame:
    """One row an epoch of each trial: trial, minutes (since its start), held_out_accuracy (a share of 1).

    Raises `UserError` where there is no such group, or a log without held-out accuracy.
    """
    logs = {name: _log(_home(folder) / group / name) for name in _runs(group, folder)}
    rows = pd.concat(
        [log.assign(trial=name, minutes=log.seconds / 60) for name, log in logs.items()], ignore_index=True
    )
    return rows.dropna(subset="held_out_accuracy")[["trial", "minutes", "held_out_accuracy"]].reset_index(drop=True)


def table(group: str, folder: Path | None = None) -> pd.DataFrame:
    """One row a trial, the best first.

    trial; settings (those in which it differs from the best trial); model; dataset; images (to learn from); epochs and
    image_passes (done); minutes; images_per_second (of training, median over the log); held_out_accuracy (the last, a
    share of 1); device; commit; command (which trains it again).
    Raises `UserError` where there is no such group, or a log without held-out accuracy.
    """
    home, runs = _home(folder) / group, _runs(group, folder)
    about = stages.read_json(home / ABOUT)
    rows = []
    for name, run in runs.items():
        log = _log(home / name)
        last = log.iloc[-1]
        rows.append(
            {
                "trial": name,
                "model": run["recipe"]["model"],
                "dataset": run["data"]["dataset"],
                "images": run["data"]["images"],
                "epochs": last.epoch,
                "image_passes": int(last.step) * run["recipe"]["batch"],
                "minutes": log.seconds.max() / 60,
                "images_per_second": log.images_per_second.median(),
                "held_out_accuracy": log.held_out_accuracy.dropna().iloc[-1],
                "device": run["environment"]["device"],
                "commit": run["environment"]["commit"],
                "command": command(run, about.get("per_label")),
            }
        )
    table = pd.DataFrame(rows).sort_values("held_out_accuracy", ascending=False, ignore_index=True)
    recipes = [flat(from_dict(runs[name]["recipe"])) for name in table.trial]
    differences = [
        [
            f"{key} {_words(value) or 'none'}"
            for key, value in recipe.items()
            if key not in TOLD and value != recipes[0][key]
        ]
        for recipe in recipes
    ]
    table.insert(1, "settings", [", ".join(words) for words in differences])
    return table


def command(run: dict[str, Any], per_label: int | None = None) -> str:
    """The command that trains again what a `run.json` tells of, on the first `per_label` images of each label."""
    recipe = from_dict(run["recipe"])
    settings = changed(recipe) | ({} if per_label is None else {"per_label": per_label})
    options = [f"--{name.replace('_', '-')} {_words(value)}".rstrip() for name, value in settings.items()]
    return " ".join(["cctlib train --recipe", recipe.name, "--dataset", run["data"]["dataset"], *options])


def _words(value: object) -> str:
    """A setting as the command line takes it: numbers of a tuple one after the other."""
    return " ".join(map(_words, value)) if isinstance(value, tuple) else str(value)


def _home(folder: Path | None) -> Path:
    return stages.shipped() / FOLDER if folder is None else folder


def _runs(group: str, folder: Path | None) -> dict[str, dict[str, Any]]:
    """The `run.json` of each trial of a group, by the trial's name."""
    home = _home(folder) / group
    runs = {path.parent.name: stages.read_json(path) for path in sorted(home.glob(f"*/{stages.RUN}"))}
    if not runs:
        raise UserError(
            f"{home} holds no trial; each is a folder with {stages.RUN} and {stages.LOG}, as `cctlib train` writes them"
        )
    return runs


def _log(trial: Path) -> pd.DataFrame:
    log = trainlog.read_log(trial / stages.LOG)
    if "held_out_accuracy" not in log or log.held_out_accuracy.isna().all():
        raise UserError(f"{trial}: its log has no held-out accuracy; train it for an epoch at least")
    return log
