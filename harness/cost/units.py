"""Units as words joined with `-` and `/`, such as `USD/kW-hour`, and their conversion."""

import re
from collections.abc import Mapping

from harness.files import data_rows

Words = Mapping[str, tuple[float, tuple[str, ...]]]
"""Word -> (factor, base words): the word is `factor` times the product of the base words."""
WORDS: Words = {row["word"]: (float(row["factor"]), tuple(row["base"].split())) for row in data_rows("units.csv")}
"""The words of `factor`. A year has 365.25 days, a month is a twelfth of a year."""


def reduced(text: str, words: Words) -> tuple[float, dict[str, int]]:
    """A unit as a factor and the powers of base words; `-` multiplies, everything after the first `/` divides.

    KeyError for a word that is not among `words`.

    >>> reduced("USD/kWh", WORDS)
    (0.001, {'USD': 1, 'W': -1, 'hour': -1})
    """
    number, powers = 1.0, dict[str, int]()
    for sign, part in zip((1, -1), text.split("/", 1), strict=False):
        for word in re.split("[-/]", part):
            scale, bases = words[word]
            number *= scale**sign
            for base in bases:
                powers[base] = powers.get(base, 0) + sign
    return number, {base: power for base, power in powers.items() if power}


def factor(given: str, wanted: str) -> float:
    """The factor that converts a number from unit `given` to unit `wanted`; ValueError if they do not match.

    >>> factor("percent", "1"), factor("USD/day", "USD/hour") == 1 / 24
    (0.01, True)
    """
    to, powers = reduced(wanted, WORDS)
    try:
        number, found = reduced(given, WORDS)
    except KeyError:
        raise ValueError(f"unknown unit '{given}'") from None
    if found != powers:
        raise ValueError(f"unit '{given}' is not a unit of {wanted}")
    return number / to
