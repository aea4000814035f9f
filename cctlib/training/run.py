"""Training a network: from nothing or from the weights of another, or on from where a run was stopped or killed.

    folder/checkpoint.pt           everything that is needed to go on
    folder/run.json                recipe, images, and the machine that it began on
    folder/log.jsonl               a row every few steps, with held-out accuracy where an epoch ends
    folder/weights.safetensors     the result, fp32
    folder/manifest.json           what it is (see `model/manifest.py`): every command can open the folder

`recipes.py` says what is trained and how, `trainer.py` does a step, `processes.py` knows of torchrun and of signals.
"""

import math
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cctlib import stages
from cctlib.data.images import Images, normalise
from cctlib.errors import UserError
from cctlib.model import checkpoints, manifest, precision
from cctlib.model.forward import accuracies
from cctlib.model.manifest import Model
from cctlib.training.log import Log, read_log
from cctlib.training.processes import Place, processes, stop_signals
from cctlib.training.recipes import Recipe, fitted, from_dict
from cctlib.training.trainer import CHECKPOINT, Trainer, constants

LOG_STEPS = 50  # optimizer steps from one row of the log to the next


def train(
    recipe: Recipe,
    images: Images,
    held_out: Images,
    folder: Path,
    *,
    start: Model | None = None,
    test: Images | None = None,
    device: torch.device | str,
    resume: bool = False,
    hours: float | None = None,
    checkpoint_minutes: float = 10.0,
) -> Path:
    """Train a network, or go on with the run in `folder`.

    Args:
        images, held_out: the images to learn from, and those to report accuracy on.
        start: the model whose weights the network begins with, instead of random ones; its configuration must be the
            recipe's. A resumed run is given it again.
        test: where they are on this machine, the accuracy of the final weights is measured on them, too.
        device: cpu, cuda, or one of several GPUs; under torchrun each process takes its own GPU.
        resume: go on from the folder's checkpoint where there is one. Without it, a folder with a run is refused.
        hours: stop with a checkpoint after so long (an evaluation that has begun is finished). The schedule is
            always that of the whole recipe, so a long run may be cut into pieces anywhere.
        checkpoint_minutes: from one checkpoint to the next. There is one at SIGTERM and SIGINT, too, and at the end.

    Returns the weights file, with a manifest beside it, or, when `hours` ended first, the checkpoint. Under torchrun
    all processes share the recipe's batch, and only the first one writes.
    Raises `UserError` when images, folder or checkpoint do not fit the recipe, and when the loss is no longer finite.
    """
    deadline = math.inf if hours is None else time.monotonic() + 3600 * hours
    with ExitStack() as stack:
        place = stack.enter_context(processes(device))
        signals = stack.enter_context(stop_signals())
        gpus = [place.device] if place.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=gpus))  # dropout draws from the global generator
        if len(images) < recipe.batch:
            fit = fitted(recipe, len(images))
            if place.first:
                print(f"{len(images)} training images: the batch is {fit.batch}, not {recipe.batch}", file=sys.stderr)
            recipe = fit
        _check(recipe, images, held_out, place)
        run = Trainer(recipe, images, held_out, folder, place, start)
        run.begin(resume)
        if not _learn(run, signals, deadline, 60 * checkpoint_minutes):
            return folder / CHECKPOINT
        weights = run.export()
        if place.first:
            judged = [held_out] if test is None else [held_out, test]
            write_model(weights, folder, judged, device=place.device)
        place.gathered(None)  # none may open the folder before the first process has written it
        return weights


def _learn(run: Trainer, signals: Sequence[int], deadline: float, between: float) -> bool:
    """The steps that are left, with rows of the log, and a checkpoint every so many seconds and at the end.

    False when a signal came, or the deadline, before the last step; there is a checkpoint then, too.
    """
    place, saved = run.place, time.monotonic()
    log = Log(run.folder, run.step) if place.first else None
    with _bar(run) as bar:
        while run.step < run.steps:
            run.learn()
            epoch_ends = run.step % run.steps_per_epoch == 0
            at_row = epoch_ends or run.step % LOG_STEPS == 0
            if at_row:
                row = run.row() | (run.evaluate() if epoch_ends else {})
                if log is not None:
                    log.write(row)
                _show(bar, run, row)
            if place.world == 1 or at_row:  # several processes agree only where they wait for each other anyway
                now = time.monotonic()
                due = now - saved >= between or run.step == run.steps
                stop, save = place.gathered((bool(signals) or now >= deadline, due))[0]
                if stop or save:
                    run.save()
                    saved = time.monotonic()
                if stop and run.step < run.steps:
                    return False
    return True


def write_model(
    weights: Path, run: Path, images: Sequence[Images], *, device: torch.device | str, **entries: Any
) -> Model:
    """Measure the accuracy of trained weights, and write the manifest that makes their folder one for every command.

    run: the folder of the training that made the weights; the manifest repeats what it recorded. images: the splits
    to measure on. entries: other fields of the manifest.
    Raises `UserError` when the folder holds no run, or weights of another network.
    """
    record, log = stages.read_json(run / stages.RUN), read_log(run / stages.LOG)
    recipe, learned = from_dict(record["recipe"]), record["data"]
    config, normalisation = recipe.config(images[0].num_labels), constants(images[0])
    network = checkpoints.load_weights(weights, config, attention=precision.attention(device)).to(device)
    judge = partial(accuracies, network, partial(normalise, **normalisation), device=device, precision=recipe.precision)
    shares = {part.split: judge(part) for part in images}
    return manifest.write_manifest(
        weights.parent,
        weights=weights,
        config=config,
        normalisation=normalisation,
        labels=images[0].names,
        dataset=learned["dataset"],
        data={"train": learned["train"]} | {part.split: part.fingerprint for part in images},
        seed=recipe.seed,
        training=manifest.Training(
            recipe=record["recipe"],
            images=learned["images"],
            passes=int(log.step.max()) * recipe.batch,
            minutes=round(log.seconds.max() / 60, 1),
            environment=record["environment"],
            log=stages.LOG,
            start=record.get("start"),  # older records have none
        ),
        accuracy={split: per_image for split, (per_image, _) in shares.items()},
        accuracy_per_label={split: per_label for split, (_, per_label) in shares.items()},
        measured=stages.environment(device),
        **({"name": recipe.model} | entries),
    )


def _check(recipe: Recipe, learned: Images, held_out: Images, place: Place) -> None:
    """Raise `UserError` when recipe, images and processes do not fit together."""
    size = recipe.image_size
    for images in (learned, held_out):
        height, width = images.pixels.shape[2:]
        if (height, width) != (size, size):
            raise UserError(
                f"recipe {recipe.name} takes {size}x{size} images, those of {images.dataset} ({images.split}) are "
                f"{height}x{width}; load them with image_size={size}"
            )
    if not len(held_out):
        raise UserError(f"{held_out.dataset} has no held-out images; accuracy could not be reported")
    together = place.world * (2 if recipe.mixes else 1)
    if recipe.batch % together:
        raise UserError(
            f"a batch of {recipe.batch} does not divide evenly among {place.world} processes; "
            f"use a multiple of {together}"
        )


def _bar(run: Trainer) -> tqdm:
    """A bar that counts images, and so shows images per second and time left; only the first process has one."""
    done, total = run.step * run.recipe.batch, run.steps * run.recipe.batch
    look: dict[str, Any] = {"unit": " images", "unit_scale": True, "smoothing": 0.05, "disable": not run.place.first}
    return tqdm(total=total, initial=done, desc=f"train {run.recipe.model}", **look)


def _show(bar: tqdm, run: Trainer, row: dict[str, float]) -> None:
    shown = {"loss": f"{row['loss']:.3f}", "accuracy": f"{row['accuracy']:.1%}"}
    if "held_out_accuracy" in row:
        shown["held-out"] = f"{row['held_out_accuracy']:.1%}"
    bar.set_postfix(shown, refresh=False)
    bar.update(run.step * run.recipe.batch - bar.n)
