"""Lines through points and rival predictors, against scipy and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from calkd_det.commands.study.relations import compare_predictors, relate

# What the teachers' ECE looks like: most are near each other, a few far out.
SKEWED = [0.8, 0.8, 1.1, 1.1, 1.2, 1.3, 1.6, 2.1, 2.4, 2.5, 8.2, 9.2, 9.3]


def test_a_line_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=12)
    y = 3 - 2 * x + rng.normal(size=12)
    found = relate(x, y)
    r = stats.pearsonr(x, y)
    assert found.r_squared == pytest.approx(r.statistic**2)
    assert found.p_value == pytest.approx(r.pvalue)
    assert (found.slope, found.intercept) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    assert found.slope_interval[0] < found.slope < found.slope_interval[1] < 0


def test_too_few_or_constant_points_have_no_line() -> None:
    assert relate([1, 2, 3, 4], [1, 2, 4, 3]) is None
    assert relate([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) is None
    assert relate([1, 2, 3, 4, 5], [2, 2, 2, 2, 2]) is None
    assert relate([1, 2, 3, 4, 5], [1, 2, 4, 3, 5]) is not None


def test_points_far_out_do_not_make_false_relations() -> None:
    rng = np.random.default_rng(0)
    p_values = [relate(SKEWED, rng.normal(size=13)).p_value for _ in range(3000)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.012)


def test_the_t_test_of_a_slope_agrees_with_permutations() -> None:
    rng = np.random.default_rng(1)
    y = 0.15 * np.array(SKEWED) + rng.normal(size=13)
    slopes = [stats.linregress(SKEWED, rng.permutation(y)).slope for _ in range(2000)]
    found = relate(SKEWED, y)
    permuted = np.mean(np.abs(slopes) >= abs(found.slope))
    assert found.p_value == pytest.approx(permuted, abs=0.03)


@pytest.mark.parametrize('strength', [0.0, 0.5])
def test_rivals_that_explain_as_much_are_told_apart_by_chance_alone(strength: float) -> None:
    rng = np.random.default_rng(3)
    told = 0
    for _ in range(2000):
        y = rng.normal(size=13)
        common = rng.normal(size=13)
        a, b = (strength * y + common + rng.normal(size=13) for _ in range(2))
        told += compare_predictors(a, b, y) < 0.05
    assert told / 2000 <= 0.06


def test_a_better_predictor_is_found_whatever_its_sign() -> None:
    rng = np.random.default_rng(4)
    y = rng.normal(size=15)
    good, bad = y + 0.2 * rng.normal(size=15), rng.normal(size=15)
    assert compare_predictors(good, bad, y) < 0.001
    assert compare_predictors(-good, bad, y) == pytest.approx(compare_predictors(good, bad, y))
    assert compare_predictors(good, 2 * good + 1, y) == pytest.approx(1)
