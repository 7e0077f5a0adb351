"""Fits of several temperatures: one for each class, or one for foreground and one for background.

Class k's log-probability is divided by T_k. This is vector scaling (Guo et al., `On Calibration of
Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, section 4.2) without its bias, on the
log-softmax, so that a constant added to all logits changes nothing. More parameters overfit sooner.
So a prior draws each T_k towards the one global temperature, and the fit is kept only if it lowers
the negative log-likelihood of images that it was not fitted to by more than one standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from calkd_det.calibration.choice import (
    Calibration,
    HeldOutErrors,
    cross_validate,
    simplest_within_one_standard_error,
)
from calkd_det.calibration.scaling_fits import fit_global_temperature
from calkd_det.calibration.scores import row_chunks
from calkd_det.calibration.temperature import DEFAULT_BOUNDS
from calkd_det.calibration.validation import (
    check_groups,
    check_labels,
    check_matrix,
    check_targets,
)

Kept = Literal['classes', 'global', 'identity']

DEFAULT_PRIOR_STD = 0.3


@dataclass(frozen=True)
class ClassTemperatureFit:
    """Temperatures of all classes and their error on images that they were not fitted to.

    Attributes:
        temperatures: T_k of each of the K logits.
        kept: The simplest candidate within one standard error of the least held-out error, see
            :func:`~calkd_det.calibration.choice.simplest_within_one_standard_error`.
            ``'classes'``: temperatures fitted by class. ``'global'``: the global temperature for
            each class. ``'identity'``: 1 for each class.
        held_out_nll: Mean negative log-likelihood in nats of each candidate, by cross-validation.
    """

    temperatures: tuple[float, ...]
    kept: Kept
    held_out_nll: dict[Kept, float]


def fit_class_temperatures(
    logits: Tensor,
    labels: Tensor,
    *,
    tied: Sequence[int] | None = None,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
    prior_std: float = DEFAULT_PRIOR_STD,
    num_folds: int = 5,
    seed: int = 0,
) -> ClassTemperatureFit:
    """Fit a temperature for each class of a softmax head, and fall back if that is no better.

    The fit is the maximum a posteriori: it minimises the mean negative log-likelihood of
    ``softmax(ln p_k / T_k)``, p the softmax of the logits, which is convex in the 1/T_k, with a
    normal prior of ``ln T_k`` around the global ``ln T``.

    Args:
        logits: Float, shape (N, K); K counts the background.
        labels: int64, shape (N,), in [0, K).
        tied: For each class the index of its temperature, shape (K,), from 0 without gaps.
            Classes of the same index share one temperature; None for one each. See
            :func:`foreground_background`.
        weights: Float, shape (N,), >= 0.
        groups: Image of each sample, int, shape (N,). Folds are made of whole images.
        prior_std: Standard deviation of the prior, in ln T, > 0.
        num_folds: Folds of the cross-validation, >= 2.
        seed: Seed of the split into folds.

    Raises:
        ValueError: Bad input, as in :func:`~calkd_det.calibration.temperature.fit_temperature`,
            or fewer images than folds.
    """
    check_matrix('logits', logits)
    labels = check_labels(labels, *logits.shape, 'softmax')
    labels, weights = check_targets(logits, labels, weights, 'softmax')
    groups = torch.arange(len(labels)) if groups is None else check_groups(groups, len(labels))
    tied = np.arange(logits.shape[1]) if tied is None else np.asarray(tied)
    if tied.shape != (logits.shape[1],) or set(tied) != set(range(tied.max() + 1)):
        raise ValueError(f'tied must give each of the {logits.shape[1]} classes an index from 0.')
    if not prior_std > 0:
        raise ValueError(f'prior_std must be > 0, got {prior_std}.')

    def fit_all(*samples: Tensor) -> list[Calibration]:
        fitted = fit_tied_temperatures(*samples, tied, prior_std)
        return [class_scaling(values) for values in (np.ones(len(tied)), *fitted)]

    errors = cross_validate(
        fit_all, logits, labels, weights, groups, 'softmax', num_folds=num_folds, seed=seed
    )
    fitted = fit_tied_temperatures(logits, labels, weights, tied, prior_std)
    return choose_class_temperatures(errors, fitted, int(tied.max()) + 1)


def choose_class_temperatures(
    errors: Sequence[HeldOutErrors],
    fitted: tuple[np.ndarray, np.ndarray],
    num_distinct: int,
    *,
    keep: Kept | None = None,
) -> ClassTemperatureFit:
    """Choose between no temperature, the global one and that of each class.

    Args:
        errors: Held-out errors of the three, in this order.
        fitted: Those of :func:`fit_tied_temperatures` to all samples.
        num_distinct: Number of temperatures of the third that can differ.
        keep: The choice where it is made already; None to choose.
    """
    names: tuple[Kept, ...] = ('identity', 'global', 'classes')
    if keep is None:
        chosen = simplest_within_one_standard_error(errors, (0, 1, num_distinct))
    else:
        chosen = names.index(keep)
    temperatures = (np.ones_like(fitted[0]), *fitted)[chosen]
    held_out = {name: found.mean_nll for name, found in zip(names, errors)}
    return ClassTemperatureFit(tuple(temperatures.tolist()), names[chosen], held_out)


def class_scaling(temperatures: np.ndarray) -> Calibration:
    """Return the calibration of logits by temperatures of classes, shape (K,), in float64."""
    factor = torch.from_numpy(1 / temperatures)
    return lambda logits: logits.double().log_softmax(dim=1) * factor.to(logits.device)


def foreground_background(num_logits: int) -> tuple[int, ...]:
    """Return ``tied`` for one temperature of all foreground classes and one of the background.

    The background is the last of the ``num_logits`` logits.

    Example:
        >>> foreground_background(4)
        (0, 0, 0, 1)
    """
    return (0,) * (num_logits - 1) + (1,)


def fit_tied_temperatures(
    logits: Tensor, labels: Tensor, weights: Tensor, tied: np.ndarray, prior_std: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the global temperature and those of the classes.

    Args:
        logits: Checked, shape (N, K), as the other arguments, see :func:`fit_class_temperatures`.
        labels: Shape (N,).
        weights: float64, shape (N,).
        tied: Shape (K,).
        prior_std: Standard deviation of the prior.

    Returns:
        The global temperature, repeated for each class, and the class temperatures, each (K,).
    """
    t_global = fit_global_temperature(logits, labels, weights, 'softmax')
    total = float(weights.sum())

    def objective(offset: np.ndarray) -> tuple[float, np.ndarray]:
        beta = np.exp(-offset)[tied] / t_global
        nll, gradient_by_beta = _nll_and_gradient(beta, logits, labels, weights)
        gradient_by_offset = np.bincount(tied, -beta * gradient_by_beta)
        prior = 0.5 * float(offset @ offset) / prior_std**2
        return (nll + prior) / total, (gradient_by_offset + offset / prior_std**2) / total

    low, high = (float(np.log(bound / t_global)) for bound in DEFAULT_BOUNDS)
    start = np.zeros(tied.max() + 1)
    found = minimize(
        objective, start, jac=True, method='L-BFGS-B', bounds=[(low, high)] * len(start)
    )
    return np.full(len(tied), t_global), t_global * np.exp(found.x)[tied]


@torch.no_grad()
def _nll_and_gradient(
    beta: np.ndarray, logits: Tensor, labels: Tensor, weights: Tensor
) -> tuple[float, np.ndarray]:
    """Compute the summed NLL of ``softmax(beta_k ln p_k)`` and its gradient, shape (K,)."""
    factor = torch.from_numpy(beta).to(logits.device)
    nll, gradient = 0.0, torch.zeros_like(factor)
    for rows in row_chunks(len(labels)):
        z, y, w = logits[rows].double().log_softmax(dim=1), labels[rows], weights[rows]
        log_p = (z * factor).log_softmax(dim=1)
        index = torch.arange(len(y), device=z.device)
        nll -= float(log_p[index, y] @ w)
        residual = log_p.exp()
        residual[index, y] -= 1
        gradient += w @ (residual * z)
    return nll, gradient.cpu().numpy()
