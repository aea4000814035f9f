"""A study of an untrained network on a few demo images: everything is computed, though its probes know little."""

import torch
from safetensors.torch import save_file

from cctlib import study
from cctlib.data import images as data
from cctlib.model import cct, manifest
from cctlib.profiles import HeadSettings, Profile, PruningSettings
from cctlib.snp.probe import ProbeSettings

PROFILE = Profile(
    "tiny",
    train=6,
    held_out=3,
    test=4,
    probe=ProbeSettings(penalty=0.1, tolerance=1e-2, most_passes=5, short_steps=1, precision="fp32"),
    thetas=(0.1, 0.3, 0.7),
    null_draws=2,
    rotations=2,
    label_orders=2,
    heads=HeadSettings(gap_deals=25, test=3, draws=2),
    pruning=PruningSettings(
        test=3,
        curve_test=2,
        train=4,
        epochs=(1.0,),
        targets=("fc",),
        thetas=(0.1, 0.3),
        latency_thetas=(0.3,),
        seconds=0.1,
    ),
)


def write_model(dataset, folder, mean=0.5):
    """A model folder with an untrained network."""
    names = data.describe(dataset).names
    config = cct.config("cct_2_3x2", num_classes=len(names), image_size=32)
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = cct.CCT(config)
    save_file(network.state_dict(), folder / "weights.safetensors")
    manifest.write_manifest(
        folder,
        name="cct_2_3x2",
        config=config,
        weights=folder / "weights.safetensors",
        dataset=dataset,
        normalisation={"mean": (mean, mean, mean), "std": (0.5, 0.5, 0.5)},
        labels=names,
    )


def untrained(dataset, folder, device="cpu"):
    """The study; its model is in `folder`, its stages beside it in `runs`."""
    write_model(dataset, folder)
    return study.measured_study(dataset, str(folder), PROFILE, folder.with_name("runs"), torch.device(device))
