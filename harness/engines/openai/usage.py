"""Token counts that a server states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.config import data_yaml, shown
from harness.errors import RequestFailed
from harness.model import MOST_TOKENS

_COUNTS: Mapping[str, list[str]] = data_yaml("usage_names.yaml")
"""Count -> its names in a usage."""


class Usage:
    """Token counts under the names of OpenAI's two interfaces and of the servers that differ.

    >>> Usage({"completion_tokens": 8, "completion_tokens_details": {"reasoning_tokens": 3}}).counts
    {'completion_tokens': 8, 'completion_tokens_details.reasoning_tokens': 3}

    Raises RequestFailed for a count that none can have.
    """

    def __init__(self, stated: Mapping[str, Any] | None = None) -> None:
        self.counts: dict[str, int] = {}
        named = dict(stated or {})
        for name, value in (stated or {}).items():
            if isinstance(value, dict):
                named |= {f"{name}.{inner}": value.get(inner) for inner in ("cached_tokens", "reasoning_tokens")}
        for name, value in named.items():
            # Values that count no tokens (negative ones, NaN, null, text, durations) are passed over.
            if isinstance(value, int | float) and value >= 0 and name.endswith("tokens"):
                if value >= MOST_TOKENS:
                    raise RequestFailed("malformed", f"the usage says {name} {shown(value)}")
                self.counts[name] = int(value)
        self.reasoning = self._first("reasoning") or 0
        """Reasoning tokens, 0 if the server states none."""
        self.output = self._first("output")
        """Output tokens with reasoning tokens; None if the server states none."""
        self.cached = self._first("cached")
        """Input tokens from a prefix cache."""
        if self.output is not None and self.reasoning:
            both = self.output + self.reasoning
            if self.counts.get("total_tokens") == (self._first("input") or 0) + both:  # xAI counts reasoning apart
                self.output = both

    def updated(self, newer: Usage) -> Usage:
        """These counts with newer ones. Zeros replace none: some servers end with them."""
        if not self.counts:
            return newer
        return Usage(self.counts | {name: n for name, n in newer.counts.items() if n or name not in self.counts})

    def _first(self, count: str) -> int | None:
        """The first of the names of this count that is above 0, else 0 if one of them is stated."""
        found = [self.counts[name] for name in _COUNTS[count] if name in self.counts]
        return next(filter(None, found), 0) if found else None

    def input(self, sent: int | None) -> int | None:
        """Input tokens, those from the cache included; `sent` is the number of token ids sent, None for a text.

        Gateways to Anthropic state the tokens beside those from the cache. They are added where the cache holds more
        than the input, or where the sum is what was sent.

        >>> details = {"cached_tokens": 61}
        >>> [Usage({"prompt_tokens": n, "prompt_tokens_details": details}).input(None) for n in (3, 64)]
        [64, 64]
        """
        count, cached = self.counts.get, self.cached or 0
        beside, read = count("input_tokens"), count("prompt_tokens")
        if not read and beside is not None and "cache_read_input_tokens" in self.counts:
            return beside + cached + count("cache_creation_input_tokens", 0)
        read = read or beside or 0
        if cached > read or (sent is not None and read < sent <= read + cached <= sent + 1):
            return read + cached
        return read or None  # no prompt has 0 tokens
