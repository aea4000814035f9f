"""Every figure builds from awkward inputs, draws what its tables say, states it, and can be read."""

import io
import itertools
import math
import re
from collections import Counter
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import tiny_tables as tiny
from chapter_cells import drawn
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from PIL import Image

from cctlib.claims import rules
from cctlib.claims.seeds import Family
from cctlib.errors import UserError
from cctlib.figures import along, headline_of, node, provenance, stamp, style, tables, to_png, wording
from cctlib.figures.style import Card
from cctlib.notebook import PLOTLY, show_plotly
from cctlib.snp.controls import BASIS
from cctlib.snp.measure import SHUFFLED
from cctlib.study import open_layers, open_study
from tools.hero import hero

SIZES = (10, 102)


def a_node(labels: int, index: int, site: str = "enc3/mha") -> node.Node:
    """A node of the synthetic site: 0 is silent, 1 has no label on its diagonal, the others are usual."""
    return node.look_at(*tiny.site(labels), site, index)


def in_full(shown: node.Node, names: list[str]) -> Card:
    """One node, as chapter 02 draws it."""
    return drawn("02_snp").node_card(shown, names)


def with_controls() -> Card:
    """Nodes before two controls, with the accuracy of the probes."""
    controls = drawn("03_snr").controls_of(tiny.study_tables())
    given = {"by_theta": tiny.by_theta(), "controls": controls, "tables": {"accuracy": tiny.accuracy()}}
    return drawn("03_snr", "fig-along", **given).figure


def of_probes(accuracy: pd.DataFrame, network: float | None = None) -> Card:
    """Accuracy along the encoders, as chapter 03 draws it."""
    result = SimpleNamespace(accuracy=lambda: network)
    return drawn("03_snr", "fig-progressive", tables={"accuracy": accuracy}, result=result).figure


def of_experts(number: int = 4) -> SimpleNamespace:
    """The expert gap of chapter 04."""
    heads, sites = tiny.experts(number=number)
    return drawn("04_heads", "fig-experts", tables={"expert_heads": heads, "expert_sites": sites})


def of_ablation() -> SimpleNamespace:
    """The heads silenced in the network, of chapter 04."""
    sites, heads = tiny.ablation()
    return drawn("04_heads", "fig-ablation", tables={"ablation_sites": sites, "ablation_heads": heads})


def of_density(runs: pd.DataFrame) -> SimpleNamespace:
    """Accuracy against density, without retraining, of chapter 05."""
    return drawn("05_andc", "fig-density", curves=runs[runs.epochs == 0])


def of_retraining(runs: pd.DataFrame) -> SimpleNamespace:
    """Accuracy before and after retraining, at one threshold, of chapter 05."""
    return drawn("05_andc", "fig-retraining", runs_at=runs[runs.theta == 0.3])


def of_layers(name: str) -> Card:
    """A figure of chapter 07, from the networks that ship."""
    study, layers = open_study("cifar100", profile="shipped", device="cpu"), open_layers("cifar100", profile="shipped")
    given = {"study": study, "layers": layers, "of_layers": along.at_theta(layers.tables["by_theta"])}
    return drawn("07_cnn", name, **given).figure


STATIC = {
    **{
        f"node {index} of {labels} labels": (
            lambda labels=labels, index=index: in_full(a_node(labels, index), tiny.names(labels))
        )
        for labels in SIZES
        for index in (0, 1, 5)
    },
    "hero": lambda: hero(a_node(100, 5, "enc1/ff"), a_node(100, 6, "enc7/ff"), tiny.by_theta()),
    "progressive": lambda: of_probes(tiny.accuracy(), 0.633),
    "progressive, 14 encoders": lambda: of_probes(tiny.accuracy(14)),
    "beside controls": with_controls,
    "beside controls, four kinds": lambda: (
        drawn(
            "03_snr", "fig-null", by_theta=tiny.by_theta(), controls=drawn("03_snr").controls_of(tiny.study_tables())
        ).figure
    ),
    "site means": lambda: drawn("03_snr", "fig-means", by_theta=tiny.by_theta()).figure,
    "theta trend": lambda: drawn("03_snr", "fig-theta", by_theta=tiny.by_theta()).figure,
    "concentration": lambda: (
        drawn("04_heads", "fig-concentration", owned=SimpleNamespace(sites=tiny.symmetry())).figure
    ),
    "expert gap": lambda: of_experts().figure,
    "expert gap, 6 heads": lambda: of_experts(number=6).figure,
    "ablation": lambda: of_ablation().figure,
    "accuracy and density": lambda: of_density(tiny.pruned()).figure,
    "beside a convolutional network": lambda: of_layers("fig-cnn"),
    "prediction": lambda: of_layers("fig-prediction"),
    "fewer labels": lambda: of_layers("fig-few-labels"),
    "retraining": lambda: of_retraining(tiny.pruned()).figure,
}


def written(figure: Card) -> list[Text]:
    """All text of a figure that is drawn: not that of hidden panels, of axes that are off, of ticks out of sight."""
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
    """No text is too small, leaves the card or covers other text; there are a message, named axes, and values."""
    figure = STATIC[name]()
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
    values = provenance.drawn_values(figure)
    assert len(values) and values[["x", "y"]].notna().any().all(), "the figure draws nothing"
    assert any(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes), "no axis is named"


def test_no_setting_of_the_user_reaches_a_figure():
    """Neither while it is drawn nor while it is saved; and what was set is as it was."""
    usual = to_png(STATIC["progressive"]())
    hostile = {"savefig.bbox": "tight", "image.origin": "lower", "font.weight": "bold", "axes.labelpad": 30}
    hostile |= {"text.usetex": True, "axes.grid": True, "lines.linestyle": ":", "savefig.pad_inches": 2}
    with matplotlib.rc_context(hostile):
        before = dict(matplotlib.rcParams)
        assert to_png(STATIC["progressive"]()) == usual
        assert dict(matplotlib.rcParams) == before


def test_a_card_leaves_pyplot_alone_and_shows_itself(monkeypatch):
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **settings: shown.append((bundle, settings)))
    STATIC["progressive"]()._ipython_display_()
    assert plt.get_fignums() == []
    data, metadata = shown[0][0], shown[0][1]["metadata"]
    with Image.open(io.BytesIO(data["image/png"])) as image:
        assert image.width == 2 * metadata["image/png"]["width"] == 1400
        corner = image.convert("RGBA").getpixel((20, 20))
    assert corner == (*(round(255 * channel) for channel in to_rgb(style.GROUND)), 255), "the ground is opaque"


def test_a_stamp_says_where_a_figure_came_from_and_what_is_missing():
    figure = stamp(STATIC["progressive"](), tiny.PROVENANCE)
    for key, value in tiny.PROVENANCE.items():
        assert (value[:12] if key == "weights" else value) in figure.stamp
    line = stamp(figure, {"dataset": "demo", "note": "shipped measurement"}).stamp
    assert line.startswith("demo · ") and "commit not recorded" in line and "shipped measurement" in line


def test_a_figure_in_a_notebook_is_followed_by_its_line_its_values_and_its_picture(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle))
    figure = stamp(STATIC["progressive"](), {"dataset": "a <b> & c"})
    figure._ipython_display_()
    picture, below = shown
    assert set(picture) == {"image/png", "text/plain"}
    assert "a &lt;b&gt; &amp; c · " in below["text/html"] and below["text/plain"].startswith("a <b> & c · ")
    record = below[provenance.FIGURE]
    assert record["svg"].startswith("<?xml") and record["svg"].rstrip().endswith("</svg>")
    table = pd.read_csv(io.StringIO(record["csv"]))
    assert list(table) == provenance.COLUMNS
    ff = table[table.series == "ff"]
    expected = tiny.accuracy().query("kind == 'ff'").sort_values("encoder")
    assert np.allclose(ff.x, expected.encoder) and np.allclose(ff.y, 100 * expected.accuracy)


def test_a_phone_gets_a_narrow_picture_and_the_card_stays_as_it_is():
    figure = STATIC["progressive"]()
    width, values = figure.get_figwidth(), provenance.drawn_values(figure)
    narrow = Image.open(io.BytesIO(style.to_phone(figure)))
    assert narrow.width == pytest.approx(180 * style.NARROW, abs=1) and narrow.height > 0.8 * narrow.width
    assert figure.get_figwidth() == width and provenance.drawn_values(figure).equals(values)
    assert style.to_phone(style.card(2, 1, 3)[0]) is None and style.to_phone(style.card(2, 0)[0]) is None


def test_all_kinds_of_marks_are_among_the_values():
    figure, [[left, right]] = style.card(2, 1, 2)
    left.plot([1, 2], [3, 4], label="line")
    left.scatter([5], [6], label="dots")
    left.fill_between([1, 2], [0, 0], [1, 1], label="band")
    left.vlines([7], 0, 8, label="bar of error")
    right.bar([1], [9], label="bar")
    right.imshow(np.ma.masked_equal([[0, 1], [2, 3]], 0), label="cells")
    right.pcolormesh([[4.0, 5.0]], label="mesh")
    right.imshow(np.zeros((2, 2, 3)))  # a photograph
    right.set_title("right")
    values = provenance.drawn_values(figure)
    assert sorted(set(values.series)) == ["band", "bar 1", "bar of error", "cells", "dots", "line", "mesh"]
    by_series = values.set_index("series")
    assert by_series.loc["line", ["x", "y"]].values.tolist() == [[1, 3], [2, 4]]
    assert by_series.loc["dots", ["x", "y"]].tolist() == [5, 6]
    assert sorted(by_series.loc["cells", "value"]) == [1, 2, 3]
    assert by_series.loc["mesh", "value"].tolist() == [4, 5]
    assert by_series.loc["bar 1", ["x", "y"]].tolist() == [1, 9]
    assert set(values[values.panel == 2].title) == {"right"}


# What is drawn


def curve(axes: Axes, color: str) -> np.ndarray:
    """The heights of the line of this colour with markers."""
    [line] = [line for line in axes.lines if to_hex(line.get_color()) == color.lower() and line.get_marker() != "None"]
    return np.asarray(line.get_ydata(orig=True), float)


def bars(axes: Axes, color: str) -> np.ndarray:
    """The ends [bar, low and high] of the vertical lines of this colour."""
    lines = [entry for entry in axes.collections if hasattr(entry, "get_segments") and len(entry.get_colors())]
    mine = [entry.get_segments() for entry in lines if to_hex(entry.get_colors()[0]) == color.lower()]
    return np.array([segment[:, 1] for segments in mine for segment in segments])


def areas(axes: Axes) -> list[np.ndarray]:
    """The corners of each band."""
    found = [entry for entry in axes.collections if not hasattr(entry, "get_segments")]
    return [entry.get_paths()[0].vertices for entry in found if not isinstance(entry, PathCollection)]


def test_accuracy_is_drawn_with_its_interval():
    table = tiny.accuracy()
    [axes] = of_probes(table, 0.633).axes
    ff = table[table.kind == "ff"]
    assert np.allclose(curve(axes, style.KINDS["ff"]), 100 * ff.accuracy)
    ends = [(corners[:, 1].min(), corners[:, 1].max()) for corners in areas(axes)]
    assert (100 * ff.low.min(), 100 * ff.high.max()) == pytest.approx(ends[-1])
    assert any(np.allclose(line.get_ydata(), 63.3) for line in axes.lines)


def test_nodes_and_their_controls_are_drawn_at_their_values():
    axes = np.reshape(with_controls().axes, (3, 2))  # accuracy, noise, SNR; mha, ff
    nodes = tiny.by_theta().query("kind == 'ff' and abs(theta - 0.3) < 1e-6")
    assert np.allclose(curve(axes[0, 1], style.KINDS["ff"]), 100 * tiny.accuracy().query("kind == 'ff'").accuracy)
    assert np.allclose(curve(axes[1, 1], style.KINDS["ff"]), nodes.noise)
    assert np.allclose(curve(axes[2, 1], style.KINDS["ff"]), nodes.snr)
    bands = [(corners[:, 1].min(), corners[:, 1].max()) for corners in areas(axes[1, 1])]
    controls = tiny.study_tables()["controls"].query("kind == 'ff'").groupby("control").noise.agg(["min", "max"])
    expected = controls.loc[["labels shuffled", "random basis"]].to_numpy()
    assert np.allclose(bands, expected), "labels shuffled, then random basis"


def test_sites_beyond_all_draws_are_counted_for_each_control():
    draws, sites = tiny.by_site("draw", 5), len(along.at_theta(tiny.by_theta()))
    far = draws.assign(noise=draws.noise + 1000, snr=draws.snr - 100)
    near = draws.assign(noise=1000.0 * draws.draw, snr=2000.0 * draws.draw - 1000)
    said = drawn("03_snr").beyond(tiny.by_theta(), {SHUFFLED: far, BASIS: near}, ("noise", "snr"))
    chance, basis = f"with shuffled labels at {sites} of {sites} sites", f"in a random basis at 0 of {sites} sites"
    noise, snr = said.split("; ")
    assert noise == f"Noise per node is lower than {chance} and higher than {basis}"
    assert snr == f"signal to noise is higher than {chance} and higher than {basis}"


def test_the_last_encoder_is_told_beside_the_medians_of_its_controls():
    table = tiny.by_theta().assign(noise=5.0)
    draws = tiny.by_site("draw", 3)
    draws = draws.assign(noise=draws.draw * 10.0 + draws.encoder)
    said = drawn("03_snr").at_the_end(table, {BASIS: draws})
    each = [f"5.00 at {kind} (17.0 in a random basis)" for kind in ("mha", "ff")]
    assert said == f"At the last encoder, noise per node is {each[0]} and {each[1]}"


def test_every_panel_of_a_grid_is_drawn_for_its_kind_and_quantity():
    with style.theme():
        figure = along.grid(
            ["noise", "snr"], ["mha", "ff"], tiny.by_theta().encoder, lambda panel, *what: panel.set_gid("/".join(what))
        )
    assert [axes.get_gid() for axes in figure.axes] == ["mha/noise", "ff/noise", "mha/snr", "ff/snr"]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["noise per node\n(entries)", "signal to noise\n(SNR)"]


def test_a_site_in_words():
    assert wording.place("enc7/ff_hidden") == "ff_hidden of encoder 7"


def test_trends_are_counted_where_they_are_significant():
    """A slope of the right sign is not enough: the order of the encoders decides, as in the rule."""
    table = tiny.by_theta(7, ("mha",)).replace([np.inf], np.nan)
    order = {m: value for m, value in enumerate([7.0, 1.0, 6.0, 2.0, 5.0, 3.0, 4.0], start=1)}  # slopes down, tau -1/7
    table = table.assign(noise=table.encoder.map(order), snr=table.encoder.astype(float))
    chapter = drawn("03_snr", "fig-theta", by_theta=table)
    trends = chapter.trends
    noise, snr = trends[trends.quantity == "noise"], trends[trends.quantity == "snr"]
    assert (noise.change < 0).all() and not noise.falls.any()
    assert snr.rises.all() and rules.trend(np.arange(1.0, 8.0))[1]
    assert "noise falls steadily at 0 of 7 thresholds" in headline_of(chapter.figure)
    slope = np.polyfit(range(1, 8), list(order.values()), 1)[0]
    assert np.allclose(noise.change, 100 * slope / 4)


def test_cells_of_the_trend_have_its_values_and_marks():
    chapter = drawn("03_snr", "fig-theta", by_theta=tiny.by_theta())
    panel = next(axes for axes in chapter.figure.axes if axes.get_title("left") == "ff")
    trends = chapter.trends.query("kind == 'ff'")
    wide = trends.pivot(index="quantity", columns="theta", values="change").loc[list(chapter.VARIANTS)]
    cells = np.ma.filled(panel.collections[0].get_array().astype(float), np.nan).reshape(wide.shape)
    assert np.allclose(cells, wide, equal_nan=True)
    marks = [text for text in panel.texts if text.get_text()]
    assert len(marks) == (trends.rises | trends.falls).sum()


def test_concentration_lies_over_the_band_of_chance():
    table = tiny.symmetry()
    left, right = drawn("04_heads", "fig-concentration", owned=SimpleNamespace(sites=table)).figure.axes
    assert np.allclose(curve(left, style.KINDS["mha"]), table.concentration)
    assert np.allclose(curve(right, style.KINDS["mha"]), 100 * table.broken)
    [corners] = areas(left)
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((0.35, 0.36))
    assert [note.xy[0] for note in left.texts] == table.encoder[table.p_holm < 0.05].tolist()


def test_nodes_are_drawn_over_the_bands_of_rotated_heads():
    table = tiny.symmetry()
    figure = drawn("04_heads", "fig-subspaces", owned=SimpleNamespace(sites=table), sites=table).figure
    [axes] = figure.axes
    assert np.allclose(curve(axes, style.KINDS["mha"]), table.excess)
    for corners, name in zip(areas(axes), ("excess_within", "excess_across"), strict=True):
        ends = corners[:, 1].min(), corners[:, 1].max()
        assert ends == pytest.approx((table[f"{name}_low"].min(), table[f"{name}_high"].max()))
    assert "by +0.030; rotated within heads by +0.036, and across heads by +0.000" in headline_of(figure)


def test_experts_are_drawn_with_their_own_labels_filled():
    table, sites = tiny.experts()
    upper, lower = of_experts().figure.axes
    filled, hollow = (
        [line for line in upper.lines if (line.get_markerfacecolor() == style.GROUND) == is_hollow]
        for is_hollow in (False, True)
    )
    for head in range(4):
        rows = table[table["head"] == head]
        assert np.allclose(filled[head].get_ydata(), 100 * rows.own, equal_nan=True)
        assert np.allclose(hollow[head].get_ydata(), 100 * rows.others, equal_nan=True)
    assert np.allclose(curve(lower, style.KINDS["mha"]), 100 * sites.gap)
    assert np.allclose(bars(lower, style.KINDS["mha"]), 100 * sites[["gap_low", "gap_high"]])


def test_ablation_is_told_over_all_encoders_and_drawn_where_it_is_largest():
    sites, table = tiny.ablation()
    chapter = of_ablation()
    upper, lower = chapter.figure.axes
    assert np.allclose(curve(upper, style.KINDS["mha"]), 100 * sites.excess)
    assert np.allclose(bars(upper, style.KINDS["mha"]), 100 * sites[["excess_low", "excess_high"]])
    best = table[table.encoder == sites.encoder[sites.excess.idxmax()]]
    own = bars(lower, chapter.head_color(0))
    assert np.allclose(own[0], 100 * best[["drop_own_low", "drop_own_high"]].iloc[0])
    assert np.allclose(own[1], 100 * best[["drop_others_low", "drop_others_high"]].iloc[0])
    sure = int((sites.excess_low > 0).sum())
    said = f"at {sure} of {len(sites)} encoders; at {wording.place(best.site.iloc[0])} for 3 of 4 heads"
    assert said in headline_of(chapter.figure)


def test_pruned_networks_are_drawn_with_the_envelope_of_their_seeds():
    runs = tiny.pruned()
    chapter = of_density(runs)
    table = chapter.table.query("target == 'fc' and method == 'random'")
    rows = runs.query("target == 'fc' and method == 'random' and epochs == 0")
    assert np.allclose(table.low, 100 * rows.groupby("density").low.min())
    assert np.allclose(table.accuracy, 100 * rows.groupby("density").accuracy.mean())
    panel = next(axes for axes in chapter.figure.axes if axes.get_title("left") == "fc")
    assert np.allclose(curve(panel, style.METHODS["random"]), table.accuracy)
    assert np.allclose(bars(panel, style.METHODS["random"]), table[["low", "high"]])


def test_retrained_networks_are_drawn_along_the_thresholds_of_those_that_have_several():
    runs = tiny.pruned().query("epochs == 3")
    long = runs[(runs.target == "fc") | (runs.theta == 0.3)]
    given = {"tables": {"saturated": long}, "long": long, "display": lambda figure: figure}
    figure = drawn("05_andc", "fig-saturated-curve", **given).figure
    [panel] = figure.axes
    rows = long.query("target == 'fc' and method == 'andc'").sort_values("density")
    assert panel.get_title("left") == "fc" and len(rows) == 3
    assert np.allclose(curve(panel, style.METHODS["andc"]), 100 * rows.accuracy)
    assert headline_of(figure).startswith("After retraining, ANDC stays within 0.5 points")


def test_retraining_is_told_of_what_was_retrained():
    runs = tiny.pruned()
    chapter = of_retraining(runs[(runs.epochs == 0) | runs.target.isin(["fc", "all"])])
    figure = chapter.figure
    assert "for 2 of 2 choices of layers" in headline_of(figure) and "3 targets were not" in headline_of(figure)
    before, after = figure.axes
    assert Counter(text.get_text() for text in after.texts) == {"not retrained": 3} and not before.texts
    marks = [line.get_xdata()[0] for line in after.lines if to_hex(line.get_color()) == style.METHODS["andc"].lower()]
    rows = runs.query("method == 'andc' and epochs == 3 and theta == 0.3").set_index("target")
    assert marks == pytest.approx((100 * rows.accuracy[["fc", "all"]]).tolist())


# Nodes


@pytest.mark.parametrize("index", range(12))
def test_entries_and_order_against_plain_loops(index):
    shown = a_node(10, index)
    assert sorted(shown.order) == list(range(10))
    for i, j in itertools.product(range(10), repeat=2):
        together = shown.clusters[i] >= 0 and shown.clusters[i] == shown.clusters[j]
        expected = 0 if not shown.boolean[i, j] else 1 if together else 2 if shown.clusters[j] >= 0 else 3
        assert shown.entries[i, j] == expected
    in_order = [cluster for cluster in shown.clusters[shown.order] if cluster >= 0]
    runs = [len(list(run)) for _, run in itertools.groupby(in_order)]
    assert runs == sorted(runs, reverse=True) and len(runs) == len(set(in_order))
    assert (shown.clusters[shown.order][len(in_order) :] == -1).all()


@pytest.mark.parametrize("labels", SIZES)
@pytest.mark.parametrize("index", range(12))
def test_beyond_the_extent_there_are_no_ones(labels, index):
    shown = a_node(labels, index)
    extent, ordered = shown.extent(least=0), shown.boolean[np.ix_(shown.order, shown.order)]
    assert ordered[:extent, :extent].sum() == shown.boolean.sum()
    assert extent == 0 or ordered[extent - 1].any() or ordered[:, extent - 1].any()


def test_the_matrix_of_a_node_is_drawn_clusters_first():
    shown = a_node(102, 5)
    first = in_full(shown, tiny.names(102)).axes[2]
    order = shown.order[: shown.extent()]
    assert (np.asarray(first.images[0].get_array()) == shown.entries[np.ix_(order, order)]).all()


def test_messages_of_a_silent_node_one_off_the_diagonal_and_a_usual_one():
    assert a_node(10, 0).message == "Node 0 at mha of encoder 3 is silent: no entry of its field is positive"
    assert "has no label on its diagonal, and 25 ones elsewhere" in a_node(10, 1).message
    shown = a_node(102, 5)
    labels, noise = (shown.clusters >= 0).sum(), (shown.entries >= 2).sum()
    expected = f"recognises {labels} labels in {shown.clusters.max() + 1} clusters, and has {noise} noisy entries"
    assert shown.message == f"Node 5 at mha of encoder 3 {expected}"


def test_the_typical_node_has_the_median_noise():
    table = pd.DataFrame(
        {"site": "enc1/ff", "node": range(5), "silent": [True] + [False] * 4, "noise": [0, 9, 1, 4, 6]}
    )
    table = table.assign(encoder=1, kind="ff")
    assert node.typical(table, "enc1/ff") in (3, 4)
    with pytest.raises(UserError, match="no node that is not silent"):
        node.typical(table.assign(silent=True), "enc1/ff")


# Words


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_change_is_never_put_into_the_wrong_words(first, last):
    words = wording.course([first, last])
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


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("noise x0.18 (tau -1.00)", "noise \u00d70.18 (tau \u22121.00)"),
        ("-3.2 to -1 points", "\u22123.2 to \u22121 points"),
        ("cct_7_3x2 on CIFAR-100, split kaggle-6552, lr 1e-05", "cct_7_3x2 on CIFAR-100, split kaggle-6552, lr 1e-05"),
    ],
)
def test_signs_of_print(text, printed):
    assert wording.typeset(text) == printed


def test_a_missing_value_is_said_to_be_missing():
    assert "missing" in wording.course([math.nan, 3.0])
    assert wording.percent(math.nan) == "n/a"
    assert [wording.listing(list("abc")[:n]) for n in range(4)] == ["none", "a", "a and b", "a, b and c"]
    assert [wording.count(n, "cluster") for n in (0, 1, 2)] == ["no clusters", "1 cluster", "2 clusters"]


def course(noise: list[float]) -> str:
    """Headline of the controls' figure for noise along the encoders of mha."""
    table = tiny.by_theta(len(noise), ("mha",))
    table = table.assign(noise=[noise[m - 1] for m in table.encoder])
    given = {
        "controls": {"labels shuffled": tiny.by_site("draw", 3)},
        "tables": {"accuracy": tiny.accuracy(len(noise))},
    }
    return headline_of(drawn("03_snr", "fig-along", by_theta=table, **given).figure)


def test_headlines_follow_their_data():
    assert course([371, 360, 352]).startswith("Noise falls from 371 to 352 at mha")
    assert course([352, 360, 371]).startswith("Noise rises from 352 to 371 at mha")
    assert course([400, 399, 401]).startswith("Noise stays near 401 at mha")
    assert course([400, 300, 401]).startswith("Noise dips to 300 and returns to 401 at mha")
    assert course([400, 500, 401]).startswith("Noise peaks at 500 and returns to 401 at mha")
    table = tiny.accuracy()
    assert "rises from 43.0% to 61.0% at mha" in headline_of(of_probes(table))
    assert "intervals overlap" in headline_of(of_probes(table.assign(low=0.0, high=1.0)))
    worse = tiny.pruned()
    worse.loc[worse.method == "andc", "accuracy"] = 0.1
    assert "in 0 of 15 pairs of layer and threshold; it beats" in headline_of(of_density(worse).figure)
    assert "random masks in 0 of 15" in headline_of(of_density(worse).figure)


# Bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: along.at_theta(tiny.by_theta(), 0.9), "no row with theta 0.9"),
        (lambda: style.kinds_in(["mha", "conv"]), "unknown kind of site"),
        (lambda: node.look_at(*tiny.site(10), "enc1/ff", 12), "nodes 0 to 11, not 12"),
        (lambda: tables.verdicts(tiny.verdicts().assign(verdict="true")), "unknown verdict"),
        (lambda: tables.verdicts_by_dataset(tiny.claims(("here",)).assign(verdict="true")), "unknown verdict"),
    ],
)
def test_bad_input_gets_one_clear_line(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


# Tables


def read(table: tables.Table) -> pd.DataFrame:
    """A table as a browser would show it."""
    [shown] = pd.read_html(io.StringIO(table.to_html()), displayed_only=False)
    return shown


def test_a_table_is_formatted_and_its_heads_have_a_scope():
    table = pd.DataFrame({"method": ["andc", "random"], "accuracy": [0.631, np.nan], "MACs": [12_000, 9_000]})
    styled = tables.styled(table, {"accuracy": "{:.1%}", "MACs": "{:,}"}, "Pruned networks.")
    html = styled._repr_html_()
    for text in ("63.1%", "–", "12,000", "Pruned networks."):
        assert text in html
    assert html.count("<th ") == html.count('<th scope="col" ') == 3
    assert not re.search(r"(background|color): #", html), "a table sets no colour: it is read in both themes"


def test_verdicts_are_whole_and_have_three_answers():
    table = tiny.verdicts()
    html = tables.verdicts(table).to_html()
    texts = [wording.typeset(effect).replace("'", "&#x27;") for effect in table.effect]
    assert all(text in html for text in texts), "no effect is cut"
    for row in table.itertuples():
        assert tables.verdict_cell(row.verdict) in html and row.robust in html and row.nodes in html
    assert html.count("(95%: ") == table.low.notna().sum()


def test_verdicts_by_data_set_are_one_column_each():
    table = tiny.claims(("CIFAR-100", "Flowers-102"))
    shown = tables.verdicts_by_dataset(table).data.set_index("claim")
    assert list(shown) == ["CIFAR-100", "Flowers-102"]
    for row in table.itertuples():
        assert shown.loc[f"{row.claim} {row.statement}", row.dataset].endswith(row.verdict)


# Interactive


def test_an_interactive_figure_fits_a_phone_and_is_followed_by_the_line_of_its_twin(monkeypatch):
    figure = go.Figure(go.Heatmap(z=np.eye(3)))
    figure.update_xaxes(title="output").update_yaxes(title="true label")
    style.plotly_card(figure, "A finding of more than the forty characters that a phone shows on one line")
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle))
    show_plotly(figure, "In words.", stamp(STATIC["progressive"](), tiny.PROVENANCE))
    assert PLOTLY in shown[0] and tiny.PROVENANCE["dataset"] in shown[1]["text/plain"]
    lines = re.sub("</?b>", "", figure.layout.title.text).split("<br>")
    assert len(lines) > 1 and all(len(line) <= 40 for line in lines)


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
        style.KINDS.values(),
        style.METHODS.values(),
        style.HEADS[:4],
        style.SERIES,
        (style.SIGNAL, style.WARN, style.FOREIGN),
    ],
    ids=["kinds", "methods", "heads", "data sets", "entries"],
)
def test_colours_can_be_told_apart_by_every_eye(colors, eye):
    """A difference of 15 in CIELAB is seen at a glance; a just noticeable one is about 2."""
    seen_as = [lab(color, CONES[eye]) for color in colors]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen_as, 2)) > 15


def test_text_can_be_read_on_the_ground():
    assert style.contrast("white", "black") == pytest.approx(21)
    for color in (style.INK, style.MUTED, *(style.readable(c) for c in (*style.KINDS.values(), *style.HEADS))):
        assert style.contrast(color) >= 4.5


def test_lines_can_be_seen_on_the_ground():
    lines = [*style.KINDS.values(), *style.METHODS.values(), *style.HEADS, *style.SERIES, style.WARN, style.FOREIGN]
    assert min(map(style.contrast, lines)) >= 3


def test_ways_of_training_are_drawn_as_their_networks_have_them():
    """A line at the mean of a family's networks, a band to its least and largest; random bases where they ship."""
    verdicts = pd.DataFrame({"claim": ["C2", "C3"], "verdict": ["holds", "holds in part"]})
    tables = tiny.study_tables() | {"by_theta": tiny.by_theta(), "verdicts": verdicts}
    less = {name: rows for name, rows in tables.items() if name != "controls"}
    noisy = less | {"by_theta": tables["by_theta"].assign(noise=2 * tables["by_theta"].noise)}
    families = [Family("cpu", {"seed 0": tables}, {}), Family("other", {"seed 0": less, "seed 1": noisy}, {})]
    chapter = drawn("06_datasets")
    figure = chapter.along_of_families("CIFAR-100", families)
    noise = next(panel for panel in figure.axes if panel.get_ylabel().startswith("noise per node"))
    own = tiny.by_theta().query("theta == 0.3 and kind == 'mha'").sort_values("encoder").noise.to_numpy()
    lines = [line.get_ydata() for line in noise.lines]
    assert np.allclose(lines[0], own) and np.allclose(lines[1], 1.5 * own)
    ratio = next(panel for panel in figure.axes if panel.get_ylabel().startswith("SNR of nodes"))
    expected = along.beyond_basis(tables, "mha").ratio
    assert len(ratio.lines) == 2 and np.allclose(ratio.lines[1].get_ydata(), expected)
    columns = [chapter.family_column(family) for family in families]
    assert columns[0]["noise at mha, last over first encoder"] == f"{own[-1] / own[0]:.2f}"
    based = "sites whose nodes have more SNR than every random basis"
    beyond = [along.beyond_basis(tables, kind).out for kind in ("mha", "ff")]
    assert columns[0][based] == f"{sum(map(sum, beyond))} of {sum(map(len, beyond))}" and columns[1][based] is None
    assert [column["networks"] for column in columns] == [1, 2] and columns[0]["C3, as stated"] == "holds in part"
    assert chapter.said_of_sharpening(families) == "holds in part with cpu and other"
