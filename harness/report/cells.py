"""Figures in words: the one place where numbers are converted, rounded and given their unit for reading."""

from __future__ import annotations

import math

from harness.model import Figure
from harness.summary import LATENCIES


def scale(figure: Figure) -> tuple[float, str]:
    """What to multiply a figure by for reading, and its unit then: latencies in ms, shares in %, all else as it is."""
    if figure.unit == "s" and figure.name.partition(".")[0] in (*LATENCIES, "client"):
        return 1e3, "ms"
    return (100.0, "%") if figure.unit in ("share", "1") else (1.0, figure.unit)


MOST_DECIMALS = {"ms": 3}
"""Unit -> decimals beyond which there is only noise: stamps are good to some tens of microseconds."""


def number(value: float, like: float | None = None, decimals: int = 12) -> str:
    """Four significant digits, or fewer where those are exact; whole numbers below a million in full.

    `like`: with the size and decimals of that number, so that the ends of an interval match what they enclose.
    `decimals`: no more than these.

    >>> [number(x) for x in (0, 0.5, 12.3456, 8264.4, 123456, 8.658e8, 13e12, 2.31e-7)]
    ['0', '0.5', '12.35', '8,264', '123,456', '865.8 M', '13,000 bn', '2.31e-07']
    >>> number(9.5, like=12.34), number(980000, like=1020000)
    ('9.50', '0.980 M')
    """
    size = abs(value if like is None or like == 0 else like)
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{value:.4g}"
    for million, word in ((1e9, " bn"), (1e6, " M")):
        if size >= million:
            return number(value / million, None if like is None else like / million) + word
    if size == 0 or (like is None and value == round(value)):
        return f"{value:,.0f}"
    fixed = f"{value:,.{min(decimals, max(0, 3 - math.floor(math.log10(size))))}f}"
    return fixed if like is not None else min(f"{float(value)!r}", fixed, key=len)


def ends(figure: Figure) -> str | None:
    """The interval or bound of a figure alone; None where it has none."""
    factor, unit = scale(figure)
    like, most = None if figure.value is None else figure.value * factor, MOST_DECIMALS.get(unit, 12)
    low, high = (None if end is None else number(end * factor, like, most) for end in (figure.low, figure.high))
    if low is None:
        return None if high is None else f"≤ {high}"
    return f"≥ {low}" if high is None else f"{low}–{high}"


def amount(figure: Figure, *, unit: bool = True, digits: bool = False) -> str:
    """The value alone, with its unit unless that stands elsewhere, or why there is none. `digits`: always all four."""
    if figure.value is None:
        return f"n/a ({figure.reason or 'not recorded'})"
    factor, name = scale(figure)
    value = figure.value * factor
    shown = number(value, value if digits else None, MOST_DECIMALS.get(name, 12))
    return shown + (name if name == "%" else f" {name}") if unit else shown


def words(
    figure: Figure,
    *,
    unit: bool = True,
    interval: bool = True,
    kind: bool = True,
    n: bool = True,
    status: bool = True,
    why: bool = True,
) -> str:
    """A figure in full; what stands elsewhere in its table can be left out. `kind` names the interval.

    >>> words(Figure("usd_per_query", 0.12, "USD/query", "derived", 0.09, 0.16, interval="p5-p95"))
    '0.12 USD/query (p5-p95: 0.0900–0.1600; derived)'
    >>> words(Figure("ttft_s.p99", 0.2, "s", "measured", n=3), status=False)
    '200 ms (n=3)'
    """
    between = ends(figure) if interval else None
    asides = [
        (f"{figure.interval}: {between}" if kind else between) if between else "",
        f"n={number(figure.n)}" if n and between is None and figure.n is not None and figure.value is not None else "",
        figure.reason or "" if why and figure.value is not None else "",
        figure.status if status else "",
    ]
    aside = "; ".join(each for each in asides if each)
    value = amount(figure, unit=unit) if why or figure.value is not None else "n/a"
    return value + (f" ({aside})" if aside else "")
