"""Reliability of a classifier: binned confidence and accuracy, and calibration errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calkd_det.calibration.targets import target_of
from calkd_det.calibration.validation import (
    Binning,
    check_choice,
    check_labels,
    check_labels_or_targets,
    check_matrix,
    check_probabilities,
    check_total_weight,
    check_weights,
)
from calkd_det.knowledge import Activation

_NUM_SUMS = 5  # count, weight, squared weight, weighted confidence, weighted hits


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy of each bin, from which all calibration errors are computed.

    Bins are ``(lower, upper]``; the first one also holds a confidence of exactly 0. Every field
    has one entry a bin. An empty bin has weight 0 and NaN confidence and accuracy, and adds to no
    error.

    Attributes:
        lower: Lower edge, excluded.
        upper: Upper edge, included.
        count: Number of samples of non-zero weight.
        weight: Sum of weights.
        effective_count: Effective sample size ``(sum w)^2 / sum w^2`` (Kish).
        confidence: Weighted mean confidence.
        accuracy: Weighted share of samples whose most probable class is their label. With target
            probabilities, the weighted mean target of the most probable class.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    count: tuple[int, ...]
    weight: tuple[float, ...]
    effective_count: tuple[float, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def gap(self) -> tuple[float, ...]:
        """Accuracy minus confidence of each bin: negative is over-confident, NaN is empty."""
        return tuple(a - c for a, c in zip(self.accuracy, self.confidence))

    @property
    def num_samples(self) -> int:
        """Number of samples of non-zero weight in all bins."""
        return sum(self.count)

    @property
    def ece(self) -> float:
        """Expected calibration error: mean absolute gap, weighted by bin (Naeini et al. 2015)."""
        return self.ece_over + self.ece_under

    @property
    def ece_over(self) -> float:
        """ECE_o, the over-confident part of the ECE (Kim et al. 2025)."""
        return self._mean([max(-gap, 0.0) for gap in self.gap])

    @property
    def ece_under(self) -> float:
        """ECE_u, the under-confident part of the ECE (Kim et al. 2025)."""
        return self._mean([max(gap, 0.0) for gap in self.gap])

    @property
    def mce(self) -> float:
        """Maximum calibration error: the largest absolute gap of a bin that is not empty."""
        return max(abs(gap) for gap in self.gap if not math.isnan(gap))

    @property
    def mean_confidence(self) -> float:
        """Weighted mean confidence of all samples."""
        return self._mean(self.confidence)

    @property
    def mean_accuracy(self) -> float:
        """Weighted mean accuracy of all samples."""
        return self._mean(self.accuracy)

    def _mean(self, values: Sequence[float]) -> float:
        terms = (w * value for w, value in zip(self.weight, values) if w > 0)
        return math.fsum(terms) / math.fsum(self.weight)


def wilson_interval(accuracy: float, count: float) -> tuple[float, float]:
    """Compute the 95 % Wilson score interval of a proportion (Wilson 1927).

    The interval assumes that the ``count`` samples are independent. It is NaN where ``count`` is 0.

    Example:
        >>> [round(value, 3) for value in wilson_interval(0.5, 10)]
        [0.237, 0.763]
    """
    if count == 0:
        return math.nan, math.nan
    z = 1.96  # normal quantile of 95 %
    scale = 1 + z * z / count
    centre = (accuracy + z * z / (2 * count)) / scale
    spread = accuracy * (1 - accuracy) / count + z * z / (4 * count * count)
    half = z * math.sqrt(max(0.0, spread)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def top_label(
    probs: Tensor, labels: Tensor, *, activation: Activation = 'softmax'
) -> tuple[Tensor, Tensor]:
    """Return confidence and correctness of the most probable class.

    Args:
        probs: (N, C) in [0, 1], any floating dtype.
        labels: (N,) integers. Softmax: [0, C); a correctly predicted background is a hit like any
            other. Sigmoid: [0, C]; a background sample (label C) is never a hit, because its top
            score claims an object that is not there. Zero weights leave the background out.
            Or target probabilities, (N, C), floating point.
        activation: The activation that ``probs`` came from. It decides the range of labels.

    Returns:
        Confidences (N,) in float64 and hits (N,) as bool; with target probabilities hits are the
        target of the most probable class, float64. Of equal scores ``argmax`` decides.

    Raises:
        ValueError: Empty, non-finite or out-of-range probabilities, or bad labels.
    """
    check_matrix('probs', probs)
    check_probabilities('probs', probs)
    labels = check_labels_or_targets(labels, probs, activation)
    confidences, predicted = probs.max(dim=1)
    hits = target_of(labels, predicted)
    return confidences.double(), hits if labels.is_floating_point() else hits.bool()


def reliability(
    probs: Tensor,
    labels: Tensor,
    *,
    n_bins: int = 15,
    binning: Binning = 'width',
    weights: Tensor | None = None,
    activation: Activation = 'softmax',
) -> Reliability:
    """Compute the top-label reliability of class probabilities.

    Args:
        probs: (N, C) in [0, 1], any floating dtype.
        labels: (N,) integers, see :func:`top_label` for background.
        n_bins: Number of bins.
        binning: ``'width'``: bins of equal width. ``'mass'``: bins of equal total weight. Equal
            confidences stay in one bin, so the order of samples changes nothing, and there can be
            fewer bins than ``n_bins``.
        weights: (N,) non-negative, or None for equal weights.
        activation: ``'softmax'`` or ``'sigmoid'``.

    Raises:
        ValueError: Empty, non-finite or out-of-range probabilities, bad labels, weights or
            ``n_bins``.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> result = reliability(probs, torch.tensor([0, 1, 1]), n_bins=2)
        >>> result.count, round(result.ece, 4)
        ((0, 3), 0.1333)
    """
    confidences, hits = top_label(probs, labels, activation=activation)
    return reliability_from_confidences(
        confidences, hits, n_bins=n_bins, binning=binning, weights=weights
    )


def reliability_from_confidences(
    confidences: Tensor,
    hits: Tensor,
    *,
    n_bins: int = 15,
    binning: Binning = 'width',
    weights: Tensor | None = None,
) -> Reliability:
    """Compute the reliability of confidences, given which of them came true.

    Args:
        confidences: (N,) in [0, 1], any floating dtype.
        hits: (N,) bool, whether the prediction was right; or floating point in [0, 1], what its
            confidence should have been.
        n_bins: Number of bins.
        binning: See :func:`reliability`.
        weights: (N,) non-negative, or None for equal weights.

    Raises:
        ValueError: Empty, non-finite or out-of-range confidences, bad hits, weights or ``n_bins``.

    Example:
        >>> hits = torch.tensor([True, False])
        >>> reliability_from_confidences(torch.tensor([0.75, 0.75]), hits).ece
        0.25
    """
    check_choice('binning', binning, ('width', 'mass'))
    weights = _check_confidences(confidences, hits, weights)
    check_total_weight(weights)
    confidences = confidences.double().clamp(0, 1)
    if binning == 'width':
        edges = _equal_width_edges(n_bins)
    else:
        edges = _equal_mass_edges(confidences, weights, n_bins)
    return _from_sums(edges, _bin_sums(edges, confidences, hits, weights))


def adaptive_ece(
    probs: Tensor,
    labels: Tensor,
    *,
    n_bins: int = 15,
    weights: Tensor | None = None,
    activation: Activation = 'softmax',
) -> float:
    """Compute the top-label ACE: the ECE of ``reliability(..., binning='mass')``.

    The class-wise metric that Nixon et al. (2019) call ACE is
    ``classwise_ece(..., binning='mass')``.
    """
    return reliability(
        probs, labels, n_bins=n_bins, binning='mass', weights=weights, activation=activation
    ).ece


def classwise_ece(
    probs: Tensor,
    labels: Tensor,
    *,
    n_bins: int = 15,
    binning: Binning = 'width',
    weights: Tensor | None = None,
    activation: Activation = 'softmax',
) -> float:
    """Compute the class-wise ECE: the mean over classes of the ECE of 'p_c' against 'label is c'.

    With equal-width bins this is the classwise-ECE of Kull et al. (2019), also called SCE. With
    equal-mass bins it is the ACE of Nixon et al. (2019). Every class has the same weight, also a
    class without samples. A sigmoid head's background (label C) is a negative of each class.

    Arguments and errors are those of :func:`reliability`.

    Example:
        >>> probs = torch.tensor([[0.75, 0.25], [0.75, 0.25]])
        >>> classwise_ece(probs, torch.tensor([0, 1]))
        0.25
    """
    check_matrix('probs', probs)
    check_probabilities('probs', probs)
    num_classes = probs.shape[1]
    labels = check_labels(labels, *probs.shape, activation).to(probs.device)
    errors = (
        reliability_from_confidences(
            probs[:, index], labels == index, n_bins=n_bins, binning=binning, weights=weights
        ).ece
        for index in range(num_classes)
    )
    return math.fsum(errors) / num_classes


class ReliabilityAccumulator:
    """Top-label reliability of a stream of samples, in equal-width bins.

    The whole state is the float64 tensor ``sums`` (5, n_bins). The state of several processes is
    the sum of theirs (``all_reduce``).

    Args:
        n_bins: Number of bins.
        activation: ``'softmax'`` or ``'sigmoid'``, see :func:`top_label`.

    Example:
        >>> accumulator = ReliabilityAccumulator()
        >>> for _ in range(3):
        ...     accumulator.update(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
        >>> accumulator.compute().ece
        0.25
    """

    def __init__(self, n_bins: int = 15, activation: Activation = 'softmax') -> None:
        check_choice('activation', activation, ('softmax', 'sigmoid'))
        self.activation = activation
        self._edges = _equal_width_edges(n_bins)
        self.sums = torch.zeros(_NUM_SUMS, n_bins, dtype=torch.float64)

    def update(self, probs: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Add samples; arguments and errors are those of :func:`reliability`."""
        self.update_confidences(*top_label(probs, labels, activation=self.activation), weights)

    def update_confidences(
        self, confidences: Tensor, hits: Tensor, weights: Tensor | None = None
    ) -> None:
        """Add samples given as confidences (N,) in [0, 1] and hits (N,), bool or in [0, 1]."""
        weights = _check_confidences(confidences, hits, weights)
        confidences = confidences.double().clamp(0, 1)
        sums = _bin_sums(self._edges, confidences, hits, weights)
        self.sums += sums.to(self.sums.device)

    def compute(self) -> Reliability:
        """Return the reliability of all samples so far.

        Raises:
            ValueError: There are no samples of non-zero weight.
        """
        if self.sums[1].sum() == 0:
            raise ValueError('no samples of non-zero weight: call update() before compute().')
        return _from_sums(self._edges, self.sums)


def _check_confidences(confidences: Tensor, hits: Tensor, weights: Tensor | None) -> Tensor:
    if confidences.ndim != 1:
        raise ValueError(f'confidences must have shape (N,), got {tuple(confidences.shape)}.')
    check_matrix('confidences', confidences.unsqueeze(1))
    check_probabilities('confidences', confidences)
    is_float = hits.is_floating_point()
    if not (is_float or hits.dtype == torch.bool) or hits.shape != confidences.shape:
        raise ValueError(
            f'hits must be bool or floating point of shape {tuple(confidences.shape)}, '
            f'got {hits.dtype} {tuple(hits.shape)}.'
        )
    if is_float:
        check_probabilities('hits', hits)
    return check_weights(weights, confidences)


def _check_n_bins(n_bins: int) -> None:
    if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 1:
        raise ValueError(f'n_bins must be a positive integer, got {n_bins!r}.')


def _equal_width_edges(n_bins: int) -> Tensor:
    _check_n_bins(n_bins)
    return torch.arange(n_bins + 1, dtype=torch.float64) / n_bins


def _equal_mass_edges(confidences: Tensor, weights: Tensor, n_bins: int) -> Tensor:
    """Return the edges at which the summed weight reaches each k / n_bins of the total."""
    _check_n_bins(n_bins)
    order = confidences.argsort()
    mass = weights[order].cumsum(0)
    targets = torch.arange(1, n_bins, dtype=torch.float64, device=mass.device) / n_bins
    # Without a tolerance, rounding of the sum could move an edge by one sample.
    reached = torch.searchsorted(mass, targets * mass[-1] * (1 - 1e-12))
    inner = confidences[order][reached].unique()
    inner = inner[(inner > 0) & (inner < 1)].cpu()
    return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])


def _bin_sums(edges: Tensor, confidences: Tensor, hits: Tensor, weights: Tensor) -> Tensor:
    inner = edges[1:-1].to(confidences.device)
    index = torch.bucketize(confidences, inner)  # right=False: (lower, upper]
    rows = (weights > 0, weights, weights.square(), weights * confidences, weights * hits)
    # Not bincount, which torch's deterministic mode refuses on a GPU.
    sums = weights.new_zeros(len(rows), len(edges) - 1, dtype=torch.float64)
    return sums.index_add_(1, index, torch.stack([row.double() for row in rows]))


def _from_sums(edges: Tensor, sums: Tensor) -> Reliability:
    count, weight, squared, confidence, hits = sums.cpu()
    return Reliability(
        lower=tuple(edges[:-1].tolist()),
        upper=tuple(edges[1:].tolist()),
        count=tuple(int(value) for value in count),
        weight=tuple(weight.tolist()),
        effective_count=tuple((weight.square() / squared).nan_to_num(0.0).tolist()),
        confidence=tuple((confidence / weight).tolist()),
        accuracy=tuple((hits / weight).tolist()),
    )
