"""`make reproduce`: the study, then the notebooks by papermill, then the book.

Papermill is the only executor. An executed copy is a stage like any other: keyed by the notebook's source, its
parameters, the stages that it reads and the code that it calls, so that a second run executes only what changed.
Two notebooks run at a time: most of each is one kernel's start and the drawing of figures, which keep one core busy.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from cctlib import stages
from cctlib.andc.stage import latency_stage, sweep_stage
from cctlib.errors import UserError
from cctlib.heads.stage import heads_stage
from cctlib.study import Study, open_study
from tools import book, explore

AT_ONCE = 2  # notebooks


def notebooks(folder: Path) -> list[Path]:
    """The notebooks of the book, in its order. Raises `UserError` when there are none."""
    found = sorted(folder.glob("[0-9]*.ipynb"))
    if not found:
        raise UserError(f"no notebooks in {folder}; run from the root of the repository")
    return found


def reproduce(dataset: str, model: str, profile: str, runs: Path, device: str) -> Path:
    """Measure, execute all notebooks and build the book. Returns the page to open."""
    sources = notebooks(book.ROOT / "notebooks")
    study = open_study(dataset, model, profile, runs, device)
    later_stages(study)
    parameters = {"dataset": dataset, "model": model, "profile": profile, "runs": str(runs), "device": device}
    if study.source == "shipped":
        parameters["profile"] = "shipped"
    explored = explore.explore_stage(study, runs, book_reads(study), parameters)
    return book.make(execute_all(sources, parameters, study, runs), explored, book.ROOT / "_build")


def later_stages(study: Study) -> dict[str, Path]:
    """Folders of the stages that read the measurement, computed now if need be; none for a shipped study."""
    if study.profile is None:
        return {}
    return {
        "heads": heads_stage(study, study.profile),
        "andc": sweep_stage(study, study.profile),
        "latency": latency_stage(study, study.profile.pruning),
    }


def book_reads(study: Study) -> dict[str, Path | str]:
    """What all parts of a book read: what ships, the model, and the stages of the study."""
    shipped = {"artifacts": stages.shipped(), "model": study.model.folder}
    return {name: stages.sha256_folder(folder) for name, folder in shipped.items()} | study.folders


def execute_all(sources: Sequence[Path], parameters: dict[str, str], study: Study, runs: Path) -> list[Path]:
    """The executed copies of notebooks, `AT_ONCE` at a time."""
    # Kernels share the cores: two that take all of them wait for each other, and are ten times slower.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // AT_ONCE)))
    with ThreadPoolExecutor(AT_ONCE) as pool:  # papermill waits for a kernel, which is a process of its own
        # The last chapters take longest, so they begin.
        copies = pool.map(lambda source: execute(source, parameters, study, runs), sources[::-1])
        return list(tqdm(copies, total=len(sources), desc="notebooks", unit="notebook"))


def execute(source: Path, parameters: dict[str, str], study: Study, runs: Path) -> Path:
    """The executed copy of a notebook. Raises `UserError` with the notebook's own error when a cell fails."""

    def compute(work: Path) -> None:
        import papermill  # late: it takes two seconds, which a run that has nothing to do shall not pay
        from papermill.exceptions import PapermillExecutionError

        quiet = ["--log-level=40"]  # the kernel's own warnings are not for a reader of the progress bar
        settings = {"progress_bar": False, "log_output": False, "extra_arguments": quiet}
        try:
            papermill.execute_notebook(source, work / source.name, parameters, **settings)
        except PapermillExecutionError as error:
            raise UserError(f"{source} failed in cell {error.exec_count}: {error.ename}: {error.evalue}") from None

    folder = stages.stage(
        runs / "notebooks",
        source.stem,
        compute,
        room="everything",
        reads={"source": stages.sha256_file(source), **book_reads(study)},
        settings=parameters,
        device=study.device,
    )
    return folder / source.name
