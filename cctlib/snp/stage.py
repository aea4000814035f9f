"""The stages of SNP: from a network and images to probes, measurement and tables (Method, sections 4 and 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cctlib import stages
from cctlib.data.images import Images
from cctlib.model import sites
from cctlib.model.manifest import Model
from cctlib.model.precision import arithmetic
from cctlib.snp import measure, probe, tables
from cctlib.snp.probe import Probes, ProbeSettings


def probe_stage(model: Model, train: Images, settings: ProbeSettings, home: Path, device: torch.device) -> Path:
    """Train the probes of all sites. Writes probes.safetensors and history.csv."""

    def compute(work: Path) -> None:
        network = model.network(device)
        probes = fresh_probes(model, settings)
        history = probe.train_probes(
            network, model.normalise, probes, train, settings, device=device, checkpoint=work / "checkpoint.pt"
        )
        history.to_csv(work / "history.csv", index=False)
        state = {name: value.contiguous() for name, value in probes.state_dict().items()}
        save_file(state, work / "probes.safetensors")

    return stages.stage(
        home,
        "probe",
        compute,
        room="snp",
        reads={"model": model.identity, "train": train.fingerprint},
        settings=asdict(settings),
        arithmetic=arithmetic(device, settings.precision),
        device=device,
    )


def fresh_probes(model: Model, settings: ProbeSettings) -> Probes:
    """Untrained probes for the sites of a model, of the kinds that are probed."""
    config = model.cct
    names = [site for site in sites.site_names(config.encoders) if sites.parse(site)[1] in settings.probed]
    widths = {site: config.nodes(site) for site in names}
    return probe.make_probes(widths, config.num_classes, settings)


def load_probes(folder: Path, model: Model, settings: ProbeSettings, device: torch.device) -> Probes:
    """The probes that a probe stage wrote with these settings, frozen."""
    probes = fresh_probes(model, settings)
    probes.load_state_dict(load_file(folder / "probes.safetensors"))
    return probes.to(device).eval().requires_grad_(False)


def measure_stage(
    model: Model,
    probes: Path,
    held_out: Images,
    test: Images,
    settings: ProbeSettings,
    null_draws: int,
    about: Mapping[str, object],
    home: Path,
    device: torch.device,
) -> Path:
    """Gather the measurement. Writes measurement.npz and .json, pooled.npz, and shuffled.parquet.

    probes: the folder of the probe stage. about: what the measurement says of itself: data set, model, profile.
    """

    def compute(work: Path) -> None:
        result, shuffled, pooled = measure.measure(
            model.network(device),
            model.normalise,
            load_probes(probes, model, settings, device),
            held_out,
            test,
            null_draws=null_draws,
            precision=settings.precision,
            device=device,
            about=dict(about),
        )
        measure.save(result, work)
        np.savez(work / measure.POOLED, **pooled)  # type: ignore[arg-type]
        stages.write_tables({"shuffled": shuffled}, work)

    return stages.stage(
        home,
        "measure",
        compute,
        room="snp",
        reads={"model": model.identity, "probes": probes, "held-out": held_out.fingerprint, "test": test.fingerprint},
        settings={"null_draws": null_draws, "about": about},
        arithmetic=arithmetic(device, settings.precision),
        device=device,
    )


def tables_stage(
    measured: Path,
    thetas: Sequence[float],
    label_orders: int,
    rotations: int,
    heads: int,
    home: Path,
    device: torch.device,
) -> Path:
    """Make the tables of SNP (see `tables.py`) from the folder of the measure stage; `heads` of an encoder."""

    def compute(work: Path) -> None:
        shuffled = stages.read_tables(measured, ("shuffled",))["shuffled"]
        tables.compute(measure.load(measured), shuffled, thetas, label_orders, rotations, heads, work, device)

    return stages.stage(
        home,
        "tables",
        compute,
        room="snp",
        reads={"measurement": measured},
        settings={"thetas": thetas, "label_orders": label_orders, "rotations": rotations, "heads": heads},
        device=device,
    )
