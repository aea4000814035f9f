"""Probes against other people's solvers, plain training, and themselves when killed (Method, section 4)."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from cctlib.data import images as data
from cctlib.errors import UserError
from cctlib.model import manifest
from cctlib.snp import fit, probe

SETTINGS = probe.ProbeSettings(penalty=0.1, tolerance=1e-2, most_passes=5, short_steps=2, precision="fp32")
ROOT = Path(__file__).parents[2]
SITES = ("enc1/mha", "enc2/trunk", "enc2/ff")
PENALTY = 1e-2


def half(pixels):
    return pixels.float() / 255 - 0.5


def tokens(count=120, places=5, nodes=8, labels=4, seed=0):
    """Tokens that tell their label at some places and nothing at others."""
    draw = torch.Generator().manual_seed(seed)
    of_label, told = torch.randn(labels, nodes, generator=draw), torch.rand(count, places, 1, generator=draw) < 0.4
    label = torch.arange(count) % labels
    values = of_label[label][:, None] * told + 0.7 * torch.randn(count, places, nodes, generator=draw)
    values[..., 0] = 2 * told[..., 0] + 0.3 * torch.randn(count, places, generator=draw)
    return fit.Tokens(values.bfloat16(), label)


def objective(kept, a, W, penalty=PENALTY):
    """Loss with penalty, by a probe as it is defined."""
    x = kept[slice(None)]
    pooled = ((x @ a).softmax(1)[..., None] * x).sum(1)
    return F.cross_entropy(pooled @ W.T, kept.labels) + penalty / 2 * (W.square().sum() + a.square().sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_readout_is_that_of_scikit_learn(seed):
    pooled, labels = tokens(seed=seed)[slice(None)].mean(1), tokens(seed=seed).labels
    W, _ = fit.read_out(pooled, labels, torch.zeros(4, 8), PENALTY, 1e-9, iterations=200)
    theirs = LogisticRegression(C=1 / (PENALTY * len(labels)), fit_intercept=False, tol=1e-8, max_iter=5000)
    expected = torch.from_numpy(theirs.fit(pooled.numpy(), labels.numpy()).coef_).float()
    torch.testing.assert_close(W, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("norm", [torch.nn.Identity(), torch.nn.LayerNorm(8, elementwise_affine=False)])
def test_a_converged_probe_is_where_long_plain_training_ends(norm):
    """The siblings' own way: SGD with Nesterov momentum and weight decay, here over the whole set in every step."""
    kept = tokens().behind(norm)
    a, W, passes, loss, converged = fit.converge(kept, 4, PENALTY, 1e-5, 60)
    assert converged and 3 < passes < 60 and loss == pytest.approx(objective(kept, a, W).item(), rel=1e-4)
    x = norm(kept.values.float())
    slow_a, slow_W = torch.zeros(8, requires_grad=True), torch.zeros(4, 8, requires_grad=True)
    optimizer = torch.optim.SGD([slow_a, slow_W], lr=0.3, momentum=0.9, nesterov=True, weight_decay=PENALTY)
    for _ in range(500):
        optimizer.zero_grad()
        pooled = ((x @ slow_a).softmax(1)[..., None] * x).sum(1)
        F.cross_entropy(pooled @ slow_W.T, kept.labels).backward()
        optimizer.step()
    assert loss == pytest.approx(objective(kept, slow_a, slow_W).item(), rel=1e-3)
    assert a.norm() > 0.3, "some places tell more than others"
    point = (a.requires_grad_(), W.requires_grad_())
    slopes = torch.autograd.grad(objective(kept, *point), point)
    assert all(slope.abs().max() < 5e-3 for slope in slopes), "it is a minimum in both"


def test_a_probe_that_needs_more_passes_says_so():
    assert not fit.converge(tokens(), 4, 1e-4, 1e-9, 2).converged


def test_kept_tokens_behind_a_layernorm():
    kept, norm = tokens(), torch.nn.LayerNorm(8, elementwise_affine=False)
    torch.testing.assert_close(kept.behind(norm)[slice(3, 9)], norm(kept.values[3:9].float()), atol=1e-5, rtol=1e-5)
    chunks = [x for _, x in kept.behind(norm).chunks()]
    torch.testing.assert_close(torch.cat(chunks), norm(kept.values.float()), atol=1e-5, rtol=1e-5)
    assert torch.equal(kept.behind(torch.nn.Identity())[:5], kept.values[:5].float())


def test_the_short_training_is_that_of_a_plain_module():
    kept, start = tokens(), probe.Probe(8, 4, normalised=False)
    a, W = start.attention_pool.weight[0].detach().clone(), start.fc.weight.detach().clone()
    short = fit.short(kept, a, W, least_steps=3, seed=5)
    assert short.passes == 6  # two epochs of three passes: 120 images are one batch
    optimizer = torch.optim.AdamW(start.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    torch.nn.init.zeros_(start.attention_pool.bias)
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(start(kept.values), kept.labels).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(short.W, start.fc.weight.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(short.a, start.attention_pool.weight[0].detach(), atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(1, 60))
def test_groups_are_all_sites_in_order_and_as_few_as_fit(sizes, room):
    named = {f"enc{place + 1}/ff": size for place, size in enumerate(sizes)}
    made = probe.groups(named, room)
    assert [site for group in made for site in group] == list(named)
    taken = [sum(named[site] for site in group) for group in made]
    assert all(size <= room or len(group) == 1 for size, group in zip(taken, made, strict=True))
    assert all(size + named[later[0]] > room for size, later in zip(taken, made[1:], strict=False))


@pytest.mark.slow
def test_probes_of_six_sites_are_those_of_the_published_recipe():
    """Accuracy at most 0.5 points behind, and C_s, N_c, noise and SNR within 3%, of 50 epochs of the siblings' SGD."""
    spec = importlib.util.spec_from_file_location("bench_probes", ROOT / "benchmarks" / "bench_probes.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    train, test = data.load("cifar100", "train"), data.load("cifar100", "test").subset(30)
    assert [site for site, *_ in bench.compared(manifest.find("cifar100"), train, test, bench.SITES)] == list(
        bench.SITES
    )


# On a network -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    return data.load("demo", "train").subset(per_label=4)


def trained(network, images, checkpoint=None, **changes):
    settings = replace(SETTINGS, **changes)
    widths = {site: network.config.nodes(site) for site in SITES}
    probes = probe.make_probes(widths, 10, settings)
    history = probe.train_probes(network, half, probes, images, settings, device="cpu", checkpoint=checkpoint)
    return probes.state_dict(), history


@pytest.fixture(scope="module")
def whole(network, images):
    return trained(network, images)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_every_probe_is_trained_on_its_own_site(network, images, whole):
    state, history = whole
    assert len(history) == 3 + 2 + 2 and not history.set_index("probe").converged["enc2/ff/short"]
    site = "enc2/ff"
    x = network(half(images.pixels), taps=[site])[1][site]
    for name, normalised in ((site, True), (f"{site}/swapped", False)):
        kept = fit.Tokens(x.bfloat16(), images.labels)
        kept = kept.behind(torch.nn.LayerNorm(16, elementwise_affine=False)) if normalised else kept
        expected = fit.converge(kept, 10, SETTINGS.penalty, SETTINGS.tolerance, SETTINGS.most_passes)
        torch.testing.assert_close(state[f"{name}.fc.weight"], expected.W, atol=1e-3, rtol=1e-2)


def test_groups_of_any_size_end_with_the_same_weights(network, images, whole):
    state, history = trained(network, images, kept_gib=1e-6)  # one site at a time
    assert same(state, whole[0])
    pd.testing.assert_frame_equal(history, whole[1])


@pytest.mark.parametrize("death", [1, 2])
def test_a_killed_training_ends_with_the_same_weights(network, images, whole, tmp_path, monkeypatch, death):
    class Killed(BaseException):
        pass

    save, saved = torch.save, []

    def save_and_die(*given):
        save(*given)
        saved.append(given)
        if len(saved) == death:
            raise Killed  # before the file has its name

    monkeypatch.setattr(torch, "save", save_and_die)
    with pytest.raises(Killed):
        trained(network, images, tmp_path / "checkpoint.pt")
    monkeypatch.setattr(torch, "save", save)
    fits = []
    original = probe._fit
    monkeypatch.setattr(probe, "_fit", lambda *given: fits.append(1) or original(*given))
    state, history = trained(network, images, tmp_path / "checkpoint.pt")
    assert same(state, whole[0])
    pd.testing.assert_frame_equal(history, whole[1])
    assert len(fits) == len(whole[1]) - (death - 1), "finished probes are not fitted again"


def test_broken_tokens_and_settings_are_one_line(network, images):
    weight = network.classifier.blocks[1].linear2.weight
    kept = weight.clone()
    weight.fill_(torch.nan)
    try:
        with pytest.raises(UserError, match="tokens of enc2/ff hold NaN"):
            trained(network, images)
    finally:
        weight.copy_(kept)
    with pytest.raises(UserError, match="positive penalty"):
        probe.ProbeSettings(penalty=0)


@pytest.mark.cuda
def test_a_gpu_ends_at_the_same_minimum():
    kept = tokens(count=2000)
    on_gpu = fit.converge(fit.Tokens(kept.values.cuda(), kept.labels.cuda()), 4, PENALTY, 1e-6, 60)
    on_cpu = fit.converge(kept, 4, PENALTY, 1e-6, 60)
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-4)
    torch.testing.assert_close(on_gpu.W.cpu(), on_cpu.W, atol=0.01, rtol=0.02)
