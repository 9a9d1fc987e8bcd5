"""What APIs ask for the answers of an open model: list prices of the package genai-prices, the extra `market`."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from harness.errors import HarnessError

_WORD = re.compile(r"[a-z]+|\d+")
_ADDED = {*["meta", "ai", "databricks", "instruct", "chat", "it", "hf", "instant", "turbo", "fast", "maas", "latest"]}
"""Words of providers' names that do not tell models apart."""
_LEFT_OUT = re.compile(r"(-v\d+)?:\d+$|-(fp8|bf16|awq)(-fast)?$|\bv(?=\d)|(?<=\d)p(?=\d)")
"""Versions of an interface, precisions, and letters that stand for dots."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A provider's list price of a request."""

    provider: str
    model: str
    """As the provider names it."""
    usd: float
    full_price: bool
    """It states no price of cached tokens: they cost as much as others."""


def key(name: str) -> tuple[str, ...]:
    """What tells models apart in the names that providers give them.

    >>> names = "@cf/meta/llama-3.1-8b-instruct-fp8", "llama-v3p1-8b-instruct", "meta.llama3-1-8b-instruct-v1:0"
    >>> {key(name) for name in names} == {key("Llama-3.1-8B")}
    True
    >>> key("DeepSeek-V3.1") == key("DeepSeek-V3")
    False
    """
    last = _LEFT_OUT.sub(" ", name.lower().rpartition("/")[2])
    return tuple(word for word in _WORD.findall(last) if word not in _ADDED)


def offers(model: str, input_tokens: float, output_tokens: float, cached: float) -> tuple[tuple[Offer, ...], str]:
    """The offers of a request, cheapest first, and where they are from; `cached`: share of the input in a cache.

    Free and discounted variants are left out. HarnessError without the package, or if no provider lists the model.
    """
    try:
        from genai_prices import Usage
        from genai_prices.data import providers
    except ImportError:
        raise HarnessError("list prices need the package genai-prices", "pip install genai-prices") from None
    now, found = datetime.now(UTC), []
    used = Usage(
        input_tokens=round(input_tokens),
        output_tokens=round(output_tokens),
        cache_read_tokens=round(cached * input_tokens),
    )
    for provider in providers:
        for each in provider.models:
            if key(each.id) == key(model) and not each.id.endswith((":free", ":batch")) and not each.deprecated:
                prices = each.get_prices(now)
                if usd := float(prices.calc_price(used)["total_price"]):
                    full = bool(cached) and prices.cache_read_mtok is None
                    found.append(Offer(provider.id, each.id, usd, full))
    if not found:
        raise HarnessError(f"no provider in genai-prices lists {model}", "omit --market")
    return tuple(sorted(found, key=lambda offer: offer.usd)), f"genai-prices {version('genai-prices')}, {now:%Y-%m-%d}"
