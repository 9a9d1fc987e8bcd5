"""What users write: YAML texts, `--set` values, and the error messages for mistakes in them. Opens no user's file."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from harness.errors import HarnessError
from harness.files import read_data

Form = TypeVar("Form", bound=BaseModel)
Values = Mapping[str, Any]
"""Dotted key -> value, as given with `--set`."""
AS_WRITTEN: Values = {}
"""No overrides."""


class Section(BaseModel):
    """Base of the maps that users write: immutable, unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


MOST_CHARACTERS, DEEPEST = 10_000_000, 50
"""Largest length of a YAML text, and its deepest nesting: PyYAML needs minutes and gigabytes beyond."""


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines with aliases can expand to more than the memory holds
            mark = parent.start_mark if parent else None
            raise yaml.MarkedYAMLError(problem="an alias is not allowed", problem_mark=mark)
        if self.depth == DEEPEST:
            problem = f"more than {DEEPEST} maps and lists inside each other"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in rules if not tag.endswith((":int", ":float", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$"
for _tag, _form in (("int", r"[-+]?(0|[1-9][0-9]*)$"), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_form), list("-+.0123456789"))


def read_yaml(text: str, origin: str) -> tuple[Any, dict[str, str]]:
    """The value of a YAML text, and `origin:line` of each dotted key in the text.

    Numbers follow YAML 1.2: 1e3 is a number; 010, 1:30 and dates are text. Aliases and duplicate keys are refused, and
    texts of more than `MOST_CHARACTERS` or nested deeper than `DEEPEST`.
    HarnessError, with `origin` and the line, if the text is not valid YAML.

    >>> read_yaml("a: {b: 1e3}", "x.yaml")
    ({'a': {'b': 1000.0}}, {'a': 'x.yaml:1', 'a.b': 'x.yaml:1'})
    """
    if len(text) > MOST_CHARACTERS:
        what = f"{origin}: {len(text):,} characters, more than the {MOST_CHARACTERS:,} that are read"
        raise HarnessError(what, "give requests and arrivals as a JSONL or CSV file instead")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        places = dict(_places(node, origin))
        return None if node is None else loader.construct_document(node), places
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = origin if mark is None or origin.startswith("--") else f"{origin}:{mark.line + 1}"
        what = f"{where}: not YAML: {problem or str(error).splitlines()[0]}"
        raise HarnessError(what, "correct that line or one above it; text with : # or [ needs quotes") from None


def _places(node: yaml.Node | None, origin: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, `origin:line`) pairs. Duplicate keys are refused: PyYAML would silently keep only the last."""
    items: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        items = [(f"{prefix}{key.value}", key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        items = [(f"{prefix}{i}", item, item) for i, item in enumerate(node.value)]
    seen = set()
    for dotted, key, value in items:
        place = f"{origin}:{key.start_mark.line + 1}"
        if dotted in seen:
            raise HarnessError(f"{place}: {dotted} is given twice", "remove one of them")
        seen.add(dotted)
        yield dotted, place
        yield from _places(value, origin, f"{dotted}.")


def read_map(text: str, origin: str, form: str) -> tuple[dict[str, Any], dict[str, str]]:
    """`read_yaml` of a text that must be a map; `form` describes the map for the error message."""
    data, places = read_yaml(text, origin)
    if not isinstance(data, dict):
        raise HarnessError(f"{origin}: {shown(data)} is not a map", f"write {form}")
    return data, places


def data_yaml(name: str) -> Any:
    """The content of a shipped YAML file."""
    return read_yaml(read_data(name), name)[0]


def overrides(words: Values | Iterable[str]) -> dict[str, Any]:
    """Dotted key -> value, from `--set` words `KEY=VALUE` with VALUE in YAML. The last value of a key wins.

    A map is returned as a dict, unchanged. HarnessError, with the word or its key, if a word has another form.

    >>> overrides(["load.users=4", "requests.prefix={tokens: 8}", "chat_share=0.3:0.6"])
    {'load.users': 4, 'requests.prefix': {'tokens': 8}, 'chat_share': '0.3:0.6'}
    """
    if isinstance(words, Mapping):
        return dict(words)
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            example = "load.users=4" if equals or not all(key.split(".")) else f"{key}=VALUE"
            raise HarnessError(f"--set '{word}' is not of the form KEY=VALUE", f"write for instance --set {example}")
        found.pop(key, None)  # a repeated key moves to its last position
        found[key], _ = read_yaml(text, f"--set {key}")
    return found


def overridden(places: Mapping[str, str], *keys: str, by: str = "--set") -> dict[str, str]:
    """`places`, with `by` as the place of `keys` and without the places of all keys below them."""
    below = tuple(f"{key}." for key in keys)
    return {key: where for key, where in places.items() if not key.startswith(below)} | dict.fromkeys(keys, by)


def low_high(value: Any) -> tuple[float, float]:
    """(low, high) from the text LOW:HIGH, or twice the same number from a number. ValueError for anything else.

    >>> low_high("0.3:0.6"), low_high(2), low_high("60%")
    ((0.3, 0.6), (2.0, 2.0), (0.6, 0.6))
    """
    ends = value.split(":") if isinstance(value, str) else [value]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or len(ends) > 2:
        raise ValueError("neither a number nor LOW:HIGH")
    numbers = [float(str(end).strip().removesuffix("%")) / (100 if "%" in str(end) else 1) for end in ends]
    return numbers[0], numbers[-1]


def checked(
    form: type[Form] | TypeAdapter[Form], data: Any, origin: str, places: Mapping[str, str] = {}, fix: str = ""
) -> Form:
    """`data` validated as `form`. HarnessError for the first mistake: place, dotted key, value, expected form.

    `places` come from `read_yaml`; a key without a place is reported at `origin`. `fix` replaces the advice to correct
    the value.
    """
    try:
        return form.validate_python(data) if isinstance(form, TypeAdapter) else form.model_validate(data)
    except ValidationError as invalid:
        what, expected = _in_words(invalid.errors()[0], form, origin, places)
        raise HarnessError(what, fix or expected) from None


def refused(where: str, key: str, value: object, expected: str) -> HarnessError:
    """The error for a value that is not of the expected form."""
    return HarnessError(f"{where}: {key} is {shown(value)}", f"expected {key}: {expected}")


def near(word: str, choices: Iterable[str]) -> str:
    """`did you mean 'X'? ` for the choice that `word` begins, or the most similar one; empty if there is none."""
    known = list(choices)
    match = [each for each in known if word and each.startswith(word)] or difflib.get_close_matches(word, known, 1)
    return f"did you mean '{match[0]}'? " if match else ""


SECRET = re.compile(r"api_?key|secret|passw|authorization|(^|_)token$", re.IGNORECASE)
"""Names of keys whose values no message quotes: logs keep messages."""


def shown(value: object) -> str:
    """A value as error messages quote it, in at most 80 characters."""
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str, skipkeys=True)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _in_words(error: ErrorDetails, form: Any, origin: str, places: Mapping[str, str]) -> tuple[str, str]:
    """What is wrong, and what is expected, from an error of pydantic or of a model's own check.

    The context of a model's own error may hold `key`, the wrong key of several that were checked, and `expected`, the
    choices. Its types: `lacks` (a missing key is needed), `stray` (the key must be removed), `unknown` (no such key).
    """
    kind, message, value, context = error["type"], error["msg"], error["input"], error.get("ctx", {})
    path = [part for part in error["loc"] if part != "[key]"]
    if "key" in context:
        path += context["key"].split(".")
        value = value.get(context["key"]) if isinstance(value, dict) else value
    key = place = ".".join(map(str, path))
    while place and place not in places:
        place = place.rpartition(".")[0]
    where = places.get(place, origin)
    if not path:
        return f"{where}: {message}", "see the documentation for the form"
    description, beside = _known(form, path)
    choices = re.findall("'([^']*)'", str(context.get("expected", "")))
    if kind in ("extra_forbidden", "invalid_key", "unknown") or "[key]" in error["loc"]:
        choices = choices or beside
        unsaid = "[key]" in error["loc"] or SECRET.search(str(path[-1]))
        given = "" if unsaid else f", given {shown(value)}"
        advice = f"{near(str(path[-1]), choices)}the keys here are {', '.join(choices)}"
        return f"{where}: unknown key {key}{given}", advice
    leaf = next(part for part in reversed(path) if isinstance(part, str))
    plain = re.sub(r"^(Input should be|Value error,) | or instance of \w+$|, unable to parse.*$", "", message)
    plain = "a list that is not empty" if kind == "too_short" and isinstance(value, list) else plain
    expected = f"expected {leaf}: {description or plain.replace('valid dictionary', 'map')}"
    if kind in ("missing", "lacks"):
        return f"{where}: {key} {message if kind == 'lacks' else 'is missing'}", expected if description else "add it"
    if kind == "stray":
        expected = f"remove it, or --set {key}=null"
    why = f", which {message}" if "key" in context else ""
    return f"{where}: {key} is {shown(value)}{why}", f"{near(str(value), choices)}{expected}"


def _known(form: Any, path: Sequence[int | str]) -> tuple[str, list[str]]:
    """The description of the key at `path` in a model (or its choices), and all keys of the map that holds it."""
    models, fields, field = list(_models(form)), {}, None
    for part in path:
        fields = {name: each for model in models for name, each in model.model_fields.items()}
        if isinstance(part, str):  # an int is an index in a list
            field = fields.get(part)
        models = list(_models(field.annotation)) if field else models
    if field is None:
        return "", list(fields)
    kinds = get_args(field.annotation) if get_origin(field.annotation) is Union else (field.annotation,)
    choices = ", ".join(str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))
    return field.description or (choices and f"one of {choices}"), list(fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
