"""Statistics against scipy's own tests, simulations and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from calkd_det.commands.study.statistics import (
    contrast_factor,
    difference_of_explained,
    explain,
    holm,
    mean_interval,
    paired_difference,
    pairs_needed,
    power_of,
    residual_sd,
    smallest_difference,
)


def by_seed(values: np.ndarray) -> dict[int, float]:
    return dict(enumerate(values.tolist()))


@pytest.mark.parametrize('count', [2, 5, 12])
def test_a_paired_difference_is_scipys_paired_t_test(count: int) -> None:
    rng = np.random.default_rng(count)
    a, b = rng.normal(0.3, 0.1, count), rng.normal(0.25, 0.1, count)
    found = paired_difference(by_seed(a), by_seed(b))
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx((a - b).mean())
    assert found.improved == (a > b).sum()
    assert found.count == count


def test_only_common_seeds_are_paired() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 5: 9.0}, {1: 1.5, 0: 1.0, 7: 0.0})
    assert found.differences == {0: 0.0, 1: 0.5}
    assert found.improved == 1
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_one_pair_has_no_interval() -> None:
    found = paired_difference({3: 0.5}, {3: 0.25})
    assert (found.mean, found.interval) == (0.25, None)
    assert math.isnan(found.p_value)


def test_equal_differences_have_no_spread() -> None:
    assert paired_difference({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.5}).p_value == 0
    assert paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p_value == 1


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    ends = [mean_interval(rng.normal(1.0, 2.0, 5))[1] for _ in range(2500)]
    assert np.mean([low <= 1 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.014)


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_residual_is_that_of_a_two_way_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(0, 0.5, (4, 6)) + rng.normal(0, 9, (4, 1)) + rng.normal(0, 9, (1, 6))
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    sd, degrees = residual_sd([by_seed(row) for row in table])
    assert degrees == 3 * 5
    assert sd == pytest.approx(math.sqrt((rest**2).sum() / 15))
    # Of two cells it is the paired differences' SD over the root of 2.
    sd, degrees = residual_sd([by_seed(row) for row in table[:2]])
    assert (sd, degrees) == (pytest.approx((table[0] - table[1]).std(ddof=1) / math.sqrt(2)), 5)


def test_seeds_without_a_pair_and_single_values_leave_no_residual() -> None:
    assert residual_sd([{0: 1.0, 1: 3.0, 7: 5.0}, {0: 2.0, 1: 4.5}])[1] == 1
    for cells in ([], [{}], [{0: 1.0}, {0: 2.0}], [{0: 1.0, 1: 2.0}]):
        assert math.isnan(residual_sd(cells)[0])


def test_a_contrast_spreads_as_simulated_ones_do() -> None:
    rng = np.random.default_rng(2)
    values = dict(zip('abcd', rng.normal(0, 1, (4, 40_000))))
    for of, to in (('a', 'b'), ('abc', 'd'), ('ab', 'cd'), ('ab', 'a')):
        means = [np.mean([values[name] for name in side], axis=0) for side in (of, to)]
        assert contrast_factor(of, to) == pytest.approx((means[0] - means[1]).std(), rel=0.02)


@pytest.mark.parametrize('count', [3, 5, 10])
def test_the_power_is_that_of_simulated_t_tests(count: int) -> None:
    smallest = smallest_difference(0.7, count)
    assert power_of(smallest, 0.7, count) == pytest.approx(0.8, abs=1e-4)
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
        assert power_of(difference, 1.0, count) == pytest.approx(expected, abs=1e-5)


def test_the_power_without_a_difference_is_the_level() -> None:
    assert power_of(0.0, 1.0, 6) == pytest.approx(0.05)


def test_the_seeds_needed_are_the_fewest() -> None:
    needed = pairs_needed(0.6, 0.5)
    assert smallest_difference(0.6, needed) <= 0.5 < smallest_difference(0.6, needed - 1)
    assert pairs_needed(0.001, 0.5) == 2
    assert pairs_needed(1.0, 1e-9, most=50) == 50


def test_explained_variance_is_scipys() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=12)
    y = 3 - 2 * x + rng.normal(size=12)
    found = explain(x, y)
    expected = stats.linregress(x, y)
    assert found.r_squared == pytest.approx(expected.rvalue**2)
    assert (found.slope, found.intercept) == pytest.approx((expected.slope, expected.intercept))
    low, high = found.interval
    assert 0 <= low < found.r_squared < high <= 1
    assert found.slope_interval[1] < 0
    again = explain(x, y)
    assert again.interval == found.interval


def test_the_bootstrap_is_scipys() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=14)
    y = x + rng.normal(size=14)
    expected = stats.bootstrap(
        (x, y),
        lambda x, y: stats.linregress(x, y).rvalue ** 2,
        paired=True,
        vectorized=False,
        method='percentile',
        n_resamples=1500,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert explain(x, y).interval == pytest.approx((expected.low, expected.high), abs=0.04)


def test_too_few_or_constant_points_explain_nothing() -> None:
    assert explain([1, 2], [1, 2]) is None
    assert explain([1, 1, 1], [1, 2, 3]) is None
    assert explain([1, 2, 3], [2, 2, 2]) is None
    assert explain([1, 2, 4], [1, 2, 3]).interval is None


def test_predictors_are_compared_on_the_same_resamples() -> None:
    rng = np.random.default_rng(4)
    good = rng.normal(size=15)
    y = good + 0.2 * rng.normal(size=15)
    bad = rng.normal(size=15)
    mean, interval = difference_of_explained(explain(good, y), explain(bad, y))
    assert mean > 0
    assert 0 < interval[0] < mean < interval[1]
    same, interval = difference_of_explained(explain(good, y), explain(2 * good + 1, y))
    assert same == pytest.approx(0)
    assert interval == pytest.approx((0, 0))
