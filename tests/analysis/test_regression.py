"""The regression: known coefficients come back, the unidentified are not invented, terms add up to the usage."""

import numpy as np
import pytest
from builders import MIXES, TRUE, run_of

from harness.analysis.regression import identify, split_usage


def test_known_coefficients_come_back_within_their_interval() -> None:
    split = split_usage([run_of(*mix) for mix in MIXES])
    assert all(split.identified)
    low, high = np.quantile(split.replicates, (0.005, 0.995), axis=0)
    assert np.all((low <= TRUE) & (high >= TRUE))


def test_without_noise_the_split_is_exact() -> None:
    assert split_usage([run_of(*mix, noise=0.0) for mix in MIXES]).coefficients == pytest.approx(TRUE)


def test_the_terms_add_up_to_the_whole_usage() -> None:
    runs = [run_of(*mix, noise=0.2) for mix in MIXES]
    split = split_usage(runs)
    fitted = sum(float((run[:, :4] @ split.coefficients).sum()) for run in runs)
    assert fitted == pytest.approx(sum(run[:, 4].sum() for run in runs))


def test_a_nearly_constant_term_comes_back_within_its_interval() -> None:
    """Joules of windows of a second: static power, then input, output and context tokens."""
    rng = np.random.default_rng(4)
    inputs, outputs = rng.uniform(0, 5000, 60), rng.uniform(0, 2000, 60)
    counts = np.column_stack([np.ones(60), inputs, outputs, outputs * rng.uniform(200, 3000, 60)])
    truth = np.array([80.0, 0.02, 0.1, 2e-5])
    split = split_usage([np.column_stack([counts, counts @ truth * rng.normal(1, 0.01, 60)])])
    assert all(split.identified)
    low, high = np.quantile(split.replicates, (0.005, 0.995), axis=0)
    assert np.all((low <= truth) & (high >= truth))
    assert split.interval(0) == pytest.approx((77.45, 81.28), abs=0.01)


def test_runs_of_one_shape_identify_no_term() -> None:
    identified, rank, condition = identify(np.outer(run_of(800, 150)[:, 3], [800, 150, 131250, 1.0]))
    assert (identified, rank) == ((False,) * 4, 1)
    assert condition > 1e6


def test_a_term_that_never_occurs_is_not_identified_and_leaves_the_others_identified() -> None:
    counts = np.array([[1.0, 0, 0, 2], [2, 0, 0, 1], [1, 0, 0, 1]])
    assert identify(counts)[:2] == ((True, False, False, True), 2)
