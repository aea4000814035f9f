"""Heads as a stage of a study: on a tiny network and demo images, against the probe cut by hand."""

from dataclasses import replace

import pytest
import torch
from tiny_study import PROFILE

from cctlib.andc.stage import sweep_stage
from cctlib.errors import UserError
from cctlib.heads import ownership, stage
from cctlib.snp.stage import load_probes


def test_a_head_alone_is_the_probe_with_the_other_heads_weights_cut(tiny_study):
    """Own and other labels' accuracy of each head, image by image."""
    table = stage.heads_tables(tiny_study)["expert_heads"]
    images, number = tiny_study.images("test"), tiny_study.model.config.heads
    network, settings = tiny_study.network(), tiny_study.profile.probe
    probes = load_probes(tiny_study.folders["probe"], tiny_study.model, settings, tiny_study.device)
    for site in ("enc1/mha", "enc2/mha"):
        diagonal = stage.mha_diagonals(tiny_study, "held-out")[site]
        owner = ownership.designate(ownership.count(diagonal, number))
        _, taps = network(tiny_study.model.normalise(images.pixels), taps=[site])
        for head in range(number):
            probe = probes[site]
            cut = torch.zeros_like(probe.fc.weight)
            width = cut.shape[1] // number
            cut[:, head * width : (head + 1) * width] = probe.fc.weight[:, head * width : (head + 1) * width]
            right = ((probe.pool(taps[site]) @ cut.T).argmax(1) == images.labels).float()
            row = table[(table.site == site) & (table["head"] == head)].iloc[0]
            for column, chosen in (
                ("own", [owner[label] == head for label in images.labels]),
                ("others", [owner[label] not in (head, ownership.NOBODY) for label in images.labels]),
            ):
                chosen = torch.tensor(chosen)
                expected = right[chosen].mean().item() if (owner == head).any() else float("nan")
                assert row[column] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_heads_are_silenced_at_the_encoders_that_were_asked_for(tiny_study):
    tables = stage.heads_tables(tiny_study)
    assert list(tables["ablation_sites"].encoder) == [1, 2]
    assert (tables["ablation_heads"].draws == 2).all() and set(tables) == set(stage.HEADS)
    fewer = replace(tiny_study, profile=replace(PROFILE, heads=replace(PROFILE.heads, encoders=(2, 7))))
    assert list(stage.heads_tables(fewer)["ablation_sites"].encoder) == [2]


def test_under_torchrun_it_is_refused_in_one_line(tiny_study, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for run, task in ((stage.heads_stage, "heads"), (sweep_stage, "andc")):
        with pytest.raises(UserError, match=f"{task} runs in one process, which torchrun.*without it") as refused:
            run(tiny_study, tiny_study.profile)
        assert "\n" not in str(refused.value)


def test_ownership_needs_the_measurement_alone(tiny_study):
    owned = stage.ownership(tiny_study, deals=50)
    sites = owned.sites
    assert (sites.excess_within_draws == 20).all() and (sites.excess_across_low <= sites.excess_across_mean).all()
    assert list(owned.sites.encoder) == [1, 2] and owned.semantics is None  # the demo's labels have no groups
    for site, counts in owned.counts.items():
        diagonal = stage.mha_diagonals(tiny_study, "held-out")[site]
        width = len(diagonal) // tiny_study.model.config.heads
        for head in range(len(counts)):
            assert torch.equal(counts[head], diagonal[head * width : (head + 1) * width].sum(0))
