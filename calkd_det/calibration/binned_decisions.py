"""Decisions of a sigmoid head, grouped by their logit so that a fit reads them once."""

from __future__ import annotations

import torch
from torch import Tensor

from calkd_det.calibration.scores import row_chunks
from calkd_det.calibration.targets import target_probabilities

# Bins of 0.01 in the logit change fitted parameters by less than 1e-3.
_NUM_BINS = 4096
_LARGEST_LOGIT = 20.0


@torch.no_grad()
def bin_decisions(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Replace the decisions of each class whose logits are in one bin by their weighted mean.

    Under a calibrator of a class's logit the likelihood of a decision depends on its logit alone.

    Args:
        logits: Float, shape (N, C).
        labels: int64, shape (N,), in [0, C]; or target probabilities, shape (N, C).
        weights: Shape (N,).

    Returns:
        float64, each of shape (B, C): mean logits, mean targets and total weights of B bins.
    """
    num_classes = logits.shape[1]
    sums = torch.zeros(3, _NUM_BINS * num_classes, dtype=torch.float64, device=logits.device)
    columns = torch.arange(num_classes, device=logits.device)
    for rows in row_chunks(len(logits)):
        z = logits[rows].double()
        targets = target_probabilities(labels[rows], num_classes)
        w = weights[rows].double().unsqueeze(1).expand_as(z)
        share = (z + _LARGEST_LOGIT) / (2 * _LARGEST_LOGIT)
        bins = (share * _NUM_BINS).long().clamp(0, _NUM_BINS - 1)
        index = (bins * num_classes + columns).flatten()
        for total, values in zip(sums, (w * z, w * targets, w)):
            total.index_add_(0, index, values.flatten())
    logit_sum, target_sum, weight = sums.view(3, _NUM_BINS, num_classes)
    held = (weight > 0).any(dim=1)
    weight = weight[held]
    divisor = weight.clamp(min=torch.finfo(weight.dtype).tiny)
    # Rounding must not take a mean target out of [0, 1].
    return logit_sum[held] / divisor, (target_sum[held] / divisor).clamp(0, 1), weight
