"""Workloads: what is asked of an engine, read from YAML text. Pure: opens no file."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from harness.config import read_yaml
from harness.errors import HarnessError
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
    """Which engine, and its options: free maps, which the engine itself checks."""

    name: Literal["auto", "openai", "simulated", "transformers", "vllm"] = Field(
        "auto", description="one of auto, openai, simulated, transformers, vllm"
    )
    options: dict[str, Any] = Field({}, description="a map of options for whichever engine runs")
    openai: dict[str, Any] = Field({}, description="a map of options for a server")
    simulated: dict[str, Any] = Field({}, description="a map of options for the simulated engine")
    transformers: dict[str, Any] = Field({}, description="a map of options for transformers")
    vllm: dict[str, Any] = Field({}, description="a map of options for vllm")


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
        given = _merged(getattr(self.engine, name, {}), self.engine.options)
        most = len(user_spans(self.load)) if self.load.closed else self.load.max_in_flight
        return {"connections": most, **given} if name == "openai" and most is not None else given


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(under)
    for key, value in over.items():
        out[key] = _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def keys(model: type[BaseModel] = Workload, prefix: str = "") -> dict[str, str]:
    """Every key that a workload may have, dotted, with the form that its value takes."""
    found = {}
    for name, field in model.model_fields.items():
        found[prefix + name] = field.description or ""
        for inner in _models(field.annotation):
            found |= keys(inner, f"{prefix}{name}.")
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def parse_workload(text: str, origin: str, overrides: Sequence[str] = ()) -> Workload:
    """A workload from YAML text; `origin`, its file, stands in errors and gives the name where the text has none.

    `overrides` are `key.path=value`, the value YAML; `engine.KEY=value`, where KEY is neither `name` nor an engine's
    name, goes to whichever engine runs. HarnessError for any mistake: the place, the key, the value, the expected form.

    >>> parse_workload("requests: {count: 2, input_tokens: 8, output_tokens: 4}\\nload: {shape: ofline}", "x.yaml")
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: x.yaml:2: load.shape is 'ofline'
      fix: did you mean 'offline'? expected shape: one of closed, offline, constant, poisson, gamma, trace, ramp, steps
    """
    data, places = read_yaml(text, origin)
    if not isinstance(data, dict):
        raise HarnessError(f"{origin}: {_show(data)} is not a workload", "write a map with at least requests and load")
    data = {"name": PurePath(origin).stem, **data}
    for override in overrides:
        path = _set(data, override)
        places[path] = "--set"
        places.setdefault(path.partition(".")[0], "--set")
    try:
        workload = Workload.model_validate(data)
        workload.model_dump_json()
    except ValidationError as error:
        raise _explained(error.errors()[0], origin, places) from None
    except ValueError as error:
        raise HarnessError(f"{origin}: engine: {error}", "give options that JSON can hold: they are stored") from None
    return workload


def _set(data: dict[str, Any], override: str) -> str:
    """Puts one `key.path=value` into `data`, and returns the path under which it went."""
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise HarnessError(f"--set '{override}' is not of the form key=value", "write for instance --set load.users=4")
    value, _ = read_yaml(text, f"--set {key}")
    if path[0] == "engine" and len(path) > 1 and path[1] not in Engine.model_fields:
        path.insert(1, "options")
    at: Any = {"": data}
    step: Any
    for i, part in enumerate(["", *path]):
        step = int(part) if isinstance(at, list) and re.fullmatch("[0-9]{1,6}", part) and int(part) < len(at) else part
        if not isinstance(at, list if isinstance(step, int) else dict):
            whole = ".".join(path[: i - 1])
            kind = "a list without that place" if isinstance(at, list) else f"{_show(at)}, not a map"
            raise HarnessError(f"--set {key}: {whole} is {kind}", f"set {whole} as a whole")
        if i == len(path):
            at[step] = value
        elif isinstance(at, dict) and at.get(step) is None:
            at[step] = {}
        at = at[step]
    return ".".join(path)


def _show(value: object) -> str:
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str, skipkeys=True)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _explained(error: ErrorDetails, origin: str, places: Mapping[str, str]) -> HarnessError:
    """The error in a user's words: where, which key, which value, and what was expected."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    dotted = ".".join(map(str, error["loc"]))
    if "key" in context:  # a check of several keys together names the one at fault
        dotted = f"{dotted}.{context['key']}".lstrip(".")
        value = value.get(context["key"]) if isinstance(value, dict) else value
    parent, _, leaf = dotted.rpartition(".")
    where = next((places[key] for key in (dotted, parent, parent.rpartition(".")[0]) if key in places), origin)
    forms = keys()
    form, parent_form = (re.sub(r"\.[0-9]+(?=\.|$)", "", key) for key in (dotted, parent))
    fix = f"expected {leaf}: {forms.get(form, 'a value of another kind')}"
    choices = re.findall(r"'(\w+)'", context.get("expected", ""))
    if kind in ("extra_forbidden", "invalid_key"):
        choices = [key.rpartition(".")[2] for key in forms if key.rpartition(".")[0] == parent_form]
        what, fix = f"unknown key {dotted}, given {_show(value)}", f"the keys here are {', '.join(choices)}"
    elif kind in ("missing", "lacks"):
        what = f"{dotted} {error['msg'] if kind == 'lacks' else 'is missing'}"
    else:
        what = f"{dotted} is {_show(value)}{', which ' + error['msg'] if 'key' in context else ''}"
        fix = f"remove it, or --set {dotted}=null" if kind == "stray" else fix
    match = difflib.get_close_matches(leaf if kind == "extra_forbidden" else str(value), choices, 1)
    return HarnessError(f"{where}: {what}", f"did you mean '{match[0]}'? {fix}" if match else fix)


class Prompt(_Part):
    """A text to send, with its own answer length where it has one: a line of a prompts file."""

    prompt: str = Field(min_length=1)
    output_tokens: LengthsOrInt = None
    answer: str | None = None
    """As it was recorded; its length is asked for where no other is given."""


Prompts = tuple[tuple[Prompt, ...], ...]
"""Conversations, each with what the user says in turn."""
