"""The power of paired comparisons against simulations and scipy's noncentral t."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from calkd_det.commands.study.power import pairs_needed, power_of, smallest_difference


@pytest.mark.parametrize('count', [3, 5, 10])
def test_the_power_is_that_of_simulated_t_tests(count: int) -> None:
    smallest = smallest_difference(0.7, count)
    assert power_of(smallest, 0.7, count, count - 1) == pytest.approx(0.8, abs=1e-4)
    rng = np.random.default_rng(count)
    samples = rng.normal(smallest, 0.7, (20_000, count))
    rejected = stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05
    assert rejected.mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize('count', [2, 4, 30, 1000])
def test_the_power_is_the_noncentral_t_distributions(count: int) -> None:
    for difference in (0.05, 0.5, 1.0):
        critical, shift = stats.t.ppf(0.975, count - 1), difference * count**0.5
        expected = stats.nct.sf(critical, count - 1, shift) + stats.nct.cdf(
            -critical, count - 1, shift
        )
        assert power_of(difference, 1.0, count, count - 1) == pytest.approx(expected, abs=1e-5)


def test_the_power_without_a_difference_is_the_level() -> None:
    assert power_of(0.0, 1.0, 6, 40) == pytest.approx(0.05)


def test_the_seeds_needed_are_the_fewest() -> None:
    needed = pairs_needed(0.6, 0.5)
    assert smallest_difference(0.6, needed) <= 0.5 < smallest_difference(0.6, needed - 1)
    assert pairs_needed(0.001, 0.5) == 2
    assert pairs_needed(1.0, 1e-9, most=50) == 50


def test_the_power_of_a_pooled_spread_is_that_of_simulated_ones() -> None:
    """Fifteen cells with five seeds: the spread has 14 degrees of freedom for each further seed."""
    degrees = 14 * 4
    smallest = smallest_difference(0.7, 5, 14)
    assert smallest < smallest_difference(0.7, 5)
    rng = np.random.default_rng(0)
    means = rng.normal(smallest, 0.7 / 5**0.5, 40_000)
    errors = 0.7 * np.sqrt(rng.chisquare(degrees, 40_000) / degrees / 5)
    rejected = 2 * stats.t.sf(np.abs(means / errors), degrees) < 0.05
    assert rejected.mean() == pytest.approx(0.8, abs=0.01)
