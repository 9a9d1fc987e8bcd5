"""Checks of a point's figures against each other: counts, rates, durations and latencies that cannot all be true."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from harness.store.formats.point import PERCENTILES, Result

TOLERANCE = 0.02
"""Largest relative difference that is not a contradiction, beside the rounding of the printed digits."""
OTHER_UNIT = 4.0
"""Ratio of E2E and its parts that no mix of lengths explains: one of the latencies has another unit."""
_COUNTED = (
    ("requests_per_s", ("requests.completed",)),
    ("output_tokens_per_s", ("output_tokens.got",)),
    ("input_tokens_per_s", ("input_tokens.got",)),
    ("total_tokens_per_s", ("input_tokens.got", "output_tokens.got")),
)
"""Rate, and the counts whose sum is of the same thing."""


def checked(point: Result) -> Result:
    """The point without latencies of gaps that did not exist, and with a doubt for each contradiction in it."""
    got, done = (_value(point, name) for name in ("output_tokens.got", "requests.completed"))
    kept = point.figures
    if got is not None and done is not None and got <= done:  # one token an answer has no gap
        kept = tuple(figure for figure in kept if not figure.name.startswith(("tpot_s", "itl_s")))
    return replace(point, figures=kept, doubts=(*point.doubts, *_contradictions(point)))


def _value(point: Result, name: str) -> float | None:
    return next((figure.value for figure in point.whole or point.figures if figure.name == name), None)


def _contradictions(point: Result) -> Iterator[str]:
    yield from _of_counts(point)
    done = _value(point, "requests.completed")
    seen = next((figure.n for figure in point.figures if figure.name.startswith("e2e_s")), None)
    if done is not None and seen is not None and seen != done:
        yield f"{done:g} requests completed, but the end-to-end latencies are of {seen}"
    users, rate, stay_s = point.load.get("users"), _value(point, "requests_per_s"), _value(point, "e2e_s.mean")
    if users and rate and stay_s and rate * stay_s > users and _differs(users, point, rate, stay_s):
        yield f"{rate:.4g} requests/s of {stay_s:.4g} s each are {rate * stay_s:.4g} in flight, but there were {users}"
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "response_s"):
        known = [(stat, x) for stat in PERCENTILES if (x := _value(point, f"{name}.{stat}")) is not None]
        for (lower, low), (upper, high) in pairwise(known):
            if low > high:
                yield f"{name}.{lower} is {low:.4g}, but {name}.{upper} is {high:.4g}"
    first_s = _value(point, "ttft_s.mean")
    if first_s is not None and stay_s is not None and first_s > stay_s * (1 + TOLERANCE):
        yield f"ttft_s.mean is {first_s:.4g}, but e2e_s.mean is {stay_s:.4g}"
    got, each_s = (_value(point, name) for name in ("output_tokens.got", "tpot_s.mean"))
    if done and got and first_s and each_s and stay_s:
        made_s = first_s + each_s * max(0.0, got / done - 1)
        if not 1 / OTHER_UNIT < made_s / stay_s < OTHER_UNIT:
            made = f"ttft_s.mean {first_s:.4g} and tpot_s.mean {each_s:.4g} for {got / done:.4g} tokens"
            yield f"{made} are {made_s:.4g}, but e2e_s.mean is {stay_s:.4g}"


def _of_counts(point: Result) -> Iterator[str]:
    """Rates against counts over the duration; without a duration against the rate of requests."""
    seconds, done, per_s = (_value(point, name) for name in ("duration_s", "requests.completed", "requests_per_s"))
    for rate_name, names in _COUNTED:
        rate, counts = _value(point, rate_name), [_value(point, name) for name in names]
        if rate is None or None in counts:
            continue
        count, count_name = sum(filter(None, counts)), " + ".join(names)
        if seconds is not None:
            if _differs(count, point, rate, seconds):
                made = f"{rate_name} {rate:.4g} x {seconds:.4g} s is {rate * seconds:.4g}"
                yield f"{made}, but {count_name} is {count:g}"
        elif done and per_s and _differs(count / done, point, rate, 1 / per_s):
            each = f"{rate_name} {rate:.4g} at {per_s:.4g} requests/s is {rate / per_s:.4g} a request"
            yield f"{each}, but {count_name} is {count:g} of {done:g} requests"
    parts = [_value(point, f"{what}_tokens_per_s") for what in ("input", "output", "total")]
    if None not in parts and _differs(parts[2] or 0.0, point, (parts[0] or 0.0) + (parts[1] or 0.0)):
        yield f"{parts[0]:.4g} input and {parts[1]:.4g} output tokens/s, but total_tokens_per_s is {parts[2]:.4g}"


def _differs(said: float, point: Result, *factors: float) -> bool:
    """Whether a value and the product of `factors` differ by more than rounding and the window's edges explain."""
    product, done = 1.0, _value(point, "requests.completed")
    for factor in factors:
        product *= factor
    allowed = TOLERANCE + sum(_rounding(x) for x in (said, *factors)) + point.edges / max(done or 0.0, 1.0)
    return abs(product - said) > allowed * max(abs(product), abs(said))


def _rounding(value: float) -> float:
    """Relative size of half a unit of the last digit with which a number is written.

    >>> _rounding(0.25)
    0.02
    """
    decimals = len(f"{value!r}".partition(".")[2]) if "e" not in f"{value!r}" else 0
    return 0.5 * 10**-decimals / abs(value) if value else 0.0
