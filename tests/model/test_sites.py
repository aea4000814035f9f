"""Names of sites, and what is no name of a site."""

import pytest
import torch

from cctlib.errors import UserError
from cctlib.model import cct, sites


def test_names_are_ordered_by_encoder_then_kind():
    names = sites.site_names(7)
    assert len(names) == 28
    assert names[:5] == ("enc1/mha", "enc1/trunk", "enc1/ff_hidden", "enc1/ff", "enc2/mha")


def test_parse_reads_what_site_names_writes():
    for site in sites.site_names(14):
        m, kind = sites.parse(site)
        assert f"enc{m}/{kind}" == site
    assert sites.parse("enc12/ff_hidden") == (12, "ff_hidden")
    assert sites.parse("layer10/filters") == (10, "filters")


@pytest.mark.parametrize(
    ("site", "nearest"),
    [
        ("enc3/mah", "enc3/mha"),
        ("enc12/ff_hiden", "enc12/ff_hidden"),
        ("enc0/ff", "enc1/ff"),
        ("encoder2/trunk", "enc2/trunk"),
        ("layer3/filter", "layer3/filters"),
        ("enc1/filters", "layer1/filters"),
        ("enc3/attention", "enc3/"),
        ("enc3/mha ", "enc3/mha"),
        ("", "enc1/"),
    ],
)
def test_unknown_sites_are_told_the_nearest_names(site, nearest):
    with pytest.raises(UserError, match=f"the nearest names are .*{nearest}") as caught:
        sites.parse(site)
    assert "\n" not in str(caught.value)


def test_widths_are_those_of_the_network():
    config = cct.CCTConfig(encoders=2, width=24, heads=2, mlp_ratio=1.5, conv_channels=8, image_size=16)
    names = sites.site_names(config.encoders)
    _, taps = cct.CCT(config).eval()(torch.zeros(1, 3, 16, 16), taps=names)
    assert {site: nodes.shape[-1] for site, nodes in taps.items()} == {site: config.nodes(site) for site in names}
    for site in ("enc3/ff", "layer1/filters"):
        with pytest.raises(UserError, match=f"'{site}' is not known"):
            config.nodes(site)
