"""Compare cells of a study: paired differences, their common spread, Holm's correction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
SIGNIFICANCE = 0.05
FEWEST_SEEDS = 3
Interval = tuple[float, float]


def is_claimed(adjusted_p: float) -> bool:
    """Return whether a corrected p-value allows a claim; NaN does not."""
    return adjusted_p < SIGNIFICANCE


@dataclass(frozen=True)
class Spread:
    """What neither cell nor seed explains of a study's values.

    Attributes:
        sd: Residual standard deviation of value = cell + seed; NaN without degrees of freedom.
        degrees: Its degrees of freedom.
        alike_p: p-value of Levene's test (1960) that all cells spread alike; NaN with fewer than
            three cells of three seeds.
    """

    sd: float
    degrees: int
    alike_p: float

    @property
    def uneven(self) -> bool:
        """Whether Levene's test rejects at 5 % that the cells spread alike."""
        return self.alike_p < SIGNIFICANCE


@dataclass(frozen=True)
class PairedDifference:
    """Differences by seed, and what they say of their mean.

    Attributes:
        differences: By seed, in the seeds' order.
        mean: Their mean.
        interval: 95 % t interval of the mean; None where nothing can be tested.
        improved: Number of differences above zero.
        p_value: Two-sided, of the same t test; NaN where nothing can be tested.
        adjusted_p: After the correction for all tests of the study; NaN before it.
    """

    differences: dict[int, float]
    mean: float
    interval: Interval | None
    improved: int
    p_value: float
    adjusted_p: float = math.nan

    @property
    def count(self) -> int:
        """The number of pairs."""
        return len(self.differences)

    @property
    def shown(self) -> bool:
        """Whether the difference may be claimed."""
        return is_claimed(self.adjusted_p)


def paired_difference(
    a: Mapping[int, float],
    b: Mapping[int, float],
    spread: Spread,
    factor: float = math.sqrt(2),
) -> PairedDifference | None:
    """Compare two sides seed by seed.

    The t test takes the residual spread of the whole study. Where its cells do not spread alike,
    the t test of the differences alone is done too, and the wider interval and the larger p-value
    of the two are kept. Nothing is tested below three pairs, or where values have no spread.

    Args:
        a: Values by seed.
        b: Values by seed; seeds that only one side has are left out.
        spread: Of the study.
        factor: Standard deviation of a difference in the spread's SDs, of
            :func:`contrast_factor`; that of two single cells by default.

    Returns:
        a - b; None where no seed is common.
    """
    differences = {seed: a[seed] - b[seed] for seed in sorted(set(a) & set(b))}
    if not differences:
        return None
    values = np.array(list(differences.values()))
    mean, count = float(values.mean()), len(values)
    interval, p_value = None, math.nan
    if count >= FEWEST_SEEDS and spread.sd > 0:
        tests = [(spread.sd * factor, spread.degrees)]
        if spread.uneven:
            tests.append((float(values.std(ddof=1)), count - 1))
        found = [_t_test(mean, sd / math.sqrt(count), degrees) for sd, degrees in tests]
        half, p_value = (max(column) for column in zip(*found))
        interval = mean - half, mean + half
    return PairedDifference(
        differences=differences,
        mean=mean,
        interval=interval,
        improved=int((values > 0).sum()),
        p_value=p_value,
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


def common_spread(cells: Sequence[Mapping[int, float]]) -> Spread:
    """Return what neither cell nor seed explains, and whether cells spread alike.

    A paired difference of two cells has the SD times the root of 2 as its standard deviation; see
    :func:`contrast_factor` for means of several cells.

    Args:
        cells: Values by seed of each cell; seeds may be missing.
    """
    seeds = sorted({seed for cell in cells for seed in cell})
    found = [(cell, seed) for cell, values in enumerate(cells) for seed in values]
    if not found:
        return Spread(math.nan, 0, math.nan)
    design = np.zeros((len(found), len(cells) + len(seeds)))
    for row, (cell, seed) in enumerate(found):
        design[row, cell] = design[row, len(cells) + seeds.index(seed)] = 1
    y = np.array([cells[cell][seed] for cell, seed in found])
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    degrees = len(found) - int(rank)
    if degrees == 0:
        return Spread(math.nan, 0, math.nan)
    residuals = y - design @ solution
    # What rounding errors of sums leave is no spread.
    residuals[np.abs(residuals) < 1e-12 * max(1.0, float(np.abs(y).max()))] = 0.0
    owners = np.array([cell for cell, _ in found])
    sd = float(np.linalg.norm(residuals) / math.sqrt(degrees))
    return Spread(sd, degrees, _levene([residuals[owners == cell] for cell in range(len(cells))]))


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


def _t_test(mean: float, error: float, degrees: int) -> tuple[float, float]:
    """Return the half width of the 95 % interval, and the two-sided p-value."""
    if error == 0:
        return 0.0, 0.0
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees) * error)
    return half, float(2 * stats.t.sf(abs(mean) / error, degrees))


def _levene(residuals: Sequence[np.ndarray]) -> float:
    groups = [values for values in residuals if len(values) >= FEWEST_SEEDS]
    # The residuals of two cells alone are each other's mirror image.
    if len(groups) < 3:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)
        return float(stats.levene(*groups, center='mean').pvalue)
