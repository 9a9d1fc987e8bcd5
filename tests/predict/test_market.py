"""List prices of APIs beside a predicted cost, by the real package."""

from __future__ import annotations

import sys

import pytest
from genai_prices.data import providers

from harness.errors import HarnessError
from harness.model import Figure
from harness.predict.predict import Plan
from harness.predict.priced import USD, offers, priced
from harness.report.predict import market_table


def ends(figure: object) -> tuple[float, float, float]:
    assert isinstance(figure, Figure)
    assert figure.value is not None
    assert figure.low is not None
    assert figure.high is not None
    return figure.value, figure.low, figure.high


def test_an_offer_is_what_the_provider_asks_for_the_request() -> None:
    (groq,) = (provider for provider in providers if provider.id == "groq")
    (model,) = (each for each in groq.models if each.id == "openai/gpt-oss-120b")
    found, source = offers("gpt-oss-120b", 1000, 200, 0.5)
    (offer,) = (each for each in found if each.provider == "groq")
    words = ("input_mtok", "cache_read_mtok", "output_mtok")
    fresh, cached, output = (float(getattr(model.prices, word)) for word in words)
    assert offer.usd == pytest.approx((500 * fresh + 500 * cached + 200 * output) / 1e6)
    assert not offer.full_price
    assert [each.usd for each in found] == sorted(each.usd for each in found)
    assert source.startswith("genai-prices ")


def test_a_provider_without_a_price_of_cached_tokens_charges_them_in_full_and_is_marked() -> None:
    half, none = ({each.model: each for each in offers("Llama-3.1-8B", 1000, 200, share)[0]} for share in (0.5, 0.0))
    marked = [name for name, offer in half.items() if offer.full_price]
    assert marked
    assert not any(offer.full_price for offer in none.values())
    assert all(half[name].usd == none[name].usd for name in marked)


@pytest.mark.parametrize("model", ["DeepSeek-V3", "GLM-5", "Qwen3-30B-A3B", "Llama-3.1-70B"])
def test_no_other_model_is_taken_for_this_one(model: str) -> None:
    others = ("chat", "3.1", "5v", "5.1", "vl", "coder", "405", "8b", "2507")
    names = [offer.model.lower() for offer in offers(model, 100, 100, 0.0)[0]]
    assert not [name for name in names if any(other in name for other in others if other not in model.lower())]


def test_the_margin_is_that_of_the_cost_and_the_break_even_that_of_the_gpus() -> None:
    found = priced("gpt-oss-120b", "H100", Plan(64, 1000, 200))
    asked, _ = offers("gpt-oss-120b", 1000, 200, 0.0)
    table = market_table(found, 0.0)
    cost, low, high = ends(found.costs[USD])
    hour, _, _ = ends(found.costs["usd_per_hour"])
    for offer, (_, price, margin, even) in zip(asked, table.rows, strict=True):
        million = 1e6 * offer.usd / 200
        assert price == f"{million:.3g}"
        assert ends(margin) == pytest.approx((1 - cost / million, 1 - high / million, 1 - low / million))
        if even == "more than it answers":
            assert cost > million
        else:
            assert ends(even)[0] == pytest.approx(24 * hour / offer.usd)


def test_a_model_that_nobody_lists_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HarnessError, match="no provider in genai-prices lists chameleon-30b"):
        offers("chameleon-30b", 100, 100, 0.0)
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    with pytest.raises(HarnessError, match="genai-prices"):
        offers("gpt-oss-120b", 100, 100, 0.0)
