"""Pruning as stages of a study: on a tiny network and demo images."""

import pytest
import torch

from cctlib.andc import masks, stage
from cctlib.claims import verdicts
from cctlib.errors import UserError


def test_pruning_has_all_methods_and_can_be_judged(tiny_study):
    tables = stage.pruning_tables(tiny_study)
    at, curves, timed = (tables[name] for name in stage.PRUNING)
    without = at[at.epochs == 0]
    assert set(without.target) == set(masks.TARGETS)
    for _, rows in without.groupby("target"):
        assert set(rows.method) == set(masks.METHODS) and (rows.method == "random").sum() == 3
        assert rows[rows.method != "shuffled"].density.nunique() == 1  # equal density
    assert set(at[at.epochs > 0].target) == {"fc"} and (at.images == 30).all() and (curves.images == 20).all()
    assert set(curves.theta) == {0.1, 0.3} and (at.dense_bytes > at.bytes).all()
    assert verdicts.pruning(at).verdict in ("supported", "not supported", "undetermined")
    assert set(timed.batch) == {1, 128}


def test_a_target_that_would_lose_every_weight_is_left_out_and_named(capsys):
    nothing = {
        site: torch.zeros(4, 5, dtype=torch.bool)
        for site in ("enc1/mha", "enc1/trunk", "enc1/ff_hidden", "enc1/readout")
    }
    some = nothing | {"enc1/readout": torch.ones(4, 5, dtype=torch.bool)}
    prunings = [masks.Pruning("fc", "andc"), masks.Pruning("proj", "andc")]
    assert stage._possible(prunings, {0.3: some}, 1) == prunings[:1]
    assert "pruning of proj at theta 0.3 is left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing can be pruned"):
        stage._possible(prunings, {0.3: nothing}, 1)
