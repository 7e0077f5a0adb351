"""The power of a study: which true differences its seeds can tell from zero."""

from __future__ import annotations

import bisect
import math
from functools import cache

import numpy as np
from scipy import optimize, stats

from calkd_det.commands.study.statistics import SIGNIFICANCE

POWER = 0.8
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def power_of(
    difference: float, sd: float, count: int, degrees: float, significance: float = SIGNIFICANCE
) -> float:
    """Return the chance that a two-sided t test of paired differences finds a true one.

    Args:
        difference: The true mean difference.
        sd: The standard deviation of differences, > 0.
        count: Number of pairs, >= 2.
        degrees: Degrees of freedom of the estimate of ``sd``, > 0.
        significance: The level of the test.
    """
    critical = stats.t.ppf(1 - significance / 2, degrees) / math.sqrt(degrees)
    shift = difference / sd * math.sqrt(count)

    # scipy's noncentral t is NaN far out; this is its definition, a normal over a chi.
    low, high = stats.chi.ppf([1e-9, 1 - 1e-9], degrees)
    chi = low + (high - low) * (_NODES + 1) / 2
    rejected = stats.norm.sf(critical * chi - shift) + stats.norm.cdf(-critical * chi - shift)
    return float((high - low) / 2 * (_WEIGHTS * stats.chi.pdf(chi, degrees) * rejected).sum())


def smallest_difference(
    sd: float, count: int, degrees_per_pair: float = 1.0, significance: float = SIGNIFICANCE
) -> float:
    """Return the smallest true difference that ``count`` pairs tell from zero with power 0.8.

    Args:
        sd: The standard deviation of differences, > 0; the result is in its unit.
        count: Number of pairs, >= 2.
        degrees_per_pair: ``count - 1`` times it are the degrees of freedom of the estimate of
            ``sd``: the number of cells less one where all cells' spread is pooled.
        significance: The level of the test.
    """
    return sd * _smallest_in_sds(count, degrees_per_pair * (count - 1), significance)


@cache
def _smallest_in_sds(count: int, degrees: float, significance: float) -> float:
    high = 1.0
    while power_of(high, 1.0, count, degrees, significance) < POWER:
        high *= 2
    return optimize.brentq(
        lambda difference: power_of(difference, 1.0, count, degrees, significance) - POWER,
        0.0,
        high,
        xtol=1e-5,
    )


def pairs_needed(
    sd: float,
    difference: float,
    degrees_per_pair: float = 1.0,
    most: int = 10_000,
    significance: float = SIGNIFICANCE,
) -> int:
    """Return the number of pairs that tell ``difference`` from zero; at most ``most``."""
    return 2 + bisect.bisect_left(
        range(2, most),
        True,
        key=lambda count: (
            smallest_difference(sd, count, degrees_per_pair, significance) <= difference
        ),
    )
