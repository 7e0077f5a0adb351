"""What is said follows from corrected p-values, whatever the mean."""

from __future__ import annotations

import math

import pytest

from calkd_det.commands.study.relations import Relation, Rivalry
from calkd_det.commands.study.statistics import PairedDifference, Spread, paired_difference
from calkd_det.commands.study.wording import (
    difference_sentence,
    family_sentence,
    points,
    relation_sentence,
    rivals_sentence,
    spread_sentence,
    temperature_sentence,
)


def difference(mean: float, low: float, high: float, adjusted_p: float) -> PairedDifference:
    return PairedDifference(dict.fromkeys(range(5), mean), mean, (low, high), 4, 0.01, adjusted_p)


def relation(slope: float, adjusted_p: float) -> Relation:
    return Relation(0.9, slope, 0.0, (slope - 1, slope + 1), 0.01, adjusted_p)


def test_a_difference_is_claimed_by_its_corrected_p_value_alone() -> None:
    said = difference_sentence('A', 'B', difference(0.0123, 0.001, 0.0236, 0.012))
    assert said == (
        'A is **higher** than B (+1.23 points, 95 % interval +0.10 to +2.36, p = 0.012, '
        '4 of 5 seeds higher).'
    )
    said = difference_sentence('A', 'B', difference(-0.01, -0.02, -0.001, 0.0001))
    assert said.startswith('A is **lower** than B (−1.00 points')
    assert 'p < 0.001' in said
    # However large the mean is, and though the interval leaves zero out.
    said = difference_sentence('A', 'B', difference(0.3, 0.0001, 0.6, 0.05))
    assert said.startswith('A against B: **no difference shown** (+30.00 points')
    for word in ('higher**', 'lower**', 'better', 'improve'):
        assert word not in said


@pytest.mark.parametrize('count', [1, 2])
def test_fewer_than_three_seeds_claim_nothing(count: int) -> None:
    seeds = range(count)
    found = paired_difference(
        dict.fromkeys(seeds, 0.9), dict.fromkeys(seeds, 0.1), Spread(0.001, 40, 0.5)
    )
    assert difference_sentence('A', 'B', found) == (
        'A against B: **no difference shown** (+80.00 points, not tested, '
        f'{count} of {count} seeds higher).'
    )


def test_points_have_no_negative_zero() -> None:
    assert [points(value) for value in (0.01234, -0.01234, -0.000001, 0.0)] == [
        '+1.23',
        '−1.23',
        '0.00',
        '0.00',
    ]


def test_a_relation_is_claimed_by_its_corrected_p_value() -> None:
    assert '**falls**' in relation_sentence('ECE', relation(-1.0, 0.01))
    assert '**rises**' in relation_sentence('ECE', relation(1.0, 0.01))
    assert '**no relation shown**' in relation_sentence('ECE', relation(9.0, 0.06))
    assert 'too few teachers or seeds' in relation_sentence('ECE', None)


def test_a_better_predictor_is_claimed_by_its_corrected_p_value() -> None:
    assert 'ECE explains **more** of' in rivals_sentence(Rivalry('ECE', 'mAP', 0.5, 0.001, 0.01))
    assert 'ECE explains **less** of' in rivals_sentence(Rivalry('ECE', 'mAP', -0.5, 0.001, 0.01))
    said = rivals_sentence(Rivalry('ECE', 'mAP', -0.5, 0.001, 0.2))
    assert 'Whether ECE or mAP explains more of the students is **not shown**' in said


def test_confidence_is_claimed_by_the_interval_of_t() -> None:
    assert '**over-confident**' in temperature_sentence('x', 1.9, (1.8, 2.0), 0.09, 0.01)
    assert '**under-confident**' in temperature_sentence('x', 0.8, (0.7, 0.9), 0.01, 0.02)
    said = temperature_sentence('x', 1.2, (0.99, 1.4), 0.01, 0.0)
    assert 'neither over- nor under-confidence shown' in said
    assert 'without an interval' in temperature_sentence('x', 1.9, None, 0.1, 0.0)


def test_confidence_is_not_claimed_where_t_and_ece_differ() -> None:
    """As for a head of sigmoids, whose background rules T."""
    said = temperature_sentence('x', 0.41, (0.4, 0.42), 0.0566, 0.0001)
    assert 'one T does not describe its confidence' in said
    assert '5.66 % over- and 0.01 % under-confident' in said
    assert '**' not in said


def test_the_tests_of_a_study_are_counted() -> None:
    assert 'all 14 tests of this study, 1 of which shows something' in family_sentence(14, 1)
    assert 'all 8 tests of this study, 0 of which show something' in family_sentence(8, 0)


def test_cells_that_do_not_spread_alike_are_said() -> None:
    said = spread_sentence(Spread(0.0043, 56, 0.4))
    assert 'spreads by 0.43 points (SD, 56 degrees of freedom)' in said
    assert "spread alike is not refuted (Levene's test, p = 0.400)" in said
    assert '**The cells do not spread alike**' in spread_sentence(Spread(0.0043, 56, 0.04))
    assert 'Levene' not in spread_sentence(Spread(0.0043, 4, math.nan))
