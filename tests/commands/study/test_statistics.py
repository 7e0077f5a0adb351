"""Comparisons against scipy's own tests, a linear model, simulations and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from calkd_det.commands.study.statistics import (
    Spread,
    common_spread,
    contrast_factor,
    holm,
    mean_interval,
    paired_difference,
)

SPREAD = Spread(0.05, 40, 0.5)


def by_seed(values: np.ndarray) -> dict[int, float]:
    return dict(enumerate(values.tolist()))


@pytest.mark.parametrize('count', [3, 5, 12])
def test_of_two_cells_alone_it_is_scipys_paired_t_test(count: int) -> None:
    rng = np.random.default_rng(count)
    a, b = rng.normal(0.3, 0.1, count), rng.normal(0.25, 0.1, count)
    found = paired_difference(by_seed(a), by_seed(b), common_spread([by_seed(a), by_seed(b)]))
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx((a - b).mean())
    assert found.improved == (a > b).sum()
    assert found.count == count


def test_among_many_cells_it_is_the_contrast_of_the_linear_model() -> None:
    """The same by ordinary least squares with dummies of cells and seeds."""
    rng = np.random.default_rng(3)
    table = rng.normal(0.2, 0.02, (4, 5)) + rng.normal(0, 0.1, 5)
    cells = [by_seed(row) for row in table]
    found = paired_difference(cells[2], cells[1], common_spread(cells))
    design = np.zeros((20, 8))
    for row, (cell, seed) in enumerate(np.ndindex(4, 5)):
        design[row, cell] = 1
        if seed:
            design[row, 3 + seed] = 1
    inverse = np.linalg.inv(design.T @ design)
    estimate = inverse @ design.T @ table.ravel()
    rest = table.ravel() - design @ estimate
    contrast = np.array([0, -1, 1, 0, 0, 0, 0, 0])
    error = np.sqrt(rest @ rest / 12 * (contrast @ inverse @ contrast))
    t = contrast @ estimate / error
    assert found.mean == pytest.approx(contrast @ estimate)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(t), 12))
    assert found.interval[1] - found.mean == pytest.approx(stats.t.ppf(0.975, 12) * error)


def test_a_lucky_spread_of_few_pairs_claims_nothing() -> None:
    a, b = {s: 0.2 + 0.0001 * s for s in range(5)}, dict.fromkeys(range(5), 0.204)
    found = paired_difference(a, b, Spread(0.0043, 56, 0.5))
    assert stats.ttest_rel(list(a.values()), list(b.values())).pvalue < 1e-5
    assert found.p_value > 0.1
    assert found.interval[0] < 0 < found.interval[1]


@pytest.mark.parametrize('own', [0.001, 0.2])
def test_where_cells_do_not_spread_alike_the_wider_interval_counts(own: float) -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.3, own, 5), np.full(5, 0.25)
    pooled = paired_difference(by_seed(a), by_seed(b), Spread(0.05, 40, 0.04 + 0.02))
    alone = stats.ttest_rel(a, b)
    found = paired_difference(by_seed(a), by_seed(b), Spread(0.05, 40, 0.04))
    assert found.p_value == pytest.approx(max(pooled.p_value, alone.pvalue))
    low, high = alone.confidence_interval(0.95)
    assert found.interval == pytest.approx(
        (min(pooled.interval[0], low), max(pooled.interval[1], high))
    )


def test_only_common_seeds_are_paired() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 5: 9.0}, {1: 1.5, 0: 1.0, 7: 0.0}, SPREAD)
    assert found.differences == {0: 0.0, 1: 0.5}
    assert found.improved == 1
    assert paired_difference({0: 1.0}, {1: 1.0}, SPREAD) is None


@pytest.mark.parametrize('count', [1, 2])
def test_fewer_than_three_pairs_are_not_tested(count: int) -> None:
    """Two rounded pairs can be equal, and any test of their own calls them certain."""
    found = paired_difference(
        dict.fromkeys(range(count), 0.5), dict.fromkeys(range(count), 0.25), SPREAD
    )
    assert (found.mean, found.interval, found.shown) == (0.25, None, False)
    assert math.isnan(found.p_value)
    three = paired_difference(dict.fromkeys(range(3), 0.5), dict.fromkeys(range(3), 0.25), SPREAD)
    assert three.p_value < 0.01


def test_values_without_any_spread_are_not_tested() -> None:
    cells = [{0: 0.1, 1: 0.2, 2: 0.3}, {0: 0.3, 1: 0.4, 2: 0.5}]
    spread = common_spread(cells)
    assert spread.sd == 0
    found = paired_difference(*cells, spread)
    assert found.interval is None
    assert math.isnan(found.p_value)
    assert not found.shown


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
    found = common_spread([by_seed(row) for row in table])
    assert found.degrees == 3 * 5
    assert found.sd == pytest.approx(math.sqrt((rest**2).sum() / 15))
    assert found.alike_p == pytest.approx(stats.levene(*rest, center='mean').pvalue)
    # Of two cells it is the paired differences' SD over the root of 2.
    found = common_spread([by_seed(row) for row in table[:2]])
    expected = (table[0] - table[1]).std(ddof=1) / math.sqrt(2)
    assert (found.sd, found.degrees) == (pytest.approx(expected), 5)
    assert math.isnan(found.alike_p)
    assert not found.uneven


def test_seeds_without_a_pair_and_single_values_leave_no_residual() -> None:
    assert common_spread([{0: 1.0, 1: 3.0, 7: 5.0}, {0: 2.0, 1: 4.5}]).degrees == 1
    for cells in ([], [{}], [{0: 1.0}, {0: 2.0}], [{0: 1.0, 1: 2.0}]):
        assert math.isnan(common_spread(cells).sd)


def test_a_cell_that_spreads_more_than_the_others_is_noticed() -> None:
    rng = np.random.default_rng(8)
    noticed = dict.fromkeys((1, 5), 0)
    for scale in noticed:
        for _ in range(300):
            table = rng.normal(0, 1, (11, 5)) + rng.normal(0, 1, 5)
            table[0] += (scale - 1) * rng.normal(0, 1, 5)
            noticed[scale] += common_spread([by_seed(row) for row in table]).uneven
    assert noticed[5] > 0.8 * 300
    assert noticed[1] < 0.25 * 300


def test_a_contrast_spreads_as_simulated_ones_do() -> None:
    rng = np.random.default_rng(2)
    values = dict(zip('abcd', rng.normal(0, 1, (4, 40_000))))
    for of, to in (('a', 'b'), ('abc', 'd'), ('ab', 'cd'), ('ab', 'a')):
        means = [np.mean([values[name] for name in side], axis=0) for side in (of, to)]
        assert contrast_factor(of, to) == pytest.approx((means[0] - means[1]).std(), rel=0.02)
