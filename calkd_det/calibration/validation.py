"""Argument checks of the calibration functions: bad values raise an error instead of giving NaN."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Binning = Literal['width', 'mass']


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(choices)}, got {value!r}.')


def check_matrix(name: str, values: Tensor) -> None:
    """Raise ``ValueError`` unless ``values`` is a finite, non-empty, floating (N, C) tensor."""
    if values.ndim != 2:
        raise ValueError(f'{name} must have shape (N, C), got {tuple(values.shape)}.')
    if not values.is_floating_point():
        raise ValueError(f'{name} must be floating point, got {values.dtype}.')
    if values.numel() == 0:
        raise ValueError(f'{name} is empty: shape {tuple(values.shape)}.')
    _check_rows(name, values.isfinite(), 'not finite')


def check_labels(labels: Tensor, num_samples: int, num_classes: int, activation: str) -> Tensor:
    """Return ``labels`` as int64 after checking shape, dtype and range.

    A softmax head has an output for the background, so labels are in [0, C). A sigmoid head has
    none, and label C means 'none of the C classes'.
    """
    check_choice('activation', activation, ('softmax', 'sigmoid'))
    _check_vector('labels', labels, num_samples)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f'labels must be integers, got {labels.dtype}.')
    labels = labels.long()
    highest = num_classes if activation == 'sigmoid' else num_classes - 1
    _check_rows('labels', (labels >= 0) & (labels <= highest), f'outside [0, {highest}]')
    return labels


def check_groups(groups: Tensor, num_samples: int) -> Tensor:
    """Return integer group ids as int64."""
    _check_vector('groups', groups, num_samples)
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise ValueError(f'groups must be integers, got {groups.dtype}.')
    return groups.long()


def check_weights(weights: Tensor | None, reference: Tensor) -> Tensor:
    """Return float64 weights on the device of ``reference``; ones where ``weights`` is None."""
    num_samples = reference.shape[0]
    if weights is None:
        return torch.ones(num_samples, dtype=torch.float64, device=reference.device)
    _check_vector('weights', weights, num_samples)
    weights = weights.to(reference.device, torch.float64)
    _check_rows('weights', weights.isfinite() & (weights >= 0), 'negative or not finite')
    return weights


def check_samples(
    logits: Tensor, labels: Tensor, weights: Tensor | None, groups: Tensor | None, activation: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return targets, float64 weights and int64 groups of samples of a stream after checking all.

    Args:
        logits: Shape (N, C), see :func:`check_matrix`.
        labels: See :func:`check_targets`.
        weights: Shape (N,), >= 0; or None for equal weights. All may be zero.
        groups: Integers, shape (N,); or None, which stays None.
        activation: ``'softmax'`` or ``'sigmoid'``.

    Raises:
        ValueError: Wrong shape, dtype or range of any of them.
    """
    check_matrix('logits', logits)
    labels = check_labels_or_targets(labels, logits, activation)
    weights = check_weights(weights, logits)
    if groups is not None:
        groups = check_groups(groups, len(labels)).to(logits.device)
    return labels, weights, groups


def check_targets(
    values: Tensor, labels: Tensor, weights: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """Return targets and float64 weights on the device of ``values`` after checking both.

    Args:
        values: Checked logits or probabilities, shape (N, C).
        labels: Integers, shape (N,), see :func:`check_labels`; or target probabilities, shape
            (N, C), see :func:`check_target_probabilities`.
        weights: Shape (N,), >= 0, not all zero; or None for equal weights.
        activation: ``'softmax'`` or ``'sigmoid'``.

    Raises:
        ValueError: Wrong shape, dtype or range of labels or weights, or a total weight of zero.
    """
    labels = check_labels_or_targets(labels, values, activation)
    weights = check_weights(weights, values)
    check_total_weight(weights)
    return labels, weights


def check_labels_or_targets(labels: Tensor, values: Tensor, activation: str) -> Tensor:
    """Return int64 labels (N,) or float64 target probabilities (N, C) after checking them."""
    if labels.is_floating_point() and labels.ndim == 2:
        return check_target_probabilities(labels, values, activation)
    return check_labels(labels, *values.shape, activation).to(values.device)


def check_target_probabilities(targets: Tensor, logits: Tensor, activation: str) -> Tensor:
    """Return target probabilities as float64 on the device of ``logits``.

    Args:
        targets: Floating point in [0, 1], shape (N, C). Under softmax the C of a sample sum to 1.
        logits: Checked logits, shape (N, C).
        activation: ``'softmax'`` or ``'sigmoid'``.

    Raises:
        ValueError: Wrong shape, a value out of range, or a sum that is not 1 up to 1e-4.
    """
    if targets.shape != logits.shape:
        raise ValueError(
            f'target probabilities must have the shape of the logits, {tuple(logits.shape)}, '
            f'got {tuple(targets.shape)}.'
        )
    targets = targets.to(logits.device, torch.float64)
    _check_rows('target probabilities', (targets >= 0) & (targets <= 1), 'outside [0, 1]')
    if activation == 'softmax':
        _check_rows('target probabilities', (targets.sum(1) - 1).abs() < 1e-4, 'do not sum to 1')
    return targets


def check_total_weight(weights: Tensor) -> None:
    """Raise ``ValueError`` if all weights are zero."""
    if not weights.sum() > 0:
        raise ValueError('weights are all zero: there is nothing to average.')


def check_probabilities(name: str, values: Tensor) -> None:
    """Raise ``ValueError`` for a value outside [0, 1], with a tolerance of 1e-6 for float32."""
    _check_rows(name, (values >= -1e-6) & (values <= 1 + 1e-6), 'outside [0, 1]')


def _check_vector(name: str, values: Tensor, num_samples: int) -> None:
    if tuple(values.shape) != (num_samples,):
        raise ValueError(f'{name} must have shape ({num_samples},), got {tuple(values.shape)}.')


def _check_rows(name: str, good: Tensor, complaint: str) -> None:
    if good.all():
        return
    bad = (~good).nonzero()
    first = bad[0].tolist()
    where = first[0] if len(first) == 1 else tuple(first)
    raise ValueError(f'{name}: {len(bad)} of {good.numel()} values {complaint}, first at {where}.')
