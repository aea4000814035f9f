"""Controls against what they must leave as it is, and what they must change (Method, section 5)."""

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cctlib.snp import controls, fields
from cctlib.snp.measure import Measurement, SiteMeasurement

HEADS = 3
NAMES = (controls.BASIS, controls.WITHIN, controls.ACROSS)
GROUPS = controls.groups_of(12, "mha", HEADS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(labels=6, nodes=12, seed=0):
    return [torch.randn(labels, nodes, generator=seeded(seed + array)).half().float() for array in range(2)]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_a_rotation_leaves_logits_and_accuracies_as_they_are(name, seed):
    """Pooled values of images in the place of mu: every image's logits are what they were."""
    pooled, W = torch.randn(50, 12, generator=seeded(seed)), drawn(labels=6, seed=seed)[1]
    before = pooled.double() @ W.double().T
    turned, turned_W = controls.rotated(pooled, W, GROUPS[name], seeded(seed))
    after = turned @ turned_W.T
    torch.testing.assert_close(after, before)
    labels = torch.arange(50) % 6
    assert (after.argmax(1) == labels).sum() == (before.argmax(1) == labels).sum()
    assert not torch.allclose(turned, pooled.double())


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_leaves_all_counts_as_they_are(name, monkeypatch):
    monkeypatch.setattr(
        controls, "rotations", lambda count, size, generator: torch.eye(size).double().expand(count, -1, -1)
    )
    mu, W = drawn()
    same = controls.rotated(mu, W, GROUPS[name], seeded())
    before, after = (fields.site_row("enc1/mha", fields.measure(*arrays)) for arrays in ((mu, W), same))
    assert after.pop("snr_field") == pytest.approx(before.pop("snr_field"))
    assert after == before


def test_nodes_with_one_label_each_beat_every_rotation():
    site = Measurement(
        {"enc1/mha": SiteMeasurement(torch.eye(12).numpy(), {"test": torch.eye(12).numpy()})},
        {},
        {},
        (),
        None,
        None,
        {},
    )
    nodes = fields.site_row("enc1/mha", fields.measure(*site["enc1/mha"].tensors()))
    table = controls.table(site, draws=5, heads=HEADS)
    assert nodes["noise"] == 0 and nodes["snr"] == torch.inf
    assert (table.noise > 0).all() and (table.snr < torch.inf).all()
    assert table.groupby("control").draw.apply(list).to_dict() == {name: [0, 1, 2, 3, 4] for name in NAMES}
    assert (table.groupby("control").noise.nunique() > 1).all(), "draws differ"


def test_rotations_are_orthogonal_and_prefer_no_sign():
    Q = controls.rotations(400, 3, seeded())
    torch.testing.assert_close(Q @ Q.mT, torch.eye(3).double().expand(400, -1, -1))
    assert Q.mean(0).abs().max() < 0.15  # QR alone: a diagonal of about -0.5 or +0.5
    assert 0.35 < (torch.linalg.det(Q) > 0).double().mean() < 0.65


def test_each_control_keeps_what_it_names():
    def head_fields(mu, W):
        return [mu[:, nodes].double() @ W[:, nodes].double().T for nodes in torch.arange(12).view(HEADS, -1)]

    mu, W = drawn()
    of_heads = head_fields(mu, W)
    within = controls.rotated(mu, W, GROUPS[controls.WITHIN], seeded())
    torch.testing.assert_close(head_fields(*within), of_heads)
    across = controls.rotated(mu, W, GROUPS[controls.ACROSS], seeded())
    assert not any(map(torch.allclose, head_fields(*across), of_heads))
    places = torch.arange(12).view(HEADS, -1).T  # the nodes at one place of each head
    for nodes in places:
        torch.testing.assert_close(across[0][:, nodes] @ across[1][:, nodes].T, (mu[:, nodes] @ W[:, nodes].T).double())


def test_only_sites_of_heads_have_their_controls():
    arrays = {
        site: SiteMeasurement(*(drawn()[1].numpy(), {"test": drawn()[0].numpy()})) for site in ("enc1/mha", "enc1/ff")
    }
    table = controls.table(Measurement(arrays, {}, {}, (), None, None, {}), draws=2, heads=HEADS)
    assert table.groupby("kind").control.unique().map(set).to_dict() == {"mha": set(NAMES), "ff": {controls.BASIS}}
    again = controls.table(Measurement(arrays, {}, {}, (), None, None, {}), draws=2, heads=HEADS)
    pd.testing.assert_frame_equal(table, again)
