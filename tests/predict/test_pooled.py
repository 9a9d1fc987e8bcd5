"""The pooled fit against data made with known coefficients."""

import numpy as np
import pytest
from places import script

from harness.predict.pooled import Block, Rows, evaluate, parts, placed, predicted

SCRIPT = script("fit-predict")
fit = SCRIPT.fit

RNG = np.random.default_rng(7)
BLOCKS = (
    Block("bytes", "one", (1.0, 0.0), 0.5, 0.3, fixed=True),
    Block("steps", "one", (0.0, 1.0), 0.5, 0.0, fixed=True),
    Block("gpu all", "gpu", (1.0, 1.0), 0.1),
)
SHIFT = {"a": -0.3, "b": 0.0, "c": 0.25, "d": 0.4, "e": -0.35}


def made(per_gpu: int = 40) -> tuple[Rows, np.ndarray]:
    gpu = np.repeat(list(SHIFT), per_gpu)
    terms = RNG.lognormal(0, 1, (len(gpu), 2))
    y = terms @ np.exp([0.2, 0.1]) * np.exp([SHIFT[g] for g in gpu]) * np.exp(RNG.normal(0, 0.05, len(gpu)))
    return Rows(terms, {"one": np.full(len(gpu), "all"), "gpu": gpu}, {}), y


def test_known_coefficients_come_back() -> None:
    rows, y = made()
    found = fit(BLOCKS, rows, y)
    assert found.noise == pytest.approx(0.05, rel=0.3)
    value, _ = predicted(found, rows)
    assert np.median(np.abs(value - np.log(y))) < 0.05
    factors = parts(found, rows) / rows.terms
    ratio = factors[:, 0] / factors[:, 1]
    assert ratio == pytest.approx(np.exp(0.1), rel=0.05)


def test_a_level_that_was_not_seen_is_wide_and_one_seen_much_is_tight() -> None:
    rows, y = made()
    found = fit(BLOCKS, rows, y)
    asked = Rows(np.ones((2, 2)), {"one": np.array(["all"] * 2), "gpu": np.array(["a", "z"])}, {})
    variance = predicted(found, asked)[1] - (1.3 * found.noise) ** 2
    assert variance[0] < 0.02**2
    assert 0.2**2 < variance[1] < 0.5**2


def test_gross_errors_do_not_move_the_fit() -> None:
    rows, y = made()
    spoilt = y.copy()
    spoilt[::20] *= 20
    clean, dirty = (predicted(fit(BLOCKS, rows, each), rows)[0] for each in (y, spoilt))
    assert np.max(np.abs(clean - dirty)) < 0.1


def test_slopes_are_shares_of_the_terms() -> None:
    rows, y = made()
    found = fit(BLOCKS, rows, y)
    _, slopes = evaluate(found.blocks, rows, placed(found.blocks, rows, found.places), found.estimate)
    assert slopes[:, 0] + slopes[:, 1] == pytest.approx(np.ones(len(rows.terms)))
    assert slopes[:, 2] == pytest.approx(np.ones(len(rows.terms)))


def with_setups() -> tuple[Rows, np.ndarray]:
    """Ten setups of 20 rows on one GPU."""
    setup = np.repeat([f"setup {i}" for i in range(10)], 20)
    terms = RNG.lognormal(0, 1, (len(setup), 2))
    shift = np.repeat(RNG.normal(0, 0.1, 10), 20)
    keys = {"one": np.full(len(setup), "all"), "gpu": np.full(len(setup), "a"), "setup": setup}
    return Rows(terms, keys, {}), terms @ np.exp([0.2, 0.1]) * np.exp(shift + RNG.normal(0, 0.05, len(setup)))


def test_one_badly_tuned_setup_does_not_move_the_others() -> None:
    rows, y = with_setups()
    blocks = (*BLOCKS, Block("setup all", "setup", (1.0, 1.0), 0.1))
    slow = np.where(rows.keys["setup"] == "setup 3", 4.0, 1.0)
    new = Rows(np.ones((1, 2)), {"one": np.array(["all"]), "gpu": np.array(["a"]), "setup": np.array(["new"])}, {})
    before, after = (predicted(fit(blocks, rows, each), new)[0][0] for each in (y, y * slow))
    assert abs(after - before) < 0.08  # a mean would move by ln(4) / 10 = 0.14


def test_a_setup_of_many_rows_counts_as_ten() -> None:
    rows, _ = with_setups()
    assert SCRIPT.witnesses(rows) == pytest.approx(np.full(200, 0.5))
    assert SCRIPT.witnesses(made()[0]) == pytest.approx(np.ones(200))
