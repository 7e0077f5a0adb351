"""Proper scores of a classifier: negative log-likelihood and Brier score."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from calkd_det.calibration.targets import target_probabilities
from calkd_det.calibration.validation import check_matrix, check_probabilities, check_targets
from calkd_det.knowledge import Activation

CHUNK_ROWS = 4096  # a few MB stay in the cache; four times as many rows are twice as slow


def row_chunks(num_rows: int, size: int = CHUNK_ROWS) -> Iterator[slice]:
    """Return slices over the rows of a matrix, so that float64 copies stay small."""
    return (slice(start, start + size) for start in range(0, num_rows, size))


def class_scores(logits: Tensor, activation: Activation) -> Tensor:
    """Return the scores (N, C) of logits (N, C) under the head's activation."""
    return logits.softmax(dim=1) if activation == 'softmax' else logits.sigmoid()


class Likelihood:
    """Negative log-likelihood of samples as a function of the inverse temperature b.

    It is computed from margins u (N, C) without the labels. Softmax: ``u_k = z_k - z_label``, and
    it is ``logsumexp(b u)``; with target probabilities t, ``u_k = z_k - <t, z>``. Sigmoid:
    ``u = z`` with the sign flipped at the label, and it is ``sum softplus(b u)``; with targets,
    ``u = z``, and ``b <t, z>`` is subtracted. All are convex in b. With labels, terms of one sign
    in the derivative do not cancel.

    Args:
        logits: (N, C), float32 or float64.
        labels: int64, shape (N,), or target probabilities, shape (N, C), on the same device.
        activation: That of the head.
        background: Columns of a softmax head that together are the background, whose label is the
            last column, int64, shape (K,). The likelihood of the background is then that of any of
            them, and not convex. None for the last column alone.
    """

    def __init__(
        self,
        logits: Tensor,
        labels: Tensor,
        activation: Activation,
        background: Tensor | None = None,
    ) -> None:
        self.activation = activation
        self._merged: Tensor | None = None
        self.margins = logits
        self._linear: Tensor | float = 0.0
        if labels.is_floating_point():
            mean = torch.linalg.vecdot(labels.to(logits.dtype), logits)
            if activation == 'softmax':
                self.margins = logits - mean.unsqueeze(1)
            else:
                self._linear = mean
            return
        rows = torch.arange(len(labels), device=logits.device)
        if activation == 'softmax':
            self.margins = logits - logits[rows, labels].unsqueeze(1)
            if background is not None:
                self._merged = self.margins[:, background]
                self._is_merged = labels == logits.shape[1] - 1
            return
        self.margins = logits.clone()
        foreground = labels < logits.shape[1]
        self.margins[rows[foreground], labels[foreground]] *= -1

    def nll(self, beta: float) -> Tensor:
        """Return the negative log-likelihood (N,) in nats at inverse temperature ``beta``."""
        scaled = self.margins * beta
        if self.activation == 'softmax':
            nll = scaled.logsumexp(dim=1)
            if self._merged is not None:
                nll -= self._is_merged * (self._merged * beta).logsumexp(dim=1)
            return nll
        return F.softplus(scaled).sum(dim=1) - beta * self._linear

    def slope(self, beta: float) -> Tensor:
        """Return the derivative (N,) of :meth:`nll` by ``beta``.

        It never decreases, but where columns are merged.
        """
        gates = class_scores(self.margins * beta, self.activation)
        slope = torch.linalg.vecdot(self.margins, gates) - self._linear
        if self._merged is not None:
            inner = (self._merged * beta).softmax(dim=1)
            slope -= self._is_merged * torch.linalg.vecdot(self._merged, inner)
        return slope


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
            Or target probabilities, (N, C), floating point.
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
        likelihood = Likelihood(logits[rows].double(), labels[rows], activation)
        total += float(likelihood.nll(1 / temperature) @ weights[rows])
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
            all-zero target. Or target probabilities, (N, C), floating point.
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
        targets = target_probabilities(labels[rows], probs.shape[1])
        distance = (probs[rows].double() - targets).square().sum(dim=1)
        total += float(distance @ weights[rows])
    return total / float(weights.sum())
