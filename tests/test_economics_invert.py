"""What must be true for a spend: exact where all is lognormal, weighted draws elsewhere, and no answer from nothing."""

import numpy as np
import pytest

from harness.economics.draws import distribution
from harness.economics.invert import invert, isoline
from harness.errors import HarnessError

PRICE = (distribution("lognormal", 1.0, 4.0), 1)
TOKENS = (distribution("lognormal", 100.0, 10000.0), 1)
USE = (distribution("lognormal", 0.2, 0.8), -1)


def test_two_equal_factors_share_the_gap_equally() -> None:
    # Medians 2 and 2 make 4; the spend says 16: each must be twice as large, and together they no longer vary.
    found = invert({"a": PRICE, "b": PRICE}, distribution("value", 16.0))
    assert found.effective is None
    for name in "ab":
        assert found.before[name][1] == pytest.approx(2, rel=0.001)
        sd = np.log(4.0) / (2 * 1.6448536) / 2**0.5
        assert found.after[name][1:] == pytest.approx([4, 4 * np.exp(1.6448536 * sd)])


def test_the_most_uncertain_factor_moves_most_and_a_divisor_moves_the_other_way() -> None:
    found = invert({"price": PRICE, "tokens": TOKENS, "use": USE}, distribution("lognormal", 4e4, 6e4))
    moved = {name: np.log(found.after[name][1] / found.before[name][1]) for name in found.before}
    assert moved["tokens"] > moved["price"] > 0 > moved["use"]
    assert moved["price"] == pytest.approx(-moved["use"], abs=0.01)


def test_weights_agree_with_the_exact_answer() -> None:
    spend = distribution("lognormal", 1500.0, 6000.0)
    exact = invert({"price": PRICE, "tokens": TOKENS}, spend)
    # The same price as 4,001 equally likely values is no longer a lognormal, so draws are weighted.
    u = (np.arange(4001) + 0.5) / 4001
    price = np.exp(np.log(2.0) + np.log(4.0) / (2 * 1.6448536) * np.sqrt(2) * np.array([_erfinv(2 * x - 1) for x in u]))
    weighted = invert({"price": (distribution("empirical", *price), 1), "tokens": TOKENS}, spend)
    assert weighted.effective is not None
    assert weighted.effective < 2**14
    for name, after in exact.after.items():
        assert weighted.after[name] == pytest.approx(after, rel=0.05)


def _erfinv(x: float) -> float:
    from scipy import special

    return float(special.erfinv(x))


def test_the_answer_is_never_one_value() -> None:
    found = invert({"price": PRICE, "tokens": TOKENS}, distribution("value", 2000.0))
    assert all(np.all(np.diff(after) > 0) for after in found.after.values())
    assert found.needed == pytest.approx([2000, 2000, 2000])


def test_a_spend_far_from_every_draw_is_refused() -> None:
    use = (distribution("uniform", 0.3, 0.8), -1)
    with pytest.raises(HarnessError, match="hardly reach it"):
        invert({"price": PRICE, "use": use}, distribution("lognormal", 9e5, 1.1e6))
    with pytest.raises(HarnessError, match="no uncertainty"):
        invert({"price": PRICE, "use": use}, distribution("value", 5.0))
    with pytest.raises(HarnessError, match="is uniform"):
        invert({"price": PRICE}, distribution("uniform", 1.0, 2.0))


def test_an_isoline_keeps_the_product() -> None:
    grid = np.array([100.0, 1000.0, 5000.0])
    price = isoline({"price": (2.0, 1), "tokens": (1000.0, 1), "use": (0.5, -1)}, 4000.0, "price", "tokens", grid)
    assert price * grid / 0.5 == pytest.approx(np.full(3, 4000.0))
