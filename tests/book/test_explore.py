"""The page that shows all nodes, opened from disk in a headless Chromium: its numbers are those of `cctlib.snp`."""

import io
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cctlib.figures import style
from cctlib.figures.node import look_at, typical
from cctlib.model import sites
from cctlib.snp import controls, fields
from cctlib.study import beside
from tools import explore

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
PHONE = {"width": 390, "height": 844}
COUNTS = ["silent", "ones", "labels", "clusters", "signal", "noise", "column_noise", "foreign_noise"]
SHOWN = "hash => document.getElementById('explore').dataset.shown === (hash || location.hash)"
DRAWN = """id => { const c = document.getElementById(id);
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  return [c.clientWidth, c.clientHeight, new Set(new Uint32Array(d.buffer)).size] }"""
CONTRASTS = """() => [...document.querySelectorAll('.x-key')].map(k => getComputedStyle(k).backgroundColor)"""


@pytest.fixture(scope="session")
def studies(tiny_study):
    """A study that was measured here, with its images, and those that ship; by name in an address."""
    return {explore.slug(study.dataset): study for study in beside(tiny_study).values()}


@pytest.fixture(scope="session")
def path(studies, tiny_study, tmp_path_factory):
    """The page without the frame of the book."""
    root = tmp_path_factory.mktemp("site")
    static = shutil.copytree(ROOT / "book" / "_static", root / "_static", ignore=shutil.ignore_patterns("mathjax"))
    explore.write(tiny_study, tiny_study.images(), static / "explore")
    blocks = re.findall(r"```\{raw\} html\n(.*?)```", (ROOT / "book" / "explore.md").read_text(encoding="utf-8"), re.S)
    page = root / "book" / "explore.html"
    page.parent.mkdir()
    view = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    page.write_text(f"<!DOCTYPE html><html lang=en>{view}<article class=bd-article>{''.join(blocks)}", encoding="utf-8")
    return page


@pytest.fixture
def page(opened, path):
    """A page that must not ask the network, and have no error, until the test ends."""
    page, asked, errors = opened(path)
    page.wait_for_function(SHOWN)
    yield page
    assert asked == [] and errors == []


def goto(page, address):
    page.evaluate("hash => { location.hash = hash }", address)
    page.wait_for_function(SHOWN)


def saved(page, button):
    with page.expect_download() as download:
        page.locator(button).click()
    return download.value.path().read_text(encoding="utf-8")


def drawn(studies, seed):
    """An address that nobody picked: its study, site, node and threshold."""
    draw = random.Random(seed)
    name = draw.choice(sorted(studies))
    site = draw.choice(list(studies[name].measurement.sites))
    node = draw.randrange(studies[name].measurement[site].W.shape[1])
    return name, site, node, draw.choice([0.07, 0.1, 0.3, 0.42, 0.5, 0.77, 0.9])


def assert_same(rows, mu, W, theta):
    """The rows of a table have the counts of `fields.measure`, to the last one."""
    measured = fields.measure(mu, W, theta)
    for name in COUNTS:
        ours = rows[name].astype(str).str.lower().replace({"true": 1, "false": 0}).astype(int)
        np.testing.assert_array_equal(ours, getattr(measured, name).numpy().astype(int), err_msg=name)


@pytest.mark.parametrize("seed", range(8))
def test_numbers_are_those_of_the_library(page, studies, seed):
    name, site, node, theta = drawn(studies, seed)
    result = studies[name].measurement
    mu, W = result[site].tensors()
    goto(page, f"#{name}/{site}/{node}?theta={theta}")
    table = pd.read_csv(io.StringIO(saved(page, "#x-csv")))
    assert_same(table[table.basis == "nodes"], mu, W, theta)

    expected = look_at(mu, W, site, node, theta)
    assert re.sub(r" \(head \d+\)", "", page.locator("#x-message").inner_text()) == f"{expected.message}."
    told = json.loads(saved(page, "#x-json"))
    clusters = [
        [result.names[i] for i in np.flatnonzero(expected.clusters == c)] for c in range(expected.clusters.max() + 1)
    ]
    assert told["recognises"] == clusters
    assert told["mu"] == mu[:, node].tolist() and told["W"] == W[:, node].tolist()
    for end, rows in zip(("most", "least"), result[site].extremes[node], strict=True):
        assert told["likes"][end] == [result.names[label] for label in result.labels["test"][rows]]


def test_random_directions_are_the_same_probe_in_another_basis(page, studies):
    study = studies["cifar100"]
    site = f"enc{study.measurement.encoders}/mha"
    mu, W = (array.double() for array in study.measurement[site].tensors())
    goto(page, f"#cifar100/{site}/0?theta={fields.THETA}")
    turn = """([mu, W, N, K]) => { const own = {mu: Float64Array.from(mu), W: Float64Array.from(W), N, K};
      const turned = explore.rotated(own); return [[...turned.mu], [...turned.W]] }"""
    given = [array.T.flatten().tolist() for array in (mu, W)]
    turned = [
        torch.tensor(v, dtype=torch.float64).view(mu.T.shape).T for v in page.evaluate(turn, [*given, *mu.T.shape])
    ]
    for one, other in ((0, 0), (0, 1), (1, 1)):  # lengths, angles and logits are as they were
        torch.testing.assert_close(turned[one] @ turned[other].T, (mu, W)[one] @ (mu, W)[other].T)
    assert (turned[0] - mu).abs().max() > mu.abs().median()

    table = pd.read_csv(io.StringIO(saved(page, "#x-csv")))
    ours = table[table.basis == "random basis"]
    assert_same(ours, *turned, fields.THETA)
    shipped = study.tables["controls"].query(
        "site == @site and control == @controls.BASIS", local_dict={"site": site, "controls": controls}
    )
    for name in ("noise", "clusters", "labels"):
        away = abs(ours[name].mean() - shipped[name].mean()) / shipped[name].std()
        assert away < 6, f"{name}: not a draw like those of the table"


def test_the_page_opens_with_the_node_that_the_chapters_show(page, studies):
    name, study = next((name, study) for name, study in studies.items() if study.source == "measured")
    site = f"enc{study.measurement.encoders}/ff"
    assert page.url.endswith(f"#{name}/{site}/{typical(study.tables['nodes'], site)}?theta=0.3")


def test_images_and_weights_are_the_nodes_own(page, studies, tiny_study):
    layer = tiny_study.network().state_dict()["classifier.blocks.1.linear1.weight"]
    goto(page, "#demo/enc2/trunk/5")
    told = json.loads(saved(page, "#x-json"))["to"]
    assert [(w["node"], np.float32(w["weight"])) for w in told["weights"]] == [
        (int(to), np.float32(layer[to, 5].half()))
        for to in layer[:, 5].abs().argsort(descending=True)[: explore.STRONGEST]
    ]
    assert page.locator("#x-no-images").is_hidden()
    sheets = page.evaluate("""() => Promise.all([...document.querySelectorAll('.x-picture')].map(async picture => {
      const sheet = new Image(); sheet.src = getComputedStyle(picture).backgroundImage.slice(5, -2);
      await sheet.decode(); return sheet.naturalWidth }))""")
    assert len(sheets) == 2 * tiny_study.measurement["enc2/trunk"].extremes.shape[2] and min(sheets) > 0
    goto(page, "#cifar100/enc2/trunk/5")
    assert page.locator("#x-no-images").is_visible() and page.locator("#x-most a").count() == 8


def test_a_label_is_found_in_all_sites(page, studies):
    result, theta, draw = studies["cifar100"].measurement, 0.4, random.Random(0)
    label = draw.randrange(len(result.names))
    goto(page, f"#cifar100/enc1/mha/3?theta={theta}&label={result.names[label]}")
    page.wait_for_function("document.getElementById('x-strongest').rows.length")
    heads = studies["cifar100"].model.config.heads
    expected = []
    for site, measured in result.sites.items():
        D = fields.diagonals(*measured.tensors(), theta)[:, label]
        expected += D.view(heads, -1).sum(1).tolist() if sites.parse(site)[1] == "mha" else [int(D.sum())]
    assert [int(text) for text in page.locator("#x-grid td").all_inner_texts()] == expected
    D = fields.diagonals(*result["enc1/mha"].tensors(), theta)[:, label]
    assert [int(text) for text in page.locator("#x-list th").all_inner_texts()] == D.nonzero().flatten().tolist()


def test_every_choice_is_in_the_address_and_back_undoes_it(page):
    goto(page, "#cifar100/enc3/mha/7?theta=0.3")
    for change, ends in (
        (lambda: page.locator("#x-place").select_option("enc4"), r"#cifar100/enc4/mha/\d+\?theta=0.3"),
        (lambda: page.locator("#x-kind").select_option("ff"), r"#cifar100/enc4/ff/\d+\?theta=0.3"),
        (lambda: page.locator("#x-number").fill("200") or page.keyboard.press("Enter"), r"/ff/200\?theta=0.3"),
        (lambda: page.locator("#x-next").click(), "/ff/201[?]theta=0.3"),
        (lambda: page.locator("#x-only").check(), "/ff/201[?]theta=0.3&only=1"),
        (lambda: page.locator("[data-sort=noise]").click(), "only=1&sort=noise"),
        (lambda: page.locator("[data-sort=noise]").click(), "only=1&sort=-noise"),
        (lambda: page.locator("#x-clusters a, #x-list a").first.click(), "theta=0.3"),
    ):
        before = page.url
        change()
        page.wait_for_function("before => location.href !== before", arg=before)
        page.wait_for_function(SHOWN)
        assert re.search(f"{ends}", page.url), page.url
    noise = [int(text.replace(",", "")) for text in page.locator("#x-list tr td:nth-child(5)").all_inner_texts()]
    assert noise == sorted(noise, reverse=True)
    page.go_back()
    page.wait_for_function(SHOWN)
    assert page.url == before


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("#cifar100/enc7/ff/256", "has nodes 0 to 255, not 256"),
        ("#cifar100/enc9/ff/1", "no site enc9/ff"),
        ("#mnist/enc1/ff/1", "no data set mnist"),
        ("#cifar100/enc1/ff/1?theta=2", "between 0 and 1, not 2"),
        ("#cifar100/enc1/ff/1?label=yeti", "no label yeti"),
    ],
)
def test_an_address_that_leads_nowhere_says_so_in_a_line(page, address, says):
    goto(page, address)
    assert says in page.locator("#x-problem").inner_text()
    assert page.locator("#x-message").inner_text().startswith("Node ")


def test_it_is_used_by_keyboard(page):
    goto(page, "#cifar100/enc7/ff/9?theta=0.3")
    page.locator("#x-set").focus()
    reached = []
    for _ in range(14):
        reached.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    wanted = [
        "set",
        "place",
        "kind",
        "number",
        "previous",
        "next",
        "random",
        "theta",
        "field",
        "boolean",
        "order",
        "only",
    ]
    assert [name.removeprefix("x-") for name in reached][: len(wanted)] == wanted
    page.locator("#x-theta").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("location.hash.endsWith('theta=0.31')")
    page.locator("#x-boolean").focus()
    page.keyboard.press("ArrowDown")
    assert re.fullmatch(r"True .+, output .+: .+\.", page.locator("#x-cell").inner_text())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_in_both_themes(page, theme):
    page.set_viewport_size(PHONE)
    page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    goto(page, "#cifar100/enc7/ff_hidden/12?theta=0.3&label=oak_tree")
    page.wait_for_function("document.getElementById('x-strongest').rows.length")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for canvas in ("x-field", "x-boolean"):
        width, height, colors = page.evaluate(DRAWN, canvas)
        assert width > 300 and abs(width - height) <= 1 and colors > 2
    ground = {"light": "#ffffff", "dark": "#121212"}[theme]
    for color in page.evaluate(CONTRASTS):
        assert style.contrast("#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", color)), ground) >= 3


@pytest.mark.notebooks
def test_it_has_the_frame_of_the_book_and_stays_out_of_its_search(html, opened):
    page, _, errors = opened(html / "book" / "explore.html")
    page.wait_for_function(SHOWN)
    assert errors == [] and page.locator("#x-message").inner_text().startswith("Node ")
    assert "explore.put" not in (html / "searchindex.js").read_text(encoding="utf-8")
    assert max(path.stat().st_size for path in (html / "_static" / "explore").rglob("*.js")) < 500_000
