"""What was tried in training, and what it gave: short runs that ship as their logs, in groups to compare.

    artifacts/trials/<group>/about.json          {"title": what is compared, "per_label": images of a label, if not all}
    artifacts/trials/<group>/<trial>/run.json    recipe, images, machine and commit
    artifacts/trials/<group>/<trial>/log.jsonl   its course

A trial is a folder that `cctlib train` wrote, without its weights; `--per-label` makes it a short one. Trials of a
group had the same images and about as much time on the same machine; failures stay in it.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from cctlib import stages
from cctlib.errors import UserError
from cctlib.training.log import read_log
from cctlib.training.recipes import RECIPES, from_dict

FOLDER, ABOUT = "trials", "about.json"
TOLD = ("name", "epochs")  # of the settings: told in columns of their own


def groups() -> list[str]:
    """Names of the groups that ship, in alphabetical order."""
    return sorted({path.parent.parent.name for path in _home().glob(f"*/*/{stages.RUN}")})


def title(group: str) -> str:
    """What a group compares, in words."""
    return stages.read_json(_home() / group / ABOUT)["title"]


def courses(group: str) -> pd.DataFrame:
    """One row an epoch of each trial: trial, minutes (since its start), held_out_accuracy (a share of 1).

    Raises `UserError` where there is no such group.
    """
    logs = [
        log.dropna(subset="held_out_accuracy").assign(trial=name, minutes=log.seconds / 60)
        for name, (_, log) in _trials(group).items()
    ]
    return pd.concat(logs, ignore_index=True)[["trial", "minutes", "held_out_accuracy"]]


def table(group: str) -> pd.DataFrame:
    """One row a trial, the best first.

    trial; settings (those in which it differs from the best trial); model; dataset; images (to learn from); epochs
    (done); minutes; images_per_second (of training, median over the log); held_out_accuracy (the last, a share of 1);
    device; commit; command (which trains it again).
    Raises `UserError` where there is no such group.
    """
    trials, per_label = _trials(group), stages.read_json(_home() / group / ABOUT).get("per_label")
    rows = [
        {
            "trial": name,
            "model": run["recipe"]["model"],
            "dataset": run["data"]["dataset"],
            "images": run["data"]["images"],
            "epochs": log.epoch.iloc[-1],
            "minutes": log.seconds.max() / 60,
            "images_per_second": log.images_per_second.median(),
            "held_out_accuracy": log.held_out_accuracy.dropna().iloc[-1],
            "device": run["environment"]["device"],
            "commit": run["environment"]["commit"],
            "command": command(run, per_label),
        }
        for name, (run, log) in trials.items()
    ]
    table = pd.DataFrame(rows).sort_values("held_out_accuracy", ascending=False, ignore_index=True)
    recipes = [asdict(from_dict(trials[name][0]["recipe"])) for name in table.trial]
    table.insert(1, "settings", [_differences(recipe, recipes[0]) for recipe in recipes])
    return table


def _differences(recipe: dict[str, Any], best: dict[str, Any]) -> str:
    others = {key: value for key, value in recipe.items() if key not in TOLD and value != best[key]}
    return ", ".join(f"{key} {_words(value) or 'none'}" for key, value in others.items())


def command(run: dict[str, Any], per_label: int | None = None) -> str:
    """The command that trains again what a `run.json` tells of, on the first `per_label` images of each label."""
    recipe = from_dict(run["recipe"])
    usual = asdict(RECIPES[recipe.name])
    settings = {name: value for name, value in asdict(recipe).items() if value != usual[name]}
    if per_label is not None:
        settings["per_label"] = per_label
    options = [f"--{name.replace('_', '-')} {_words(value)}".rstrip() for name, value in settings.items()]
    return " ".join(["cctlib train --recipe", recipe.name, "--dataset", run["data"]["dataset"], *options])


def _words(value: object) -> str:
    """A setting as the command line takes it: numbers of a tuple one after the other."""
    return " ".join(map(_words, value)) if isinstance(value, tuple) else str(value)


def _home() -> Path:
    return stages.shipped() / FOLDER


def _trials(group: str) -> dict[str, tuple[dict[str, Any], pd.DataFrame]]:
    """The content of `run.json` and the log of each trial of a group, by the trial's name."""
    home = _home() / group
    trials = {run.parent.name: stages.read_json(run) for run in sorted(home.glob(f"*/{stages.RUN}"))}
    if not trials:
        raise UserError(
            f"{home} holds no trial; each is a folder with {stages.RUN} and {stages.LOG}, as `cctlib train` writes them"
        )
    return {name: (run, read_log(home / name / stages.LOG)) for name, run in trials.items()}
