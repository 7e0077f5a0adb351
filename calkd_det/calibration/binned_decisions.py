"""Decisions of a sigmoid head, grouped by their logit so that a fit reads them once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from calkd_det.calibration.scores import row_chunks
from calkd_det.calibration.targets import target_probabilities
from calkd_det.calibration.validation import check_samples

# Bins of 0.01 in the logit change fitted parameters by less than 1e-3.
_NUM_BINS = 4096
_LARGEST_LOGIT = 20.0
# What is made of so many samples stays in the cache.
_ROWS_AT_ONCE = 1024


class BinnedDecisions:
    """Decisions of any number of samples, those with logits in one bin kept as their weighted mean.

    Under a calibrator of a class's logit the likelihood of a decision depends on its logit alone.
    So :func:`~calkd_det.calibration.scaling_fits.fit_streamed` takes :meth:`batches` in place of
    the samples, and its passes are over the bins. The negative log-likelihoods that it returns are
    then means over decisions, not over samples.

    Args:
        num_classes: Number C of classes with bins of their own, for parameters of each class; 1
            puts the decisions of all classes into the same bins.
        num_groups: Number of sets that the groups (images) are dealt to, for intervals. The memory
            is 98 kB for each class of each set, whatever the number of samples.

    Example:
        >>> from calkd_det.calibration.scaling_families import PLATT
        >>> from calkd_det.calibration.scaling_fits import fit_streamed
        >>> decisions = BinnedDecisions(num_classes=1)
        >>> decisions.update(torch.tensor([[2.0], [2.0]]), torch.tensor([0, 1]))
        >>> decisions.update(torch.tensor([[0.0], [0.0]]), torch.tensor([0, 1]))
        >>> fit = fit_streamed(PLATT, decisions.batches)
        >>> {name: round(value, 4) + 0.0 for name, value in fit.parameters.items()}
        {'a': 0.0, 'b': 0.0}
    """

    def __init__(self, num_classes: int, num_groups: int = 1) -> None:
        self.num_classes = num_classes
        self.num_groups = num_groups
        size = num_groups * _NUM_BINS * num_classes
        self._sums = torch.zeros(3, size, dtype=torch.float64)

    @torch.no_grad()
    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        """Add samples.

        Args:
            logits: Float, shape (N, C), or (N, K) with any K if C is 1.
            labels: int64, shape (N,), in [0, K]; or target probabilities, shape (N, K).
            weights: Shape (N,), or None for equal weights.
            groups: int64, shape (N,), ids of the images; needed if there are several sets.

        Raises:
            ValueError: Logits that are not finite, bad shapes, dtypes, labels, targets or weights,
                another number of classes, or no groups for several sets.
        """
        labels, weights, groups = check_samples(logits, labels, weights, groups, 'sigmoid')
        if self.num_classes not in (1, logits.shape[1]):
            raise ValueError(f'expected {self.num_classes} classes, got {logits.shape[1]}.')
        if self.num_groups > 1 and groups is None:
            raise ValueError(f'groups must be given, to be dealt to {self.num_groups} sets.')
        self._sums = self._sums.to(logits.device)
        for rows in row_chunks(len(logits), _ROWS_AT_ONCE):
            z = logits[rows].double()
            targets = target_probabilities(labels[rows], z.shape[1])
            w = weights[rows].unsqueeze(1).expand_as(z)
            index = _bins_of(logits[rows])
            if self.num_groups > 1:
                index += (groups[rows] % self.num_groups * _NUM_BINS).unsqueeze(1)
            if self.num_classes > 1:
                index *= self.num_classes
                index += torch.arange(self.num_classes, device=index.device)
            index = index.flatten()
            for total, values in zip(self._sums, (w * z, w * targets, w)):
                total.scatter_add_(0, index, values.flatten())

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return the bins as samples of one batch.

        Yields:
            Mean logits, mean targets and total weights, float64, shape (B, C), and the sets of
            groups, int64, shape (B,).
        """
        logit_sum, target_sum, weight = self._sums.view(3, -1, self.num_classes)
        held = (weight > 0).any(dim=1)
        weight = weight[held]
        divisor = weight.clamp(min=torch.finfo(weight.dtype).tiny)
        groups = held.nonzero().squeeze(1) // _NUM_BINS
        # Rounding must not take a mean target out of [0, 1].
        targets = (target_sum[held] / divisor).clamp(0, 1)
        yield logit_sum[held] / divisor, targets, weight, groups


def _bins_of(logits: Tensor) -> Tensor:
    scaled = logits.float() * (_NUM_BINS / (2 * _LARGEST_LOGIT))
    return scaled.add_(_NUM_BINS / 2).clamp_(0, _NUM_BINS - 1).long()
