"""One measured point of another tool's file, the figures made of the file's numbers, and the check of these figures.

The check finds counts, rates, durations and latencies that cannot all be true.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from itertools import pairwise
from statistics import fmean
from typing import Any

from harness.config import shown
from harness.files import data_rows
from harness.model import Figure, Record, Status

UNITS: Mapping[str, str] = {
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "tokens/s",
    "input_tokens_per_s": "tokens/s",
    "total_tokens_per_s": "tokens/s",
    "requests": "requests",
    "input_tokens": "tokens",
    "output_tokens": "tokens",
    "joules_per_output_token": "J",
    "joules_per_request": "J",
    "gpu_power_w": "W",
}
"""Figure, or the part of its name before the dot -> unit; all other figures are in seconds."""
LARGEST = 1e15
"""Largest figure that is believed."""
PERCENTILES = ("p50", "p90", "p95", "p99")
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}
TOLERANCE = 0.02
"""Largest relative difference that is not a contradiction, beside the rounding of the printed digits."""
OTHER_UNIT = 4.0
"""Ratio of a figure and its parts that no mix of requests explains: one of them has another unit."""
_COUNTED = (
    ("requests_per_s", ("requests.completed",)),
    ("output_tokens_per_s", ("output_tokens.got",)),
    ("input_tokens_per_s", ("input_tokens.got",)),
    ("total_tokens_per_s", ("input_tokens.got", "output_tokens.got")),
)
"""Rate, and the counts whose sum is of the same thing."""
_ALSO = {"mean": "avg", "p50": "median"}
"""Other names of statistics in the tools' files."""


@dataclass(frozen=True, slots=True)
class Result:
    """One measured point of a file. None: not in the file."""

    figures: tuple[Figure, ...]
    model: str | None = None
    name: str = ""
    """Distinguishes the points of one file."""
    engine: str = "openai"
    version: str | None = None
    """Version of the tool."""
    measured: str | None = None
    """The run's date, as written in the file."""
    load: Mapping[str, Any] = field(default_factory=dict)
    """Shape, users or rate, with the keys of `harness.workload.arrivals.Load`."""
    precision: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    notes: tuple[str, ...] = ()
    """Where the tool's definitions differ from this project's."""
    doubts: tuple[str, ...] = ()
    """What in the file speaks against its figures: contradictions, a run that was cancelled."""
    edges: int = 0
    """Number of requests by which a count may differ from rate x duration, because the tool's window cuts requests."""
    whole: tuple[Figure, ...] | None = None
    """Figures of one and the same time, for the check of counts against rates; None: `figures` are."""
    records: tuple[Record, ...] = ()


@lru_cache
def _keys(tool: str) -> list[tuple[str, str, str]]:
    """Figure, key and unit for each row of import_keys.csv about the tool."""
    return [(row["figure"], row["key"], row["unit"]) for row in data_rows("import_keys.csv") if row["tool"] == tool]


def numbers(tool: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Figure -> number of the tool's file; a latency -> its statistics and, if the file states none, their unit.

    KeyError for a key that the file must have.
    """
    found = {}
    for figure, key, unit in _keys(tool):
        value = at(content, key)
        found[figure] = {"unit": unit, **value} if unit and value else value
    return found


def at(content: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key. `a|b`: under the first that the file has. With `?` at the end: None if it has none.

    >>> at({"a": {"b": 1}}, "a.c|a.b"), at({}, "a.b?")
    (1, None)
    """
    for each in key.rstrip("?").split("|"):
        with suppress(KeyError, TypeError):
            return reduce(lambda inner, name: inner[name], each.split("."), content)
    if key.endswith("?"):
        return None
    raise KeyError(key)


def figures(
    values: Mapping[str, float | Mapping[str, Any] | None],
    n: int | None,
    scale: float = 1.0,
    status: Status = "reported",
) -> tuple[Figure, ...]:
    """Figures from figure name -> value, or the statistics of a latency; a value that is missing gives no figure.

    ValueError for a value that is no amount.

    >>> [(each.name, each.value, each.unit) for each in figures({"ttft_s.p50": 12.5, "itl_s.p50": None}, 3, 1e-3)]
    [('ttft_s.p50', 0.0125, 's')]
    >>> [each.value for each in figures({"ttft_s": {"unit": "ms", "avg": 12.5, "percentiles": {"p50": 9.5}}}, 3)]
    [0.0125, 0.0095]
    """
    found: list[Figure] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _latency(name, value, n)
        elif value is not None:
            unit = UNITS.get(name) or UNITS.get(name.partition(".")[0], "s")
            reason = "the tool gives no interval"
            found.append(Figure(name, amount(name, value) * scale, unit, status, n=n, reason=reason))
    return tuple(found)


def from_means(means: Mapping[str, float | None], said: Mapping[str, Any], n: int | None) -> tuple[Figure, ...]:
    """The sums over n requests that the file does not state, from their means."""
    sums = {name: mean * n for name, mean in means.items() if n and mean is not None and said[name] is None}
    return figures(sums, n, status="derived")


def amount(name: str, value: Any) -> float:
    """The value of a figure, if it is 0 or a number from 1 / LARGEST to LARGEST; otherwise ValueError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (value != 0 and not 1 / LARGEST <= value <= LARGEST):
        raise ValueError(f"{name} is {shown(value)}, not an amount")
    return float(value)


def _latency(name: str, said: Mapping[str, Any], n: int | None) -> tuple[Figure, ...]:
    """Mean and percentiles of one latency from statistic -> value; of `n` requests unless there is a count.

    No figures if no request was observed: the tools print 0 then, which no latency is.
    """
    seen = {**said, **(said.get("percentiles") or {})}
    n = seen.get("count", n)
    values = {f"{name}.{stat}": seen.get(stat, seen.get(_ALSO.get(stat, stat))) for stat in ("mean", *PERCENTILES)}
    if n == 0 or not any(values.values()):
        return ()
    return figures(values, n and int(n), SECONDS[seen["unit"]])


def shared(tokens: int, arrivals: int) -> tuple[int, ...]:
    """Tokens of each arrival, as equal as whole numbers allow: the file does not hold the tokens of each chunk.

    >>> shared(5, 3)
    (2, 2, 1)
    """
    return tuple(tokens // arrivals + (i < tokens % arrivals) for i in range(arrivals))


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
    if rows := [row for row in point.records if row.error is None and row.arrival_s]:
        of_rows = {
            "requests.completed": float(len(rows)),
            "output_tokens.got": float(sum(row.output_tokens or 0 for row in rows)),
            "ttft_s.mean": fmean(row.arrival_s[0] - row.sent_s for row in rows),
        }
        for name, value in of_rows.items():
            if (said := _value(point, name)) is not None and _differs(said, point, value):
                yield f"{name} is {said:.6g}, but the rows give {value:.6g}"
    done = _value(point, "requests.completed")
    seen = next((figure.n for figure in point.figures if figure.name.startswith("e2e_s")), None)
    if done is not None and seen is not None and seen != done:
        yield f"{done:g} requests completed, but the end-to-end latencies are of {seen}"
    users, rate, stay_s = point.load.get("users"), _value(point, "requests_per_s"), _value(point, "e2e_s.mean")
    if users and rate and stay_s and rate * stay_s > users and _differs(users, point, rate, stay_s):
        yield f"{rate:.4g} requests/s of {stay_s:.4g} s each are {rate * stay_s:.4g} in flight, but there were {users}"
    asked = point.load.get("rate_per_s")
    if asked and rate and done and rate > asked * (1 + 5 / done**0.5 + TOLERANCE):
        yield f"{rate:.4g} requests/s completed, but {asked:.4g} a second were sent"
    power_w, tokens_per_s, each_j = (
        _value(point, name) for name in ("gpu_power_w", "output_tokens_per_s", "joules_per_output_token")
    )
    if power_w and tokens_per_s and each_j and not 1 / OTHER_UNIT < power_w / tokens_per_s / each_j < OTHER_UNIT:
        yield f"{power_w:.4g} W at {tokens_per_s:.4g} tokens/s, but joules_per_output_token is {each_j:.4g}"
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
