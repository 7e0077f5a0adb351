"""What a study's numbers allow to say: paired differences, explained variance, power."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.8
RESAMPLES = 10_000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)
Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedDifference:
    """Differences by seed, and what they say of their mean.

    Attributes:
        differences: by seed, in the seeds' order.
        mean: their mean.
        interval: 95 % t interval of the mean over seeds; None with fewer than two.
        improved: how many are above zero.
        p_value: of the two-sided paired t test; NaN with fewer than two.
    """

    differences: dict[int, float]
    mean: float
    interval: Interval | None
    improved: int
    p_value: float

    @property
    def count(self) -> int:
        """The number of pairs."""
        return len(self.differences)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> PairedDifference | None:
    """Compare two sides seed by seed.

    Args:
        a: Values by seed.
        b: Values by seed; seeds that only one side has are left out.

    Returns:
        a - b; None where no seed is common.
    """
    differences = {seed: a[seed] - b[seed] for seed in sorted(set(a) & set(b))}
    if not differences:
        return None
    values = np.array(list(differences.values()))
    mean, interval = mean_interval(values)
    return PairedDifference(
        differences=differences,
        mean=mean,
        interval=interval,
        improved=int((values > 0).sum()),
        p_value=_p_value(values),
    )


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, Interval | None]:
    """Return the mean of independent values and its 95 % t interval, None for a single value."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return mean, (mean - half, mean + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values (1979): below 0.05 stays so among all of them together.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind='stable')
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def residual_sd(cells: Sequence[Mapping[int, float]]) -> tuple[float, int]:
    """Return what neither cell nor seed explains: the residual SD of an additive model.

    A paired difference of two cells has that times the root of 2 as its standard deviation; see
    :func:`contrast_factor` for means of several cells.

    Args:
        cells: Values by seed of each cell; seeds may be missing.

    Returns:
        The standard deviation, and its degrees of freedom; NaN and 0 without any.
    """
    seeds = sorted({seed for cell in cells for seed in cell})
    found = [(cell, seed) for cell, values in enumerate(cells) for seed in values]
    if not found:
        return math.nan, 0
    design = np.zeros((len(found), len(cells) + len(seeds)))
    for row, (cell, seed) in enumerate(found):
        design[row, cell] = design[row, len(cells) + seeds.index(seed)] = 1
    y = np.array([cells[cell][seed] for cell, seed in found])
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    degrees = len(found) - int(rank)
    if degrees == 0:
        return math.nan, 0
    return float(np.linalg.norm(y - design @ solution) / math.sqrt(degrees)), degrees


def contrast_factor(of: Sequence[str], to: Sequence[str]) -> float:
    """Return the spread of the mean of cells ``of`` less that of ``to``, in the residual's SDs.

    Example:
        >>> round(contrast_factor(['a'], ['b']) ** 2, 3), round(contrast_factor('abc', 'd') ** 2, 3)
        (2.0, 1.333)
    """
    weights = dict.fromkeys([*of, *to], 0.0)
    for names, sign in ((of, 1), (to, -1)):
        for name in names:
            weights[name] += sign / len(names)
    return math.sqrt(sum(weight**2 for weight in weights.values()))


def power_of(difference: float, sd: float, count: int) -> float:
    """Return the chance that a two-sided paired t test at 5 % finds a true difference.

    Args:
        difference: The true mean difference.
        sd: The standard deviation of differences, > 0.
        count: Number of pairs, >= 2.
    """
    degrees = count - 1
    critical = stats.t.ppf((1 + LEVEL) / 2, degrees) / math.sqrt(degrees)
    shift = difference / sd * math.sqrt(count)

    # scipy's noncentral t is NaN far out; this is its definition, a normal over a chi.
    low, high = stats.chi.ppf([1e-9, 1 - 1e-9], degrees)
    chi = low + (high - low) * (_NODES + 1) / 2
    rejected = stats.norm.sf(critical * chi - shift) + stats.norm.cdf(-critical * chi - shift)
    return float((high - low) / 2 * (_WEIGHTS * stats.chi.pdf(chi, degrees) * rejected).sum())


def smallest_difference(sd: float, count: int) -> float:
    """Return the smallest true difference that ``count`` pairs tell from zero with power 0.8.

    Args:
        sd: The standard deviation of differences, > 0; the result is in its unit.
        count: Number of pairs, >= 2.
    """
    return sd * _smallest_in_sds(count)


@cache
def _smallest_in_sds(count: int) -> float:
    high = 1.0
    while power_of(high, 1.0, count) < POWER:
        high *= 2
    return optimize.brentq(lambda d: power_of(d, 1.0, count) - POWER, 0.0, high, xtol=1e-5)


def pairs_needed(sd: float, difference: float, most: int = 10_000) -> int:
    """Return the number of pairs that tell ``difference`` from zero; at most ``most``."""
    return 2 + bisect.bisect_left(
        range(2, most), True, key=lambda count: smallest_difference(sd, count) <= difference
    )


@dataclass(frozen=True)
class Explained:
    """A straight line through points, and how much it explains.

    Attributes:
        r_squared: in [0, 1].
        interval: 95 % percentile interval of it, points resampled; None with too few.
        slope: of the line.
        intercept: of the line.
        slope_interval: as ``interval``.
        samples: R^2 of each resample, NaN where its points have no spread.
    """

    r_squared: float
    interval: Interval | None
    slope: float
    intercept: float
    slope_interval: Interval | None
    samples: np.ndarray


def explain(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Explained | None:
    """Fit y by x, with intervals bootstrapped over the points.

    The same number of points and seed resample the same points, so the ``samples`` of two
    predictors of one y can be compared one by one.

    Args:
        x: The predictor, shape (N,).
        y: What is predicted, shape (N,).
        seed: Of the bootstrap.

    Returns:
        None where N < 3 or x or y is constant. With N < 5 there are no intervals.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(x), size=(RESAMPLES, len(x)))
    r_squared, slopes = _lines(x[chosen], y[chosen])
    r, slope = (float(value[0]) for value in _lines(x[None], y[None]))
    enough = len(x) >= 5
    return Explained(
        r_squared=r,
        interval=_percentiles(r_squared) if enough else None,
        slope=slope,
        intercept=float(y.mean() - slope * x.mean()),
        slope_interval=_percentiles(slopes) if enough else None,
        samples=r_squared,
    )


def difference_of_explained(a: Explained, b: Explained) -> tuple[float, Interval | None]:
    """Return R^2 of ``a`` less that of ``b``, with a 95 % interval from their common resamples."""
    enough = a.interval is not None and b.interval is not None
    return a.r_squared - b.r_squared, _percentiles(a.samples - b.samples) if enough else None


def _lines(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return R^2 and slope of each row; NaN where x or y is constant."""
    x = x - x.mean(axis=1, keepdims=True)
    y = y - y.mean(axis=1, keepdims=True)
    xx, yy, xy = (x * x).sum(axis=1), (y * y).sum(axis=1), (x * y).sum(axis=1)
    flat = (xx < 1e-12 * max(xx.max(), 1e-300)) | (yy < 1e-12 * max(yy.max(), 1e-300))
    xx, yy = np.where(flat, np.nan, xx), np.where(flat, np.nan, yy)
    return xy**2 / (xx * yy), xy / xx


def _percentiles(values: np.ndarray) -> Interval:
    low, high = np.nanpercentile(values, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return float(low), float(high)


def _p_value(values: np.ndarray) -> float:
    if len(values) < 2:
        return math.nan
    mean, sd = values.mean(), values.std(ddof=1)
    if sd == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / sd * math.sqrt(len(values)), len(values) - 1))
