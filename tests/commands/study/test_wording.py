"""What is said follows from intervals, whatever the mean."""

from __future__ import annotations

import numpy as np
import pytest

from calkd_det.commands.study.statistics import Explained, PairedDifference, paired_difference
from calkd_det.commands.study.wording import (
    chance_sentence,
    difference_sentence,
    excludes_zero,
    explained_sentence,
    points,
    rivals_sentence,
    temperature_sentence,
)


def difference(mean: float, low: float, high: float) -> PairedDifference:
    return PairedDifference(dict.fromkeys(range(5), mean), mean, (low, high), 4, 0.5)


def explained(r_squared: float, slope: float, low: float, high: float, seed: int) -> Explained:
    samples = np.random.default_rng(seed).normal(r_squared, 0.02, 1000)
    return Explained(r_squared, (0.1, 0.9), slope, 0.0, (low, high), samples)


@pytest.mark.parametrize(
    ('interval', 'expected'),
    [
        (None, False),
        ((0.1, 0.2), True),
        ((-0.2, -0.1), True),
        ((-0.1, 0.2), False),
        ((0.0, 0.2), False),
        ((-0.1, 0.0), False),
    ],
)
def test_zero_at_an_end_is_not_left_out(interval: tuple | None, expected: bool) -> None:
    assert excludes_zero(interval) is expected


def test_a_difference_is_claimed_by_its_interval_alone() -> None:
    said = difference_sentence('A', 'B', difference(0.0123, 0.001, 0.0236))
    assert said == (
        'A is **higher** than B (+1.23 points, 95 % interval +0.10 to +2.36, 4 of 5 seeds higher).'
    )
    said = difference_sentence('A', 'B', difference(-0.01, -0.02, -0.001))
    assert said.startswith('A is **lower** than B (−1.00 points')
    # However large the mean is.
    said = difference_sentence('A', 'B', difference(0.3, -0.0001, 0.6))
    assert said.startswith('A against B: **no difference shown** (+30.00 points')
    for word in ('higher**', 'lower**', 'better', 'improve'):
        assert word not in said


def test_one_seed_claims_nothing() -> None:
    said = difference_sentence('A', 'B', paired_difference({0: 0.9}, {0: 0.1}))
    assert said == (
        'A against B: **no difference shown** (+80.00 points, no interval, 1 of 1 seeds higher).'
    )


def test_points_have_no_negative_zero() -> None:
    assert [points(value) for value in (0.01234, -0.01234, -0.000001, 0.0)] == [
        '+1.23',
        '−1.23',
        '0.00',
        '0.00',
    ]


def test_a_relation_is_claimed_by_the_interval_of_its_slope() -> None:
    assert '**falls**' in explained_sentence('ECE', explained(0.9, -1.0, -2.0, -0.5, 0))
    assert '**rises**' in explained_sentence('ECE', explained(0.9, 1.0, 0.5, 2.0, 0))
    assert '**no relation shown**' in explained_sentence('ECE', explained(0.9, -1, -2, 0.1, 0))
    assert 'not enough teachers' in explained_sentence('ECE', None)


def test_a_better_predictor_is_claimed_by_the_interval_of_the_difference() -> None:
    good, bad, near = (explained(r, 1.0, 0.5, 2.0, seed) for seed, r in enumerate((0.9, 0.2, 0.89)))
    assert 'ECE explains **more** of' in rivals_sentence('ECE', good, 'mAP', bad)
    assert 'ECE explains **less** of' in rivals_sentence('ECE', bad, 'mAP', good)
    assert 'is **not shown**' in rivals_sentence('ECE', good, 'mAP', near)
    assert 'cannot be compared' in rivals_sentence('ECE', good, 'mAP', None)


def test_confidence_is_claimed_by_the_interval_of_t() -> None:
    assert '**over-confident**' in temperature_sentence('x', 1.9, (1.8, 2.0))
    assert '**under-confident**' in temperature_sentence('x', 0.8, (0.7, 0.9))
    assert 'neither over- nor under-confidence shown' in temperature_sentence('x', 1.2, (0.99, 1.4))
    assert 'without an interval' in temperature_sentence('x', 1.9, None)


def test_chance_is_counted() -> None:
    assert chance_sentence(14, 2) == (
        '2 of the 14 intervals leave zero out; without any true difference 0.7 would on average.'
    )
    assert chance_sentence(0, 0) == ''
