"""Workloads: what is sent to an engine and when, from YAML text. Opens no file."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from harness.config import AS_WRITTEN, Section, Values, checked, overridden, read_map, shown
from harness.errors import HarnessError
from harness.model import ENGINES
from harness.workload.arrivals import (
    TAKES,
    WHOLE,
    YEAR_S,
    Count,
    Load,
    Positive,
    Seconds,
    check_keys,
    expected_s,
    user_spans,
)
from harness.workload.lengths import LENGTHS_FORM, TIMES_FORM, LengthsOrInt, TimesOrSeconds

SOURCES: Mapping[str, str] = {
    "random tokens": "input_tokens output_tokens fill?",
    "a trace": "trace trace_order? fill?",
    "prompts": "prompts output_tokens?",
}
PREFIXES: Mapping[str, str] = {"random tokens": "tokens count?", "texts": "texts"}
"""Source of requests, or of prefixes -> its keys; `?` marks optional keys."""
Share = Annotated[float, Field(gt=0, le=1, strict=True)]
FILL = "text of fill: {}"
"""Name of a shipped text among the files of a workload."""
_SHARE = "the share of the requests, above 0, up to 1"
SHAPED = {"load.users": "closed", "load.rate_per_s": "poisson"}
"""Key -> the shape of a load that it makes."""
SLOWEST_S = {"ttft_s": 60, "tpot_s": 10, "itl_s": 10, "e2e_s": 600}
"""Objectives above these are taken for milliseconds unless they name their unit."""
_LIMIT = "upper limit, seconds above 0: 0.2 or '200 ms'"


class Prefix(Section):
    """Prompts that several requests share as the beginning of theirs."""

    share: Share = Field(1.0, description=_SHARE)
    tokens: Count | None = Field(None, description=f"length of each prefix, {WHOLE}")
    count: Count | None = Field(None, description=f"number of different prefixes, {WHOLE}")
    texts: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(None, description="a list of texts")

    @model_validator(mode="after")
    def _keys_fit(self) -> Prefix:
        check_keys(dict(self), "texts" if self.texts else "random tokens", PREFIXES)
        return self


class Content(Section):
    """Content of requests: random tokens with given lengths, or with the lengths of a trace, or texts."""

    input_tokens: LengthsOrInt = Field(None, description=LENGTHS_FORM)
    output_tokens: LengthsOrInt = Field(None, description=LENGTHS_FORM)
    trace: str | None = Field(None, description="a shipped trace's name or a file, for its lengths")
    trace_order: Literal["sampled", "recorded"] | None = None
    prompts: str | None = Field(None, description="a JSONL file of prompts, or a JSON file of ShareGPT's form")
    fill: Literal["prose", "code"] | None = Field(None, description="natural text in place of random tokens")
    turns: LengthsOrInt = Field(None, description="turns of a conversation, as lengths are given; at most 1,000")
    think_time_s: TimesOrSeconds = Field(None, description=TIMES_FORM)
    prefix: Prefix | None = Field(None, description="a map: share, and tokens and count, or texts")
    cancel_after_s: TimesOrSeconds = Field(None, description=TIMES_FORM)
    cancel_share: Share | None = Field(None, description=_SHARE)
    ignore_eos: bool = Field(True, description="true (always the requested output length) or false", strict=True)
    max_input_tokens: Count | None = Field(None, description=f"maximum prompt length, {WHOLE}")
    max_total_tokens: Annotated[Count, Field(gt=1)] | None = Field(
        None, description="maximum of input and output tokens together, a whole number from 2 to 10 million"
    )

    @model_validator(mode="after")
    def _keys_fit(self) -> Content:
        if getattr(self, "parts", None):  # each part holds these keys too, and was checked
            return self
        chosen = "prompts" if self.prompts is not None else "a trace" if self.trace is not None else "random tokens"
        check_keys(dict(self), chosen, SOURCES)
        for key, needed in (("think_time_s", "turns"), ("cancel_share", "cancel_after_s")):
            if getattr(self, key) is not None and getattr(self, needed) is None:
                raise PydanticCustomError("stray", f"does not go without {needed}", {"key": key})
        if self.turns is not None and self.trace_order == "recorded":
            raise PydanticCustomError("stray", "does not go with a recorded order", {"key": "turns"})
        if self.prefix is not None and (self.prefix.texts is None) != (self.prompts is None):
            raise PydanticCustomError("order", "needs texts beside prompts, else tokens", {"key": "prefix"})
        return self


class MixedPart(Content):
    """One kind of request in a mixed workload."""

    name: str = Field(min_length=1, description="a short name, different for each part")
    weight: Positive = Field(1.0, description="a number above 0: its share is weight / sum of weights")


class Requests(Content):
    """Number and content of requests, or of conversations if `turns` is given; of one kind or mixed."""

    count: Count | None = Field(None, description=f"number of requests, or of conversations if turns is given, {WHOLE}")
    parts: Annotated[tuple[MixedPart, ...], Field(min_length=1)] | None = Field(
        None, description="a list of maps, each with a name, a weight, and the keys of requests except count"
    )

    @model_validator(mode="before")
    @classmethod
    def _hand_down(cls, data: Any) -> Any:
        """Keys beside `parts` are the defaults of each part."""
        if not isinstance(data, dict) or not isinstance(data.get("parts"), list):
            return data
        shared = {key: value for key, value in data.items() if key in Content.model_fields}
        return {**data, "parts": [{**shared, **part} if isinstance(part, dict) else part for part in data["parts"]]}

    @model_validator(mode="after")
    def _names_differ(self) -> Requests:
        if self.parts and len({part.name for part in self.parts}) < len(self.parts):
            raise PydanticCustomError("order", "has two parts of one name", {"key": "parts"})
        return self

    @property
    def contents(self) -> tuple[Content, ...]:
        """The parts of a mixed workload, or else the requests themselves."""
        return self.parts or (self,)

    @property
    def in_all(self) -> int | None:
        """Total number of requests; None: unknown before the run."""
        return None if any(content.turns for content in self.contents) else self.count


class Engine(Section):
    """The engine's name, and its options: `options` for any engine, and a map under each engine's name.

    The engine validates its options.
    """

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"propertyNames": {"enum": ["name", "options", *ENGINES]}}
    )
    __pydantic_extra__: dict[str, dict[str, Any]]

    name: str = Field(
        "auto", description=f"one of auto, {', '.join(ENGINES)}", json_schema_extra={"enum": ["auto", *ENGINES]}
    )
    options: dict[str, Any] = Field({}, description="a map of options for any engine")

    @model_validator(mode="before")
    @classmethod
    def _names_known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        names, known = ["auto", *ENGINES], [*cls.model_fields, *ENGINES]
        if data.get("name", "auto") not in names:
            raise PydanticCustomError("order", "is not an engine", {"key": "name", "expected": names})
        if unknown := [key for key in data if key not in known]:
            raise PydanticCustomError("unknown", "is not an engine", {"key": str(unknown[0]), "expected": known})
        return {name: {} for name in ENGINES} | data


class WarmUp(Section):
    """Requests before the measurement."""

    requests: int = Field(1, ge=0, le=100_000, strict=True, description="a whole number from 0 to 100,000")


class Objectives(Section):
    """Upper limits that a request must meet to count as good; a missing limit is always met."""

    ttft_s: Seconds | None = Field(None, description=_LIMIT)
    tpot_s: Seconds | None = Field(None, description=_LIMIT)
    itl_s: Seconds | None = Field(None, description=_LIMIT)
    e2e_s: Seconds | None = Field(None, description=_LIMIT)


class Workload(Section):
    """The full specification of a run."""

    name: str = Field(min_length=1, description="a short name; the file's name if not given")
    description: str = Field("", description="one line of text")
    model: str = Field("smollm2-135m", min_length=1, description="a short name, hub id, directory or GGUF file")
    engine: Engine = Field(Engine(), description="a map: the engine's name, and options by engine")
    requests: Requests = Field(description="a map: count, and lengths, a trace or prompts")
    load: Load = Field(description="a map: shape, and the keys of that shape")
    warmup: WarmUp = Field(WarmUp(), description="a map: number of requests")
    objectives: Objectives = Field(Objectives(), description="a map of upper limits")
    give_up_s: Seconds = Field(
        30.0, description="seconds above 0, 30 or '1 min', without a success after which a failing load ends"
    )
    seed: int = Field(0, ge=0, lt=2**63, strict=True, description="a whole number, 0 or more")
    scenario: str | None = Field(None, description="the name of a scenario, or its file")

    @model_validator(mode="after")
    def _ends(self) -> Workload:
        if self.requests.count is None and math.isinf(self.load.end_s) and self.load.shape != "trace":
            raise PydanticCustomError("lacks", "is missing, and nothing else ends the run", {"key": "requests.count"})
        if min(self.load.end_s, expected_s(self.load, self.requests.count or 0)) > YEAR_S:
            message = "is so low that the requests take more than a year"
            key = "load.to_rate_per_s" if self.load.shape == "ramp" else "load.rate_per_s"
            raise PydanticCustomError("lacks", message, {"key": key})
        return self

    def engine_model(self, name: str) -> str | None:
        """The model for the engine `name`; None for a running server if the workload names no model.

        >>> text = "requests: {count: 1, input_tokens: 1, output_tokens: 1}\\nload: {shape: offline}"
        >>> parse_workload(text, "x.yaml").engine_model("openai") is None
        True
        """
        attached = name == "openai" and not self.engine_options(name).get("serve")
        return None if attached and "model" not in self.model_fields_set else self.model

    def engine_options(self, name: str) -> dict[str, Any]:
        """The options for the engine `name`: the map under its name, overridden by `options`.

        For a server, `connections` defaults to the load's maximum number of requests in flight, if known.
        """
        given = _merged((self.engine.model_extra or {}).get(name, {}), self.engine.options)
        most = len(user_spans(self.load)) if self.load.closed else self.load.max_in_flight
        return {"connections": most, **given} if name == "openai" and most is not None else given


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(under)
    for key, value in over.items():
        out[key] = _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def parse_workload(
    text: str, origin: str, overrides: Values = AS_WRITTEN, by: Mapping[str, str] = AS_WRITTEN
) -> Workload:
    """A workload from YAML text; `origin` is its file, for error messages and for a missing `name`.

    `overrides` maps dotted keys to values, and `by` those that were not given by `--set` to what gave them.
    HarnessError for a mistake: place, key, value and the expected form.

    >>> parse_workload("requests: {count: 2, input_tokens: 8, output_tokens: 4}\\nload: {shape: ofline}", "x.yaml")
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: x.yaml:2: load.shape is 'ofline'
      fix: did you mean 'offline'? expected shape: one of closed, offline, constant, poisson, gamma, trace, ramp, steps
    """
    data, places = read_map(text, origin, "a map with at least requests and load")
    data = {"name": PurePath(origin).stem, **data}
    workload = workload_of(data, origin, overrides, places, by)
    for key, value in (data.get("objectives") or {}).items():
        name = f"objectives.{key}"
        where = by.get(name, "--set") if name in overrides else places.get(name, origin)
        doubt_seconds(f"{where}: {name}", key, value)
    return workload


def doubt_seconds(where: str, latency: str, value: object) -> None:
    """HarnessError for a limit in seconds, without a unit, that is so high that milliseconds are meant."""
    if isinstance(value, int | float) and value > SLOWEST_S.get(latency, math.inf):
        fix = f"did you mean {value / 1000:g} or '{value:g} ms'? If not, write '{value:g} s'"
        raise HarnessError(f"{where} is {value:g} seconds", fix)


def read_limit(where: str, latency: str, text: str) -> float:
    """A limit on a latency in seconds, from `0.5` or `500 ms`. HarnessError for another text, and as `doubt_seconds`.

    >>> read_limit("--ttft", "ttft_s", "500 ms")
    0.5
    """
    try:
        limit: float = TypeAdapter(Seconds).validate_python(text)
    except ValueError:
        raise HarnessError(f"{where} is '{text}'", "give seconds above 0: 0.5 or '500 ms'") from None
    doubt_seconds(where, latency, limit if text.strip()[-1].isdigit() else None)
    return limit


def workload_of(
    data: dict[str, Any],
    origin: str,
    overrides: Values,
    places: Mapping[str, str] = {},
    by: Mapping[str, str] = AS_WRITTEN,
) -> Workload:
    """A workload from its content, as in `parse_workload`; the overrides are written into `data`.

    An override of load.users makes a load closed that has no users, and one of load.rate_per_s makes a load of users
    Poisson, unless load.shape is given too.
    """
    load = data.get("load")
    for key, shape in SHAPED.items():
        name = key.removeprefix("load.")
        if isinstance(load, dict) and overrides.get(key) is not None and "load.shape" not in overrides:
            shaped = name in TAKES.get(str(load.get("shape")), "").split()
            data["load"] = load if shaped else {"shape": shape} | {x: load[x] for x in load.keys() & {"duration_s"}}
    for key, value in overrides.items():
        path = _put(data, key, copy.deepcopy(value))
        given = by.get(key, "--set")
        places = {path.partition(".")[0]: given, **overridden(places, path, by=given)}
    workload = checked(Workload, data, origin, places)
    try:
        workload.model_dump_json()
    except ValueError as error:
        raise HarnessError(f"{origin}: engine: {error}", "use options that JSON can store") from None
    return workload


def _put(data: dict[str, Any], key: str, value: Any) -> str:
    """Write a value into `data` at a dotted key, and return the key that was written.

    `engine.KEY` means `engine.options.KEY` if KEY is neither a field of `Engine` nor an engine's name.
    """
    path = key.split(".")
    if path[0] == "engine" and len(path) > 1 and path[1] not in (*Engine.model_fields, *ENGINES):
        path.insert(1, "options")
    at: Any = data
    for i, part in enumerate(path):
        indices = [str(index) for index in range(len(at))] if isinstance(at, list) else []
        step = int(part) if part in indices else part
        if not isinstance(at, dict) and part not in indices:
            whole = ".".join(path[:i])
            kind = "a list without that index" if isinstance(at, list) else f"{shown(at)}, not a map"
            raise HarnessError(f"--set {key}: {whole} is {kind}", f"set {whole} as a whole")
        if i == len(path) - 1:
            at[step] = value
        elif isinstance(at, dict) and at.get(step) is None:
            at[step] = {}
        at = at[step]
    return ".".join(path)


class Prompt(Section):
    """One prompt of a prompts file, or of a recorded conversation."""

    prompt: str = Field(min_length=1)
    output_tokens: LengthsOrInt = None
    answer: str | None = None
    """The recorded answer; its length is requested if no other length is given."""


Prompts = tuple[tuple[Prompt, ...], ...]
"""Conversations; each holds the user's prompts in order."""
