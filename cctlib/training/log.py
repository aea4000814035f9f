"""The log of a training run: one JSON object a line, from which the curves are drawn."""

import json
from pathlib import Path

import pandas as pd

from cctlib import stages
from cctlib.errors import UserError


class Log:
    """Appends rows to `folder/log.jsonl`; rows after `step`, of a process that was killed, are taken out first."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / stages.LOG
        kept = [row for row in _rows(self.path) if row["step"] <= step]
        with stages.replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def write(self, row: dict[str, float]) -> None:
        """Append a row; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_log(path: Path) -> pd.DataFrame:
    """The log as a table: step, epoch, lr, loss, accuracy, images_per_second, seconds (of the whole run so far).

    loss and accuracy are those of the augmented images since the row before. held_out_loss and held_out_accuracy are
    given where an epoch ended, NaN elsewhere. Raises `UserError` when there is no log.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such training log")
    return pd.DataFrame(_rows(path))


def _rows(path: Path) -> list[dict[str, float]]:
    """The whole rows of a log; the last line may have been cut by a kill."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
