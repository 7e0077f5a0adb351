"""Relate students to their teachers' figures: straight lines, and which one fits better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from calkd_det.commands.study.statistics import LEVEL, Interval, is_claimed

FEWEST_POINTS = 5


@dataclass(frozen=True)
class Relation:
    """A straight line through points by least squares.

    Attributes:
        r_squared: In [0, 1].
        slope: Of the line.
        intercept: Of the line.
        slope_interval: 95 % t interval.
        p_value: Two-sided t test of a slope of zero.
        adjusted_p: After the correction for all tests of the study; NaN before it.
    """

    r_squared: float
    slope: float
    intercept: float
    slope_interval: Interval
    p_value: float
    adjusted_p: float = math.nan

    @property
    def shown(self) -> bool:
        """Whether the relation may be claimed."""
        return is_claimed(self.adjusted_p)


@dataclass(frozen=True)
class Rivalry:
    """Two predictors of the same values.

    Attributes:
        name: Of the first one.
        other: Of the second one.
        more: R^2 of the first one less that of the second one.
        p_value: Two-sided, that both explain as much.
        adjusted_p: After the correction for all tests of the study; NaN before it.
    """

    name: str
    other: str
    more: float
    p_value: float
    adjusted_p: float = math.nan

    @property
    def shown(self) -> bool:
        """Whether it may be claimed that one explains more."""
        return is_claimed(self.adjusted_p)


def relate(x: Sequence[float], y: Sequence[float]) -> Relation | None:
    """Fit y by x.

    Args:
        x: The predictor, shape (N,).
        y: What is predicted, shape (N,).

    Returns:
        None where N < 5 or x or y is constant.
    """
    if len(x) < FEWEST_POINTS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    line = stats.linregress(x, y)
    half = stats.t.ppf((1 + LEVEL) / 2, len(x) - 2) * line.stderr
    return Relation(
        r_squared=float(line.rvalue**2),
        slope=float(line.slope),
        intercept=float(line.intercept),
        slope_interval=(float(line.slope - half), float(line.slope + half)),
        p_value=float(line.pvalue),
    )


def compare_predictors(a: Sequence[float], b: Sequence[float], y: Sequence[float]) -> float:
    """Return the p-value of Williams' test (1959) that a and b correlate with y equally.

    Signs do not matter: a predictor that y falls with is turned first. Steiger (1980) recommends
    the test for few points.

    Args:
        a: A predictor, shape (N,), N >= 4; not constant, as ``b`` and ``y``.
        b: Another one of the same points.
        y: What is predicted.
    """
    (_, ab, ay), (_, _, by), _ = np.corrcoef([a, b, y])
    ab, ay, by = ab * np.sign(ay) * np.sign(by), abs(ay), abs(by)
    count = len(y)
    determinant = 1 - ab**2 - ay**2 - by**2 + 2 * ab * ay * by
    variance = 2 * (count - 1) / (count - 3) * determinant + ((ay + by) / 2) ** 2 * (1 - ab) ** 3
    if variance <= 0 or ay == by:
        return 1.0
    t = (ay - by) * math.sqrt((count - 1) * (1 + ab) / variance)
    return float(2 * stats.t.sf(abs(t), count - 3))
