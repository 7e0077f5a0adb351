"""Fits of the temperature T that minimises the negative log-likelihood of ``logits / T``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import BSpline, make_interp_spline
from scipy.optimize import brentq
from torch import Tensor

from calkd_det.calibration.scores import (
    Likelihood,
    negative_log_likelihood,
    row_chunks,
)
from calkd_det.calibration.validation import (
    check_choice,
    check_labels_or_targets,
    check_samples,
    check_weights,
)
from calkd_det.knowledge import Activation

DEFAULT_BOUNDS = (0.05, 20.0)

# The slope curve is smooth on this scale in ln T, so that a quintic spline gives T to about 1e-6.
_GRID_STEP = 0.1
# Samples without a group are spread over this many; the width of the interval is right to 2 %.
_MAX_SAMPLE_GROUPS = 4096
_COUNTS_PER_BLOCK = 4_000_000


@dataclass(frozen=True)
class TemperatureFit:
    """A fitted temperature with its likelihood and interval.

    Attributes:
        temperature: The T of least negative log-likelihood within ``bounds``.
        nll_before: Weighted mean negative log-likelihood at T = 1, in nats.
        nll_after: The same at ``temperature``.
        at_bound: Whether T stopped at one of ``bounds``. It is then no minimum.
        interval: 95 % bootstrap percentile interval of T; None with fewer than two groups or
            without resamples.
        num_samples: Number of samples of non-zero weight.
        num_groups: Number of resampled units.
        bounds: Smallest and largest T allowed.
    """

    temperature: float
    nll_before: float
    nll_after: float
    at_bound: bool
    interval: tuple[float, float] | None
    num_samples: int
    num_groups: int
    bounds: tuple[float, float]


class TemperatureAccumulator:
    """Fit of T to a stream of logits in one pass, without keeping the logits.

    For each group (image) the derivative of the negative log-likelihood by 1/T is summed at about
    60 temperatures, evenly spaced in ln T. The sum over groups is zero at the fitted T. Sums over
    resampled groups give its interval. The memory is groups x 61 x 8 bytes (2.4 MB for 5,000
    images), whatever the number of samples. T agrees with :func:`fit_temperature` to better than
    1e-4.

    Args:
        activation: ``'softmax'`` or ``'sigmoid'``, see :func:`fit_temperature`.
        bounds: Smallest and largest T; must contain 1.
        background: Columns of a softmax head that together are the background, whose label is the
            last one: those of classes that are not labelled, and the last. None for the last alone.

    Raises:
        ValueError: Unknown activation or bad bounds; in :meth:`update`, bad input.

    Example:
        >>> accumulator = TemperatureAccumulator()
        >>> for image_id in range(4):
        ...     logits = torch.tensor([[2.0, 0.0]] * 4)
        ...     labels = torch.tensor([0, 0, 0, 1])
        ...     accumulator.update(logits, labels, groups=torch.full((4,), image_id))
        >>> round(accumulator.compute().temperature, 3)  # 2 / ln 3
        1.82
    """

    def __init__(
        self,
        activation: Activation = 'softmax',
        bounds: tuple[float, float] = DEFAULT_BOUNDS,
        background: Tensor | None = None,
    ) -> None:
        check_choice('activation', activation, ('softmax', 'sigmoid'))
        lower, upper = bounds
        if not (0 < lower <= 1 <= upper < math.inf and lower < upper):
            raise ValueError(f'bounds must satisfy 0 < lower <= 1 <= upper, got {bounds}.')
        self.activation = activation
        self.bounds = (float(lower), float(upper))
        self.background = background
        # A quintic spline needs six points, however close the bounds.
        num_points = max(6, 1 + math.ceil(math.log(upper / lower) / _GRID_STEP))
        self._log_t = np.linspace(math.log(lower), math.log(upper), num_points)
        self._slopes = torch.zeros(0, num_points, dtype=torch.float64)
        self._row_of_group: dict[int, int] = {}
        self._has_groups: bool | None = None
        self._num_classes: int | None = None
        self._num_samples = 0
        self._total_weight = 0.0
        self._nll_before = 0.0
        self._largest_margin = 0.0

    @torch.no_grad()
    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        """Add samples; see :func:`fit_temperature` for the arguments.

        Logits are evaluated in their own dtype, half precision in float32. Sums are in float64.
        """
        labels, weights, groups = check_samples(logits, labels, weights, groups, self.activation)
        self._check_same_stream(logits.shape[1], groups is not None)
        for rows in row_chunks(len(labels)):
            self._update_chunk(
                logits[rows],
                labels[rows],
                weights[rows],
                None if groups is None else groups[rows],
            )

    def compute(self, *, num_resamples: int = 1000, seed: int = 0) -> TemperatureFit:
        """Return the fit to all samples so far.

        Raises:
            ValueError: There are no samples, all weights are zero, or no T changes the likelihood.
        """
        if self._has_groups is None:
            raise ValueError('no samples: call update() before compute().')
        if self._total_weight == 0:
            raise ValueError('weights are all zero: there is nothing to fit.')
        if self._largest_margin == 0:
            raise ValueError(
                'the likelihood does not depend on T: every sample has equal logits for all '
                'classes (or there is one class).'
            )
        slopes = self._slopes[: len(self._row_of_group)].numpy()
        total = slopes.sum(axis=0) / self._total_weight
        temperature = float(_find_zero_slope(self._log_t, total[None], self.bounds)[0])
        nll_before = self._nll_before / self._total_weight
        return TemperatureFit(
            temperature=temperature,
            nll_before=nll_before,
            nll_after=max(0.0, nll_before + self._nll_change(total, temperature)),
            at_bound=temperature in self.bounds,
            interval=self._bootstrap(slopes, num_resamples, seed),
            num_samples=self._num_samples,
            num_groups=len(slopes),
            bounds=self.bounds,
        )

    def _check_same_stream(self, num_classes: int, has_groups: bool) -> None:
        if self._has_groups is None:
            self._has_groups, self._num_classes = has_groups, num_classes
        if has_groups != self._has_groups:
            raise ValueError('groups must be given for all samples or for none.')
        if num_classes != self._num_classes:
            raise ValueError(f'expected {self._num_classes} classes, got {num_classes}.')

    def _update_chunk(
        self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor | None
    ) -> None:
        if groups is None:
            sample_index = torch.arange(len(labels), device=logits.device) + self._num_samples
            groups = sample_index % _MAX_SAMPLE_GROUPS
        keep = weights > 0
        if not keep.all():
            logits, labels, weights, groups = (
                values[keep] for values in (logits, labels, weights, groups)
            )
        if len(labels) == 0:
            return
        dtype = torch.promote_types(logits.dtype, torch.float32)
        likelihood = Likelihood(logits.to(dtype), labels, self.activation, self.background)
        slopes = torch.stack([likelihood.slope(beta) for beta in np.exp(-self._log_t)], dim=1)
        slopes = slopes.double() * weights.unsqueeze(1)
        ids, position = groups.unique(return_inverse=True)
        by_group = slopes.new_zeros(len(ids), slopes.shape[1]).index_add_(0, position, slopes)
        self._add_slopes(ids.tolist(), by_group.cpu())
        self._num_samples += len(labels)
        self._total_weight += float(weights.sum())
        self._nll_before += float(likelihood.nll(1.0).double() @ weights)
        largest = float(likelihood.margins.abs().max())
        self._largest_margin = max(self._largest_margin, largest)

    def _add_slopes(self, ids: list[int], slopes: Tensor) -> None:
        for group in ids:
            self._row_of_group.setdefault(group, len(self._row_of_group))
        missing = len(self._row_of_group) - len(self._slopes)
        if missing > 0:
            # Doubling keeps the cost of growing linear in the number of groups.
            room = max(missing, len(self._slopes))
            padding = self._slopes.new_zeros(room, self._slopes.shape[1])
            self._slopes = torch.cat([self._slopes, padding])
        self._slopes[[self._row_of_group[group] for group in ids]] += slopes

    def _nll_change(self, slope: np.ndarray, temperature: float) -> float:
        by_log_t = make_interp_spline(self._log_t, -np.exp(-self._log_t) * slope, k=5)
        return float(by_log_t.integrate(0.0, math.log(temperature)))

    def _bootstrap(
        self, slopes: np.ndarray, num_resamples: int, seed: int
    ) -> tuple[float, float] | None:
        num_groups = len(slopes)
        if num_groups < 2 or num_resamples < 1:
            return None
        rng = np.random.default_rng(seed)
        block = max(1, _COUNTS_PER_BLOCK // num_groups)
        temperatures = []
        for start in range(0, num_resamples, block):
            size = min(block, num_resamples - start)
            counts = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=size)
            temperatures.append(_find_zero_slope(self._log_t, counts @ slopes, self.bounds))
        low, high = np.quantile(np.concatenate(temperatures), [0.025, 0.975])
        return float(low), float(high)


def fit_temperature(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
    activation: Activation = 'softmax',
    bounds: tuple[float, float] = DEFAULT_BOUNDS,
    num_resamples: int = 1000,
    seed: int = 0,
) -> TemperatureFit:
    """Fit the temperature T of ``logits / T`` by maximum likelihood (Guo et al. 2017).

    The negative log-likelihood is convex in 1/T, so its derivative changes sign once. Root
    bracketing finds that T to about 1e-9 in float64. A minimiser of the likelihood itself would
    stop at the square root of the machine's precision. ``at_bound`` is True where T stops at a
    bound: the lower one if all samples are classified right, the upper one if the labels have
    nothing to do with the logits.

    The interval is a percentile bootstrap over groups, because RoIs of one image are not
    independent. Without groups it resamples samples, spread over at most 4,096 groups.

    Args:
        logits: (N, C), any floating dtype.
        labels: (N,) integers. Softmax: [0, C), background being one of the classes. Sigmoid:
            [0, C], where C is background, the all-zero target. Or target probabilities, (N, C),
            floating point in [0, 1]; those of a softmax head sum to 1.
        weights: (N,) non-negative, or None for equal weights. Zero leaves a sample out.
        groups: (N,) integer ids of the independent units, i.e. image ids; or None.
        activation: ``'softmax'``: cross-entropy. ``'sigmoid'``: Bernoulli, summed over classes.
        bounds: Smallest and largest T; must contain 1.
        num_resamples: Bootstrap resamples; 0 for no interval.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: Empty or non-finite logits (with their number and the first index), bad
            shapes, dtypes, labels, weights or bounds, or logits on which no T has an effect.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]] * 4)
        >>> fit = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
        >>> round(fit.temperature, 6)  # 2 / ln 3
        1.820478
    """
    accumulator = TemperatureAccumulator(activation, bounds)
    accumulator.update(logits, labels, weights, groups)
    fit = accumulator.compute(num_resamples=num_resamples, seed=seed)
    weights = check_weights(weights, logits)
    labels = check_labels_or_targets(labels, logits, activation)
    temperature = fit.temperature
    if not fit.at_bound:
        temperature = _refine(logits, labels, weights, activation, temperature, fit.bounds)
    before, after = (
        negative_log_likelihood(
            logits, labels, temperature=value, activation=activation, weights=weights
        )
        for value in (1.0, temperature)
    )
    return replace(fit, temperature=temperature, nll_before=before, nll_after=after)


def _find_zero_slope(
    log_t: np.ndarray, slopes: np.ndarray, bounds: tuple[float, float]
) -> np.ndarray:
    """Return T (R,) at which slopes (R, P), falling in ln T, are zero, else the nearer bound."""
    positive = (slopes > 0).sum(axis=1)
    left = np.clip(positive - 1, 0, len(log_t) - 2)
    low, high = log_t[left], log_t[left + 1]
    spline = make_interp_spline(log_t, slopes.T, k=5)
    # Within one grid interval the same six basis functions are non-zero.
    support = BSpline.design_matrix((low + high) / 2, spline.t, 5).indices.reshape(-1, 6)
    coefficients = spline.c[support, np.arange(len(slopes))[:, None]]
    for _ in range(40):
        middle = (low + high) / 2
        basis = BSpline.design_matrix(middle, spline.t, 5).data.reshape(-1, 6)
        above_zero = (basis * coefficients).sum(axis=1) > 0
        low, high = np.where(above_zero, middle, low), np.where(above_zero, high, middle)
    found = np.exp((low + high) / 2)
    found = np.where(positive == 0, bounds[0], found)
    return np.where(positive == len(log_t), bounds[1], found)


def _refine(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    activation: Activation,
    temperature: float,
    bounds: tuple[float, float],
) -> float:
    """Return T refined by bracketing the root of the float64 derivative."""

    @torch.no_grad()
    def slope(beta: float) -> float:
        total = 0.0
        for rows in row_chunks(len(labels)):
            likelihood = Likelihood(logits[rows].double(), labels[rows], activation)
            total += float(likelihood.slope(beta) @ weights[rows])
        return total

    lower, upper = 1 / bounds[1], 1 / bounds[0]
    for width in (1e-4, 1e-2, math.inf):
        low = max(lower, (1 - width) / temperature)
        high = min(upper, (1 + width) / temperature)
        at_low, at_high = slope(low), slope(high)
        if at_low <= 0 <= at_high:
            return 1 / brentq(slope, low, high, xtol=1e-12, rtol=1e-10)
    return bounds[0] if at_high <= 0 else bounds[1]
