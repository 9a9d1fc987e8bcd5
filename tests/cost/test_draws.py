"""Distributions against scipy's own, and joint draws."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.cost.draws import Distribution, _draw, distribution, draw, quantile


@pytest.mark.parametrize(
    ("made", "known"),
    [
        (distribution("lognormal", 1.0, 4.0), stats.lognorm(s=np.log(4) / (2 * stats.norm.ppf(0.95)), scale=2.0)),
        (distribution("uniform", 2.0, 5.0), stats.uniform(2, 3)),
        (distribution("triangular", 1.0, 2.0, 5.0), stats.triang(0.25, 1, 4)),
        (distribution("triangular", 1.0, 1.0, 5.0), stats.triang(0.0, 1, 4)),
        (distribution("beta", 1.0, 3.0, 2.0, 5.0), stats.beta(2, 5, loc=1, scale=2)),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_quantiles_are_the_distributions_own(made: Distribution, known: Any) -> None:
    u = np.linspace(0.001, 0.999, 41)
    np.testing.assert_allclose(quantile(made, u), known.ppf(u), rtol=1e-9)


def test_empirical_values_are_equally_likely() -> None:
    drawn = draw({"x": distribution("empirical", 3.0, 1.0, 2.0, 2.0)}, 4096)["x"]
    assert [np.mean(drawn == value) for value in (1, 2, 3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.002)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    inputs = {"a": distribution("uniform", 0, 1), "b": distribution("lognormal", 1, 2)}
    first = draw(inputs, 256, seed=7)
    _draw.cache_clear()
    assert {k: v.tobytes() for k, v in draw(inputs, 256, seed=7).items()} == {k: v.tobytes() for k, v in first.items()}
    assert draw(inputs, 256, seed=8)["a"].tobytes() != first["a"].tobytes()


@pytest.mark.parametrize("rho", [-0.8, 0.5])
def test_a_copula_gives_the_rank_correlation_of_a_gaussian_and_keeps_the_margins(rho: float) -> None:
    inputs = {
        "a": distribution("lognormal", 1, 4),
        "b": distribution("triangular", 0, 1, 3),
        "c": distribution("uniform", 0, 1),
    }
    drawn = draw(inputs, 2**13, correlations=[("a", "b", rho)])
    assert stats.spearmanr(drawn["a"], drawn["b"])[0] == pytest.approx(6 / np.pi * np.arcsin(rho / 2), abs=0.01)
    assert stats.spearmanr(drawn["a"], drawn["c"])[0] == pytest.approx(0, abs=0.02)
    np.testing.assert_allclose(np.quantile(drawn["a"], [0.05, 0.95]), [1, 4], rtol=0.02)


def test_correlations_that_contradict_each_other_are_refused() -> None:
    inputs = {name: distribution("uniform", 0, 1) for name in "abc"}
    with pytest.raises(ValueError, match="contradict"):
        draw(inputs, 64, correlations=[("a", "b", 0.9), ("b", "c", 0.9), ("a", "c", -0.9)])


def test_inputs_that_are_all_certain_are_constant_arrays() -> None:
    drawn = draw({"a": distribution("value", 2.0), "b": distribution("value", 3.0)}, 8)
    assert {name: values.tolist() for name, values in drawn.items()} == {"a": [2.0] * 8, "b": [3.0] * 8}


def test_quantiles_of_a_product_hardly_vary_with_the_seed_and_are_those_of_the_product() -> None:
    inputs = {f"x{i}": distribution("lognormal", 1, 4) for i in range(10)}
    sd = np.sqrt(10) * np.log(4) / 2  # of ln of the product, in units of the normal quantile of 0.95
    logs = [
        np.quantile(np.log(np.prod([*draw(inputs, seed=seed).values()], axis=0)), [0.05, 0.5, 0.95])
        for seed in range(8)
    ]
    centre = 10 * np.log(2)
    np.testing.assert_allclose(logs, np.tile([centre - sd, centre, centre + sd], (8, 1)), atol=0.03)
