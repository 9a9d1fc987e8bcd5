"""Workloads: what is asked of an engine, read from YAML text. Pure: opens no file."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from harness.config import AS_WRITTEN, Values, checked, overridden, read_map, shown
from harness.errors import HarnessError
from harness.model import ENGINES
from harness.workload.arrivals import WHOLE, Count, Load, Positive, Seconds, check_keys, user_spans
from harness.workload.lengths import LENGTHS_FORM, TIMES_FORM, LengthsOrInt, TimesOrSeconds

SOURCES: Mapping[str, str] = {
    "random tokens": "input_tokens output_tokens",
    "a trace": "trace trace_order?",
    "prompts": "prompts output_tokens?",
}
PREFIXES: Mapping[str, str] = {"random tokens": "tokens count?", "texts": "texts"}
"""Where requests come from, or prefixes -> the keys that go with it; `?` marks those that may be left out."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Share = Annotated[float, Field(gt=0, le=1, strict=True)]

_LIMIT = "the longest that is good enough, seconds above 0: 0.2 or '200 ms'"


class Prefix(_Part):
    """What some requests begin with: one of a few prompts that they share."""

    share: Share = Field(1.0, description="the share of the requests, above 0, up to 1")
    tokens: Count | None = Field(None, description=f"length of each prefix, {WHOLE}")
    count: Count | None = Field(None, description=f"how many prefixes there are, {WHOLE}")
    texts: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(None, description="a list of texts")

    @model_validator(mode="after")
    def _keys_fit(self) -> Prefix:
        check_keys(dict(self), "texts" if self.texts else "random tokens", PREFIXES)
        return self


class Content(_Part):
    """What each request holds: random tokens of given lengths, lengths from a trace, or texts."""

    input_tokens: LengthsOrInt = Field(None, description=LENGTHS_FORM)
    output_tokens: LengthsOrInt = Field(None, description=LENGTHS_FORM)
    trace: str | None = Field(None, description="a shipped trace's name or a file, for its lengths")
    trace_order: Literal["sampled", "recorded"] | None = Field(None, description="one of sampled, recorded")
    prompts: str | None = Field(None, description="a JSONL file of prompts, or a JSON file of ShareGPT's form")
    turns: LengthsOrInt = Field(None, description="turns of a conversation, as lengths are given; at most 1,000")
    think_time_s: TimesOrSeconds = Field(None, description=TIMES_FORM)
    prefix: Prefix | None = Field(None, description="a map: share, and tokens and count, or texts")
    cancel_after_s: TimesOrSeconds = Field(None, description=TIMES_FORM)
    cancel_share: Share | None = Field(None, description="the share of the requests, above 0, up to 1")
    ignore_eos: bool = Field(True, description="true (always the asked output length) or false", strict=True)
    max_input_tokens: Count | None = Field(None, description=f"the longest prompt, {WHOLE}")
    max_total_tokens: Annotated[Count, Field(gt=1)] | None = Field(
        None, description="the most input and output tokens together, a whole number from 2 to 10 million"
    )

    @model_validator(mode="after")
    def _keys_fit(self) -> Content:
        if getattr(self, "parts", None):  # which hold all that stands beside them, and were checked
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
    """One kind of request in a mixture."""

    name: str = Field(min_length=1, description="a short name, different for each part")
    weight: Positive = Field(1.0, description="a number above 0: its share is weight / sum of weights")


class Requests(Content):
    """What is sent: so many conversations (of one request each, where no `turns` are asked), of one kind or mixed."""

    count: Count | None = Field(None, description=f"how many requests, or conversations where turns are given, {WHOLE}")
    parts: Annotated[tuple[MixedPart, ...], Field(min_length=1)] | None = Field(
        None, description="a list of maps, each with a name, a weight, and the keys of requests but count"
    )

    @model_validator(mode="before")
    @classmethod
    def _hand_down(cls, data: Any) -> Any:
        """A part takes over what stands beside `parts` and it does not give itself."""
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
        """The parts, or the one kind that there is."""
        return self.parts or (self,)

    @property
    def in_all(self) -> int | None:
        """How many requests there will be; None: that is not known before."""
        return None if any(content.turns for content in self.contents) else self.count


class Engine(_Part):
    """Which engine, and maps of options, which the engine itself checks: `options`, and one by each engine's name."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"propertyNames": {"enum": ["name", "options", *ENGINES]}}
    )
    __pydantic_extra__: dict[str, dict[str, Any]]

    name: str = Field(
        "auto", description=f"one of auto, {', '.join(ENGINES)}", json_schema_extra={"enum": ["auto", *ENGINES]}
    )
    options: dict[str, Any] = Field({}, description="a map of options for whichever engine runs")

    @model_validator(mode="before")
    @classmethod
    def _names_known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("name", "auto") not in (names := ["auto", *ENGINES]):
            raise PydanticCustomError("order", "is no engine", {"key": "name", "expected": names})
        if unknown := [key for key in data if key not in (*cls.model_fields, *ENGINES)]:
            known = [*cls.model_fields, *ENGINES]
            raise PydanticCustomError("unknown", "is no engine", {"key": str(unknown[0]), "expected": known})
        return {name: {} for name in ENGINES} | data


class WarmUp(_Part):
    """Requests before the measured part."""

    requests: int = Field(1, ge=0, le=100_000, strict=True, description="a whole number from 0 to 100,000")


class Objectives(_Part):
    """Upper limits that one request must meet to count as good; an absent one is always met."""

    ttft_s: Seconds | None = Field(None, description=_LIMIT)
    tpot_s: Seconds | None = Field(None, description=_LIMIT)
    itl_s: Seconds | None = Field(None, description=_LIMIT)
    e2e_s: Seconds | None = Field(None, description=_LIMIT)


class Workload(_Part):
    """One workload: everything that a run is asked to do."""

    name: str = Field(min_length=1, description="a short name; the file's name where it is left out")
    description: str = Field("", description="one line of text")
    model: str = Field(
        "smollm2-135m", min_length=1, description="a short name, a hub id, a local directory or a GGUF file"
    )
    engine: Engine = Field(Engine(), description="a map: the engine's name, and options by engine")
    requests: Requests = Field(description="a map: count, and lengths, a trace or prompts")
    load: Load = Field(description="a map: shape, and the keys of that shape")
    warmup: WarmUp = Field(WarmUp(), description="a map: how many requests")
    objectives: Objectives = Field(Objectives(), description="a map of upper limits")
    seed: int = Field(0, ge=0, lt=2**63, strict=True, description="a whole number, 0 or more")
    scenario: str | None = Field(None, description="the name of a scenario, or its file")

    @model_validator(mode="after")
    def _ends(self) -> Workload:
        if self.requests.count is None and math.isinf(self.load.end_s) and self.load.shape != "trace":
            raise PydanticCustomError("lacks", "is missing, and nothing else ends the run", {"key": "requests.count"})
        return self

    def engine_model(self, name: str) -> str | None:
        """The model for the engine of that name; None, where a server that runs already serves what it serves.

        >>> text = "requests: {count: 1, input_tokens: 1, output_tokens: 1}\\nload: {shape: offline}"
        >>> parse_workload(text, "x.yaml").engine_model("openai") is None
        True
        """
        attached = name == "openai" and not self.engine_options(name).get("serve")
        return None if attached and "model" not in self.model_fields_set else self.model

    def engine_options(self, name: str) -> dict[str, Any]:
        """The options for the engine of that name: its own map, under those given for whichever engine runs.

        To a server as many connections are opened beforehand as the load says that there may be requests in flight.
        """
        given = _merged((self.engine.model_extra or {}).get(name, {}), self.engine.options)
        most = len(user_spans(self.load)) if self.load.closed else self.load.max_in_flight
        return {"connections": most, **given} if name == "openai" and most is not None else given


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(under)
    for key, value in over.items():
        out[key] = _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def parse_workload(text: str, origin: str, overrides: Values = AS_WRITTEN) -> Workload:
    """A workload from YAML text; `origin`, its file, stands in errors and gives the name where the text has none.

    `overrides` are values by dotted key. HarnessError for any mistake: place, key, value, and the expected form.

    >>> parse_workload("requests: {count: 2, input_tokens: 8, output_tokens: 4}\\nload: {shape: ofline}", "x.yaml")
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: x.yaml:2: load.shape is 'ofline'
      fix: did you mean 'offline'? expected shape: one of closed, offline, constant, poisson, gamma, trace, ramp, steps
    """
    data, places = read_map(text, origin, "a map with at least requests and load")
    return workload_of({"name": PurePath(origin).stem, **data}, origin, overrides, places)


def workload_of(data: dict[str, Any], origin: str, overrides: Values, places: Mapping[str, str] = {}) -> Workload:
    """A workload from its content as `parse_workload` makes it from a text; the overrides are put into `data`."""
    for key, value in overrides.items():
        path = _put(data, key, copy.deepcopy(value))
        places = {path.partition(".")[0]: "--set", **overridden(places, path)}
    workload = checked(Workload, data, origin, places)
    try:
        workload.model_dump_json()
    except ValueError as error:
        raise HarnessError(f"{origin}: engine: {error}", "give options that JSON can hold: they are stored") from None
    return workload


def _put(data: dict[str, Any], key: str, value: Any) -> str:
    """Put a value into `data` at a dotted key, and return the key under which it went.

    `engine.KEY`, where KEY is neither a field of `Engine` nor an engine's name, is an option of whichever engine runs.
    """
    path = key.split(".")
    if path[0] == "engine" and len(path) > 1 and path[1] not in (*Engine.model_fields, *ENGINES):
        path.insert(1, "options")
    at: Any = {"": data}
    step: Any
    for i, part in enumerate(["", *path]):
        step = int(part) if isinstance(at, list) and re.fullmatch("[0-9]{1,6}", part) and int(part) < len(at) else part
        if not isinstance(at, list if isinstance(step, int) else dict):
            whole = ".".join(path[: i - 1])
            kind = "a list without that place" if isinstance(at, list) else f"{shown(at)}, not a map"
            raise HarnessError(f"--set {key}: {whole} is {kind}", f"set {whole} as a whole")
        if i == len(path):
            at[step] = value
        elif isinstance(at, dict) and at.get(step) is None:
            at[step] = {}
        at = at[step]
    return ".".join(path)


class Prompt(_Part):
    """A text to send, with its own answer length where it has one: a line of a prompts file."""

    prompt: str = Field(min_length=1)
    output_tokens: LengthsOrInt = None
    answer: str | None = None
    """As it was recorded; its length is asked for where no other is given."""


Prompts = tuple[tuple[Prompt, ...], ...]
"""Conversations, each with what the user says in turn."""
