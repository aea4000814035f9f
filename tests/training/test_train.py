"""Training: bit for bit the same however it is cut, killed or shared; and what goes wrong is said in one line."""

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.scheduler import CosineLRScheduler
from torch import nn

from cctlib import cli
from cctlib.data import images as data
from cctlib.errors import UserError
from cctlib.model import manifest
from cctlib.model.forward import accuracies
from cctlib.training import run as training
from cctlib.training import trainer
from cctlib.training.log import read_log
from cctlib.training.processes import Place
from cctlib.training.recipes import RECIPES, Recipe, fitted, from_dict, recipe

# Everything that draws random numbers is switched on.
TINY = Recipe(
    name="tiny",
    model="cct_2_3x2",
    epochs=3,
    batch=8,
    lr=1e-3,
    warmup_epochs=1,
    attention_dropout=0.1,
    sizes=((1, 20), (1, 28)),
    shift=2,
    crop_scale=0.7,
    flip=True,
    randaugment=9,
    erasing=0.5,
    mixup=0.8,
    cutmix=1.0,
)
MUON = replace(TINY, name="muon", optimizer="muon", ema=0.9)
VGG = replace(MUON, name="vgg", model="vgg_11", epochs=2, warmup_epochs=1, batch=16, sizes=((1, 16),))
HERE = Place(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def images():
    return {split: data.load("demo", split).subset(per_label=4) for split in ("train", "held-out", "test")}


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    """Weights and log of the tiny run, done in one go: 3 epochs of 5 steps."""
    folder = tmp_path_factory.mktemp("whole")
    return run(images, folder), timeless(folder)


@pytest.fixture(scope="module", params=[TINY, MUON], ids=lambda recipe: recipe.optimizer)
def whole(request, images, tmp_path_factory):
    """A recipe for each optimizer, and weights and log of its run in one go."""
    folder = tmp_path_factory.mktemp("whole")
    return request.param, (run(images, folder, request.param), timeless(folder))


def run(images, folder, recipe=TINY, **settings):
    return training.train(recipe, images["train"], images["held-out"], folder, **{"device": "cpu"} | settings)


def timeless(folder):
    """The log without what a clock wrote."""
    return read_log(folder / "log.jsonl").drop(columns=["seconds", "images_per_second"])


def same_run(folder, uninterrupted):
    """Byte for byte the same weights file, and the same log."""
    weights, log = uninterrupted
    return weights.read_bytes() == (folder / "weights.safetensors").read_bytes() and timeless(folder).equals(log)


# What a run leaves


def test_the_log_has_a_row_an_epoch_and_the_weights_say_what_they_are(uninterrupted):
    weights, log = uninterrupted
    assert log.step.tolist() == [5, 10, 15] and log.epoch.tolist() == [1, 2, 3]
    assert log.held_out_accuracy.between(0, 1).all() and log.loss.between(1, 4).all()
    assert log.lr.max() <= TINY.lr
    with safe_open(weights, "pt") as file:
        about = json.loads(file.metadata()["cctlib"])
    assert about["recipe"]["epochs"] == 3 and about["data"]["dataset"] == "demo"
    assert all(value.dtype == torch.float32 for value in load_file(weights).values())


def test_the_seed_decides_everything(images, uninterrupted, tmp_path):
    run(images, tmp_path / "again")
    assert same_run(tmp_path / "again", uninterrupted)
    other = run(images, tmp_path / "other", replace(TINY, seed=1))
    ours, theirs = load_file(other), load_file(uninterrupted[0])
    assert not torch.equal(ours["classifier.fc.weight"], theirs["classifier.fc.weight"])


def test_torchs_own_generator_is_left_as_it_was(images, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(images, tmp_path, replace(TINY, epochs=2, sizes=()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_trained_folder_is_a_model_folder(images, tmp_path):
    for test, splits in ((images["test"], ["held-out", "test"]), (None, ["held-out"])):
        run(images, tmp_path / splits[-1], test=test)
        model = manifest.find("demo", str(tmp_path / splits[-1]))
        written, network = model.manifest, model.network("cpu")
        for split in splits:
            assert written.accuracy[split] == pytest.approx(
                accuracies(network, model.normalise, images[split], device="cpu")[0]
            )
        assert list(written.accuracy) == list(written.accuracy_per_label) == splits
        assert from_dict(written.training.recipe) == TINY and written.seed == TINY.seed
        assert (written.training.images, written.training.passes) == (40, 3 * 40)
        assert written.data == {split: images[split].fingerprint for split in ("train", *splits)}


def test_a_run_may_begin_with_the_weights_of_a_model(images, tmp_path):
    """The first step is one from those weights, the average begins with them, and the manifest says whose they were."""
    run(images, tmp_path / "first", MUON)
    start = manifest.open_model(tmp_path / "first")
    begun = trainer.Trainer(MUON, images["train"], images["held-out"], tmp_path, HERE, start)
    for state in (begun.network.state_dict(), begun.average.state_dict()):
        assert all(torch.equal(value, state[name]) for name, value in load_file(start.weights()).items())
    run(images, tmp_path / "second", MUON, start=start, hours=0.0)
    with pytest.raises(UserError, match=r"start has weights \w+, this one None"):
        run(images, tmp_path / "second", MUON, resume=True)
    run(images, tmp_path / "second", MUON, start=start, resume=True)
    whole = run(images, tmp_path / "whole", MUON, start=start)
    assert whole.read_bytes() == (tmp_path / "second" / "weights.safetensors").read_bytes()
    training_of = manifest.open_model(tmp_path / "whole").manifest.training
    before = {"recipe": "muon", "passes": 3 * 40, "minutes": start.manifest.training.minutes}
    assert training_of.start == {"weights": start.manifest.sha256} | before
    assert set(start.manifest.training.start.values()) == {None}
    with pytest.raises(UserError, match="Choose the configuration it was made with"):
        run(images, tmp_path / "other", replace(MUON, model="cct_4_3x2"), start=start)


# Going on


def test_a_run_cut_into_pieces_is_the_whole_run(images, whole, tmp_path):
    """`hours` that are over at once stop after a step each."""
    recipe, uninterrupted = whole
    for step in range(1, 15):
        found = run(images, tmp_path, recipe, resume=True, hours=0.0)
        assert found.name == "checkpoint.pt"
        assert torch.load(found, weights_only=True)["step"] == step
    assert run(images, tmp_path, recipe, resume=True, hours=0.0).name == "weights.safetensors"
    assert same_run(tmp_path, uninterrupted)


def test_a_finished_run_is_not_done_again(images, tmp_path, monkeypatch):
    short = replace(TINY, epochs=2, sizes=())
    first = run(images, tmp_path, short).read_bytes()
    monkeypatch.setattr(trainer.Trainer, "learn", lambda self: pytest.fail("trained again"))
    assert run(images, tmp_path, short, resume=True).read_bytes() == first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_obeyed_after_a_checkpoint(images, uninterrupted, tmp_path, monkeypatch, number):
    received, learn = [], trainer.Trainer.learn

    def interrupted(self):
        learn(self)
        if self.step == 7:
            signal.raise_signal(number)

    before = signal.signal(number, lambda found, _: received.append(found))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(trainer.Trainer, "learn", interrupted)
            run(images, tmp_path)
    finally:
        signal.signal(number, before)
    assert received == [number]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 7
    run(images, tmp_path, resume=True)
    assert same_run(tmp_path, uninterrupted)


def test_a_second_signal_is_obeyed_at_once(images, tmp_path, monkeypatch):
    """A step that hangs can be ended from the keyboard; the first signal only asks."""
    monkeypatch.setattr(trainer.Trainer, "learn", lambda self: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_checkpoint_of_another_device_is_taken_up_and_said_so(images, uninterrupted, tmp_path, capsys):
    """It holds no state of a random generator, which would belong to a device."""
    checkpoint = run(images, tmp_path, hours=0.0)
    state = torch.load(checkpoint, weights_only=True)
    parts = {"network", "AdamW", "scaler"}
    assert set(state) == {"identity", "made", "step", "seconds", "sums"} | parts
    run(images, tmp_path, hours=0.0, resume=True)
    assert "drawn afresh" not in capsys.readouterr().err
    torch.save({**state, "made": "2 process(es) on cuda in bf16"}, checkpoint)
    run(images, tmp_path, resume=True)
    assert "2 process(es) on cuda in bf16, this is 1 process(es) on cpu in" in capsys.readouterr().err
    assert same_run(tmp_path, uninterrupted)


def test_processes_with_different_checkpoints_are_refused(images, tmp_path):
    """On machines without a shared folder, those that find no checkpoint would begin anew."""

    class Apart(Place):
        def gathered(self, value):
            return [value, 5]

    for step in (0, 3):
        started = trainer.Trainer(TINY, images["train"], images["held-out"], tmp_path, Apart(0, 1, torch.device("cpu")))
        started.step = step
        with pytest.raises(UserError, match=f"are of the steps {step}, 5; use a folder that all machines share"):
            started.begin(resume=True)
    assert not list(tmp_path.iterdir())


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import test_train
from cctlib.data import images as data
images = {{split: data.load("demo", split).subset(per_label=4) for split in ("train", "held-out")}}
test_train.run(images, Path(sys.argv[1]), test_train.{recipe}, resume=True, checkpoint_minutes=0)
"""


def script(folder, recipe):
    """A program that trains this recipe, or goes on with it, with a checkpoint after every step."""
    path = folder / "child.py"
    path.write_text(CHILD.format(paths=[str(path) for path in Path(__file__).parents[:3]], recipe=recipe))
    return path


def test_killed_at_any_moment_it_ends_with_the_same_weights(images, whole, tmp_path):
    recipe, uninterrupted = whole
    program, folder = script(tmp_path, "MUON" if recipe is MUON else "TINY"), tmp_path / "run"
    log = folder / "log.jsonl"
    process = subprocess.Popen([sys.executable, program, folder], stderr=subprocess.PIPE, env=quiet())
    end = time.monotonic() + 240
    while not (log.exists() and log.read_text().count("\n") >= 1):  # the first epoch is over
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    process.wait()
    process.stderr.close()
    step = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert 4 <= step < 15
    with log.open("a") as file:
        file.write('{"step": 14, "loss": 9}\n{"st')  # as if it had come further, and died while it wrote
    (folder / ".checkpoint.pt.1.tmp").write_bytes(b"half a checkpoint")
    run(images, folder, recipe, resume=True)
    assert same_run(folder, uninterrupted)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pt",
        "log.jsonl",
        "manifest.json",
        "run.json",
        "weights.safetensors",
    ]


def quiet():
    """Environment of a subprocess, with as many threads as here: sums are rounded by how they are divided."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


# Several processes


def alike(optimizer):
    """A recipe without dropout, which each process draws for itself, and without the rounding of bf16."""
    return replace(
        TINY, optimizer=optimizer, attention_dropout=0.0, stochastic_depth=0.0, precision="fp32", batch=16, epochs=4
    )


@pytest.mark.parametrize(("optimizer", "near"), [("adamw", 1e-3), ("muon", 5e-3)])
def test_two_processes_train_like_one(images, tmp_path, optimizer, near):
    """The same global batch gives the same losses; Muon, which computes in bf16, a little less exactly."""
    program = script(tmp_path, f"alike({optimizer!r})")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        program,
        tmp_path / "two",
    ]
    done = subprocess.run(launch, capture_output=True, text=True, env=quiet(), timeout=400)
    assert done.returncode == 0, done.stderr
    recipe = alike(optimizer)
    run(images, tmp_path / "one", recipe)
    one, two = timeless(tmp_path / "one"), timeless(tmp_path / "two")
    assert one.step.tolist() == two.step.tolist() == [2, 4, 6, 8]  # and only one of the two wrote
    torch.testing.assert_close(torch.tensor(two.values), torch.tensor(one.values), rtol=near, atol=near)
    ours, theirs = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name in ours.keys() - {
        "classifier.attention_pool.bias"
    }:  # no loss depends on it: AdamW makes steps of rounding errors
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=near, msg=name)
    before = (tmp_path / "two" / "weights.safetensors").read_bytes()
    run(images, tmp_path / "two", recipe, resume=True)  # one process can take over what two began
    assert (tmp_path / "two" / "weights.safetensors").read_bytes() == before


# What goes wrong


def test_a_folder_with_a_run_is_refused_unless_it_is_resumed(images, tmp_path):
    run(images, tmp_path, hours=0.0)
    with pytest.raises(UserError, match="holds a run already"):
        run(images, tmp_path)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"epochs": 4}, "recipe has epochs 3, this one 4"),
        ({"seed": 1}, "recipe has seed 0, this one 1"),
        ({"optimizer": "muon"}, "recipe has optimizer adamw, this one muon"),
        ({"flip": False}, "recipe has flip True, this one False"),
        ({"model": "cct_4_3x2"}, "recipe has model cct_2_3x2, this one cct_4_3x2"),
    ],
)
def test_another_recipe_is_refused_by_what_differs(images, tmp_path, other, named):
    run(images, tmp_path, hours=0.0)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match=named) as error:
        run(images, tmp_path, replace(TINY, **other), resume=True)
    assert "\n" not in str(error.value)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_other_images_are_refused(images, tmp_path):
    run(images, tmp_path, hours=0.0)
    fewer = images | {"train": images["train"].subset(per_label=3)}
    with pytest.raises(UserError, match="data has images 40, this one 30"):
        run(fewer, tmp_path, resume=True)
    others = images | {"train": replace(images["train"], fingerprint="0" * 64)}
    with pytest.raises(UserError, match="data has train"):
        run(others, tmp_path, resume=True)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", pickle.dumps({"identity": 1}, 2), pickle.dumps(Harmful(), 2)], ids=range(4)
)
def test_what_is_no_checkpoint_is_refused_and_never_run(images, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        run(images, tmp_path, resume=True)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_last_good_checkpoint(images, tmp_path, optimizer):
    wild = replace(TINY, lr=1e30, warmup_epochs=0, optimizer=optimizer)
    with pytest.raises(
        UserError, match=r"not finite at step 2 of 15, learning rate 9.33e\+29; there is no checkpoint yet"
    ):
        run(images, tmp_path / "none", wild)
    with pytest.raises(UserError, match=r"at step 2 .*last good checkpoint is .*checkpoint.pt \(step 1\)"):
        run(images, tmp_path / "one", wild, checkpoint_minutes=0.0)
    state = torch.load(tmp_path / "one" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 1
    assert not (tmp_path / "one" / "weights.safetensors").exists()


def test_images_that_do_not_fit_are_refused(images, tmp_path):
    with pytest.raises(UserError, match=r"takes 64x64 images.*image_size=64"):
        run(images, tmp_path, replace(TINY, image_size=64))
    nothing = replace(images["held-out"], pixels=images["held-out"].pixels[:0], labels=images["held-out"].labels[:0])
    with pytest.raises(UserError, match="has no held-out images"):
        run(images | {"held-out": nothing}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_few_images_get_a_smaller_batch_and_are_told(images, tmp_path, capsys):
    """Three labels with 27 images each, and a recipe whose batch they do not fill."""
    few = images | {"train": data.load("demo", "train").subset(per_label=27)}
    few["train"] = replace(few["train"], pixels=few["train"].pixels[:81], labels=few["train"].labels[:81])
    recipe = replace(TINY, batch=128, epochs=2, sizes=(), precision="fp32")
    run(few, tmp_path, recipe)
    assert "81 training images: the batch is 8, not 128" in capsys.readouterr().err
    assert json.loads((tmp_path / "run.json").read_text())["recipe"]["batch"] == 8
    assert timeless(tmp_path).step.tolist() == [10, 20]


@pytest.mark.parametrize(("images", "batch"), [(1_000, 64), (640, 64), (639, 62), (45, 4), (3, 2)])
def test_an_epoch_has_ten_steps_where_the_images_allow_it(images, batch):
    assert fitted(replace(TINY, batch=64), images).batch == batch


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"batch": 7},
        {"warmup_epochs": 3},
        {"sizes": ((3, 20),)},
        {"sizes": ((1, 32),)},
        {"sizes": ((0, 20),)},
        {"shift": 32},
        {"clip": -1.0},
    ],
)
def test_a_recipe_that_cannot_train_is_refused(wrong):
    with pytest.raises(UserError, match="recipe tiny"):
        replace(TINY, **wrong)


def test_an_unknown_recipe_is_refused_with_the_names():
    with pytest.raises(UserError, match=f"there are: {', '.join(RECIPES)}"):
        recipe("papper")


@pytest.mark.parametrize("wrong", ["epoch", "mixes", "name", "__init__"])
def test_an_unknown_setting_is_refused_with_the_nearest(wrong):
    with pytest.raises(UserError, match=f"recipe cpu: '{wrong}' is not a setting; the nearest are ") as error:
        recipe("cpu", **{wrong: 3})
    assert wrong != "epoch" or "epochs" in str(error.value)


# Recipes


def test_the_published_rate_is_that_of_timm():
    paper = RECIPES["paper"]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=paper.lr)
    theirs = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=10, warmup_lr_init=1e-6)
    for epoch in range(301):
        theirs.step(epoch)
        assert paper.learning_rate(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)


def test_a_run_counts_its_image_passes(images, tmp_path):
    """By size; what fills no batch at the end of an epoch is left out."""
    recipe = replace(TINY, batch=12)
    started = trainer.Trainer(recipe, images["train"], images["held-out"], tmp_path, HERE)
    assert recipe.passes_by_size(40) == {20: 36, 28: 36, 32: 36}
    assert sum(recipe.passes_by_size(40).values()) == started.steps * recipe.batch


def test_the_short_schedule_rises_and_falls_to_zero():
    cpu = RECIPES["cpu"]
    rates = [cpu.learning_rate(epoch / 10) for epoch in range(10 * cpu.epochs + 1)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert top == 10 * cpu.warmup_epochs and rates[-1] == 0


# Parts of the step


def test_biases_norms_and_positions_are_not_decayed(images, tmp_path):
    started = trainer.Trainer(TINY, images["train"], images["held-out"], tmp_path, HERE)
    names = {id(parameter): name for name, parameter in started.network.named_parameters()}
    decayed, free = ([names[id(p)] for p in group["params"]] for group in started.optimizers[0].param_groups)
    assert sorted(decayed + free) == sorted(names.values())
    assert [group["weight_decay"] for group in started.optimizers[0].param_groups] == [TINY.weight_decay, 0.0]
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert "classifier.positional_emb" in free and "classifier.fc.bias" in free and "classifier.norm.weight" in free


def test_muon_takes_the_matrices_of_the_encoders_and_adamw_the_rest(images, tmp_path):
    started = trainer.Trainer(MUON, images["train"], images["held-out"], tmp_path, HERE)
    names = {id(parameter): name for name, parameter in started.network.named_parameters()}
    adamw, muon = (
        [names[id(p)] for group in found.param_groups for p in group["params"]] for found in started.optimizers
    )
    layers = ("self_attn.qkv", "self_attn.proj", "linear1", "linear2")
    assert sorted(muon) == sorted(f"classifier.blocks.{m}.{layer}.weight" for m in range(2) for layer in layers)
    assert sorted(adamw + muon) == sorted(names.values())
    before = {name: value.detach().clone() for name, value in started.network.named_parameters()}
    started.step = started.steps_per_epoch  # after the warm-up, where the rate is largest
    started.learn()
    moved = {
        name: (value.detach() - before[name]).square().mean().sqrt().item() / MUON.lr
        for name, value in started.network.named_parameters()
    }
    assert all(
        0.005 < moved[name] < 0.3 for name in muon
    )  # at most 0.2 of the rate, roughly; less where few directions have a gradient
    assert 0.5 < moved["classifier.fc.weight"] < 1.2  # AdamW's first step


def test_muon_steps_a_convolution_as_the_matrix_of_its_kernels(images, tmp_path):
    settings = replace(VGG, warmup_epochs=0, clip=0.0)
    run_ = trainer.Trainer(settings, images["train"], images["held-out"], tmp_path, HERE)
    before = [weight.detach().clone() for weight in run_.network.hidden_weights()]
    run_.learn()
    rate = settings.learning_rate(0)
    for weight, start in zip(run_.network.hidden_weights(), before, strict=True):
        matrix = nn.Parameter(start.permute(0, 2, 3, 1).flatten(1).clone())
        matrix.grad = weight.grad.permute(0, 2, 3, 1).flatten(1)
        how = {"weight_decay": settings.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        torch.optim.Muon([matrix], lr=rate, **how).step()
        stepped = weight.detach().permute(0, 2, 3, 1).flatten(1)
        assert not torch.equal(stepped, start.permute(0, 2, 3, 1).flatten(1))
        torch.testing.assert_close(stepped, matrix.detach())
    assert len(before) == 9


def test_a_convolutional_network_cut_into_pieces_is_the_whole_one(images, tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    weights = load_file(run(images, whole, VGG))
    run(images, pieces, VGG, hours=0)
    assert not (pieces / "weights.safetensors").exists()
    again = load_file(run(images, pieces, VGG, resume=True))
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert timeless(whole).equals(timeless(pieces))
    model = manifest.open_model(pieces)
    with pytest.raises(UserError, match="cctlib layers"):
        _ = model.cct
    share, _ = accuracies(model.network("cpu"), model.normalise, images["held-out"], device="cpu")
    assert share == pytest.approx(model.manifest.accuracy["held-out"])


def test_a_torch_without_muon_says_what_to_do(images, tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=r"recipe muon: Muon needs torch 2\.9.*or use optimizer adamw") as error:
        run(images, tmp_path, MUON)
    assert "\n" not in str(error.value)


def test_the_result_is_the_moving_average_of_the_weights(images, tmp_path):
    settings = replace(TINY, ema=0.9, epochs=2, sizes=())
    run_ = trainer.Trainer(settings, images["train"], images["held-out"], tmp_path, HERE)
    expected = {name: value.clone() for name, value in run_.network.state_dict().items()}
    for _ in range(3):
        run_.learn()
        for name, value in run_.network.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value
    written, now = load_file(run_.export()), run_.network.state_dict()
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in written.items())
    assert not any(torch.equal(written[name], now[name]) for name in ("classifier.fc.weight", "classifier.fc.bias"))
    before = run_.evaluate()["held_out_loss"]
    run_.network.load_state_dict(expected)
    run_.average = None
    assert run_.evaluate()["held_out_loss"] == pytest.approx(before, rel=1e-4)


def test_gradients_are_clipped_as_a_whole(images, tmp_path):
    started = trainer.Trainer(replace(TINY, clip=1e-3), images["train"], images["held-out"], tmp_path, HERE)
    started.learn()
    norm = torch.stack([p.grad.norm() for p in started.network.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_an_epoch_shows_every_image_once(images, tmp_path):
    started = trainer.Trainer(replace(TINY, batch=10), images["train"], images["held-out"], tmp_path, HERE)
    orders = []
    for epoch in range(2):
        for _ in range(started.steps_per_epoch):
            started._batch()
            started.step += 1
        orders.append(started.order)
        assert started.step == (epoch + 1) * 4
    assert all(sorted(order.tolist()) == list(range(40)) for order in orders)
    assert not torch.equal(*orders)


def test_the_first_epochs_see_small_images(images, tmp_path, monkeypatch):
    """And the whole network learns from them, its positions resized; accuracy is always that of full images."""
    run = trainer.Trainer(TINY, images["train"], images["held-out"], tmp_path, HERE)
    sides, forward = [], run.network.tokenizer.forward
    monkeypatch.setattr(
        run.network.tokenizer, "forward", lambda images: sides.append(images.shape[-1]) or forward(images)
    )
    for _ in range(run.steps):
        before = run.network.classifier.positional_emb.detach().clone()
        run.learn()
        assert not torch.equal(before, run.network.classifier.positional_emb)
    assert sides == [20] * 5 + [28] * 5 + [32] * 5
    run.step = 0
    run.learn()
    sides.clear()
    run.evaluate()
    assert set(sides) == {32}


def test_bf16_trains_where_it_is_asked_for(images, tmp_path):
    short = replace(TINY, epochs=1, sizes=(), warmup_epochs=0, precision="bf16")
    weights = run({**images, "train": images["train"].subset(per_label=2)}, tmp_path, replace(short, batch=16))
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in load_file(weights).values())


def test_a_scaled_loss_learns_the_same_and_leaves_out_what_overflows(images, tmp_path):
    """As in fp16, which a processor only emulates. Scales are powers of two, which round nothing."""
    fp32 = replace(TINY, precision="fp32")

    def start(scale):
        started = trainer.Trainer(fp32, images["train"], images["held-out"], tmp_path / str(scale), HERE)
        started.scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 0)
        return started

    plain, scaled, wild = start(0), start(2.0**10), start(2.0**12)
    for started in (plain, scaled):
        started.learn()
        started.learn()
    weights = plain.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in scaled.network.state_dict().items())
    overflows = wild.network.classifier.fc.weight.register_hook(lambda gradient: gradient * math.inf)
    before = wild.network.classifier.fc.weight.detach().clone()
    wild.learn()
    overflows.remove()
    wild.begin(resume=False)
    wild.save()  # which refuses where the loss is not finite
    assert torch.equal(wild.network.classifier.fc.weight, before) and wild.scaler.get_scale() == 2.0**11
    again = start(2.0**10)
    again.load(wild.folder / "checkpoint.pt")
    assert again.scaler.get_scale() == 2.0**11


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_gpu_trains_as_the_processor_does_and_takes_up_its_checkpoint(images, tmp_path, optimizer, capsys):
    """Everything on that is drawn on the host; in fp32, so that only the order of sums differs."""
    recipe = alike(optimizer)
    recipe = replace(recipe, erasing=0.0)
    for device in ("cpu", "cuda"):
        run(images, tmp_path / device, recipe, device=device)
        for _ in range(2):
            run(images, tmp_path / f"{device}-cut", recipe, device=device, hours=0.0, resume=True)
    cpu, gpu = timeless(tmp_path / "cpu"), timeless(tmp_path / "cuda")
    torch.testing.assert_close(torch.tensor(gpu.values), torch.tensor(cpu.values), rtol=1e-2, atol=1e-2)
    for start, end in (("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")):
        shutil.copytree(tmp_path / f"{start}-cut", tmp_path / "on")
        run(images, tmp_path / "on", recipe, device=end, resume=True)
        assert ("drawn afresh" in capsys.readouterr().err) == (start != end)
        losses = timeless(tmp_path / "on").loss.tolist()
        assert losses == pytest.approx(gpu.loss.tolist(), rel=1e-2), (start, end)
        shutil.rmtree(tmp_path / "on")


@pytest.mark.cuda
def test_a_step_on_a_gpu_waits_for_nothing(images, tmp_path):
    started = trainer.Trainer(TINY, images["train"], images["held-out"], tmp_path, Place(0, 1, torch.device("cuda")))
    started.learn()  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        started.learn()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# From the shell


@pytest.fixture
def arguments(tmp_path):
    """A command that trains for one step."""
    return [
        "train",
        *["--recipe", "demo", "--dataset", "demo", "--hours", "0", "--device", "cpu", "--folder"],
        str(tmp_path),
    ]


def test_the_command_line_trains_and_goes_on(arguments, tmp_path, capsys):
    cli.main(arguments)
    assert "checkpoint.pt; go on with --resume" in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        cli.main(arguments)
    assert refused.value.code == 2 and "holds a run already" in capsys.readouterr().err
    cli.main([*arguments, "--resume"])
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_the_command_line_changes_a_recipe(arguments, tmp_path, capsys):
    cli.main([*arguments, "--epochs", "7", "--mixup", "0.2", "--optimizer", "muon"])
    run = json.loads((tmp_path / "run.json").read_text())["recipe"]
    assert (run["epochs"], run["optimizer"], run["mixup"]) == (7, "muon", 0.2)
    assert (run["lr"], run["shift"]) == (RECIPES["demo"].lr, RECIPES["demo"].shift)
    capsys.readouterr()
    with pytest.raises(SystemExit) as refused:
        cli.main([*arguments, "--sizes", "3", "99"])
    assert refused.value.code == 2 and "3 epochs at 99 pixels do not fit" in capsys.readouterr().err


def test_the_command_line_begins_with_the_weights_of_a_model(arguments, images, tmp_path, capsys):
    run(images, tmp_path / "first", replace(TINY, epochs=2, sizes=()))
    cli.main([*arguments[:-1], str(tmp_path / "second"), "--start", str(tmp_path / "first")])
    start = json.loads((tmp_path / "second" / "run.json").read_text())["start"]
    assert start["weights"] == manifest.open_model(tmp_path / "first").manifest.sha256 and start["recipe"] == "tiny"
    capsys.readouterr()
    for missing, said in (("default", "no model ships for demo"), ("nowhere", "no model 'nowhere' for demo")):
        with pytest.raises(SystemExit) as refused:
            cli.main([*arguments[:-1], str(tmp_path / "third"), "--start", missing])
        assert refused.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


@pytest.mark.slow
def test_the_demo_recipe_passes_90_percent_on_test_images(tmp_path):
    splits = {split: data.load("demo", split) for split in ("train", "held-out", "test")}
    run(splits, tmp_path, RECIPES["demo"], test=splits["test"])
    assert manifest.open_model(tmp_path).manifest.accuracy["test"] > 0.9
