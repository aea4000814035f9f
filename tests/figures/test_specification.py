"""A specification curve draws every reading at its effect, and marks the choices it has."""

import numpy as np
import pandas as pd

from cctlib.figures.specification import specification_curve
from cctlib.figures.style import headline_of


def readings():
    rows = [("mha", 0.1, 2.0), ("mha", 0.3, 0.8), ("ff", 0.1, 1.5), ("ff", 0.3, 1.2)]
    table = pd.DataFrame(rows, columns=["sub-block", "theta", "effect"]).assign(quantity="SNR")
    return table.assign(low=table.effect - 0.1, high=table.effect + 0.1, agrees=table.effect > 1)


def test_readings_are_sorted_and_marked_by_their_choices():
    figure = specification_curve(readings(), "last over first", 1, "SNR rises")
    upper, lower = figure.axes
    points = {collection.get_gid(): collection for collection in (*upper.collections, *lower.collections)}
    assert points["readings"].get_offsets()[:, 1].tolist() == [0.8, 1.2, 1.5, 2.0]
    assert points["sub-block=mha"].get_offsets()[:, 0].tolist() == [0, 3]
    assert points["theta=0.1"].get_offsets()[:, 0].tolist() == [2, 3]
    colors = points["readings"].get_facecolors()
    assert (colors[1:] == colors[1]).all() and not np.allclose(colors[0], colors[1])
    assert headline_of(figure).startswith("SNR rises in 3 of 4 readings; the median effect is 1.35")


def test_a_choice_that_does_not_vary_has_no_row():
    def rows(table):
        _, lower = specification_curve(table, "last over first", 1, "SNR rises").axes
        return [text.get_text() for text in lower.get_yticklabels()]

    assert rows(readings()) == ["sub-block: ff", "sub-block: mha", "theta: 0.1", "theta: 0.3"]
    assert rows(readings().query("theta == 0.1")) == ["sub-block: ff", "sub-block: mha"]
