"""Workloads: what is asked of an engine, read from YAML text, and the requests that follow. Pure: opens no file."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from statistics import NormalDist
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from harness import yamltext
from harness.errors import HarnessError
from harness.load import MOST, WHOLE, Count, Load, Seconds, Trace, check_keys
from harness.model import Request

RESERVED_IDS = 128
"""Random prompts use no token id below this: tokenizers keep their special tokens there, where not at the end."""

SOURCES: Mapping[str, str] = {
    "random tokens": "input_tokens output_tokens",
    "a trace": "trace trace_order?",
    "prompts": "prompts output_tokens?",
}
LENGTHS: Mapping[str, str] = {
    "fixed": "tokens",
    "uniform": "min max",
    "normal": "mean std min? max?",
    "lognormal": "median p95 min? max?",
}
"""Where requests come from, or a distribution -> the keys that go with it; `?` marks those that may be left out."""

Tokens = Annotated[float, Field(ge=1, le=MOST, allow_inf_nan=False, strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lengths(_Part):
    """How many tokens a prompt or an answer has; `LENGTHS` says which keys go with which distribution."""

    distribution: Literal["fixed", "uniform", "normal", "lognormal"] = Field(
        description="one of fixed, uniform, normal, lognormal"
    )
    tokens: Count | None = Field(None, description=f"tokens of every request, {WHOLE}")
    mean: Tokens | None = Field(None, description="mean tokens, from 1 to 10 million")
    std: Tokens | None = Field(None, description="standard deviation in tokens, from 1 to 10 million")
    median: Tokens | None = Field(None, description="median tokens, from 1 to 10 million")
    p95: Tokens | None = Field(None, description="tokens that 95% of the requests stay below, above the median")
    min: Count | None = Field(None, description=f"the fewest tokens, {WHOLE}")
    max: Count | None = Field(None, description=f"the most tokens, {WHOLE}, not below min")

    @model_validator(mode="after")
    def _keys_fit(self) -> Lengths:
        check_keys(dict(self), self.distribution, LENGTHS)
        if self.max is not None and self.max < self.shortest():
            raise PydanticCustomError("order", "is below min", {"key": "max"})
        if self.p95 is not None and self.median is not None and self.p95 <= self.median:
            raise PydanticCustomError("order", "is not above the median", {"key": "p95"})
        return self

    def shortest(self) -> int:
        """No request has fewer tokens than this."""
        return next(least for least in (self.tokens, self.min, 1) if least is not None)

    def at(self, u: float) -> int:
        """The quantile at 0 < u < 1, rounded, and moved to `min` (else 1) or `max` where it lies outside.

        normal: mean + std z(u). lognormal: median exp(z(u) ln(p95 / median) / z(0.95)). z: the normal quantile.

        >>> Lengths(distribution="lognormal", median=100, p95=400).at(0.95)
        400
        """
        length, z = float(self.shortest()), NormalDist().inv_cdf
        if self.distribution == "uniform" and self.max is not None:
            length += int(u * (self.max - length + 1))
        elif self.mean is not None and self.std is not None:
            length = self.mean + self.std * z(u)
        elif self.median is not None and self.p95 is not None:
            length = self.median * math.exp(z(u) * math.log(self.p95 / self.median) / z(0.95))
        return max(self.shortest(), round(min(length, MOST if self.max is None else self.max)))


def _short_form(value: object) -> object:
    """`64` is short for `{distribution: fixed, tokens: 64}`."""
    return {"distribution": "fixed", "tokens": value} if isinstance(value, int | float) else value


_LENGTHS = "a whole number of tokens, or {distribution: uniform, min: 16, max: 64}, or normal, or lognormal"
LengthsOrInt = Annotated[Lengths | None, BeforeValidator(_short_form)]


class Requests(_Part):
    """What each request holds: random tokens of given lengths, lengths from a trace, or texts."""

    count: Count | None = Field(None, description=f"how many requests, {WHOLE}")
    input_tokens: LengthsOrInt = Field(None, description=_LENGTHS)
    output_tokens: LengthsOrInt = Field(None, description=_LENGTHS)
    trace: str | None = Field(None, description="a shipped trace's name or a CSV file, for its lengths")
    trace_order: Literal["sampled", "recorded"] | None = Field(None, description="one of sampled, recorded")
    prompts: str | None = Field(None, description='a JSONL file with a line {"prompt": text, "output_tokens": n} each')
    ignore_eos: bool = Field(True, description="true (always the asked output length) or false", strict=True)
    max_input_tokens: Count | None = Field(None, description=f"the longest prompt, {WHOLE}")
    max_total_tokens: Annotated[Count, Field(gt=1)] | None = Field(
        None, description="the most input and output tokens together, a whole number from 2 to 10 million"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Requests:
        chosen = "prompts" if self.prompts is not None else "a trace" if self.trace is not None else "random tokens"
        check_keys(dict(self), chosen, SOURCES)
        return self


class Engine(_Part):
    """Which engine, and its options: free maps, which the engine itself checks."""

    name: Literal["auto", "simulated", "transformers", "vllm"] = Field(
        "auto", description="one of auto, simulated, transformers, vllm"
    )
    options: dict[str, Any] = Field({}, description="a map of options for whichever engine runs")
    simulated: dict[str, Any] = Field({}, description="a map of options for the simulated engine")
    transformers: dict[str, Any] = Field({}, description="a map of options for transformers")
    vllm: dict[str, Any] = Field({}, description="a map of options for vllm")


class WarmUp(_Part):
    """Requests before the measured part."""

    requests: int = Field(1, ge=0, le=100_000, strict=True, description="a whole number from 0 to 100,000")


_LIMIT = "the longest that is good enough, seconds above 0: 0.2 or '200 ms'"


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
        if self.requests.count is None and self.load.duration_s is None and self.load.shape != "trace":
            raise PydanticCustomError("lacks", "is missing, and nothing else ends the run", {"key": "requests.count"})
        return self

    def engine_options(self, name: str) -> dict[str, Any]:
        """The options for the engine of that name: its own map, under those given for whichever engine runs."""
        return _merged(getattr(self.engine, name, {}), self.engine.options)


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
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= keys(inner, f"{prefix}{name}.")
    return found


def parse_workload(text: str, origin: str, overrides: Sequence[str] = ()) -> Workload:
    """A workload from YAML text; `origin`, its file, stands in errors and gives the name where the text has none.

    `overrides` are `key.path=value`, the value YAML; `engine.KEY=value`, where KEY is neither `name` nor an engine's
    name, goes to whichever engine runs. HarnessError for any mistake: the place, the key, the value, the expected form.

    >>> parse_workload("requests: {count: 2, input_tokens: 8, output_tokens: 4}\\nload: {shape: ofline}", "x.yaml")
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: x.yaml:2: load.shape is 'ofline'
      fix: did you mean 'offline'? expected shape: one of closed, offline, constant, poisson, gamma, trace
    """
    data, places = yamltext.read(text, origin)
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
    value, _ = yamltext.read(text, f"--set {key}")
    if path[0] == "engine" and len(path) > 1 and path[1] not in Engine.model_fields:
        path.insert(1, "options")
    at = data
    for i, part in enumerate(path[:-1], start=1):
        if at.get(part) is None:
            at[part] = {}
        at = at[part]
        if not isinstance(at, dict):
            whole = ".".join(path[:i])
            raise HarnessError(f"--set {key}: {whole} is {_show(at)}, not a map", f"set {whole} as a whole")
    at[path[-1]] = value
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
    fix = f"expected {leaf}: {forms.get(dotted, 'a value of another kind')}"
    choices = re.findall(r"'(\w+)'", context.get("expected", ""))
    if kind in ("extra_forbidden", "invalid_key"):
        choices = [key.rpartition(".")[2] for key in forms if key.rpartition(".")[0] == parent]
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


def request_maker(
    workload: Workload,
    vocabulary: int,
    max_length: int | None = None,
    trace: Trace | None = None,
    texts: Sequence[Prompt] = (),
    encode: Callable[[str], list[int]] | None = None,
) -> Callable[[int], Request]:
    """A function from index (0 and up) to request: the same in any order, at any speed, in any process.

    Random token ids are uniform over [RESERVED_IDS, vocabulary), or over the upper half of a smaller vocabulary. A
    trace's rows in recorded order, and prompts, start over after the last. What exceeds `max_input_tokens` or
    `max_total_tokens` is cut, the input first; what exceeds the engine's `max_length` is left for it to reject.

    HarnessError where every request exceeds `max_length`, where prompts meet an engine without a tokenizer, and where a
    prompt has no output length. ValueError where the workload's trace or prompts were not passed.

    The random numbers are raw words of Philox, a counter-based generator that has the words of (seed, index) at hand;
    numpy keeps those the same from version to version, and promises no such thing of its distributions (NEP 19).
    """
    asked = workload.requests
    prompts = [] if asked.prompts is None else _encoded(asked, texts, encode)
    lengths = _lengths(asked, trace, prompts)
    low = min(RESERVED_IDS, vocabulary // 2)
    if asked.input_tokens is not None and asked.output_tokens is not None and max_length is not None:
        least = sum(_cut(asked, asked.input_tokens.shortest(), asked.output_tokens.shortest()))
        if least > max_length:
            raise HarnessError(
                f"every request has {least} tokens or more, input and output together; the engine takes {max_length}",
                f"set requests.max_total_tokens={max_length}, or give the engine more room",
            )

    def make(index: int) -> Request:
        words = np.random.Philox(key=workload.seed, counter=index << 64)
        u, v = (((words.random_raw(2) >> 12) + 0.5) * 2.0**-52).tolist()  # never 0 or 1
        n_in, n_out = _cut(asked, *lengths(index, u, v))
        if prompts:
            ids = prompts[index % len(prompts)][0][:n_in]
        else:
            ids = tuple((low + ((words.random_raw(n_in) >> 32) * (vocabulary - low) >> 32)).tolist())
        return Request(index, ids, n_out, asked.ignore_eos)

    return make


_Encoded = list[tuple[tuple[int, ...], Lengths]]
"""Token ids and answer lengths of each prompt."""


def _encoded(asked: Requests, texts: Sequence[Prompt], encode: Callable[[str], list[int]] | None) -> _Encoded:
    if encode is None:
        raise HarnessError(f"{asked.prompts} holds texts; this engine has no tokenizer", "give input_tokens instead")
    rows = []
    for number, prompt in enumerate(texts, start=1):
        output = asked.output_tokens if prompt.output_tokens is None else prompt.output_tokens
        if output is None:
            what = f"{asked.prompts}: prompt {number} has no output_tokens"
            raise HarnessError(what, "add it there, or set requests.output_tokens")
        rows.append((tuple(encode(prompt.prompt)), output))
    return rows


def _lengths(asked: Requests, trace: Trace | None, prompts: _Encoded) -> Callable[[int, float, float], tuple[int, int]]:
    """A function from index and two uniform numbers to (input, output) tokens, before any cut."""
    n_in, n_out = asked.input_tokens, asked.output_tokens
    if prompts:
        return lambda index, _, v: (len(prompts[index % len(prompts)][0]), prompts[index % len(prompts)][1].at(v))
    if asked.trace is not None and trace is not None:
        rows = list(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
        if asked.trace_order == "recorded":
            return lambda index, _u, _v: rows[index % len(rows)]
        return lambda _, u, _v: rows[int(u * len(rows))]
    if n_in is None or n_out is None:
        raise ValueError("the workload's trace or prompts were not passed")
    return lambda _, u, v: (n_in.at(u), n_out.at(v))


def _cut(asked: Requests, n_in: int, n_out: int) -> tuple[int, int]:
    n_in = n_in if asked.max_input_tokens is None else min(n_in, asked.max_input_tokens)
    if asked.max_total_tokens is not None:
        n_out = min(n_out, asked.max_total_tokens - 1)
        n_in = min(n_in, asked.max_total_tokens - n_out)
    return n_in, n_out
