"""YAML as people write it by hand: one document, with the line of each key for error messages. Pure: opens no file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from harness.errors import HarnessError


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines of them can stand for more than fits the memory
            raise yaml.MarkedYAMLError(
                problem="an alias is not taken here", problem_mark=parent.start_mark if parent else None
            )
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in rules if not tag.endswith((":int", ":float", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$"
for _tag, _form in (("int", r"[-+]?(0|[1-9][0-9]*)$"), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_form), list("-+.0123456789"))


def read_yaml(text: str, origin: str) -> tuple[Any, dict[str, str]]:
    """The value of a YAML text, and `origin:line` of each dotted key in it.

    Numbers are those of YAML 1.2: 1e3 is one, and 010, 1:30 and dates are text. Aliases and keys given twice are
    refused. HarnessError, with `origin` and the line, for what is not YAML.

    >>> read_yaml("a: {b: 1e3}", "x.yaml")
    ({'a': {'b': 1000.0}}, {'a': 'x.yaml:1', 'a.b': 'x.yaml:1'})
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        places = dict(_places(node, origin))
        return None if node is None else loader.construct_document(node), places
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = origin if mark is None or origin.startswith("--") else f"{origin}:{mark.line + 1}"
        what = f"{where}: not YAML: {problem or str(error).splitlines()[0]}"
        raise HarnessError(what, "mend it there or above; text with signs such as : # [ needs quotes") from None


def _places(node: yaml.Node | None, origin: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key -> `origin:line`. Of a key given twice YAML itself drops the first without a word."""
    seen = set()
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            place = f"{origin}:{key.start_mark.line + 1}"
            if dotted in seen:
                raise HarnessError(f"{place}: {dotted} is given twice", "remove one of the two")
            seen.add(dotted)
            yield dotted, place
            yield from _places(value, origin, f"{dotted}.")
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield f"{prefix}{i}", f"{origin}:{item.start_mark.line + 1}"
            yield from _places(item, origin, f"{prefix}{i}.")
