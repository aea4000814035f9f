"""What a repair gives back, against the values that go through the layer itself."""

import pytest
import torch
from tiny_study import untrained

from cctlib.andc import repair
from cctlib.andc.masks import Pruning
from cctlib.andc.retrain import Retraining
from cctlib.andc.sweep import Campaign
from cctlib.snp import measure

FIRST = "classifier.blocks.0.linear1"  # what it reads is the same before and after: nothing in front of it is cut


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    study = untrained("demo", tmp_path_factory.mktemp("repair") / "model")
    network, images = study.network(), {split: study.images(split) for split in ("held-out", "test")}
    diagonals = {0.3: measure.diagonals(study.measurement)}
    rows, how = tmp_path_factory.mktemp("rows"), Retraining(precision="fp32")
    campaign = Campaign(network, study.model.normalise, images, diagonals, rows, how)
    masks = campaign.masks(Pruning("linear1", "random", 0.3, 0))
    return study, campaign, masks, repair.trunk_moments(campaign)


def hidden(network, study, images):
    """What the hidden nodes of the first encoder read, [token, node]."""
    seen = []
    with network.get_submodule(FIRST).register_forward_hook(lambda *call: seen.append(call[2].flatten(0, 1))):
        network(study.model.normalise(images.pixels))
    return seen[0].double()


def test_a_repair_gives_back_mean_and_spread(pruned):
    study, campaign, masks, moments = pruned
    network, images = campaign.network, campaign.images["held-out"]
    dense = hidden(network, study, images)
    cut, mean, both = (
        hidden(repair.repaired(network, masks, moments, how), study, images)
        for how in (repair.AS_CUT, repair.MEAN, repair.SPREAD)
    )
    some = masks[f"{FIRST}.weight"].any(1)
    assert not torch.allclose(cut.mean(0), dense.mean(0), atol=1e-3)
    torch.testing.assert_close(mean.mean(0), dense.mean(0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(mean.std(0), cut.std(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.mean(0), dense.mean(0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(both.std(0)[some], dense.std(0)[some], atol=1e-4, rtol=1e-3)


def test_the_effect_of_a_cut_is_what_correlation_says(pruned):
    study, campaign, masks, moments = pruned
    network, images = campaign.network, campaign.images["held-out"]
    name = f"{FIRST}.weight"
    weight = network.get_parameter(name).double()
    found = repair.effect(weight, weight * masks[name], moments[name])
    dense = hidden(network, study, images)
    cut = hidden(repair.repaired(network, masks, moments, repair.AS_CUT), study, images)
    for node in range(0, len(weight), 7):
        if masks[name][node].any():
            r = torch.corrcoef(torch.stack([dense[:, node], cut[:, node]]))[0, 1]
            assert found["explained"][node].item() == pytest.approx(r.item() ** 2, abs=1e-4)
        moved = (dense[:, node] - cut[:, node]).mean() / dense[:, node].std()
        assert found["shift"][node].item() == pytest.approx(moved.item(), abs=1e-3)


def test_the_tables_hold_every_mask_and_repair(pruned):
    _, campaign, *_ = pruned
    made = repair.tables(campaign, (0, 1))
    assert len(made["repaired"]) == 3 * (1 + 2 + 1) and made["repaired"].density.nunique() == 1
    assert len(made["cut"]) == campaign.network.config.encoders * (1 + 2 + 1)
    assert made["cut"].explained.between(0, 1).all()
