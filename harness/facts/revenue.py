"""Revenue of a part of a year, from a half and the year."""

import math
from dataclasses import replace

from harness.facts.claims import Quantity, Refused, about
from harness.facts.period import period


def nine_months(half: Quantity, year: Quantity, path: str) -> Quantity:
    """Revenue of the first nine months from the first half H1 and the year, for a `path` of quarterly revenue.

    With H2 = year - H1 and H2 >= H1. `non-falling`: if revenue never falls, Q3 lies between H1 / 2 and H2 / 2, so nine
    months lie in [1.5 H1, (H1 + year) / 2], a range. The others assume one path, so they are `~`: `linear`, quarters a,
    a+d, a+2d, a+3d with d = (H2 - H1) / 4 and Q3 = H1 / 2 + 3 d / 2; `geometric`, a factor g = sqrt(H2 / H1) per
    quarter and Q3 = H1 g^2 / (1 + g); `pro rata`, 3/4 of the year, whatever H1 is. Half a digit of both figures widens
    the range. A figure that says `about` has to be read at its printed digits before (`claims.printed`).
    """
    first, whole = half.period, year.period
    if first is None or whole is None or first.start is None or whole.start != first.start:
        raise Refused(f"{half.terms} ({first}) does not begin {year.terms} ({whole})", "give a half and its year")
    if (first.months, whole.months) != (6, 12):
        raise Refused(f"{half.terms} ({first}) is not half of {year.terms} ({whole})", "give a half and its year")
    if half.bound != "=" or year.bound != "=" or half.value is None or year.value is None:
        raise Refused(f"{half.text()} with {year.text()} leaves the path of quarters open", "give exact figures")
    h1, h2 = half.value, year.value - half.value
    if h2 < h1:
        raise Refused(f"second half {h2:g} is below the first {h1:g}: revenue fell", "give figures that do not fall")
    both = replace(
        replace(half, period=whole) + year,
        period=period(f"{first.start.year}-01", f"{first.start.year}-09"),
        terms=f"nine_months({half.terms}, {year.terms}, {path})",
        assumptions=(*half.assumptions, *year.assumptions, f"quarters of {first.start.year}: {path}"),
        rounded=False,
    )
    if path == "non-falling":
        value, low, high = _path(h1, h2, "geometric"), 1.5 * half.low, (half.high + year.high) / 2
        return replace(both, value=value, low=low, high=high)
    low, high = (_path(a, max(b - a, a), path) for a, b in ((half.low, year.low), (half.high, year.high)))
    return replace(about(both), value=_path(h1, h2, path), low=low, high=high)


def _path(h1: float, h2: float, path: str) -> float:
    """Revenue of three quarters from that of two halves."""
    g = math.sqrt(h2 / h1)
    third = {"linear": h1 / 2 + 3 / 8 * (h2 - h1), "geometric": h1 * g**2 / (1 + g), "pro rata": 0.75 * (h1 + h2) - h1}
    return h1 + third[path]
