"""The rules that turn the figures of an appraisal into words; docs/reported.md states them, tests try each boundary."""

from collections.abc import Sequence

from harness.facts.claims import Quantity
from harness.facts.gap import Agreement, Factor

UNLIKELY = 0.05
"""A belief that reaches the bill with a smaller probability does not reach it."""
END = 0.25
"""A value with less than this share of the belief on its far side lies at an end of the belief."""
MOST = 3
"""The most factors that a sentence names."""
CLEAR = 2.0
"""A belief whose p95 / p5 is at least this is an unknown that decides."""


def place(share: float | None) -> str:
    """Where the median of what must be lies in the belief, by the share of the belief below it.

    >>> [place(share) for share in (0.04, 0.05, 0.25, 0.75, 0.76, 0.96, None)]
    ['below belief', 'low end', 'as believed', 'as believed', 'high end', 'above belief', 'n/a']
    """
    if share is None:
        return "n/a"
    if share < UNLIKELY:
        return "below belief"
    if share > 1 - UNLIKELY:
        return "above belief"
    return "low end" if share < END else "high end" if share > 1 - END else "as believed"


def plausible(reach: float) -> str:
    """Whether the believed factors make up the bill, from the probability that they reach it.

    >>> [plausible(p) for p in (0.04, 0.05, 0.25, 0.95, 0.96)]
    ['not plausible', 'plausible only with', 'plausible', 'plausible', 'lower than believed']
    """
    if reach < UNLIKELY:
        return "not plausible"
    if reach > 1 - UNLIKELY:
        return "lower than believed"
    return "plausible only with" if reach < END else "plausible"


def chance(reach: float) -> str:
    """A probability, with a decimal near its ends, where the rules of the verdict lie.

    >>> [chance(p) for p in (0.0479, 0.4369, 0.951)]
    ['4.8%', '44%', '95.1%']
    """
    return f"{reach:.1%}" if min(reach, 1 - reach) < 0.1 else f"{reach:.0%}"


def claim(times: float, bill: Quantity, whole: Quantity) -> str:
    """Whether "inference is `times` its revenue" is shown or excluded, from its ratio of one bill and of all suppliers.

    The bill is a part of the whole: `shown` if the whole's lower bound reaches it, `excluded` if both upper bounds
    lie below.
    """
    if max(_low(whole), _low(bill)) >= times:
        return "shown"
    return "excluded" if max(_high(whole), _high(bill)) < times else "neither shown nor excluded"


def power(price: tuple[float, float], floor: float) -> str:
    """Whether a belief about the price (p5, p95) fits the power that stood, whose lowest price is `floor`.

    >>> power((2.0, 3.0), 2.0), power((1.9, 3.0), 2.0), power((1.0, 1.9), 2.0)
    ('fits', 'fits in part', 'does not fit')
    """
    low, high = price
    return "fits" if low >= floor else "fits in part" if high >= floor else "does not fit"


def sentences(found: Agreement, bill: Quantity, whole: Quantity, floor: float) -> tuple[tuple[str, str], ...]:
    """The verdict as (topic, sentence): the bill, the two claims, power, and the unknowns that decide."""
    price = next(f.believed for f in found.factors if f.name == "gpu_price")
    said, fit = plausible(found.reach), power((price.low or 0.0, price.high or 0.0), floor)
    only = f" {', '.join(moved(found.factors))}" if said == "plausible only with" else ""
    words = {
        "fits": "the believed price needs no more power than stood",
        "fits in part": f"below {floor:.2g} USD a GPU-hour the bill buys more GPUs than the power could feed",
        "does not fit": f"every believed price buys more GPUs than the power feeds, up to {floor:.2g} USD a GPU-hour",
    }
    more, twice = claim(1, bill, whole), claim(2, bill, whole)
    claims = f"'more than it earns': {more}; 'twice what it earns': {twice}"
    return (
        ("bill", f"{said}{only}: the beliefs reach the bill with a probability of {chance(found.reach)}"),
        ("claims", claims if more != twice else f"'more than it earns' and 'twice what it earns': {more}"),
        ("power", words[fit]),
        ("unknowns", ", ".join(f"{f.label} x{f.width:.2g}" for f in deciding(found.factors)) or "none"),
    )


def moved(factors: Sequence[Factor]) -> list[str]:
    """The factors whose medians must move furthest in their beliefs, with the direction, such as `high utilisation`."""
    known = [(f.share, f.label) for f in factors if f.share is not None]
    far = sorted(known, key=lambda pair: -abs(pair[0] - 0.5))[:MOST]
    return [f"{'high' if share > 0.5 else 'low'} {label}" for share, label in far]


def deciding(factors: Sequence[Factor]) -> list[Factor]:
    """The factors with the widest beliefs, widest first."""
    wide = [f for f in factors if f.width >= CLEAR]
    return sorted(wide, key=lambda f: -f.width)[:MOST]


def _low(q: Quantity) -> float:
    return q.low if q.bound in ("=", ">=", "range") else 0.0


def _high(q: Quantity) -> float:
    return q.high if q.bound in ("=", "<=", "range") else float("inf")
