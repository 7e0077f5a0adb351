"""Proper scores of a classifier: negative log-likelihood and Brier score."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from calkd_det.calibration.validation import check_matrix, check_probabilities, check_targets
from calkd_det.knowledge import Activation

CHUNK_ROWS = 4096  # a few MB stay in the cache; four times as many rows are twice as slow


def row_chunks(num_rows: int) -> Iterator[slice]:
    """Return slices over the rows of a matrix, so that float64 copies stay small."""
    return (slice(start, start + CHUNK_ROWS) for start in range(0, num_rows, CHUNK_ROWS))


def class_scores(logits: Tensor, activation: Activation) -> Tensor:
    """Return the scores (N, C) of logits (N, C) under the head's activation."""
    return logits.softmax(dim=1) if activation == 'softmax' else logits.sigmoid()


def logit_margins(logits: Tensor, labels: Tensor, activation: Activation) -> Tensor:
    """Return margins u (N, C), from which the likelihood is computed without the labels.

    Softmax: ``u_k = z_k - z_label``, and the negative log-likelihood of a sample at inverse
    temperature b is ``logsumexp(b u)``. Sigmoid: ``u = z`` with the sign flipped at the label, and
    it is ``sum softplus(b u)``. Both are convex in b. In the derivative, terms of one sign do not
    cancel.
    """
    rows = torch.arange(len(labels), device=logits.device)
    if activation == 'softmax':
        return logits - logits[rows, labels].unsqueeze(1)
    margins = logits.clone()
    foreground = labels < logits.shape[1]
    margins[rows[foreground], labels[foreground]] *= -1
    return margins


def margin_nll(margins: Tensor, beta: float, activation: Activation) -> Tensor:
    """Return the NLL (N,) in nats of margins (N, C) at inverse temperature ``beta``."""
    scaled = margins * beta
    if activation == 'softmax':
        return scaled.logsumexp(dim=1)
    return F.softplus(scaled).sum(dim=1)


def margin_slope(margins: Tensor, beta: float, activation: Activation) -> Tensor:
    """Return the derivative (N,) of :func:`margin_nll` by ``beta``, which never decreases."""
    scaled = margins * beta
    gates = class_scores(scaled, activation)
    return torch.linalg.vecdot(margins, gates)


def negative_log_likelihood(
    logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    activation: Activation = 'softmax',
    weights: Tensor | None = None,
) -> float:
    """Compute the weighted mean NLL of ``logits / temperature`` in nats, in float64.

    Args:
        logits: (N, C), any floating dtype.
        labels: (N,) integers. Softmax: [0, C). Sigmoid: [0, C], where C is background (no class).
        temperature: Positive divisor of the logits.
        activation: ``'softmax'``: cross-entropy. ``'sigmoid'``: Bernoulli, summed over classes.
        weights: (N,) non-negative, or None for equal weights.

    Raises:
        ValueError: Empty or non-finite logits, bad shapes, labels, weights or temperature.

    Example:
        >>> round(negative_log_likelihood(torch.zeros(3, 4), torch.tensor([0, 1, 3])), 4)
        1.3863
    """
    check_matrix('logits', logits)
    labels, weights = check_targets(logits, labels, weights, activation)
    if not 0 < temperature < float('inf'):
        raise ValueError(f'temperature must be positive and finite, got {temperature}.')
    total = 0.0
    for rows in row_chunks(len(labels)):
        margins = logit_margins(logits[rows].double(), labels[rows], activation)
        total += float(margin_nll(margins, 1 / temperature, activation) @ weights[rows])
    return total / float(weights.sum())


def brier_score(
    probs: Tensor,
    labels: Tensor,
    *,
    activation: Activation = 'softmax',
    weights: Tensor | None = None,
) -> float:
    """Compute the weighted mean squared distance between probabilities and one-hot targets.

    It is ``mean_n sum_c (p_nc - y_nc)^2`` (Brier 1950), in [0, 2] for softmax and [0, C] for
    sigmoid.

    Args:
        probs: (N, C) in [0, 1], any floating dtype.
        labels: (N,) integers. Softmax: [0, C). Sigmoid: [0, C], where C (background) has the
            all-zero target.
        activation: The activation that ``probs`` came from. It decides the range of labels.
        weights: (N,) non-negative, or None for equal weights.

    Raises:
        ValueError: Empty, non-finite or out-of-range probabilities, bad labels or weights.

    Example:
        >>> round(brier_score(torch.tensor([[0.8, 0.2]]), torch.tensor([0])), 4)
        0.08
    """
    check_matrix('probs', probs)
    check_probabilities('probs', probs)
    labels, weights = check_targets(probs, labels, weights, activation)
    total = 0.0
    for rows in row_chunks(len(labels)):
        targets = F.one_hot(labels[rows], probs.shape[1] + 1)[:, :-1]
        distance = (probs[rows].double() - targets).square().sum(dim=1)
        total += float(distance @ weights[rows])
    return total / float(weights.sum())
