"""Every figure builds from awkward inputs, states what its data say, can be read, and fetches nothing."""

import io
import itertools
import json
import math
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
import tiny_tables as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from cctlib.errors import UserError
from cctlib.figures import (
    andc,
    browse,
    confusions,
    datasets,
    experts,
    heads,
    model,
    network,
    nodes,
    null,
    overview,
    palette,
    snp,
    snr,
    style,
    theta,
    to_html,
    to_png,
    training,
    wording,
)
from cctlib.figures.style import Card, headline_of, stamp
from cctlib.model.cct import config

RNG = np.random.default_rng(0)
SIZES = (10, 102)


def seen(labels: int, index: int, site: str = "enc3/mha") -> nodes.Node:
    """A node of the synthetic site: 0 is silent, 1 has no label on its diagonal, the others are usual."""
    return nodes.look(*tiny.site(labels), site, index)


def pictures(count: int) -> np.ndarray:
    """Random images."""
    return RNG.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def token_maps(*shape: int) -> np.ndarray:
    """Positive maps of tokens."""
    return RNG.random(shape).astype(np.float32)


def journey(labels: int, encoders: int = 7) -> Card:
    """An image on its way through a network of so many encoders."""
    chances = RNG.dirichlet(np.ones(labels)).astype(np.float32)
    pooling = RNG.dirichlet(np.ones(64)).reshape(8, 8).astype(np.float32)
    return model.journey(pictures(1)[0], token_maps(encoders, 8, 8), pooling, chances, tiny.names(labels), label=1)


def by_label(labels: int, grouped: bool) -> Card:
    """Accuracy by label, one without images."""
    accuracy = RNG.random(labels)
    accuracy[2] = np.nan
    return model.accuracy_by_label(accuracy, tiny.names(labels), *(tiny.groups(labels) if grouped else ()))


def gallery(labels: int) -> Card:
    """One node a site; a site is missing, one node is silent, one is off the diagonal."""
    sites = [f"enc{m}/{kind}" for m in range(1, 8) for kind in tiny.KINDS]
    return snp.gallery([seen(labels, place % 12, site) for place, site in enumerate(sites[:-1])])


def liked(images: bool) -> Card:
    """Most and least liked images, or only the names of their labels."""
    most, least = tiny.names(8), tiny.names(8)[:5]
    pixels = (pictures(8), pictures(5)) if images else (None, None)
    return snp.liked(*pixels, ["prince of wales feathers"] * 3 + most[3:], least, "enc3/mha", 5)


def outer(labels: int) -> Card:
    """The outer product of a node."""
    mu, W = tiny.site(labels)
    return snp.outer_product(mu[:, 5], W[:, 5], "enc3/mha", 5)


def attention(number: int) -> Card:
    """Attention maps of so many heads on an own, an other and a nobody's image."""
    owners = [0, number - 1, -1]
    return experts.attention_maps(pictures(3), token_maps(3, number, 8, 8), tiny.names(3), owners, "enc7/mha")


def hero(labels: int) -> Card:
    """The story in one picture."""
    return overview.hero(seen(labels, 5, "enc1/ff"), seen(labels, 6, "enc7/ff"), tiny.by_theta())


def across() -> Card:
    """A transformer and a convolutional network on one figure."""
    return overview.across_networks(
        {"CCT-7": tiny.by_theta(7, ("mha", "ff")), "VGG-16": tiny.by_theta(13, ("filters",))}
    )


def side_by_side(number: int) -> Card:
    """So many data sets on the same axes."""
    names = ("CIFAR-100", "Flowers-102 (official split)", "Flowers-102 (split kaggle-6552)", "demo shapes")[:number]
    found = datasets.Measured(tiny.accuracy(), tiny.by_theta(), 0.633)
    return datasets.side_by_side({name: found._replace(network=0.5 + 0.1 * place) for place, name in enumerate(names)})


STATIC = {
    "network 3x2": lambda: network.network(config("cct_7_3x2")),
    "network 7x2, 14 encoders": lambda: network.network(config("cct_14_7x2", image_size=224, num_classes=102)),
    "journey": lambda: journey(100),
    "journey, 14 encoders": lambda: journey(10, 14),
    "training, a full log": lambda: training.curves(
        tiny.training_log().assign(accuracy=0.4, held_out_loss=1.0, lr=1e-3, images_per_second=80.0)
    ),
    "training": lambda: training.curves(tiny.training_log()),
    "trials": lambda: training.race(tiny.courses()),
    "trials, as many as fit": lambda: training.race(tiny.courses("abcd")),
    "accuracy by superclass": lambda: by_label(100, grouped=True),
    **{f"accuracy of {labels} labels": (lambda labels=labels: by_label(labels, grouped=False)) for labels in SIZES},
    **{
        f"pairs, {labels}": (
            lambda labels=labels: confusions.confused_pairs(tiny.confusion(labels), tiny.names(labels))
        )
        for labels in SIZES
    },
    **{
        f"node {index} of {labels} labels": (
            lambda labels=labels, index=index: snp.node(seen(labels, index), tiny.names(labels))
        )
        for labels in SIZES
        for index in (0, 1, 5)
    },
    **{f"gallery, {labels}": (lambda labels=labels: gallery(labels)) for labels in SIZES},
    "liked": lambda: liked(images=True),
    "liked without images": lambda: liked(images=False),
    **{f"outer product, {labels}": (lambda labels=labels: outer(labels)) for labels in SIZES},
    "progressive": lambda: snr.progressive(tiny.accuracy(), 0.633),
    "progressive, 14 encoders": lambda: snr.progressive(tiny.accuracy(14)),
    "along the encoders": lambda: snr.along_encoders(tiny.by_theta()),
    "distributions": lambda: snr.distributions(tiny.nodes()),
    "theta trend": lambda: theta.theta_trend(tiny.by_theta()),
    "theta lines": lambda: theta.theta_lines(tiny.by_theta()),
    "null": lambda: null.null_comparison(tiny.by_theta(), tiny.by_site("draw", 5)),
    "label orders": lambda: null.order_spread(tiny.by_theta(), tiny.by_site("order", 5)),
    "alternatives": lambda: null.alternatives(tiny.alternatives()),
    "alternatives without accuracy": lambda: null.alternatives(tiny.by_site("alternative", 3)),
    **{
        f"labels by {number} heads": (
            lambda number=number: heads.labels_by_heads(*tiny.heads(102, number), tiny.names(102), "enc3/mha")
        )
        for number in (2, 4, 6)
    },
    "concentration": lambda: heads.concentration(tiny.symmetry()),
    "enrichment": lambda: heads.enrichment(tiny.enrichment()),
    "semantics": lambda: heads.semantics(tiny.semantics()),
    "expert gap": lambda: experts.expert_gap(*tiny.experts()),
    "expert gap, 6 heads": lambda: experts.expert_gap(*tiny.experts(number=6)),
    "attention": lambda: attention(4),
    "attention, 6 heads": lambda: attention(6),
    "ablation": lambda: experts.ablation(tiny.ablation()),
    "accuracy and density": lambda: andc.accuracy_density(tiny.pruned()),
    "retraining": lambda: andc.retraining(tiny.pruned()),
    "latency": lambda: andc.latency(tiny.latencies()),
    "hero": lambda: hero(100),
    "across networks": across,
    "data sets": lambda: side_by_side(3),
    "one data set": lambda: side_by_side(1),
    "four data sets": lambda: side_by_side(4),
    "claims on four": lambda: datasets.claims(
        tiny.claims(("CIFAR-100", "Flowers-102 (official split)", "Flowers-102 (kaggle)", "demo"))
    ),
    "claims on data sets": lambda: datasets.claims(tiny.claims(("CIFAR-100", "Flowers-102 (official split)"))),
    "claims on one": lambda: datasets.claims(tiny.claims(("demo shapes",))),
    "verdicts": lambda: overview.verdicts(tiny.verdicts()),
}
BROWSERS = {
    **{
        f"confusion matrix, {labels}": (
            lambda labels=labels: confusions.confusion_matrix(
                tiny.confusion(labels), tiny.names(labels), tiny.groups(labels)[0]
            )
        )
        for labels in SIZES
    },
    **{
        f"node, {labels}": (lambda labels=labels: browse.node_heatmap(seen(labels, 5), tiny.names(labels)))
        for labels in SIZES
    },
    **{
        f"browser, {labels}": (
            lambda labels=labels: browse.node_browser([seen(labels, n) for n in (5, 0, 1, 6)], tiny.names(labels))
        )
        for labels in SIZES
    },
}
WITHOUT_AXES = ("network", "verdicts", "claims")  # drawings: there is nothing to name


def written(figure: Card) -> list[Text]:
    """All text of a figure that is drawn: not that of hidden panels, of axes that are off, and of ticks out of sight."""
    hidden: set[Text] = set()
    for axes in figure.findobj(Axes):
        if not axes.get_visible():
            hidden.update(axes.findobj(Text))
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-6 * (high - low)
            for tick in [*axis.majorTicks, *axis.minorTicks]:
                if not (axes.axison and low - slack <= tick.get_loc() <= high + slack):
                    hidden.update((tick.label1, tick.label2))
            if not axes.axison:
                hidden.add(axis.label)
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [text for text in texts if text not in hidden]


@pytest.mark.parametrize("name", STATIC)
def test_a_static_figure_can_be_read_and_says_what_it_shows(name):
    """No text is smaller than the smallest size, runs out of the card, or covers other text; a message, named axes, a stamp."""
    figure = stamp(STATIC[name](), tiny.PROVENANCE)
    figure.draw_without_rendering()
    texts = written(figure)
    assert texts
    assert min(text.get_fontsize() for text in texts) >= style.SMALLEST
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    edge = figure.bbox
    for text, box in boxes:
        assert box.x0 >= 0 and box.x1 <= edge.width and box.y0 >= 0 and box.y1 <= edge.height, (
            f"{text!r} leaves the card"
        )
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across, up = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or up <= 2, f"{one!r} covers {other!r}"

    message = headline_of(figure)
    assert len(message) > 15 and "nan" not in message and "inf" not in message.split()
    line = next(text.get_text().replace("\n", "  ·  ") for text in figure.texts if text.get_gid() == "stamp")
    for key, value in tiny.PROVENANCE.items():
        assert (value[:12] if key == "weights" else value) in line
    if not name.startswith(WITHOUT_AXES):
        labels = [axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes]
        assert any(labels), "no axis is named"


def test_figures_leave_pyplot_and_its_settings_alone():
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    snr.progressive(tiny.accuracy())
    assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == before


def test_a_card_shows_itself_and_is_the_same_every_time():
    data, metadata = STATIC["progressive"]()._repr_mimebundle_()
    with Image.open(io.BytesIO(data["image/png"])) as image:
        assert image.width == 2 * metadata["image/png"]["width"] == 1400
        corner = image.convert("RGBA").getpixel((20, 20))
    assert corner == (*(round(255 * channel) for channel in to_rgb(palette.GROUND)), 255), "the ground is opaque"
    once, again = (to_png(stamp(STATIC["progressive"](), tiny.PROVENANCE)) for _ in range(2))
    assert once == again


def test_a_stamp_is_written_once_and_says_what_is_missing():
    figure = snr.progressive(tiny.accuracy())
    stamp(figure, tiny.PROVENANCE)
    tall = figure.get_figheight()
    stamp(figure, {"dataset": "demo", "note": "shipped measurement"})
    lines = [text.get_text() for text in figure.texts if text.get_gid() == "stamp"]
    assert len(lines) == 1 and "commit not recorded" in lines[0] and "shipped measurement" in lines[0]
    assert figure.get_figheight() <= tall


def test_alternatives_show_accuracy_where_a_probe_has_one():
    with_accuracy, without = STATIC["alternatives"](), STATIC["alternatives without accuracy"]()
    titles = [{axes.get_title(loc="left") for axes in figure.axes} for figure in (with_accuracy, without)]
    assert titles[0] - titles[1] == {"accuracy of the probe"}
    lines = [np.isfinite(line.get_ydata(orig=True)).any() for line in with_accuracy.axes[0].lines]
    assert lines == [True, True, False, False], "two alternatives leave the probe as it is"


@pytest.mark.parametrize("name", BROWSERS)
def test_an_interactive_figure_fetches_nothing_and_carries_its_provenance(name):
    figure = stamp(stamp(BROWSERS[name](), tiny.PROVENANCE), tiny.PROVENANCE)
    html = to_html(figure)
    assert not re.search(r"(src|href)\s*=|https?://|MathJax|@import", html.replace("http://www.w3.org", ""))
    stamps = [note.text for note in figure.layout.annotations if note.name == "stamp"]
    assert len(stamps) == 1
    for key, value in tiny.PROVENANCE.items():
        assert (value[:12] if key == "weights" else value) in stamps[0].replace("<br>", " · ")
    assert "$" not in json.dumps([figure.layout.title.text, stamps, list(figure.data[0].x)])
    assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text and headline_of(figure)
    sizes = [note.font.size for note in figure.layout.annotations] + [figure.layout.font.size]
    assert min(sizes) >= 12, "pixels, which are 9 points"
    assert all(len(line) <= 40 for line in re.sub("</?b>", "", figure.layout.title.text).split("<br>"))


def test_the_browser_shows_one_node_at_a_time_in_its_own_order():
    figure = BROWSERS["browser, 102"]()
    assert [trace.visible for trace in figure.data] == [True, False, False, False]
    choices = figure.layout.updatemenus[0].buttons
    assert [sum(choice.args[0]["visible"]) for choice in choices] == [1] * 4
    assert "silent" in choices[1].args[1]["title.text"]
    node = seen(102, 5)
    order = nodes.clusters_first(node)
    np.testing.assert_allclose(figure.data[0].z, node.scaled[np.ix_(order, order)], rtol=1e-6)
    assert list(figure.data[0].x) == [wording.short(tiny.names(102)[label], 40) for label in order]


def test_labels_cut_to_the_same_name_stay_apart():
    long = ["a very long name of a label that goes on and on, " + end for end in "abcdefghij"]
    figure = browse.node_heatmap(seen(10, 5), long)
    assert len(set(figure.data[0].x)) == 10


# What nodes.py computes


@pytest.mark.parametrize("index", range(12))
def test_entries_and_order_against_plain_loops(index):
    node = seen(10, index)
    kinds, order = nodes.entry_kinds(node), nodes.clusters_first(node)
    assert sorted(order) == list(range(10))
    for i, j in itertools.product(range(10), repeat=2):
        together = node.clusters[i] >= 0 and node.clusters[i] == node.clusters[j]
        expected = 0 if not node.boolean[i, j] else 1 if together else 2 if node.clusters[j] >= 0 else 3
        assert kinds[i, j] == expected
    sorted_clusters = [cluster for cluster in node.clusters[order] if cluster >= 0]
    runs = [len(list(run)) for _, run in itertools.groupby(sorted_clusters)]
    assert runs == sorted(runs, reverse=True) and len(runs) == len(set(sorted_clusters))
    assert (node.clusters[order][len(sorted_clusters) :] == -1).all()


@pytest.mark.parametrize("labels", SIZES)
@pytest.mark.parametrize("index", range(12))
def test_beyond_the_extent_there_are_no_ones(labels, index):
    node = seen(labels, index)
    order, extent = nodes.clusters_first(node), nodes.extent(node, least=0)
    ordered = node.boolean[np.ix_(order, order)]
    assert ordered[:extent, :extent].sum() == node.boolean.sum()
    assert extent == 0 or ordered[extent - 1].any() or ordered[:, extent - 1].any()


def test_messages_of_a_silent_node_one_off_the_diagonal_and_a_usual_one():
    assert nodes.message(seen(10, 0)) == "Node 0 of enc3/mha is silent: no entry of its field is positive"
    assert "has no label on its diagonal, and 25 ones elsewhere" in nodes.message(seen(10, 1))
    node = seen(102, 5)
    labels, noise = (node.clusters >= 0).sum(), (nodes.entry_kinds(node) >= 2).sum()
    expected = f"recognises {labels} labels in {node.clusters.max() + 1} clusters, and has {noise} noisy entries"
    assert nodes.message(node) == f"Node 5 of enc3/mha {expected}"


def test_the_typical_node_has_the_median_noise():
    table = pd.DataFrame(
        {"site": "enc1/ff", "node": range(5), "silent": [True, *[False] * 4], "noise": [0, 9, 1, 4, 6]}
    )
    assert nodes.typical(table, "enc1/ff") in (3, 4)
    with pytest.raises(UserError, match="no node that is not silent"):
        nodes.typical(table.assign(silent=True), "enc1/ff")


# Words


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_change_is_never_put_into_the_wrong_words(first, last):
    words = wording.change(first, last)
    if words.startswith("rises"):
        assert last > first
    elif words.startswith("falls"):
        assert last < first
    else:
        small = abs(last - first) <= 0.03 * max(abs(first), abs(last))
        assert words.startswith("stays near") and (small or wording.number(first) == wording.number(last))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (371.4, "371"),
        (0.4321, "0.432"),
        (12345, "12,345"),
        (12345.6, "12,346"),
        (0, "0"),
        (np.int64(7), "7"),
        (math.nan, "n/a"),
        (-2.5, "-2.50"),
        (math.inf, "n/a"),
    ],
)
def test_numbers_as_words(value, text):
    assert wording.number(value) == text


def test_a_missing_value_is_said_to_be_missing():
    assert "missing" in wording.change(math.nan, 3.0)
    assert wording.percent(math.nan) == "n/a"
    assert [wording.listing(list("abc")[:n]) for n in range(4)] == ["none", "a", "a and b", "a, b and c"]
    assert [wording.count(n, "cluster") for n in (0, 1, 2)] == ["no clusters", "1 cluster", "2 clusters"]


def along(noise: list[float]) -> str:
    """Headline of `along_encoders` for noise along the encoders of mha."""
    table = tiny.by_theta(len(noise), ("mha",))
    return headline_of(snr.along_encoders(table.assign(noise=[noise[m - 1] for m in table.encoder])))


def test_headlines_follow_their_data():
    assert along([371, 360, 352]).startswith("Noise falls from 371 to 352 at mha")
    assert along([352, 360, 371]).startswith("Noise rises from 352 to 371 at mha")
    assert along([400, 399, 401]).startswith("Noise stays near 401 at mha")
    assert along([400, 300, 401]).startswith("Noise dips to 300 and returns to 401 at mha")
    assert along([400, 500, 401]).startswith("Noise peaks at 500 and returns to 401 at mha")
    table = tiny.accuracy()
    assert "rises from 43.0% to 61.0% at mha" in headline_of(snr.progressive(table))
    wide = table.assign(low=0.0, high=1.0)
    assert "intervals overlap" in headline_of(snr.progressive(wide))
    slow = tiny.latencies().assign(ratio=2.0)
    assert "no form is faster than dense" in headline_of(andc.latency(slow))
    assert "at batch 1, nodes removed: 0." in headline_of(andc.latency(tiny.latencies())).replace("At", "at")
    worse = tiny.pruned()
    worse.loc[worse.method == "andc", "accuracy"] = 0.1
    assert "within 0.5 points in 0 of 15 cases; it beats" in headline_of(andc.accuracy_density(worse))
    assert "random mask in 0 of 15" in headline_of(andc.accuracy_density(worse))
    assert headline_of(training.race(tiny.courses())) == "“Two” ends at 60.0%, 10.0 points ahead of “one more”"


def test_trends_against_polyfit():
    table = theta.trend_table(tiny.by_theta(), ["noise"])
    rows = tiny.by_theta().query("kind == 'ff' and theta == 0.2")
    slope = np.polyfit(rows.encoder, rows.noise, 1)[0]
    found = table.query("kind == 'ff' and theta == 0.2").change.item()
    assert found == pytest.approx(100 * slope / rows.noise.mean())


# Bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: snr.along_encoders(tiny.by_theta(), theta=0.9), "no row with theta 0.9"),
        (lambda: style.kinds_in(["mha", "conv"]), "unknown kind of site"),
        (lambda: training.curves(pd.DataFrame({"epoch": [1], "loss": [2.0]})), "no held_out_accuracy"),
        (lambda: training.race(tiny.courses("a")), "1 trials: a figure compares 2 to 4"),
        (lambda: training.race(tiny.courses("abcde")), "5 trials: a figure compares 2 to 4"),
        (lambda: model.accuracy_by_label(np.full(3, np.nan), ["a", "b", "c"]), "no label has an accuracy"),
        (lambda: snp.gallery([]), "no nodes given"),
        (lambda: browse.node_browser([], []), "no nodes given"),
        (lambda: snp.liked(None, None, [], [], "enc1/ff", 0), "no images of node 0"),
        (lambda: nodes.look(*tiny.site(10), "enc1/ff", 12), "nodes 0 to 11, not 12"),
        (
            lambda: heads.enrichment(pd.concat([tiny.enrichment(), tiny.enrichment().assign(site="enc1/mha")])),
            "2 sites",
        ),
        (lambda: experts.ablation(tiny.ablation(), "enc1/mha"), "0 sites to draw"),
        (lambda: andc.accuracy_density(tiny.pruned().assign(method="obs")), "unknown pruning method"),
        (lambda: andc.accuracy_density(tiny.pruned(), epochs=9), "9 epochs of retraining"),
        (lambda: overview.verdicts(tiny.verdicts().assign(verdict="true")), "unknown verdict"),
        (lambda: overview.across_networks({}), "0 networks"),
        (lambda: datasets.side_by_side({}), "0 data sets"),
        (lambda: datasets.claims(tiny.claims(("here",)).assign(verdict="true")), "unknown verdict"),
    ],
)
def test_bad_input_gets_one_clear_line(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


# Colours

CONES = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # Machado, Oliveira and Fernandes (2009), doi 10.1109/TVCG.2009.113, severity 1


def lab(color: str, cones: np.ndarray) -> np.ndarray:
    """CIELAB of a colour as an eye with these cones sees it."""
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = to_xyz @ np.clip(np.asarray(cones) @ linear, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", CONES)
@pytest.mark.parametrize(
    "colors",
    [
        palette.KINDS.values(),
        palette.METHODS.values(),
        palette.HEADS[:4],
        palette.DATASETS,
        (palette.SIGNAL, palette.WARN, palette.FOREIGN),
    ],
    ids=["kinds", "methods", "heads", "data sets", "entries"],
)
def test_colours_can_be_told_apart_by_every_eye(colors, eye):
    """A difference of 15 in CIELAB is seen at a glance; a just noticeable one is about 2."""
    seen_as = [lab(color, CONES[eye]) for color in colors]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen_as, 2)) > 15


def test_text_can_be_read_on_the_ground():
    assert palette.contrast("white", "black") == pytest.approx(21)
    for color in (
        palette.INK,
        palette.MUTED,
        *(palette.readable(c) for c in (*palette.KINDS.values(), *palette.HEADS)),
    ):
        assert palette.contrast(color) >= 4.5


def test_a_table_is_formatted_and_its_best_value_bold():
    table = pd.DataFrame({"method": ["andc", "random"], "accuracy": [0.631, np.nan], "MACs": [12_000, 9_000]})
    html = andc.styled(table, {"accuracy": "{:.1%}", "MACs": "{:,}"}, "Pruned networks.", {"MACs": "min"}).to_html()
    assert (
        "63.1%" in html
        and "–" in html
        and "12,000" in html
        and "Pruned networks." in html
        and "font-weight: 700" in html
    )


def test_tensors_and_arrays_are_taken_alike():
    assert style.as_array(torch.ones(2, requires_grad=True)).tolist() == style.as_array(np.ones(2)).tolist()
