"""Fits of Platt scaling, beta calibration, and a temperature with a bias of the background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from calkd_det.calibration.newton import minimise_convex
from calkd_det.calibration.scaling_families import (
    BACKGROUND_BIAS,
    BETA,
    PLATT,
    TEMPERATURE,
    Derivatives,
    Family,
    SigmoidFamily,
)
from calkd_det.calibration.scores import row_chunks
from calkd_det.calibration.targets import target_probabilities
from calkd_det.calibration.validation import check_groups, check_matrix, check_targets
from calkd_det.knowledge import Activation

# Yields logits (M, C), labels (M,) or target probabilities (M, C), weights and groups (M,). It is
# called once for each pass over the samples.
Batches = Callable[[], Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]]

_COUNTS_PER_BLOCK = 4_000_000


@dataclass(frozen=True)
class ScalingFit:
    """Fitted parameters of a calibrator.

    Attributes:
        parameters: By name, as the calibrator takes them: each a number, or a list with one for
            each class.
        nll_before: Weighted mean negative log-likelihood of the logits as they are, in nats.
        nll_after: The same with the calibrator.
        at_bound: Whether a number stopped at a bound of the fit other than a slope of zero. It is
            then no minimum.
        intervals: 95 % bootstrap percentile interval of each number; None for lists, with fewer
            than two groups or without resamples.
        theta: The parameters of all classes, (1, D), and of each class, (C, D), in the order of
            the family, with 1/T for T; for ``start`` of :func:`fit_streamed`.
    """

    parameters: dict[str, float | list[float]]
    nll_before: float
    nll_after: float
    at_bound: bool
    intervals: dict[str, tuple[float, float]] | None
    theta: tuple[np.ndarray, np.ndarray | None] = field(repr=False, compare=False)


def fit_platt_scaling(logits: Tensor, labels: Tensor, **options: object) -> ScalingFit:
    """Fit a and b of :class:`~calkd_det.calibration.PlattScaling`.

    Args:
        logits: Of a sigmoid head, as for :func:`fit_scaling`.
        labels: As for :func:`fit_scaling`.
        options: ``weights``, ``groups``, ``per_class``, ``num_resamples`` and ``seed`` of it.

    Example:
        >>> fit = fit_platt_scaling(torch.tensor([[2.0], [2.0], [0.0], [0.0]]), torch.tensor(
        ...     [0, 1, 0, 1]))
        >>> {name: round(value, 6) + 0.0 for name, value in fit.parameters.items()}
        {'a': 0.0, 'b': 0.0}
    """
    return fit_scaling(PLATT, logits, labels, **options)


def fit_beta_scaling(logits: Tensor, labels: Tensor, **options: object) -> ScalingFit:
    """Fit a, b and c of :class:`~calkd_det.calibration.BetaScaling`.

    Args:
        logits: Of a sigmoid head, as for :func:`fit_scaling`.
        labels: As for :func:`fit_scaling`.
        options: ``weights``, ``groups``, ``per_class``, ``num_resamples`` and ``seed`` of it.
    """
    return fit_scaling(BETA, logits, labels, **options)


def fit_background_bias(logits: Tensor, labels: Tensor, **options: object) -> ScalingFit:
    """Fit temperature and bias of :class:`~calkd_det.calibration.BackgroundBiasScaling`.

    Args:
        logits: Of a softmax head, background last, as for :func:`fit_scaling`.
        labels: As for :func:`fit_scaling`.
        options: ``weights``, ``groups``, ``num_resamples`` and ``seed`` of it.
    """
    return fit_scaling(BACKGROUND_BIAS, logits, labels, **options)


def fit_scaling(
    family: Family,
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
    per_class: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
) -> ScalingFit:
    """Fit the parameters of a family by maximum likelihood, in float64.

    The negative log-likelihood is convex. The interval is a bootstrap over groups, each resample
    fitted by one Newton step from the fit to all samples.

    Args:
        family: What to fit.
        logits: (N, C), any floating dtype.
        labels: (N,) integers, see
            :func:`~calkd_det.calibration.temperature.fit_temperature`; or target probabilities,
            (N, C), floating point in [0, 1]. Those of a softmax head sum to 1.
        weights: (N,) non-negative, or None for equal weights.
        groups: (N,) integer ids of the independent units, i.e. image ids; None for samples.
        per_class: Fit the parameters of each class, for sigmoid heads. A normal prior around
            those of all classes keeps the parameters of rare classes finite.
        num_resamples: Bootstrap resamples; 0 for no interval.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: Bad input, as in
            :func:`~calkd_det.calibration.temperature.fit_temperature`, or target probabilities out
            of range.
    """
    check_matrix('logits', logits)
    labels, weights = check_targets(logits, labels, weights, family.activation)
    if groups is None:
        groups = torch.arange(len(logits))
    groups = check_groups(groups, len(logits)).to(logits.device)

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        yield logits, labels, weights, groups

    return fit_streamed(
        family, batches, per_class=per_class, num_resamples=num_resamples, seed=seed
    )


def fit_streamed(
    family: Family,
    batches: Batches,
    *,
    per_class: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
    start: tuple[np.ndarray, np.ndarray | None] | None = None,
) -> ScalingFit:
    """Fit the parameters of a family to samples that are read once for each Newton step.

    Args:
        family: What to fit.
        batches: The samples. Memory grows with the number of groups and with the largest batch,
            not with the number of samples.
        per_class: As for :func:`fit_scaling`.
        num_resamples: As for :func:`fit_scaling`.
        seed: As for :func:`fit_scaling`.
        start: Where the steps start, as :attr:`ScalingFit.theta` of a fit to part of the samples.
            A near start saves passes and changes nothing else.

    Raises:
        ValueError: There are no samples, or parameters of each class are asked of a softmax head.
    """
    if per_class and not isinstance(family, SigmoidFamily):
        raise ValueError('per_class is for sigmoid heads.')
    lower, upper = (np.array(side) for side in zip(*(p.bounds for p in family.parameters)))
    identity = np.array([[p.identity for p in family.parameters]])
    objective = _Objective(family, batches)
    pooled_start, class_start = (identity, None) if start is None else start
    theta = minimise_convex(objective.all_classes, pooled_start, lower, upper)
    by_class = None
    before, after = (float(objective.all_classes(point)[0][0]) for point in (identity, theta))
    intervals = None
    if per_class:
        pooled = theta[0]
        std = np.array([p.prior_std for p in family.parameters])

        def penalised(point: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            value, gradient, hessian = objective.by_class(point)
            offset = (point - pooled) / std
            value = value + 0.5 * (offset**2).sum(axis=1)
            return value, gradient + offset / std, hessian + np.diag(1 / std**2)

        if class_start is None:
            class_start = np.repeat(theta, objective.num_classes, axis=0)
        by_class = minimise_convex(penalised, class_start, lower, upper)
        after = float(objective.by_class(by_class)[0].sum())
    elif num_resamples > 0:
        intervals = _intervals(objective, theta, (lower, upper), num_resamples, seed)
    found = theta if by_class is None else by_class
    at_bound = (found >= upper) | ((found <= lower) & (lower != 0))
    return ScalingFit(
        _named(family, found, per_class),
        before / objective.total_weight,
        after / objective.total_weight,
        bool(at_bound.any()),
        intervals,
        (theta, by_class),
    )


class _Objective:
    """The negative log-likelihood of a family on samples, summed over them."""

    def __init__(self, family: Family, batches: Batches) -> None:
        self.family = family
        self.batches = batches
        self.total_weight = 0.0
        self.num_classes = 0
        for logits, _, weights, _ in batches():
            self.total_weight += float(weights.double().sum())
            self.num_classes = logits.shape[1]
        if not self.total_weight > 0:
            raise ValueError('there are no samples of non-zero weight: nothing to fit.')

    def all_classes(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        """Evaluate for :func:`~calkd_det.calibration.newton.minimise_convex` at (1, D)."""
        parts = (
            [part.sum(dim=0, keepdim=True) for part in derivatives]
            for derivatives, _ in self._evaluate(self.family.derivatives, theta)
        )
        return _summed(parts)

    def by_class(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        """Evaluate each class at its own parameters (C, D)."""
        return _summed(
            derivatives for derivatives, _ in self._evaluate(self.family.class_derivatives, theta)
        )

    def by_group(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return gradients (G, D) and Hessians (G, D, D) summed within groups, at (1, D)."""
        row_of_group: dict[int, int] = {}
        size = theta.shape[1]
        sums = torch.zeros(0, size + size * size, dtype=torch.float64)
        for (_, gradient, hessian), groups in self._evaluate(self.family.derivatives, theta):
            ids, position = groups.unique(return_inverse=True)
            values = torch.cat([gradient, hessian.flatten(1)], dim=1)
            part = values.new_zeros(len(ids), values.shape[1]).index_add_(0, position, values)
            for group in ids.tolist():
                row_of_group.setdefault(group, len(row_of_group))
            missing = len(row_of_group) - len(sums)
            # Doubling keeps the cost of growing linear in the number of groups.
            room = max(missing, len(sums)) if missing > 0 else 0
            sums = torch.cat([sums, sums.new_zeros(room, sums.shape[1])])
            sums[[row_of_group[group] for group in ids.tolist()]] += part.cpu()
        found = sums[: len(row_of_group)].numpy()
        return found[:, :size], found[:, size:].reshape(-1, size, size)

    @torch.no_grad()
    def _evaluate(
        self, derivatives: Callable[..., Derivatives], theta: np.ndarray
    ) -> Iterator[tuple[Derivatives, Tensor]]:
        for logits, labels, weights, groups in self.batches():
            point = torch.from_numpy(theta).to(logits.device)
            for rows in row_chunks(len(logits)):
                targets = target_probabilities(labels[rows], logits.shape[1])
                values = logits[rows].double(), targets, weights[rows].double()
                yield derivatives(point, *values), groups[rows]


def _summed(parts: Iterator) -> tuple[np.ndarray, ...]:
    total = None
    for part in parts:
        total = list(part) if total is None else [a + b for a, b in zip(total, part)]
    return tuple(values.cpu().numpy() for values in total)


def _intervals(
    objective: _Objective,
    theta: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    num_resamples: int,
    seed: int,
) -> dict[str, tuple[float, float]] | None:
    gradient, hessian = objective.by_group(theta)
    num_groups, size = gradient.shape
    if num_groups < 2:
        return None
    rng = np.random.default_rng(seed)
    block = max(1, _COUNTS_PER_BLOCK // num_groups)
    drawn = []
    for start in range(0, num_resamples, block):
        shape = min(block, num_resamples - start)
        counts = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=shape)
        matrix = (counts @ hessian.reshape(num_groups, -1)).reshape(-1, size, size)
        scale = np.trace(matrix, axis1=1, axis2=2)[:, None, None]
        matrix += np.eye(size) * (1e-12 * scale + 1e-300)
        drawn.append(theta - np.linalg.solve(matrix, (counts @ gradient)[:, :, None])[:, :, 0])
    low, high = np.quantile(np.clip(np.concatenate(drawn), *bounds), [0.025, 0.975], axis=0)
    ends = {p.name: (low[i], high[i]) for i, p in enumerate(objective.family.parameters)}
    if 'inverse_temperature' in ends:
        first, last = ends.pop('inverse_temperature')
        ends = {'temperature': (1 / last, 1 / first), **ends}
    return {name: (float(first), float(last)) for name, (first, last) in ends.items()}


def _named(family: Family, theta: np.ndarray, per_class: bool) -> dict[str, float | list[float]]:
    columns = {p.name: theta[:, i] for i, p in enumerate(family.parameters)}
    if 'inverse_temperature' in columns:
        columns = {'temperature': 1 / columns.pop('inverse_temperature'), **columns}
    return {
        name: column.tolist() if per_class else float(column[0]) for name, column in columns.items()
    }


def fit_global_temperature(
    logits: Tensor, labels: Tensor, weights: Tensor, activation: Activation
) -> float:
    """Return the T that :func:`~calkd_det.calibration.temperature.fit_temperature` fits, sooner."""
    fit = fit_scaling(TEMPERATURE[activation], logits, labels, weights=weights, num_resamples=0)
    return float(fit.parameters['temperature'])
