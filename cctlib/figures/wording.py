"""Words that numbers decide: messages are put together from comparisons, so that no new data make them false."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import SupportsFloat

from cctlib.model.sites import parse


def number(value: SupportsFloat, digits: int = 3) -> str:
    """A number for a sentence: `digits` significant digits (integers whole), thousands separated; or "n/a"."""
    size = abs(float(value))
    if not math.isfinite(size):
        return "n/a"
    if isinstance(value, Integral) or size == 0:
        return f"{float(value):,.0f}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{float(value):,.{min(decimals, 6)}f}"


def typeset(text: str) -> str:
    """The text with the signs of print: a minus before a number in place of a hyphen, and a multiplication sign."""
    return re.sub(r"\bx(?=\d)", "\u00d7", re.sub(r"(?<![\w.])-(?=\d)", "\u2212", text))


def percent(value: SupportsFloat, decimals: int = 1) -> str:
    """A fraction as a percentage; "n/a" if not finite."""
    return f"{100 * float(value):.{decimals}f}%" if math.isfinite(value) else "n/a"


def course(values: Iterable[SupportsFloat], show: Callable[[float], str] = number) -> str:
    """How a quantity moves from the first value to the last: "rises from a to b", "falls from a to b", "stays near b".

    It moves only if it changes by more than 3% of its size and the two numbers differ as written. Where it does not,
    but a value between is 9% away, it "dips to" or "peaks at" that value "and returns to" the last.
    """
    numbers = [float(value) for value in values]
    first, last = numbers[0], numbers[-1]
    if not (math.isfinite(first) and math.isfinite(last)):
        return "cannot be compared (a value is missing)"
    if abs(last - first) > 0.03 * max(abs(first), abs(last)) and show(first) != show(last):
        return f"{'rises' if last > first else 'falls'} from {show(first)} to {show(last)}"
    finite = [value for value in numbers if math.isfinite(value)]
    far = max(finite, key=lambda value: abs(value - last))
    if abs(far - last) <= 0.09 * max(map(abs, finite)) or show(far) == show(last):
        return f"stays near {show(last)}"
    return f"{'dips to' if far < last else 'peaks at'} {show(far)} and returns to {show(last)}"


def listing(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    items = list(items)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def listing_moves(moves: Sequence[str]) -> str:
    """`listing`, without a verb that only repeats the first one: "falls from 5 to 1 at mha and from 4 to 2 at ff"."""
    first, *others = moves
    verb = f"{first.split()[0]} " if first.startswith(("rises from", "falls from")) else first
    return listing([first, *(move.removeprefix(verb) for move in others)])


def count(number_of: int, singular: str, plural: str | None = None) -> str:
    """ "1 cluster", "3 clusters", "no clusters"."""
    return f"{number_of or 'no'} {singular if number_of == 1 else plural or singular + 's'}"


def short(name: str, length: int) -> str:
    """A label's name for a reader, underscores as spaces, cut to `length` characters with an ellipsis."""
    name = str(name).replace("_", " ")
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def sentence(text: str) -> str:
    """The text with its first letter in upper case, the rest untouched."""
    return text[:1].upper() + text[1:]


def place(site: str) -> str:
    """A site in words: "ff of encoder 7" for enc7/ff."""
    encoder, kind = parse(site)
    return f"{kind} of encoder {encoder}"
