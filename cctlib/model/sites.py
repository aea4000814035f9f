"""Sites: the names of the places where nodes live (Method, section 3).

A *node* is one coordinate of the token vectors at a *site*. Encoder m = 1..L has four sites, `enc{m}/{kind}`, in the
order of the network. In a convolutional network the nodes of layer m are its filters, and the positions of the feature
map are the tokens: `layer{m}/filters` behind ReLU, and `layer{m}/before_relu`.

Our own networks hand their nodes out by these names; `adapters.py` teaches other people's networks to do so.
"""

import difflib
import re
from collections.abc import Collection, Iterable

from cctlib.errors import UserError

SITES = (
    "mha",  # concatenated heads, before the projection
    "trunk",  # after the attention residual and its LayerNorm: what FF reads
    "ff_hidden",  # FF after GELU
    "ff",  # encoder output, after the FF residual
)
FILTERS, BEFORE_RELU = MAPS = "filters", "before_relu"


def site_names(encoders: int) -> tuple[str, ...]:
    """Names of the sites of so many encoders, in the order of the network: ("enc1/mha", "enc1/trunk", ...)."""
    return tuple(f"enc{m}/{kind}" for m in range(1, encoders + 1) for kind in SITES)


def layer_sites(layers: int) -> tuple[str, ...]:
    """Names of the sites of so many convolutions: ("layer1/filters", ..., "layer1/before_relu", ...)."""
    return tuple(f"layer{m}/{kind}" for kind in MAPS for m in range(1, layers + 1))


def parse(site: str) -> tuple[int, str]:
    """Encoder (or layer), counted from 1, and kind of a site: "enc3/mha" is (3, "mha").

    Raises `UserError` for anything that is not the name of a site.
    """
    number = re.search(r"[1-9]\d*", site)
    m = int(number[0]) if number else 1
    check_sites([site], [*(f"enc{m}/{kind}" for kind in SITES), *(f"layer{m}/{kind}" for kind in MAPS)])
    return m, site.partition("/")[2]


def check_sites(sites: Iterable, known: Collection) -> None:
    """Raise `UserError` for a text instead of a list, and for a name that is not among `known`, with the nearest."""
    if isinstance(sites, str):
        raise UserError(f"taps is the text {sites!r}; give a list of names, as [{sites!r}]")
    for site in sites:
        if site not in known:
            nearest = difflib.get_close_matches(str(site), list(known), n=3, cutoff=0.0)
            raise UserError(f"site {site!r} is not known here; the nearest names are {', '.join(nearest) or 'none'}")
